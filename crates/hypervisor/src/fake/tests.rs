use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{FakeHypervisor, Fault};
use crate::config::{
    Controller, DriveConfig, DriveKind, Generation, ImageFormat, LayerFile, MachineConfig,
};
use crate::image::{ImageTool, NewImage};
use crate::machine::{Hypervisor, Launch, Machine, MachineEvent, MachineStatus};
use crate::{CommitSpec, ErrorKind, JobControl, NewOverlay};

pub(super) fn config(dir: &std::path::Path) -> MachineConfig {
    let mut config = MachineConfig::new(
        Uuid::from_u128(1),
        "fake",
        Generation::Gen1,
        dir.join("run"),
    );
    config.drives.push(DriveConfig {
        id: "sda".into(),
        controller: Controller::Scsi(0),
        slot: 0,
        kind: DriveKind::Disk,
        chain: vec![LayerFile::new(
            "base",
            dir.join("base.qcow2"),
            ImageFormat::Qcow2,
        )],
        read_only: false,
    });
    config
}

fn overlay(dir: &std::path::Path, node: &str) -> NewOverlay {
    NewOverlay {
        drive_id: "sda".into(),
        overlay_path: dir.join(format!("{node}.qcow2")),
        overlay_node: node.into(),
        size: None,
        backing_name: None,
        owner: None,
    }
}

async fn names(machine: &Arc<dyn Machine>) -> Vec<String> {
    let state = machine.reconcile().await.unwrap();
    state
        .drive("sda")
        .unwrap()
        .chain
        .iter()
        .map(|node| node.node_name.clone())
        .collect()
}

#[tokio::test]
async fn a_fake_makes_and_folds_layers_like_the_real_one() {
    let dir = tempfile::tempdir().unwrap();
    let images = ImageTool::default();
    let base = NewImage::new(dir.path().join("base.qcow2"), ImageFormat::Qcow2, 1 << 20);
    images.create(&base).await.unwrap();
    let hypervisor = FakeHypervisor::with_images(images.clone());
    let machine = hypervisor
        .launch(&config(dir.path()), Launch::Fresh)
        .await
        .unwrap();
    machine
        .freeze_layers(&[overlay(dir.path(), "l1")])
        .await
        .unwrap();
    hypervisor.clock().advance(Duration::from_secs(5));
    let second = machine
        .freeze_layers(&[overlay(dir.path(), "l2")])
        .await
        .unwrap();
    assert_eq!(second.instant, hypervisor.clock().now());
    let info = images
        .info_as(
            &dir.path().join("l2.qcow2"),
            Some(ImageFormat::Qcow2),
            false,
        )
        .await
        .unwrap();
    assert_eq!(info.backing.as_deref(), Some("./l1.qcow2"));
    let spec = CommitSpec {
        drive_id: "sda".into(),
        top_node: "l1".into(),
        base_node: "base".into(),
        backing_name: None,
    };
    machine.commit(&spec, &JobControl::new()).await.unwrap();
    assert_eq!(names(&machine).await, ["base", "l2"]);
}

#[tokio::test]
async fn a_lost_answer_means_the_work_was_done() {
    let dir = tempfile::tempdir().unwrap();
    let hypervisor = FakeHypervisor::new();
    let machine = hypervisor
        .launch(&config(dir.path()), Launch::Fresh)
        .await
        .unwrap();
    hypervisor
        .script()
        .on_next("mark", Fault::lose_answer(Duration::from_secs(60)));
    let error = machine
        .freeze_layers(&[overlay(dir.path(), "l1")])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(names(&machine).await, ["base", "l1"]);
    assert!(
        machine
            .freeze_layers(&[overlay(dir.path(), "l1")])
            .await
            .unwrap()
            .already
    );
}

#[tokio::test]
async fn a_refused_mark_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let hypervisor = FakeHypervisor::new();
    let machine = hypervisor
        .launch(&config(dir.path()), Launch::Fresh)
        .await
        .unwrap();
    hypervisor.script().on("mark", 1, Fault::refuse("no"));
    let error = machine
        .freeze_layers(&[overlay(dir.path(), "l1")])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(machine.reconcile().await.unwrap().loose_nodes.is_empty());
    assert_eq!(hypervisor.script().count("discard_layers"), 1);
}

#[tokio::test]
async fn a_hanging_call_waits_for_its_release() {
    let dir = tempfile::tempdir().unwrap();
    let hypervisor = FakeHypervisor::new();
    let machine = hypervisor
        .launch(&config(dir.path()), Launch::Fresh)
        .await
        .unwrap();
    hypervisor.script().on_next("resume", Fault::Hang);
    let hanging = tokio::spawn({
        let machine = Arc::clone(&machine);
        async move { machine.resume().await }
    });
    while hypervisor.script().count("resume") == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(machine.status().await.unwrap(), MachineStatus::Prelaunch);
    hypervisor.script().release_hangs();
    hanging.await.unwrap().unwrap();
    assert_eq!(machine.status().await.unwrap(), MachineStatus::Running);
}

#[tokio::test]
async fn a_dead_fake_answers_like_a_dead_process() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let hypervisor = FakeHypervisor::new();
    let machine = hypervisor.launch(&config, Launch::Fresh).await.unwrap();
    assert!(hypervisor.reattach(&config).await.unwrap().is_some());
    let mut events = machine.events();
    hypervisor.machine(config.id).unwrap().die(9);
    assert!(
        matches!(events.recv().await.unwrap(), MachineEvent::Exited(exit) if exit.signal == Some(9))
    );
    assert_eq!(machine.status().await.unwrap_err().kind(), ErrorKind::Gone);
    assert!(hypervisor.reattach(&config).await.unwrap().is_none());
    hypervisor.launch(&config, Launch::Fresh).await.unwrap();
}
