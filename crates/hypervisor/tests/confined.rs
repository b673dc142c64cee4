//! A machine whose QEMU has a user of its own, seen from outside. Only root can start one.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

mod support;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use hypervisor::{
    CommitOutcome, CommitSpec, Error, ImageFormat, JobControl, Launch, LayerFile, Machine, confine,
};
use serde_json::json;
use support::{Bench, MIB, Model, Running, SOON, assert_same};

/// A user that no other test has, where this process may start programs as it.
async fn user(bench: &mut Bench) -> Option<u32> {
    // Tests may be processes of their own or threads of one.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed) % 64;
    let user = 2_000_000_000 + std::process::id() % 1_000_000 * 64 + next;
    if let Err(why) = confine::can_change_user(user).await {
        eprintln!("skipped: {why}");
        return None;
    }
    bench.config.confinement.sandbox = true;
    bench.config.confinement.user = Some(user);
    bench.config.confinement.journal = Some(bench.path("granted.json"));
    Some(user)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn has_list(path: &Path) -> bool {
    let mut bytes = [0_u8; 256];
    rustix::fs::getxattr(path, "system.posix_acl_access", &mut bytes).is_ok()
}

fn field(pid: i32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap()
        .trim_start_matches(':')
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[tokio::test]
async fn a_confined_machine_is_a_user_of_its_own_without_any_privilege() {
    let mut bench = Bench::new();
    bench.config.guest_agent = true;
    let Some(user) = user(&mut bench).await else {
        return;
    };
    let machine = bench.launch().await;
    let pid = machine.pid();
    for (name, expected) in [
        ("Uid", [user; 4].map(|u| u.to_string()).join(" ")),
        ("Gid", [user; 4].map(|u| u.to_string()).join(" ")),
        ("Groups", String::new()),
        ("CapInh", "0000000000000000".into()),
        ("CapPrm", "0000000000000000".into()),
        ("CapEff", "0000000000000000".into()),
        ("CapBnd", "0000000000000000".into()),
        ("CapAmb", "0000000000000000".into()),
        ("NoNewPrivs", "1".into()),
        ("Seccomp", "2".into()),
    ] {
        assert_eq!(field(pid, name), expected, "{name}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core"))
        .unwrap();
    assert_eq!(
        core.split_whitespace().collect::<Vec<_>>()[4..6],
        ["0", "0"]
    );
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    for variable in environment
        .split(|&byte| byte == 0)
        .filter(|v| !v.is_empty())
    {
        let variable = String::from_utf8_lossy(variable);
        assert!(
            variable.starts_with("PATH=") || variable.starts_with("LANG="),
            "{variable}"
        );
    }
    assert_eq!(
        std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(),
        Path::new("/")
    );
    assert!(
        !has_list(machine.files().dir()),
        "nothing leads into the run directory"
    );
    for entry in std::fs::read_dir(machine.files().dir()).unwrap() {
        let owner = entry.unwrap().metadata().unwrap().uid();
        assert_eq!(
            owner,
            rustix::process::geteuid().as_raw(),
            "all of it is the service's"
        );
    }
}

#[tokio::test]
async fn a_confined_machine_opens_no_file_but_its_own() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Raw, MIB).await;
    if user(&mut bench).await.is_none() {
        return;
    }
    let foreign = bench.path("foreign");
    std::fs::write(&foreign, vec![1; 4096]).unwrap();
    chmod(&foreign, 0o600);
    let machine = bench.launch().await;
    let open = |path: &Path| json!({ "driver": "file", "node-name": "foreign", "filename": path, "read-only": true });
    let refused = machine
        .execute("blockdev-add", open(&foreign))
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("Permission denied"),
        "{refused}"
    );
    let refused = machine
        .execute("blockdev-add", open(Path::new("/etc/shadow")))
        .await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("Permission denied")
    );
    let program = json!({ "uri": "exec:cat > /dev/null" });
    let refused = machine.execute("migrate", program).await;
    let status = machine.execute("query-migrate", json!(null)).await.unwrap();
    assert!(
        refused.is_err() || status["status"] != "completed",
        "{status}"
    );
    // It still works.
    machine.resume().await.unwrap();
}

#[tokio::test]
async fn points_merges_drives_and_exports_work_for_a_confined_machine_and_its_files_close_with_it()
{
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Raw, MIB).await;
    let second = bench.disk("sdb", ImageFormat::Qcow2, MIB).await;
    let mut second = second;
    second.slot = 1;
    let base = bench.path("sda.base");
    chmod(&base, 0o640);
    let private = 0o700;
    chmod(bench.dir.path(), private);
    if user(&mut bench).await.is_none() {
        return;
    }
    let machine = bench.launch().await;
    assert!(has_list(&base) && has_list(bench.dir.path()));
    assert_eq!(hypervisor::plain_mode(&base).unwrap() & 0o7777, 0o640);
    let mut model = Model::new(MIB);
    model.write(&machine, "sda", 1, 0, 65536).await;
    for name in ["l1", "l2"] {
        let prepared = machine
            .prepare_layers(&[bench.overlay("sda", name)])
            .await
            .unwrap();
        machine.mark(&prepared).await.unwrap();
        model.write(&machine, "sda", 2, 4096, 4096).await;
    }
    let spec = CommitSpec {
        drive_id: "sda".into(),
        top_node: "l1".into(),
        base_node: "sda-base".into(),
        backing_name: None,
    };
    let merged = machine.commit(&spec, &JobControl::new()).await.unwrap();
    assert_eq!(merged, CommitOutcome::Committed);
    machine.add_drive(&second).await.unwrap();
    for _ in 0..2 {
        let export = machine.export_active("sda").await.unwrap();
        assert!(std::os::unix::net::UnixStream::connect(&export.socket).is_ok());
        machine.close_export("sda").await.unwrap();
    }
    machine.quit(SOON).await.unwrap();
    let top = bench.path("l2.qcow2");
    assert_same(
        &bench.contents(&top, ImageFormat::Qcow2).await,
        &model,
        "the disk",
    );
    for path in [&base, &top, &bench.path("sdb.base"), bench.dir.path()] {
        assert!(!has_list(path), "{}", path.display());
    }
    assert_eq!((mode(&base), mode(bench.dir.path())), (0o640, private));
    assert!(!bench.path("granted.json").exists());
}

#[tokio::test]
async fn layers_that_were_there_at_the_start_are_merged_for_a_confined_machine() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Raw, MIB).await;
    if user(&mut bench).await.is_none() {
        return;
    }
    let mut model = Model::new(MIB);
    let machine = bench.launch().await;
    let names = ["l1", "l2", "l3"];
    for (byte, name) in (1..).zip(names) {
        model
            .write(&machine, "sda", byte, u64::from(byte) * 65536, 65536)
            .await;
        machine
            .freeze_layers(&[bench.overlay("sda", name)])
            .await
            .unwrap();
    }
    machine.quit(SOON).await.unwrap();
    for name in names {
        let path = bench.path(&format!("{name}.qcow2"));
        let layer = LayerFile::new(name, path, ImageFormat::Qcow2);
        bench.config.drives[0].chain.push(layer);
    }
    // The header of l2 is rewritten, a layer that QEMU only reads otherwise.
    let machine = bench.launch().await;
    for (top, above) in [("l1", Some("l2")), ("l2", Some("l3")), ("l3", None)] {
        let spec = CommitSpec {
            drive_id: "sda".into(),
            top_node: top.into(),
            base_node: "sda-base".into(),
            backing_name: above.map(|_| "./sda.base".into()),
        };
        let merged = machine.commit(&spec, &JobControl::new()).await.unwrap();
        assert_eq!(merged, CommitOutcome::Committed);
        let gone = bench.path(&format!("{top}.qcow2"));
        machine
            .drop_merged(std::slice::from_ref(&gone))
            .await
            .unwrap();
        std::fs::remove_file(gone).unwrap();
    }
    model.write(&machine, "sda", 9, 4096, 4096).await;
    machine.quit(SOON).await.unwrap();
    let base = bench.path("sda.base");
    let contents = bench.contents(&base, ImageFormat::Raw).await;
    assert_same(&contents, &model, "the disk");
}

#[tokio::test]
async fn a_confined_machine_is_saved_and_restored_where_it_can_open_nothing() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    if user(&mut bench).await.is_none() {
        return;
    }
    let machine = bench.launch().await;
    machine.resume().await.unwrap();
    let mut model = Model::new(MIB);
    model.write(&machine, "sda", 7, 0, 65536).await;
    let path = bench.path("saved.vmstate");
    let saved = machine.save_state(&path).await.unwrap();
    assert_eq!(saved.bytes, std::fs::metadata(&path).unwrap().len());
    assert_eq!(mode(&path), 0o600);
    let again = bench
        .hypervisor
        .launch_qemu(&bench.config, Launch::Restore(path))
        .await;
    let again = Running::new(again.unwrap());
    again.resume().await.unwrap();
    model.write(&again, "sda", 8, 65536, 65536).await;
    again.quit(SOON).await.unwrap();
    let contents = bench
        .contents(&bench.path("sda.base"), ImageFormat::Qcow2)
        .await;
    assert_same(&contents, &model, "the disk");
}

#[tokio::test]
async fn what_a_killed_service_left_open_is_closed_by_the_next() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Qcow2, MIB).await;
    if user(&mut bench).await.is_none() {
        return;
    }
    let (base, journal) = (bench.path("sda.base"), bench.path("granted.json"));
    let before = mode(&base);
    let machine = bench.launch().await;
    let run_dir = machine.files().dir().to_owned();
    confine::settle(&run_dir, &journal).unwrap();
    assert!(has_list(&base), "a machine that runs keeps its files");
    machine.forget();
    let found = bench
        .hypervisor
        .reattach_qemu(&bench.config)
        .await
        .unwrap()
        .unwrap();
    assert!(has_list(&base), "also one that was found again");
    found.kill().await.unwrap();
    assert!(!has_list(&base), "whoever found it closes them with it");
    let next = bench.launch().await;
    let pid = rustix::process::Pid::from_raw(next.pid()).unwrap();
    next.forget();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    while rustix::process::test_kill_process(pid).is_ok() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    confine::settle(&run_dir, &journal).unwrap();
    assert!(!has_list(&base) && !journal.exists());
    assert_eq!(mode(&base), before);
}

#[tokio::test]
async fn a_disk_that_is_neither_file_nor_device_is_refused_by_name() {
    let mut bench = Bench::new();
    bench.add_disk("sda", ImageFormat::Raw, MIB).await;
    if user(&mut bench).await.is_none() {
        return;
    }
    let base = bench.path("sda.base");
    std::fs::remove_file(&base).unwrap();
    std::os::unix::net::UnixListener::bind(&base).unwrap();
    let refused = bench
        .hypervisor
        .launch_qemu(&bench.config, Launch::Fresh)
        .await;
    let Err(Error::Config { what }) = refused else {
        panic!("it was opened")
    };
    assert!(what.contains("sda.base"), "{what}");
    assert!(
        !has_list(bench.dir.path()),
        "what was opened on the way is closed again"
    );
}
