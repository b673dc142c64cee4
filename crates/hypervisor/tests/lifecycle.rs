//! Starting, finding, saving and ending a real QEMU; drives that come and go; exports.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

mod support;

use std::time::Duration;

use hypervisor::config::{
    Acceleration, BootSource, Controller, DriveConfig, DriveKind, Generation, Nic, NicBackend,
};
use hypervisor::{
    Error, ErrorKind, Hypervisor, ImageFormat, Launch, LayerFile, Machine, MachineEvent,
    MachineStatus, NewImage,
};
use serde_json::{Value, json};
use support::{Bench, MIB, Model, Running, SOON, assert_same, chain, loose};

async fn last_event(
    mut events: tokio::sync::broadcast::Receiver<MachineEvent>,
) -> Vec<MachineEvent> {
    let mut seen = Vec::new();
    let all = async {
        while let Ok(event) = events.recv().await {
            let last = matches!(event, MachineEvent::Exited(_));
            seen.push(event);
            if last {
                break;
            }
        }
    };
    tokio::time::timeout(SOON, all).await.unwrap();
    seen
}

#[tokio::test]
async fn a_machine_goes_through_its_states_and_ends_by_itself() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    let machine = bench.launch().await;
    let events = machine.events();
    assert_eq!(machine.status().await.unwrap(), MachineStatus::Prelaunch);
    machine.resume().await.unwrap();
    machine.resume().await.unwrap();
    assert_eq!(machine.status().await.unwrap(), MachineStatus::Running);
    machine.pause().await.unwrap();
    assert_eq!(machine.status().await.unwrap(), MachineStatus::Paused);
    machine.reset().await.unwrap();
    machine.quit(SOON).await.unwrap();
    machine.quit(SOON).await.unwrap();
    let seen = last_event(events).await;
    for wanted in [
        MachineEvent::Resumed,
        MachineEvent::Stopped,
        MachineEvent::Reset { guest: false },
    ] {
        assert!(seen.contains(&wanted), "{wanted:?} in {seen:?}");
    }
    let Some(MachineEvent::Exited(exit)) = seen.last() else {
        panic!("{seen:?}")
    };
    assert_eq!(exit.code, Some(0));
    assert!(matches!(
        machine.status().await,
        Err(Error::ProcessGone { .. })
    ));
}

#[tokio::test]
async fn a_killed_machine_is_noticed_by_the_service_that_found_it_again() {
    let bench = Bench::new();
    let machine = bench.launch().await;
    let pid = machine.pid();
    machine.forget();
    let found = Running::new(
        bench
            .hypervisor
            .reattach_qemu(&bench.config)
            .await
            .unwrap()
            .unwrap(),
    );
    assert_eq!(found.pid(), pid);
    let events = found.events();
    found.kill().await.unwrap();
    assert!(matches!(
        last_event(events).await.last(),
        Some(MachineEvent::Exited(_))
    ));
    assert!(
        bench
            .hypervisor
            .reattach(&bench.config)
            .await
            .unwrap()
            .is_none()
    );
    // And it can start again over what the dead process left.
    bench.launch().await.quit(SOON).await.unwrap();
}

#[tokio::test]
async fn a_start_that_fails_says_what_qemu_said() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    std::fs::write(&bench.config.drives[0].chain[0].path, "no qcow2 at all").unwrap();
    let error = bench
        .hypervisor
        .launch_qemu(&bench.config, Launch::Fresh)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Start, "{error}");
    assert!(
        error.detail().unwrap().contains("not in qcow2 format"),
        "{:?}",
        error.detail()
    );
    assert!(
        bench
            .hypervisor
            .reattach(&bench.config)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn features_of_this_host_are_told() {
    let bench = Bench::new();
    let features = bench.hypervisor.features().await.unwrap();
    assert!(
        features
            .machine_gen1
            .as_deref()
            .unwrap()
            .starts_with("pc-i440fx-"),
        "{features:?}"
    );
    assert!(
        features
            .machine_gen2
            .as_deref()
            .unwrap()
            .starts_with("pc-q35-"),
        "{features:?}"
    );
    assert!(features.has_command("blockdev-snapshot"));
    assert_eq!(
        features.migrate_file,
        (features.version.major, features.version.minor) >= (8, 2)
    );
    let again = bench.hypervisor.features().await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&features, &again));
}

#[tokio::test]
async fn a_generation_2_machine_starts_or_says_what_is_missing() {
    let mut bench = Bench::new();
    bench.config.generation = Generation::Gen2;
    bench.config.memory_mib = 128;
    bench.config.firmware_vars = Some(bench.path("vars.fd"));
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    let features = bench.hypervisor.features().await.unwrap();
    match bench
        .hypervisor
        .launch_qemu(&bench.config, Launch::Fresh)
        .await
    {
        Ok(machine) => {
            let machine = Running::new(machine);
            assert!(features.firmware.is_some());
            assert!(bench.path("vars.fd").exists());
            machine.quit(SOON).await.unwrap();
        }
        Err(error) => {
            assert!(features.firmware.is_none(), "{error}: {:?}", error.detail());
            assert_eq!(error.kind(), ErrorKind::Unsupported);
        }
    }
}

#[tokio::test]
async fn network_adapters_and_the_agent_channel_are_there() {
    let mut bench = Bench::new();
    bench.config.guest_agent = true;
    for (mac, backend) in [
        ("52:54:00:00:00:01", NicBackend::User),
        ("52:54:00:00:00:02", NicBackend::None),
    ] {
        bench.config.nics.push(Nic {
            mac: mac.into(),
            backend,
        });
    }
    bench.config.boot_order = vec![BootSource::Nic(0)];
    let machine = bench.launch().await;
    for index in 0..2 {
        let question = serde_json::json!({ "path": format!("/machine/peripheral/nic{index}"), "property": "mac" });
        let mac = machine.execute("qom-get", question).await.unwrap();
        assert_eq!(mac.as_str(), Some(bench.config.nics[index].mac.as_str()));
    }
    assert!(machine.files().agent().exists());
    machine.quit(SOON).await.unwrap();
}

#[tokio::test]
async fn kvm_that_cannot_work_is_refused_with_its_reason() {
    let mut bench = Bench::new();
    bench.config.acceleration = Acceleration::Kvm;
    let usable = bench.hypervisor.features().await.unwrap().kvm.is_usable();
    match bench
        .hypervisor
        .launch_qemu(&bench.config, Launch::Fresh)
        .await
    {
        Ok(machine) => {
            assert!(usable);
            Running::new(machine).quit(SOON).await.unwrap();
        }
        Err(error) => assert!(!usable && error.kind() == ErrorKind::Unsupported, "{error}"),
    }
}

#[tokio::test]
async fn a_guest_goes_on_and_stays_running_whose_save_nobody_waits_for_any_more() {
    let bench = Bench::new();
    let machine = bench.launch().await;
    machine.resume().await.unwrap();
    // What a service leaves that is killed while it saves: the guest stands still, and QEMU writes on.
    let slow = json!({ "max-bandwidth": 4096 });
    let uri = format!("exec:cat > {}", bench.path("left").display());
    machine.execute("stop", Value::Null).await.unwrap();
    for (command, arguments) in [
        ("migrate-set-parameters", slow),
        ("migrate", json!({ "uri": uri })),
    ] {
        machine.execute(command, arguments).await.unwrap();
    }
    machine.resume().await.unwrap();
    assert_eq!(machine.status().await.unwrap(), MachineStatus::Running);
    let left = machine.execute("query-migrate", Value::Null).await.unwrap();
    assert_eq!(left["status"], "cancelled", "it would stop the guest again");
    let state = bench.path("state");
    machine.save_state(&state).await.unwrap();
    assert!(state.exists());
}

#[tokio::test]
async fn a_saved_machine_goes_on_where_it_was() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    let state = bench.path("it's the state");
    let machine = bench.launch().await;
    let mut model = Model::new(MIB);
    model.write(&machine, "sda", 5, 0, 4096).await;
    machine.resume().await.unwrap();
    let saved = machine.save_state(&state).await.unwrap();
    assert_eq!(saved.bytes, std::fs::metadata(&state).unwrap().len());
    machine.exited().await;
    assert!(!bench.path("it's the state.partial").exists());
    assert_same(
        &bench
            .contents(&bench.path("sda.base"), ImageFormat::Qcow2)
            .await,
        &model,
        "saved disk",
    );

    let machine = Running::new(
        bench
            .hypervisor
            .launch_qemu(&bench.config, Launch::Restore(state.clone()))
            .await
            .unwrap(),
    );
    assert_eq!(machine.status().await.unwrap(), MachineStatus::Paused);
    machine.resume().await.unwrap();
    assert_eq!(machine.status().await.unwrap(), MachineStatus::Running);
    model.write(&machine, "sda", 6, 4096, 4096).await;
    machine.quit(SOON).await.unwrap();
    assert_same(
        &bench
            .contents(&bench.path("sda.base"), ImageFormat::Qcow2)
            .await,
        &model,
        "restored disk",
    );
}

#[tokio::test]
async fn saving_is_taken_up_again_after_the_service_died() {
    let bench = Bench::new();
    let state = bench.path("state");
    let machine = bench.launch().await;
    machine.resume().await.unwrap();
    // As far as a service gets that dies before it can rename the file.
    let partial = bench.path("state.partial");
    std::fs::write(&partial, "").unwrap();
    machine.pause().await.unwrap();
    let uri = format!("exec:cat > {}", partial.display());
    let uri = if machine.features().migrate_file {
        format!("file:{}", partial.display())
    } else {
        uri
    };
    machine
        .execute("migrate", serde_json::json!({ "uri": uri }))
        .await
        .unwrap();
    machine.forget();

    let machine = Running::new(
        bench
            .hypervisor
            .reattach_qemu(&bench.config)
            .await
            .unwrap()
            .unwrap(),
    );
    let saved = machine.save_state(&state).await.unwrap();
    assert!(saved.bytes > 0 && !partial.exists());
    machine.exited().await;
    let machine = Running::new(
        bench
            .hypervisor
            .launch_qemu(&bench.config, Launch::Restore(state))
            .await
            .unwrap(),
    );
    machine.resume().await.unwrap();
    assert_eq!(machine.status().await.unwrap(), MachineStatus::Running);
}

#[tokio::test]
async fn a_state_that_cannot_be_written_leaves_the_machine_paused() {
    let bench = Bench::new();
    let machine = bench.launch().await;
    machine.resume().await.unwrap();
    let error = machine
        .save_state(&bench.path("no/such/place"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    if std::path::Path::new("/dev/full").exists() {
        std::os::unix::fs::symlink("/dev/full", bench.path("full.partial")).unwrap();
        let error = machine.save_state(&bench.path("full")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(!bench.path("full").exists());
    }
    machine.resume().await.unwrap();
    assert_eq!(machine.status().await.unwrap(), MachineStatus::Running);
}

#[tokio::test]
async fn a_damaged_state_is_refused_and_leaves_no_process() {
    let bench = Bench::new();
    let state = bench.path("state");
    std::fs::write(&state, vec![1_u8; 4096]).unwrap();
    let error = bench
        .hypervisor
        .launch_qemu(&bench.config, Launch::Restore(state))
        .await
        .unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Refused | ErrorKind::Gone),
        "{error}"
    );
    assert!(
        bench
            .hypervisor
            .reattach(&bench.config)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn scsi_drives_come_and_go_while_the_machine_runs() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    let disk = bench.disk("sdb", ImageFormat::Raw, MIB).await;
    let machine = bench.launch().await;
    for _ in 0..2 {
        machine.add_drive(&disk).await.unwrap();
        assert_eq!(chain(&machine, "sdb").await, ["sdb-base"]);
    }
    let mut model = Model::new(MIB);
    model.write(&machine, "sdb", 9, 0, 512).await;
    machine
        .freeze_layers(&[bench.overlay("sdb", "b1")])
        .await
        .unwrap();
    for _ in 0..2 {
        machine.remove_drive("sdb").await.unwrap();
        assert!(machine.reconcile().await.unwrap().drive("sdb").is_none());
        assert!(loose(&machine).await.is_empty());
    }
    assert_same(
        &bench
            .contents(&bench.path("sdb.base"), ImageFormat::Raw)
            .await,
        &model,
        "sdb",
    );
}

#[tokio::test]
async fn a_drive_that_cannot_be_added_leaves_nothing() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    let mut disk = bench.disk("sdb", ImageFormat::Raw, MIB).await;
    let machine = bench.launch().await;
    disk.slot = 0;
    let error = machine.add_drive(&disk).await.unwrap_err();
    assert!(matches!(error, Error::Qmp { .. }), "{error}");
    assert!(loose(&machine).await.is_empty());
    disk.controller = Controller::Scsi(1);
    assert_eq!(
        machine.add_drive(&disk).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    disk.controller = Controller::Ide(0);
    assert_eq!(
        machine.add_drive(&disk).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[tokio::test]
async fn a_medium_changes_in_ide_and_scsi_drives() {
    let mut bench = Bench::new();
    for (id, controller) in [("dvd0", Controller::Ide(1)), ("dvd1", Controller::Scsi(0))] {
        let kind = DriveKind::Cdrom;
        let drive = DriveConfig {
            id: id.into(),
            controller,
            slot: 0,
            kind,
            chain: vec![],
            read_only: true,
        };
        bench.config.drives.push(drive);
        let iso = NewImage::new(bench.path(&format!("{id}.iso")), ImageFormat::Raw, MIB);
        bench.images.create(&iso).await.unwrap();
    }
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    bench.config.drives[2].slot = 1;
    let machine = bench.launch().await;
    for id in ["dvd0", "dvd1"] {
        let iso = LayerFile::new(
            format!("iso-{id}"),
            bench.path(&format!("{id}.iso")),
            ImageFormat::Raw,
        );
        for _ in 0..2 {
            machine.change_medium(id, Some(&iso)).await.unwrap();
            assert_eq!(chain(&machine, id).await, [format!("iso-{id}")]);
        }
        for _ in 0..2 {
            machine.change_medium(id, None).await.unwrap();
            assert!(chain(&machine, id).await.is_empty());
        }
        let missing = LayerFile::new("iso-none", bench.path("none.iso"), ImageFormat::Raw);
        assert!(machine.change_medium(id, Some(&missing)).await.is_err());
        assert!(loose(&machine).await.is_empty());
    }
    assert_eq!(
        machine.change_medium("sda", None).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    assert_eq!(
        machine.change_medium("sdx", None).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn a_disk_grows_under_the_machine() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Raw, MIB).await;
    let machine = bench.launch().await;
    machine
        .freeze_layers(&[bench.overlay("sda", "l1")])
        .await
        .unwrap();
    machine.resize("sda", 2 * MIB + 512).await.unwrap();
    machine
        .freeze_layers(&[bench.overlay("sda", "l2")])
        .await
        .unwrap();
    let state = machine.reconcile().await.unwrap();
    let sizes: Vec<u64> = state
        .drive("sda")
        .unwrap()
        .chain
        .iter()
        .map(|node| node.size)
        .collect();
    assert_eq!(sizes, [MIB, 2 * MIB + 512, 2 * MIB + 512]);
}

#[tokio::test]
async fn the_active_layer_shows_its_own_allocation_over_nbd() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Raw, MIB).await;
    let machine = bench.launch().await;
    let mut model = Model::new(MIB);
    model.write(&machine, "sda", 1, 0, MIB).await;
    machine
        .freeze_layers(&[bench.overlay("sda", "l1")])
        .await
        .unwrap();
    model.write(&machine, "sda", 2, 128 * 1024, 4096).await;
    let export = machine.export_active("sda").await.unwrap();
    assert_eq!(machine.export_active("sda").await.unwrap(), export);
    assert_eq!(export.node_name, "l1");

    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export={},x-dirty-bitmap=qemu:allocation-depth",
        export.socket.display(),
        export.name
    );
    let output = tokio::process::Command::new("qemu-img")
        .args(["map", "--output=json", "--image-opts", &options])
        .output()
        .await
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let map: Value = serde_json::from_slice(&output.stdout).unwrap();
    // With this context QEMU's client shows depth 1 (data of the layer itself) as a hole and deeper data as data.
    let own: Vec<(u64, u64)> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|extent| extent["data"] == false)
        .map(|extent| {
            (
                extent["start"].as_u64().unwrap(),
                extent["length"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(own, [(128 * 1024, 4096)], "{map}");

    for _ in 0..2 {
        machine.close_export("sda").await.unwrap();
        assert!(machine.reconcile().await.unwrap().exports.is_empty());
    }
    machine.export_active("sda").await.unwrap();
    // A mark takes the export along; opening it again shows the new active layer.
    machine
        .freeze_layers(&[bench.overlay("sda", "l2")])
        .await
        .unwrap();
    assert_eq!(machine.export_active("sda").await.unwrap().node_name, "l2");
}

#[tokio::test]
async fn a_running_machine_stands_still_between_quiesce_and_release() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    let machine = bench.launch().await;
    machine.resume().await.unwrap();
    let prepared = machine
        .prepare_layers(&[bench.overlay("sda", "l1")])
        .await
        .unwrap();
    let quiesced = machine.quiesce().await.unwrap();
    assert!(quiesced.was_running);
    assert_eq!(machine.status().await.unwrap(), MachineStatus::Paused);
    let report = machine.mark(&prepared).await.unwrap();
    assert!(report.instant >= quiesced.at);
    machine.release(quiesced).await.unwrap();
    assert_eq!(machine.status().await.unwrap(), MachineStatus::Running);

    machine.pause().await.unwrap();
    let quiesced = machine.quiesce().await.unwrap();
    assert!(!quiesced.was_running);
    machine.release(quiesced).await.unwrap();
    assert_eq!(machine.status().await.unwrap(), MachineStatus::Paused);
}

#[tokio::test]
async fn a_guest_without_agent_is_told_in_time() {
    let mut bench = Bench::new();
    let machine = bench.launch().await;
    let error = machine
        .guest_ping(Duration::from_millis(50))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    machine.quit(SOON).await.unwrap();

    bench.config.guest_agent = true;
    let machine = bench.launch().await;
    let error = machine
        .guest_freeze(Duration::from_millis(50))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::AgentAbsent { .. }), "{error}");
}
