//! Images and exports made to reach files of the host, to hold the service up, or to be something else than they say.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests may panic")]

mod support;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::ImageFormat;
use support::{Bed, Bench, MIB, files};
use uuid::Uuid;
use vmms::job::{Job, JobState};
use vmms::machine::StateChange;
use vmms::machine::device::NewDevice;
use vmms::machine::{Asked, Vm};
use vmms::point::PointType;
use vmms::{Fault, Message};

fn qemu_img(args: &[&str]) {
    let done = Command::new("qemu-img").args(args).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "qemu-img {args:?}: {said}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn fifo(path: &Path) {
    let done = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(done.success());
}

/// The header of a qcow2 whose data is in `data`: what a guest can write to its disk, too.
fn header_with_data_file(dir: &Path, data: &Path) -> Vec<u8> {
    let made = dir.join("made.qcow2");
    let stand_in = dir.join("stand-in");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &format!("data_file={},data_file_raw=on", text(&stand_in)),
        text(&made),
        "8M",
    ]);
    let mut bytes = std::fs::read(&made).unwrap();
    let (old, new) = (text(&stand_in).as_bytes(), text(data).as_bytes());
    let at = bytes.windows(old.len()).position(|w| w == old).unwrap();
    // Extensions end with their length; a shorter name is filled up with what a path may have twice.
    let mut name = vec![b'/'; old.len() - new.len()];
    name.extend(new);
    bytes[at..at + old.len()].copy_from_slice(&name);
    std::fs::remove_file(made).unwrap();
    std::fs::remove_file(stand_in).unwrap();
    bytes
}

async fn drive(bed: &Bed<'_>) -> String {
    let controller = bed.record().devices.iter().find_map(|d| match d.kind {
        vmms::machine::DeviceKind::ScsiController { .. } => Some(d.id.clone()),
        _ => None,
    });
    let new = NewDevice::DiskDrive {
        controller: controller.unwrap(),
        slot: None,
    };
    vmms::machine::device::add(&bed.bench.vmms, bed.vm, new, None)
        .await
        .unwrap()
}

/// Attaches an image; never hangs.
async fn attach(bed: &Bed<'_>, path: &Path) -> Result<String, Fault> {
    let new = NewDevice::Disk {
        drive: drive(bed).await,
        path: path.to_owned(),
        read_only: false,
    };
    let adding = vmms::machine::device::add(&bed.bench.vmms, bed.vm, new, None);
    tokio::time::timeout(Duration::from_secs(60), adding)
        .await
        .expect("opening something hangs")
}

fn all(fault: &Fault) -> Vec<Message> {
    fault.chain().iter().map(|f| f.message).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_whose_header_names_other_files_is_not_attached() {
    let bench = Bench::new().await;
    let bed = bench.machine(&[]).await;
    let dir = bench.path("images");
    let secret = bench.path("secret");
    std::fs::write(&secret, vec![7; 1 << 20]).unwrap();
    let made = |name: &str, header: Vec<u8>| {
        std::fs::write(dir.join(name), header).unwrap();
        dir.join(name)
    };
    let backing = |name: &str, to: &str, format: &str| {
        let path = dir.join(name);
        let args = ["create", "-q", "-u", "-f", "qcow2", "-b", to, "-F", format];
        qemu_img(&[&args[..], &[text(&path), "8M"]].concat());
        path
    };
    let data = made("data.qcow2", header_with_data_file(&dir, &secret));
    let json = format!(
        "json:{{\"driver\":\"file\",\"filename\":\"{}\"}}",
        text(&secret)
    );
    let vmdk = format!(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 2048 FLAT \"{}\" 0\n",
        text(&secret)
    );
    let cases = [
        (data, Message::ImageRefused),
        (backing("json.qcow2", &json, "raw"), Message::ImageRefused),
        (
            backing("nbd.qcow2", "nbd:127.0.0.1:1", "raw"),
            Message::ImageRefused,
        ),
        (
            backing("http.qcow2", "http://127.0.0.1/x", "raw"),
            Message::ImageRefused,
        ),
        (
            backing("etc.qcow2", "/etc/passwd", "raw"),
            Message::BackingOutside,
        ),
        (
            backing("up.qcow2", "../secret", "raw"),
            Message::BackingOutside,
        ),
        (
            backing("ring.qcow2", "./ring.qcow2", "qcow2"),
            Message::ImageLoop,
        ),
        (
            made("extents.vmdk", vmdk.into_bytes()),
            Message::ImageRefused,
        ),
    ];
    for (path, expected) in cases {
        let before = bed.record();
        let refused = attach(&bed, &path).await.unwrap_err();
        assert!(
            all(&refused).contains(&expected),
            "{}: {refused}",
            path.display()
        );
        assert_eq!(bed.record().disks().count(), before.disks().count());
        let described = vmms::image::describe(&bench.vmms, &path).await;
        let asked = Asked::default();
        let checked = vmms::image::validate(&bench.vmms, &path, &asked).await;
        let ended = match checked {
            Ok(job) => bench.vmms.wait(job).await.unwrap().state,
            Err(_) => JobState::Exception,
        };
        assert_ne!(ended, JobState::Completed, "{}", path.display());
        if expected == Message::ImageRefused {
            assert!(described.is_err(), "{}", path.display());
        }
    }
    // A backing file beside the image is fine, with its format said.
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "raw",
        text(&dir.join("base.raw")),
        "8M",
    ]);
    attach(&bed, &backing("good.qcow2", "base.raw", "raw"))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_image_is_refused_and_nothing_waits() {
    let bench = Bench::new().await;
    let bed = bench.machine(&[]).await;
    let dir = bench.path("images");
    fifo(&dir.join("fifo"));
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    std::fs::create_dir(dir.join("dir")).unwrap();
    symlink("/dev/zero", dir.join("zeros")).unwrap();
    symlink("fifo", dir.join("link")).unwrap();
    let bad = ["fifo", "socket", "dir", "zeros", "link"].map(|n| dir.join(n));
    for path in bad
        .into_iter()
        .chain(["/dev/zero".into(), "/dev/tty".into()])
    {
        let refused = attach(&bed, &path).await.unwrap_err();
        let expected = [
            Message::NotAFile,
            Message::ImageMissing,
            Message::FileDenied,
            Message::Os,
        ];
        assert!(
            expected.contains(&refused.message),
            "{}: {refused}",
            path.display()
        );
        assert!(vmms::image::describe(&bench.vmms, &path).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raw_disk_stays_raw_whatever_its_guest_writes_to_it() {
    let mut bench = Bench::new().await;
    let secret = bench.path("secret");
    std::fs::write(&secret, vec![7; 8 << 20]).unwrap();
    let bed = bench
        .machine(&[("disk.img", ImageFormat::Raw, 8 * MIB)])
        .await;
    let vm = bed.vm;
    let path = bench.path("images/disk.img");
    let header = header_with_data_file(&bench.path("images"), &secret);
    let written = |bytes: &[u8]| {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(bytes, 0).unwrap();
    };
    written(&header);
    let length = std::fs::metadata(&path).unwrap().len();
    bed.state(StateChange::Start).await;
    bed.state(StateChange::Stop).await;
    let point = bed.point(PointType::Rct).await;
    let job = bed.export(point, None, "out").await;
    let exported = bench
        .contents(&job.output.disks[0].file, ImageFormat::Qcow2)
        .await;
    assert!(
        exported.starts_with(&header[..512]),
        "the export has what the guest wrote"
    );
    bed.destroy(point).await;
    bed.sweep().await;
    let shown = |b: &Arc<vmms::Vmms>| {
        let (b, path) = (Arc::clone(b), path.clone());
        async move { vmms::image::describe(&b, &path).await.unwrap() }
    };
    let image = shown(&bench.vmms).await;
    assert_eq!((image.format.as_str(), image.size), ("raw", length));
    // Also when no machine has it any more, after a restart, and under another name.
    let asked = Asked::default();
    let job = vmms::machine::destroy(&bench.vmms, vm, &asked)
        .await
        .unwrap();
    bench.done(job).await;
    bench.restart().await;
    assert_eq!(shown(&bench.vmms).await.format, "raw");
    let moved = bench.path("images/moved.img");
    std::fs::rename(&path, &moved).unwrap();
    let image = vmms::image::describe(&bench.vmms, &moved).await.unwrap();
    assert_eq!(image.format, "raw");
    let grown = vmms::image::resize(&bench.vmms, &moved, 16 * MIB, &asked)
        .await
        .unwrap();
    bench.done(grown).await;
    assert_eq!(std::fs::metadata(&moved).unwrap().len(), 16 * MIB);
    let target = vmms::image::ImageSpec {
        path: bench.path("images/copy.qcow2"),
        format: ImageFormat::Qcow2,
        size: None,
        fixed: false,
        parent: None,
    };
    let copied = vmms::image::convert(&bench.vmms, &moved, target, &asked)
        .await
        .unwrap();
    bench.done(copied).await;
    let copy = bench
        .contents(&bench.path("images/copy.qcow2"), ImageFormat::Qcow2)
        .await;
    assert!(copy.starts_with(&header[..512]));
    let bed = bench.machine(&[]).await;
    attach(&bed, &moved).await.unwrap();
    let record = bed.record();
    let (_, disk) = record.disks().next().unwrap();
    assert_eq!(disk.format, ImageFormat::Raw);
    // Another file in its place that begins as qcow2 may be a copy of it.
    std::fs::write(&path, &header).unwrap();
    let refused = vmms::image::describe(&bench.vmms, &path).await.unwrap_err();
    assert_eq!(refused.message, Message::FormatContradiction, "{refused}");
    assert_eq!(std::fs::read(&secret).unwrap(), vec![7; 8 << 20]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_was_exchanged_for_a_hostile_one_is_not_started() {
    let bench = Bench::new().await;
    let bed = bench
        .machine(&[("disk.qcow2", ImageFormat::Qcow2, 8 * MIB)])
        .await;
    let path = bench.path("images/disk.qcow2");
    let secret = bench.path("secret");
    std::fs::write(&secret, vec![7; 1 << 20]).unwrap();
    let start = || async {
        let asked = Asked::default();
        let job =
            vmms::machine::request_state(&bench.vmms, bed.vm, StateChange::Start, &asked).await;
        bench.vmms.wait(job.unwrap()).await.unwrap()
    };
    let header = header_with_data_file(&bench.path("images"), &secret);
    std::fs::write(&path, &header).unwrap();
    let job = start().await;
    assert!(
        messages(&job).contains(&Message::ImageRefused),
        "{:?}",
        job.faults
    );
    std::fs::remove_file(&path).unwrap();
    qemu_img(&[
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-b",
        text(&secret),
        "-F",
        "raw",
        text(&path),
        "8M",
    ]);
    let job = start().await;
    assert!(
        messages(&job).contains(&Message::ImageRefused),
        "{:?}",
        job.faults
    );
    std::fs::remove_file(&path).unwrap();
    fifo(&path);
    let job = tokio::time::timeout(Duration::from_secs(60), start())
        .await
        .unwrap();
    assert!(
        messages(&job).contains(&Message::NotAFile),
        "{:?}",
        job.faults
    );
}

fn messages(job: &Job) -> Vec<Message> {
    job.faults.iter().flat_map(all).collect()
}

/// An export of a machine with two disks of noise and firmware variables, in a directory of its own.
async fn export(bench: &Bench) -> PathBuf {
    let disks = [
        ("one.img", ImageFormat::Raw, 2 * MIB),
        ("two.img", ImageFormat::Raw, 2 * MIB),
    ];
    let mut bed = bench.machine_of(2, &disks).await;
    let state = vmms::machine::spec::state_dir(&bench.vmms.dirs, bed.vm);
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join("firmware-vars.fd"), vec![0x5a; 540_672]).unwrap();
    for (n, name) in ["one.img", "two.img"].into_iter().enumerate() {
        let n = u8::try_from(n).unwrap();
        bed.write(name, 10 + n, 0, 256 << 10);
        bed.write(name, 20 + n, 1 << 20, 64 << 10);
    }
    let point = bed.point(PointType::Log).await;
    bed.export(point, None, "out").await;
    let export = bench.path("out").join(vmms::guid(bed.vm));
    let firmware = |name: &String| name.ends_with(".firmware.fd");
    assert!(files(&export).iter().any(firmware), "{:?}", files(&export));
    export
}

fn copy_of(export: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let done = Command::new("cp")
        .arg("-a")
        .args([export, to])
        .status()
        .unwrap();
    assert!(done.success());
}

/// Imports; returns the faults. Nothing may hang.
async fn import(bench: &Bench, from: &Path, to: &Path) -> Result<Uuid, Vec<Message>> {
    let work = async {
        let asked = Asked::default();
        let started = vmms::import::import_export(&bench.vmms, from, None, to, false, &asked).await;
        let (vm, job) = started.map_err(|f| all(&f))?;
        let job = bench.vmms.wait(job).await.unwrap();
        match job.state {
            JobState::Completed => Ok(vm),
            _ => Err(messages(&job)),
        }
    };
    tokio::time::timeout(Duration::from_secs(120), work)
        .await
        .expect("the import hangs")
}

fn disks_of(export: &Path, ending: &str) -> Vec<PathBuf> {
    let list = std::fs::read_dir(export.join("Virtual Hard Disks")).unwrap();
    let mut found: Vec<PathBuf> = list.map(|e| e.unwrap().path()).collect();
    found.retain(|p| text(p).ends_with(ending));
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_damaged_export_is_refused_and_leaves_nothing_behind() {
    let bench = Bench::new().await;
    let good = export(&bench).await;
    let bad = bench.path("bad");
    let to = bench.path("new/machine");
    let machines = || bench.vmms.db.all::<Vm>().len();
    let before = (machines(), files(&bench.path("state/vm")));
    let mut tried = 0;
    for name in files(&good) {
        let length = std::fs::metadata(good.join(&name)).unwrap().len();
        let image = name.ends_with(".qcow2");
        // Of an image the guest's data, which lies behind header and L1 table; of all else everything there is.
        let places: Vec<u64> = match image {
            true => vec![65536 * 2, 65536 * 3 + 7, 65536 * 4 - 1, 65536 * 6 + 100],
            false => [0, 1, 3, 7, 9].map(|n| (length - 1) * n / 9).to_vec(),
        };
        for place in places {
            copy_of(&good, &bad);
            use std::os::unix::fs::FileExt;
            let file = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(bad.join(&name))
                .unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, place).unwrap();
            file.write_all_at(&[byte[0] ^ 1], place).unwrap();
            let refused = import(&bench, &bad, &to).await;
            assert!(refused.is_err(), "{name} at {place} was imported");
            let after = (machines(), files(&bench.path("state/vm")));
            assert_eq!(after, before, "{name} at {place}");
            assert!(!bench.path("new").exists(), "{name} at {place}");
            tried += 1;
        }
    }
    assert!(tried >= 24, "{tried}");
    // Disks and lists exchanged, together and alone.
    for ending in [".qcow2", ".map", ""] {
        copy_of(&good, &bad);
        for pair in [".qcow2", ".map"]
            .into_iter()
            .filter(|e| e.contains(ending))
        {
            let found = disks_of(&bad, pair);
            let aside = bad.join("aside");
            std::fs::rename(&found[0], &aside).unwrap();
            std::fs::rename(&found[1], &found[0]).unwrap();
            std::fs::rename(&aside, &found[1]).unwrap();
        }
        assert!(
            import(&bench, &bad, &to).await.is_err(),
            "{ending} exchanged"
        );
        assert!(!bench.path("new").exists());
    }
    assert_eq!((machines(), files(&bench.path("state/vm"))), before);
    let vm = import(&bench, &good, &to).await.unwrap();
    assert_eq!(files(&to), ["one.qcow2", "two.qcow2"]);
    assert_eq!(bench.vmms.db.get::<Vm>(vm).unwrap().disks().count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_file_of_an_export_holds_the_service_up_or_leads_out_of_it() {
    let bench = Bench::new().await;
    let good = export(&bench).await;
    let (bad, to) = (bench.path("bad"), bench.path("new"));
    let outside = bench.path("outside");
    for name in files(&good) {
        std::fs::copy(good.join(&name), &outside).unwrap();
        for kind in ["fifo", "zeros", "link", "link of directory"] {
            copy_of(&good, &bad);
            let file = bad.join(&name);
            match kind {
                "link of directory" => {
                    // The same files behind a link: nothing says they are the export's.
                    let dir = file.parent().unwrap().to_owned();
                    if dir == bad {
                        continue;
                    }
                    let aside = bench.path("aside");
                    let _ = std::fs::remove_dir_all(&aside);
                    std::fs::rename(&dir, &aside).unwrap();
                    symlink(&aside, &dir).unwrap();
                }
                _ => {
                    std::fs::remove_file(&file).unwrap();
                    match kind {
                        "fifo" => fifo(&file),
                        "zeros" => symlink("/dev/zero", &file).unwrap(),
                        _ => symlink(&outside, &file).unwrap(),
                    }
                }
            }
            let refused = import(&bench, &bad, &to).await;
            assert!(refused.is_err(), "{name} as a {kind} was imported");
            assert!(!to.exists());
            let proving = async {
                let asked = Asked::default();
                match vmms::verify::verify_export(&bench.vmms, &bad, &asked).await {
                    Ok(job) => bench.vmms.wait(job).await.unwrap().state,
                    Err(_) => JobState::Exception,
                }
            };
            let proven = tokio::time::timeout(Duration::from_secs(120), proving).await;
            assert_ne!(
                proven.expect("it hangs"),
                JobState::Completed,
                "{name} as a {kind}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_in_the_way_of_an_import_stays() {
    let bench = Bench::new().await;
    let good = export(&bench).await;
    let to = bench.path("new");
    std::fs::create_dir(&to).unwrap();
    std::fs::write(to.join("two.qcow2"), "somebody's").unwrap();
    std::fs::write(to.join("one.qcow2.partial"), "somebody's").unwrap();
    let refused = import(&bench, &good, &to).await.unwrap_err();
    assert!(refused.contains(&Message::NameTaken), "{refused:?}");
    assert_eq!(files(&to), ["one.qcow2.partial", "two.qcow2"]);
    for file in files(&to) {
        assert_eq!(std::fs::read(to.join(file)).unwrap(), b"somebody's");
    }
}

/// Changes the configuration of an export, and all that proves it.
fn with_configuration(export: &Path, edit: impl Fn(&mut serde_json::Value)) {
    let (mut manifest, _) = disk::manifest::Manifest::load(export).unwrap();
    let file = manifest
        .files
        .iter_mut()
        .find(|f| f.role == "configuration")
        .unwrap();
    let path = export.join(&file.path);
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    let bytes = serde_json::to_vec(&config).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    file.bytes = bytes.len() as u64;
    file.blake3 = disk::manifest::HexHash(blake3::hash(&bytes));
    std::fs::remove_file(export.join("manifest.json")).unwrap();
    manifest.save(export).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_path_of_a_host_is_taken_over_from_a_configuration() {
    let bench = Bench::new().await;
    let good = export(&bench).await;
    let (bad, to) = (bench.path("bad"), bench.path("new"));
    copy_of(&good, &bad);
    with_configuration(&bad, |config| {
        let machine = &mut config["machine"];
        machine["saved_state"] = "/etc/shadow".into();
        machine["power"] = "Saved".into();
        machine["machine_type"] = "pc,kernel=/etc/shadow".into();
        machine["settings"]["suspend_data_root"] = "/etc".into();
        machine["owner"] = "elsewhere".into();
        let devices = machine["devices"].as_array().unwrap().iter();
        let scsi = |d: &&serde_json::Value| d["kind"].get("ScsiController").is_some();
        let controller = devices.clone().find(scsi).unwrap()["id"].clone();
        let drive = "11111111-1111-1111-1111-111111111111\\0\\1\\D";
        let devices = machine["devices"].as_array_mut().unwrap();
        devices.push(serde_json::json!({ "id": drive, "name": "DVD",
            "kind": { "DvdDrive": { "controller": controller, "slot": 7 } } }));
        devices.push(serde_json::json!({ "id": "11111111-1111-1111-1111-111111111111\\0\\1\\L", "name": "medium",
            "kind": { "Dvd": { "drive": drive, "path": "/etc/shadow" } } }));
        for device in devices {
            if let Some(port) = device["kind"].get_mut("SerialPort") {
                port["connection"] = "/run/somebody.sock".into();
            }
        }
    });
    let vm = import(&bench, &bad, &to).await.unwrap();
    let record = bench.vmms.db.get::<Vm>(vm).unwrap();
    let stored = serde_json::to_string(&*record).unwrap();
    for foreign in ["/etc", "somebody.sock", "kernel="] {
        assert!(!stored.contains(foreign), "{foreign}: {stored}");
    }
    assert_eq!(
        (record.power, &record.saved_state),
        (vmms::machine::Power::Off, &None)
    );
    let jobs = bench.vmms.jobs();
    let report = jobs
        .iter()
        .find(|j| j.output.created == Some(vmms::Element::Vm(vm)));
    let report = report.unwrap().output.report.join("\n");
    for told in ["/etc/shadow", "/run/somebody.sock", "pc,kernel="] {
        assert!(report.contains(told), "{told}: {report}");
    }
    let edits: [fn(&mut serde_json::Value); 6] = [
        |c| c["machine"]["devices"][0]["id"] = "a\",\"b".into(),
        |c| c["machine"]["devices"][1]["id"] = c["machine"]["devices"][0]["id"].clone(),
        |c| c["machine"]["name"] = "two\nlines".into(),
        |c| c["machine"]["memory"]["quantity"] = 1.into(),
        |c| c["machine"]["id"] = "22222222-2222-2222-2222-222222222222".into(),
        |c| c["format"] = "something".into(),
    ];
    for (n, edit) in edits.into_iter().enumerate() {
        copy_of(&good, &bad);
        with_configuration(&bad, edit);
        let refused = import(&bench, &bad, &bench.path("other")).await;
        assert!(refused.is_err(), "{n}");
        assert!(!bench.path("other").exists(), "{n}");
    }
}
