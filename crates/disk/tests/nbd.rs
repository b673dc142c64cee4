//! The NBD client against QEMU's servers.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod images;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use disk::nbd::{BASE_ALLOCATION, QEMU_ALLOCATION_DEPTH};
use disk::{
    CancelFlag, ChangeMap, Error, ErrorKind, ExportPlan, NbdAddress, NbdClient, NbdSource,
    Qcow2Layer, Source, export_disk,
};
use images::*;

const MIB: u64 = 1 << 20;
const ODD: u64 = 40 * MIB + 512;

/// A server process, ended with the test.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    fn start(program: &str, args: &[&str], socket: &Path) -> Self {
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut this = Self {
            child,
            socket: socket.to_owned(),
        };
        for _ in 0..1000 {
            if UnixStream::connect(socket).is_ok() {
                return this;
            }
            assert!(
                this.child.try_wait().unwrap().is_none(),
                "{program} ended at once"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{program} does not listen");
    }

    fn address(&self, export: &str) -> NbdAddress {
        NbdAddress::Unix {
            path: self.socket.clone(),
            export: export.into(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn qemu_nbd(dir: &Path, image: &Path, more: &[&str]) -> Server {
    let socket = dir.join("nbd.sock");
    let mut args = vec![
        "-k",
        text(&socket),
        "-r",
        "-t",
        "-e",
        "8",
        "-f",
        "qcow2",
        "-x",
        "d",
    ];
    args.extend(more);
    args.push(text(image));
    Server::start("qemu-nbd", &args, &socket)
}

#[test]
fn an_export_reads_as_the_image_and_knows_its_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let (image, raw) = (dir.path().join("a.qcow2"), dir.path().join("a.raw"));
    let mut dice = Dice(7);
    create(&image, ODD, "extended_l2=on", None);
    qemu_io(&image, "qcow2", &guest_writes(&mut dice, ODD, 150));
    to_raw(&image, &raw);
    let server = qemu_nbd(dir.path(), &image, &[]);
    let source = NbdSource::connect(&server.address("d"), 4).unwrap();
    assert_reads_as(&source, &raw, &mut dice);
    let zeros = source
        .extents(0..ODD)
        .unwrap()
        .iter()
        .filter(|e| e.zero)
        .count();
    assert!(zeros > 10, "{zeros}");

    // The pump over several connections.
    let target = dir.path().join("x.qcow2");
    let mut plan = ExportPlan::full(&source, &target);
    plan.threads = 4;
    export_disk(&plan, &|_| {}, &CancelFlag::new()).unwrap();
    check(&target);
    identical(&raw, "raw", &target, "qcow2");
}

#[test]
fn depth_one_is_the_allocation_of_the_top_layer() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("b.qcow2"), dir.path().join("t.qcow2"));
    let mut dice = Dice(8);
    create(&base, ODD, "", None);
    qemu_io(&base, "qcow2", &guest_writes(&mut dice, ODD, 60));
    create(&top, ODD, "extended_l2=on", Some((&base, "qcow2")));
    qemu_io(&top, "qcow2", &guest_writes(&mut dice, ODD, 60));
    let own = Qcow2Layer::open(&top).unwrap().allocation().unwrap();
    let server = qemu_nbd(dir.path(), &top, &["-A"]);
    let mut client = NbdClient::connect(&server.address("d"), &[QEMU_ALLOCATION_DEPTH]).unwrap();
    assert_eq!(client.allocation_map_depth1().unwrap(), own);
    assert!(own.len() > 10);
}

#[test]
fn the_active_layer_of_a_running_writer_is_asked_by_depth() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("b.qcow2"), dir.path().join("t.qcow2"));
    create(&base, ODD, "", None);
    qemu_io(&base, "qcow2", "write -P 1 0 10M\n");
    create(&top, ODD, "extended_l2=on", Some((&base, "qcow2")));
    let socket = dir.path().join("nbd.sock");
    let node = format!(
        "driver=qcow2,node-name=t,file.driver=file,file.filename={},backing.driver=qcow2,backing.file.driver=file,backing.file.filename={}",
        text(&top),
        text(&base)
    );
    let listen = format!(
        "addr.type=unix,addr.path={},max-connections=0",
        text(&socket)
    );
    let export = "type=nbd,id=e,node-name=t,name=live,writable=on,allocation-depth=on";
    let args = [
        "--blockdev",
        &node,
        "--nbd-server",
        &listen,
        "--export",
        export,
    ];
    let server = Server::start("qemu-storage-daemon", &args, &socket);
    let uri = format!("nbd+unix:///live?socket={}", text(&socket));
    tool(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 2 1M 4k",
            "-c",
            "write -z 20M 64k",
            &uri,
        ],
    );
    let contexts = [QEMU_ALLOCATION_DEPTH, BASE_ALLOCATION];
    let mut client = NbdClient::connect(&server.address("live"), &contexts).unwrap();
    let map = client.allocation_map_depth1().unwrap();
    let expected = [MIB..MIB + 4096, 20 * MIB..20 * MIB + 65_536];
    assert_eq!(map, ChangeMap::from_ranges(expected));
    let mut bytes = [0u8; 8192];
    client.read_at(&mut bytes, MIB).unwrap();
    assert!(bytes[..4096].iter().all(|b| *b == 2) && bytes[4096..].iter().all(|b| *b == 1));
}

#[test]
fn a_dirty_bitmap_comes_as_a_change_map() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    create(&image, 4 * MIB, "", None);
    tool(
        "qemu-img",
        &[
            "bitmap",
            "--add",
            "-g",
            "64k",
            "-f",
            "qcow2",
            text(&image),
            "b0",
        ],
    );
    qemu_io(&image, "qcow2", "write -P 1 1M 4k\nwrite -P 1 3M 128k\n");
    let server = qemu_nbd(dir.path(), &image, &["-B", "b0"]);
    let context = "qemu:dirty-bitmap:b0";
    let mut client = NbdClient::connect(&server.address("d"), &[context]).unwrap();
    assert!(client.has_context(context));
    let expected = [MIB..MIB + 65_536, 3 * MIB..3 * MIB + 131_072];
    assert_eq!(
        client.dirty_map("b0").unwrap(),
        ChangeMap::from_ranges(expected)
    );
}

#[test]
fn a_missing_context_export_or_socket_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    create(&image, MIB, "", None);
    let server = qemu_nbd(dir.path(), &image, &[]);
    let mut client = NbdClient::connect(&server.address("d"), &[QEMU_ALLOCATION_DEPTH]).unwrap();
    assert!(!client.has_context(QEMU_ALLOCATION_DEPTH));
    assert!(client.allocation_map_depth1().is_err());
    // The connection goes on after a refusal of our own.
    client.read_at(&mut [0u8; 100], 7).unwrap();
    assert!(matches!(
        client.read_at(&mut [0u8; 2], MIB - 1),
        Err(Error::OutOfRange { .. })
    ));

    let error = NbdClient::connect(&server.address("other"), &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("there is no such export"), "{cause}");

    let nowhere = NbdAddress::Unix {
        path: dir.path().join("none"),
        export: String::new(),
    };
    assert!(NbdClient::connect(&nowhere, &[]).is_err());
}

#[test]
fn a_server_that_dies_fails_the_export_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    create(&image, 64 * MIB, "", None);
    qemu_io(&image, "qcow2", "write -P 1 0 64M\n");
    let server = std::sync::Mutex::new(Some(qemu_nbd(dir.path(), &image, &[])));
    let address = server.lock().unwrap().as_ref().unwrap().address("d");
    let source = NbdSource::connect(&address, 2).unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let kill = |p: disk::Progress| {
        if p.done > 10 * MIB {
            server.lock().unwrap().take();
        }
    };
    let plan = ExportPlan::full(&source, out.join("x.qcow2"));
    let error = export_disk(&plan, &kill, &CancelFlag::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
}
