//! A scratch machine for tests against a real QEMU: small disks, no guest; writes go through the monitor's `qemu-io`.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    unreachable_pub,
    reason = "each test binary uses its own part of this"
)]

pub mod guest;
pub mod moves;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::config::{
    Acceleration, Controller, DriveConfig, DriveKind, Generation, ImageFormat, LayerFile,
    MachineConfig,
};
use hypervisor::image::{ConvertOptions, ImageTool, NewImage};
use hypervisor::qemu::{QemuHypervisor, QemuMachine};
use hypervisor::{Launch, Machine, NewOverlay};
use serde_json::json;
use uuid::Uuid;

pub const MIB: u64 = 1 << 20;

pub struct Bench {
    pub dir: tempfile::TempDir,
    pub hypervisor: QemuHypervisor,
    pub images: ImageTool,
    pub config: MachineConfig,
}

/// Ends the process even if the test fails.
pub struct Running(Option<QemuMachine>);

impl Running {
    pub fn new(machine: QemuMachine) -> Self {
        Self(Some(machine))
    }

    /// The service dies: its handle goes, the process stays.
    pub fn forget(mut self) {
        drop(self.0.take());
    }
}

impl std::ops::Deref for Running {
    type Target = QemuMachine;
    fn deref(&self) -> &QemuMachine {
        self.0.as_ref().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ours by construction: the machine under test; still ours, as a child of this process or of its run directory.
        let Some(machine) = &self.0 else { return };
        let pid = machine.pid();
        let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let ours = machine
            .files()
            .pid()
            .into_os_string()
            .into_string()
            .unwrap();
        if cmdline.split(|b| *b == 0).any(|arg| arg == ours.as_bytes()) {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = MachineConfig::new(
            Uuid::new_v4(),
            "bench, \"quoted\"",
            Generation::Gen1,
            dir.path().join("run"),
        );
        config.memory_mib = 32;
        config.acceleration = Acceleration::Tcg;
        config.controllers = vec![Controller::Scsi(0)];
        Self {
            dir,
            hypervisor: QemuHypervisor::default(),
            images: ImageTool::default(),
            config,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A SCSI disk with a base of that format; its node is named after the drive.
    pub async fn disk(&mut self, id: &str, format: ImageFormat, size: u64) -> DriveConfig {
        let path = self.path(&format!("{id}.base"));
        self.images
            .create(&NewImage::new(&path, format, size))
            .await
            .unwrap();
        DriveConfig {
            id: id.into(),
            controller: Controller::Scsi(0),
            slot: u16::try_from(self.config.drives.len()).unwrap(),
            kind: DriveKind::Disk,
            chain: vec![LayerFile::new(format!("{id}-base"), path, format)],
            read_only: false,
        }
    }

    pub async fn add_disk(&mut self, id: &str, format: ImageFormat, size: u64) {
        let disk = self.disk(id, format, size).await;
        self.config.drives.push(disk);
    }

    pub async fn launch(&self) -> Running {
        Running::new(
            self.hypervisor
                .launch_qemu(&self.config, Launch::Fresh)
                .await
                .unwrap(),
        )
    }

    pub fn overlay(&self, drive: &str, name: &str) -> NewOverlay {
        NewOverlay {
            drive_id: drive.into(),
            overlay_path: self.path(&format!("{name}.qcow2")),
            overlay_node: name.into(),
            size: None,
            backing_name: None,
            owner: None,
        }
    }

    /// Contents of an image with all that lies beneath it, even while a machine has it open.
    pub async fn contents(&self, path: &Path, format: ImageFormat) -> Vec<u8> {
        let raw = self.path(&format!("{}.raw", Uuid::new_v4()));
        let options = ConvertOptions {
            share: true,
            ..ConvertOptions::default()
        };
        self.images
            .convert((path, format), (&raw, ImageFormat::Raw), &options)
            .await
            .unwrap();
        let bytes = std::fs::read(&raw).unwrap();
        std::fs::remove_file(raw).unwrap();
        bytes
    }
}

/// What a disk must hold.
#[derive(Clone, PartialEq)]
pub struct Model(pub Vec<u8>);

impl Model {
    pub fn new(size: u64) -> Self {
        Self(vec![0; usize::try_from(size).unwrap()])
    }

    /// Writes to the disk and to the model.
    pub async fn write(
        &mut self,
        machine: &QemuMachine,
        drive: &str,
        byte: u8,
        offset: u64,
        length: u64,
    ) {
        hmp(
            machine,
            &format!(
                "qemu-io -d /machine/peripheral/drive-{drive} \"write -P {byte} {offset} {length}\""
            ),
        )
        .await;
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap();
        self.0[range].fill(byte);
    }
}

/// Not `assert_eq`: a failing comparison of disks must not print them.
pub fn assert_same(actual: &[u8], expected: &Model, what: &str) {
    assert_eq!(actual.len(), expected.0.len(), "{what}: size");
    let at = actual
        .iter()
        .zip(&expected.0)
        .position(|(one, other)| one != other);
    assert_eq!(at, None, "{what}: first difference");
}

pub async fn hmp(machine: &QemuMachine, line: &str) {
    machine
        .execute("human-monitor-command", json!({ "command-line": line }))
        .await
        .unwrap();
}

/// Names of a drive's layers, base first.
pub async fn chain(machine: &QemuMachine, drive: &str) -> Vec<String> {
    let state = machine.reconcile().await.unwrap();
    state
        .drive(drive)
        .unwrap()
        .chain
        .iter()
        .map(|node| node.node_name.clone())
        .collect()
}

pub async fn loose(machine: &QemuMachine) -> Vec<String> {
    machine
        .reconcile()
        .await
        .unwrap()
        .loose_nodes
        .into_iter()
        .map(|node| node.node_name)
        .collect()
}

pub const SOON: Duration = Duration::from_secs(20);
