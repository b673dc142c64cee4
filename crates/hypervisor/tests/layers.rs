//! Layers on a real QEMU: what is frozen stays, what is folded arrives, and every step can be repeated.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

mod support;

use hypervisor::config::Controller;
use hypervisor::{
    CommitOutcome, CommitSpec, Error, ErrorKind, ImageFormat, JobControl, Launch, LayerFile,
    Machine,
};
use serde_json::json;
use support::{Bench, MIB, Model, Running, assert_same, chain, loose};

fn spec(drive: &str, top: &str, base: &str) -> CommitSpec {
    CommitSpec {
        drive_id: drive.into(),
        top_node: top.into(),
        base_node: base.into(),
        backing_name: None,
    }
}

#[tokio::test]
async fn a_frozen_layer_keeps_its_bytes_while_the_disk_goes_on() {
    let mut bench = Bench::new();
    let size = 4 * MIB + 512;
    bench.add_disk("sda", ImageFormat::Raw, size).await;
    bench.add_disk("sdb", ImageFormat::Qcow2, size).await;
    bench.config.drives[0].controller = Controller::Ide(0);
    let machine = bench.launch().await;
    let (mut a, mut b) = (Model::new(size), Model::new(size));
    a.write(&machine, "sda", 1, 0, MIB).await;
    b.write(&machine, "sdb", 2, MIB, 4096).await;
    let (frozen_a, frozen_b) = (a.clone(), b.clone());

    let report = machine
        .freeze_layers(&[bench.overlay("sda", "a1"), bench.overlay("sdb", "b1")])
        .await
        .unwrap();
    assert!(!report.already);
    a.write(&machine, "sda", 3, 64 * 1024, 70_000 / 512 * 512)
        .await;
    b.write(&machine, "sdb", 4, 4 * MIB, 512).await;

    assert_same(
        &bench
            .contents(&bench.path("sda.base"), ImageFormat::Raw)
            .await,
        &frozen_a,
        "sda frozen",
    );
    assert_same(
        &bench
            .contents(&bench.path("sdb.base"), ImageFormat::Qcow2)
            .await,
        &frozen_b,
        "sdb frozen",
    );
    assert_eq!(chain(&machine, "sda").await, ["sda-base", "a1"]);

    // A power cut: the frozen layers stay exact, and the layers on top still say what changed.
    machine.kill().await.unwrap();
    assert_same(
        &bench
            .contents(&bench.path("sda.base"), ImageFormat::Raw)
            .await,
        &frozen_a,
        "sda after the cut",
    );
    let info = bench
        .images
        .info_as(&bench.path("a1.qcow2"), Some(ImageFormat::Qcow2), false)
        .await
        .unwrap();
    assert_eq!(info.backing.as_deref(), Some("./sda.base"));
    assert_eq!(info.backing_format.as_deref(), Some("raw"));
    assert!(info.extended_l2);
}

#[tokio::test]
async fn a_machine_started_on_a_chain_shows_its_contents() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    let mut model = Model::new(MIB);
    {
        let machine = bench.launch().await;
        model.write(&machine, "sda", 7, 0, 65536).await;
        machine
            .freeze_layers(&[bench.overlay("sda", "l1")])
            .await
            .unwrap();
        model.write(&machine, "sda", 8, 32768, 65536).await;
        machine.quit(support::SOON).await.unwrap();
    }
    let layer = LayerFile::new("l1", bench.path("l1.qcow2"), ImageFormat::Qcow2);
    bench.config.drives[0].chain.push(layer);
    let machine = bench.launch().await;
    machine
        .freeze_layers(&[bench.overlay("sda", "l2")])
        .await
        .unwrap();
    model.write(&machine, "sda", 9, 0, 512).await;
    machine.quit(support::SOON).await.unwrap();
    assert_same(
        &bench
            .contents(&bench.path("l2.qcow2"), ImageFormat::Qcow2)
            .await,
        &model,
        "three layers",
    );
}

#[tokio::test]
async fn a_middle_layer_folds_into_its_base_and_leaves_the_others_exact() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Raw, 2 * MIB).await;
    let machine = bench.launch().await;
    let mut model = Model::new(2 * MIB);
    model.write(&machine, "sda", 1, 0, 2 * MIB).await;
    machine
        .freeze_layers(&[bench.overlay("sda", "l1")])
        .await
        .unwrap();
    model.write(&machine, "sda", 2, MIB, 65536).await;
    machine
        .freeze_layers(&[bench.overlay("sda", "l2")])
        .await
        .unwrap();
    let second_point = model.clone();
    model.write(&machine, "sda", 3, 0, 4096).await;

    let control = JobControl::new();
    let outcome = machine
        .commit(&spec("sda", "l1", "sda-base"), &control)
        .await
        .unwrap();
    assert_eq!(outcome, CommitOutcome::Committed);
    assert_eq!(chain(&machine, "sda").await, ["sda-base", "l2"]);
    // Still there for a service that was ended before its record said so.
    assert_eq!(loose(&machine).await, ["l1"]);
    let told = machine
        .commit(&spec("sda", "l1", "sda-base"), &control)
        .await
        .unwrap();
    assert_eq!(told, CommitOutcome::AlreadyDone);
    machine
        .drop_merged(&[bench.path("l1.qcow2"), bench.path("sda.base")])
        .await
        .unwrap();
    assert!(loose(&machine).await.is_empty());
    assert!(machine.reconcile().await.unwrap().jobs.is_empty());
    assert_same(
        &bench
            .contents(&bench.path("sda.base"), ImageFormat::Raw)
            .await,
        &second_point,
        "base",
    );
    let info = bench
        .images
        .info_as(&bench.path("l2.qcow2"), Some(ImageFormat::Qcow2), true)
        .await
        .unwrap();
    assert_eq!(info.backing.as_deref(), Some("./sda.base"));
    std::fs::remove_file(bench.path("l1.qcow2")).unwrap();

    let again = machine
        .commit(&spec("sda", "l1", "sda-base"), &control)
        .await
        .unwrap();
    assert_eq!(again, CommitOutcome::AlreadyDone);
    machine.quit(support::SOON).await.unwrap();
    assert_same(
        &bench
            .contents(&bench.path("l2.qcow2"), ImageFormat::Qcow2)
            .await,
        &model,
        "disk",
    );
}

#[tokio::test]
async fn folding_the_active_layer_makes_the_base_active_again() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, 2 * MIB).await;
    let machine = bench.launch().await;
    let mut model = Model::new(2 * MIB);
    machine
        .freeze_layers(&[bench.overlay("sda", "l1")])
        .await
        .unwrap();
    model.write(&machine, "sda", 2, MIB, 65536).await;
    machine
        .freeze_layers(&[bench.overlay("sda", "l2")])
        .await
        .unwrap();
    model.write(&machine, "sda", 3, 0, 4096).await;

    machine
        .commit(&spec("sda", "l2", "sda-base"), &JobControl::new())
        .await
        .unwrap();
    assert_eq!(chain(&machine, "sda").await, ["sda-base"]);
    machine
        .drop_merged(&[bench.path("l2.qcow2"), bench.path("l1.qcow2")])
        .await
        .unwrap();
    assert!(loose(&machine).await.is_empty());
    model.write(&machine, "sda", 4, 512, 512).await;
    machine.quit(support::SOON).await.unwrap();
    assert_same(
        &bench
            .contents(&bench.path("sda.base"), ImageFormat::Qcow2)
            .await,
        &model,
        "disk",
    );
    assert_eq!(
        bench
            .images
            .check_layer(&bench.path("sda.base"))
            .await
            .unwrap()
            .corruptions,
        0
    );
}

#[tokio::test]
async fn a_commit_found_running_is_taken_over_cancelled_and_done_again() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Raw, 8 * MIB).await;
    let machine = bench.launch().await;
    let mut model = Model::new(8 * MIB);
    machine
        .freeze_layers(&[bench.overlay("sda", "l1")])
        .await
        .unwrap();
    model.write(&machine, "sda", 5, 0, 8 * MIB).await;
    machine
        .freeze_layers(&[bench.overlay("sda", "l2")])
        .await
        .unwrap();

    // As a service would have started it, only too slow to end by itself.
    let slow = json!({
        "job-id": "commit-l1", "device": "l2", "top-node": "l1", "base-node": "sda-base",
        "backing-file": "sda.base", "auto-dismiss": false, "speed": 65536,
    });
    machine.execute("block-commit", slow).await.unwrap();
    let control = std::sync::Arc::new(JobControl::new());
    let canceller = std::sync::Arc::clone(&control);
    tokio::spawn(async move {
        while canceller.progress().total == 0 {
            tokio::task::yield_now().await;
        }
        canceller.cancel();
    });
    let error = machine
        .commit(&spec("sda", "l1", "sda-base"), &control)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(chain(&machine, "sda").await, ["sda-base", "l1", "l2"]);
    assert!(machine.reconcile().await.unwrap().jobs.is_empty());

    machine
        .commit(&spec("sda", "l1", "sda-base"), &JobControl::new())
        .await
        .unwrap();
    assert_eq!(chain(&machine, "sda").await, ["sda-base", "l2"]);
    assert_same(
        &bench
            .contents(&bench.path("sda.base"), ImageFormat::Raw)
            .await,
        &model,
        "base",
    );
}

#[tokio::test]
async fn every_step_of_a_mark_can_be_repeated() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    let machine = bench.launch().await;
    let overlays = [bench.overlay("sda", "l1")];
    let first = machine.prepare_layers(&overlays).await.unwrap();
    assert_eq!(loose(&machine).await, ["l1"]);
    let second = machine.prepare_layers(&overlays).await.unwrap();
    assert_eq!(first, second);
    assert!(!machine.mark(&second).await.unwrap().already);
    assert!(machine.mark(&second).await.unwrap().already);
    let third = machine.prepare_layers(&overlays).await.unwrap();
    assert!(third.already_marked);
    assert_eq!(third.frozen, ["sda-base"]);
    machine.discard_layers(&third).await.unwrap();
    assert_eq!(chain(&machine, "sda").await, ["sda-base", "l1"]);
    assert!(bench.path("l1.qcow2").exists());
}

#[tokio::test]
async fn a_prepared_layer_that_is_not_wanted_leaves_nothing() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    let machine = bench.launch().await;
    let prepared = machine
        .prepare_layers(&[bench.overlay("sda", "l1")])
        .await
        .unwrap();
    for _ in 0..2 {
        machine.discard_layers(&prepared).await.unwrap();
        assert!(loose(&machine).await.is_empty());
        assert!(!bench.path("l1.qcow2").exists());
    }
}

#[tokio::test]
async fn a_failed_preparation_undoes_the_layers_it_had_made() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    bench.add_disk("sdb", ImageFormat::Qcow2, MIB).await;
    let machine = bench.launch().await;
    let mut bad = bench.overlay("sdb", "b1");
    bad.overlay_path = bench.path("no-such-directory/b1.qcow2");
    let error = machine
        .freeze_layers(&[bench.overlay("sda", "a1"), bad])
        .await
        .unwrap_err();
    let Error::Image { stderr, .. } = &error else {
        panic!("{error}")
    };
    assert!(stderr.contains("No such file"), "{stderr}");
    assert!(loose(&machine).await.is_empty());
    assert!(!bench.path("a1.qcow2").exists());
    assert_eq!(chain(&machine, "sda").await, ["sda-base"]);
}

#[tokio::test]
async fn a_refused_transaction_changes_no_disk() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    bench.add_disk("sdb", ImageFormat::Qcow2, MIB).await;
    let machine = bench.launch().await;
    let prepared = machine
        .prepare_layers(&[bench.overlay("sda", "a1"), bench.overlay("sdb", "b1")])
        .await
        .unwrap();
    machine.close_nodes(&["b1".to_owned()]).await.unwrap();
    let error = machine.mark(&prepared).await.unwrap_err();
    assert!(matches!(error, Error::Qmp { .. }), "{error}");
    assert_eq!(chain(&machine, "sda").await, ["sda-base"]);
    machine.discard_layers(&prepared).await.unwrap();
    assert!(loose(&machine).await.is_empty());
}

#[tokio::test]
async fn a_file_with_content_is_never_taken_for_an_empty_layer() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    let machine = bench.launch().await;
    machine
        .freeze_layers(&[bench.overlay("sda", "l1")])
        .await
        .unwrap();
    let mut model = Model::new(MIB);
    model.write(&machine, "sda", 1, 0, 512).await;
    machine.quit(support::SOON).await.unwrap();
    let before = std::fs::read(bench.path("l1.qcow2")).unwrap();

    let machine = bench.launch().await;
    let error = machine
        .freeze_layers(&[bench.overlay("sda", "l1")])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert_eq!(std::fs::read(bench.path("l1.qcow2")).unwrap(), before);
    assert!(loose(&machine).await.is_empty());
}

#[tokio::test]
async fn an_empty_layer_left_by_an_interrupted_attempt_is_used_again() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    {
        let machine = bench.launch().await;
        machine
            .prepare_layers(&[bench.overlay("sda", "l1")])
            .await
            .unwrap();
        machine.kill().await.unwrap();
    }
    let machine = bench.launch().await;
    machine
        .freeze_layers(&[bench.overlay("sda", "l1")])
        .await
        .unwrap();
    assert_eq!(chain(&machine, "sda").await, ["sda-base", "l1"]);
}

#[tokio::test]
async fn the_state_of_disks_is_known_again_after_the_service_restarted() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    let machine = bench.launch().await;
    machine
        .freeze_layers(&[bench.overlay("sda", "l1")])
        .await
        .unwrap();
    let prepared = machine
        .prepare_layers(&[bench.overlay("sda", "l2")])
        .await
        .unwrap();
    let before = machine.reconcile().await.unwrap();
    let pid = machine.pid();
    // The service dies here, between preparing and marking.
    let config = bench.config.clone();
    machine.forget();
    let machine = Running::new(
        bench
            .hypervisor
            .reattach_qemu(&config)
            .await
            .unwrap()
            .unwrap(),
    );
    assert_eq!(machine.pid(), pid);
    assert_eq!(machine.reconcile().await.unwrap(), before);
    assert!(!machine.mark(&prepared).await.unwrap().already);
    assert_eq!(chain(&machine, "sda").await, ["sda-base", "l1", "l2"]);
    let refused = bench
        .hypervisor
        .launch_qemu(&config, Launch::Fresh)
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::AlreadyRunning { .. }), "{refused}");
}

#[tokio::test]
async fn a_base_with_cut_off_bytes_is_not_folded_into_under_the_machine() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Raw, 2 * MIB).await;
    let machine = bench.launch().await;
    let mut model = Model::new(2 * MIB);
    model.write(&machine, "sda", 1, 0, 2 * MIB).await;
    machine
        .freeze_layers(&[bench.overlay("sda", "l1")])
        .await
        .unwrap();
    machine.resize("sda", MIB).await.unwrap();
    machine
        .freeze_layers(&[bench.overlay("sda", "l2")])
        .await
        .unwrap();
    machine.resize("sda", 2 * MIB).await.unwrap();
    for top in ["l1", "l2"] {
        let error = machine
            .commit(&spec("sda", top, "sda-base"), &JobControl::new())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    }
    model.0[MIB as usize..].fill(0);
    machine.quit(support::SOON).await.unwrap();
    assert_same(
        &bench
            .contents(&bench.path("l2.qcow2"), ImageFormat::Qcow2)
            .await,
        &model,
        "disk",
    );
}
