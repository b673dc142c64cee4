//! A guest that never stops writing: two disks in lock step, record after record (`tests/guest/writer.s` of the
//! workspace, assembled here). A point must hold exactly the records up to one number, on both disks.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

mod support;

use std::path::PathBuf;
use std::time::Duration;

use hypervisor::config::{BootSource, SerialPort};
use hypervisor::{CommitOutcome, CommitSpec, ImageFormat, JobControl, Machine};
use support::guest::{FIRST, SIZE, records, writer};
use support::{Bench, Running};

struct Writer {
    bench: Bench,
    machine: Running,
    log: PathBuf,
}

impl Writer {
    async fn start() -> Self {
        let mut bench = Bench::new();
        bench.add_disk("sda", ImageFormat::Raw, SIZE).await;
        bench.add_disk("sdb", ImageFormat::Qcow2, SIZE).await;
        let code = writer(bench.dir.path());
        let disk = std::fs::File::options()
            .write(true)
            .open(bench.path("sda.base"))
            .unwrap();
        std::os::unix::fs::FileExt::write_all_at(&disk, &code, 0).unwrap();
        let log = bench.path("com1.log");
        bench.config.serial[0] = Some(SerialPort {
            socket: bench.path("com1.sock"),
            log: Some(log.clone()),
        });
        bench.config.boot_order = vec![BootSource::Drive("sda".into())];
        let machine = bench.launch().await;
        machine.resume().await.unwrap();
        let writer = Self {
            bench,
            machine,
            log,
        };
        writer.writes_on().await;
        writer
    }

    fn reports(&self) -> usize {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        assert!(
            !log.lines().any(|line| line.starts_with("E ")),
            "a write failed in the guest: {log}"
        );
        log.lines().filter(|line| line.starts_with("N ")).count()
    }

    /// Waits until some hundred more records are written.
    async fn writes_on(&self) {
        let before = self.reports();
        let more = async {
            while self.reports() <= before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), more)
            .await
            .unwrap();
    }

    async fn point(&self, number: usize) {
        let overlays = [
            self.bench.overlay("sda", &format!("a{number}")),
            self.bench.overlay("sdb", &format!("b{number}")),
        ];
        self.machine.freeze_layers(&overlays).await.unwrap();
    }

    /// Contents of both disks as of the layers with these names.
    async fn disks(&self, a: &str, b: &str) -> [Vec<u8>; 2] {
        let layer = |name: &str| match name {
            "sda.base" => (self.bench.path(name), ImageFormat::Raw),
            "sdb.base" => (self.bench.path(name), ImageFormat::Qcow2),
            _ => (
                self.bench.path(&format!("{name}.qcow2")),
                ImageFormat::Qcow2,
            ),
        };
        let ((a, a_format), (b, b_format)) = (layer(a), layer(b));
        [
            self.bench.contents(&a, a_format).await,
            self.bench.contents(&b, b_format).await,
        ]
    }
}

fn assert_one_instant(disks: &[Vec<u8>; 2]) -> u32 {
    let (a, b) = (records(&disks[0]), records(&disks[1]));
    assert!(
        a == b || a == b + 1,
        "the first disk is at {a}, the second at {b}"
    );
    a
}

#[tokio::test]
async fn points_of_a_writing_guest_are_exact_at_one_instant_and_stay_so() {
    let writer = Writer::start().await;
    writer.point(1).await;
    let first = writer.disks("sda.base", "sdb.base").await;
    writer.writes_on().await;
    writer.point(2).await;
    let second = writer.disks("a1", "b1").await;
    writer.writes_on().await;
    writer.point(3).await;
    let (one, two) = (assert_one_instant(&first), assert_one_instant(&second));
    assert!(one > FIRST && two > one);
    assert!(
        writer.disks("sda.base", "sdb.base").await == first,
        "the first point changed"
    );

    // Giving up the first point: the second stays exact, while the guest writes and after a power cut.
    for (drive, top) in [("sda", "a1"), ("sdb", "b1")] {
        let spec = CommitSpec {
            drive_id: drive.into(),
            top_node: top.into(),
            base_node: format!("{drive}-base"),
            backing_name: None,
        };
        let outcome = writer
            .machine
            .commit(&spec, &JobControl::new())
            .await
            .unwrap();
        assert_eq!(outcome, CommitOutcome::Committed);
    }
    assert!(
        writer.disks("sda.base", "sdb.base").await == second,
        "the second point changed"
    );
    writer.writes_on().await;
    let third = writer.disks("a2", "b2").await;
    assert!(assert_one_instant(&third) > two);
    writer.machine.kill().await.unwrap();
    assert!(
        writer.disks("sda.base", "sdb.base").await == second,
        "the second point changed by the power cut"
    );
    assert!(
        writer.disks("a2", "b2").await == third,
        "the third point changed by the power cut"
    );
}

#[tokio::test]
async fn the_active_layer_folds_under_a_writing_guest() {
    let writer = Writer::start().await;
    writer.point(1).await;
    writer.writes_on().await;
    for (drive, top) in [("sda", "a1"), ("sdb", "b1")] {
        let spec = CommitSpec {
            drive_id: drive.into(),
            top_node: top.into(),
            base_node: format!("{drive}-base"),
            backing_name: None,
        };
        writer
            .machine
            .commit(&spec, &JobControl::new())
            .await
            .unwrap();
    }
    writer.writes_on().await;
    writer.machine.quit(support::SOON).await.unwrap();
    assert_one_instant(&writer.disks("sda.base", "sdb.base").await);
}

#[tokio::test]
async fn a_saved_guest_goes_on_writing_where_it_stopped() {
    let writer = Writer::start().await;
    let state = writer.bench.path("state");
    writer.machine.save_state(&state).await.unwrap();
    let saved = assert_one_instant(&writer.disks("sda.base", "sdb.base").await);
    let launch = hypervisor::Launch::Restore(state);
    let machine = Running::new(
        writer
            .bench
            .hypervisor
            .launch_qemu(&writer.bench.config, launch)
            .await
            .unwrap(),
    );
    machine.resume().await.unwrap();
    writer.writes_on().await;
    machine.quit(support::SOON).await.unwrap();
    let records = assert_one_instant(&writer.disks("sda.base", "sdb.base").await);
    assert!(records > saved);
}
