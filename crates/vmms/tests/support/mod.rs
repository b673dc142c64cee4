//! A service on a scratch directory, machines with small disks and no guest, and what their disks must hold.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    unreachable_pub,
    reason = "each test binary uses its own part of this"
)]

pub mod deadly;
pub mod hosts;
pub mod journal;
pub mod steps;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use hypervisor::image::ConvertOptions;
use hypervisor::{Acceleration, Hypervisor, ImageFormat, ImageTool, NewImage, QemuHypervisor};
use store::{MemoryStore, Store};
use uuid::Uuid;
use vmms::job::{Job, JobState};
use vmms::machine::StateChange;
use vmms::machine::device::NewDevice;
use vmms::machine::{Asked, DeviceKind, NewVm, Settings, Vm, spec};
use vmms::point::{Consistency, PointType};
use vmms::{Dirs, Options, Vmms};

pub const MIB: u64 = 1 << 20;
pub const KIB: u64 = 1 << 10;

/// The scratch directory, the store that outlives the service, and the service.
pub struct Bench {
    pub dir: Scratch,
    pub store: Arc<dyn Store>,
    pub hypervisor: Arc<dyn Hypervisor>,
    pub options: Options,
    pub vmms: Arc<Vmms>,
    pids: std::cell::RefCell<Vec<i32>>,
}

/// A directory of this test alone, or one that goes on after it.
pub struct Scratch {
    path: PathBuf,
    _own: Option<tempfile::TempDir>,
}

impl Scratch {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for vm in self.vmms.db.all::<Vm>() {
            if let Some(machine) = self.vmms.machine(vm.id) {
                self.pids.borrow_mut().push(machine.pid());
            }
        }
        // Ours only: a process whose command line names this scratch directory.
        let ours = self.dir.path().display().to_string();
        for pid in self.pids.borrow().iter() {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&ours) {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            }
        }
    }
}

pub fn options() -> Options {
    Options {
        acceleration: Acceleration::Tcg,
        export_threads: 2,
        agent_deadline: std::time::Duration::from_millis(300),
        ..Options::default()
    }
}

impl Bench {
    pub async fn new() -> Self {
        Self::with(options()).await
    }

    pub async fn with(options: Options) -> Self {
        Self::on(options, Arc::new(QemuHypervisor::default())).await
    }

    pub async fn on(options: Options, hypervisor: Arc<dyn Hypervisor>) -> Self {
        let dir = tempfile::Builder::new().prefix("kv").tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let vmms = start(dir.path(), &store, &hypervisor, &options).await;
        Bench {
            dir: Scratch {
                path: dir.path().to_owned(),
                _own: Some(dir),
            },
            store,
            hypervisor,
            options,
            vmms,
            pids: Default::default(),
        }
    }

    /// On a directory and a store that are there already, and stay.
    pub async fn open(path: PathBuf, store: Arc<dyn Store>) -> Self {
        let hypervisor: Arc<dyn Hypervisor> = Arc::new(QemuHypervisor::default());
        let options = options();
        let vmms = start(&path, &store, &hypervisor, &options).await;
        Bench {
            dir: Scratch { path, _own: None },
            store,
            hypervisor,
            options,
            vmms,
            pids: Default::default(),
        }
    }

    /// The machine of this bench, with nothing known of its disks.
    pub fn bed(&self) -> Bed<'_> {
        Bed {
            bench: self,
            vm: self.vmms.db.all::<Vm>()[0].id,
            disks: BTreeMap::new(),
        }
    }

    /// The service ends as by `kill -9` and starts again; machines run on. With running machines: in a new runtime, after the
    /// old one was shut down, since only that ends everything the old service had going.
    pub async fn restart(&mut self) {
        for vm in self.vmms.db.all::<Vm>() {
            if let Some(machine) = self.vmms.machine(vm.id) {
                self.pids.borrow_mut().push(machine.pid());
            }
        }
        // The old one goes before the new one comes.
        let nowhere = tempfile::tempdir().unwrap();
        let nothing: Arc<dyn Store> = Arc::new(MemoryStore::new());
        self.vmms = start(nowhere.path(), &nothing, &self.hypervisor, &self.options).await;
        self.vmms = start(
            self.dir.path(),
            &self.store,
            &self.hypervisor,
            &self.options,
        )
        .await;
    }

    /// Goes on with another store. Only without running machines, or right after `new`.
    pub async fn restart_on(&mut self, store: Arc<dyn Store>) {
        let nowhere = tempfile::tempdir().unwrap();
        let nothing: Arc<dyn Store> = Arc::new(MemoryStore::new());
        self.vmms = start(nowhere.path(), &nothing, &self.hypervisor, &self.options).await;
        self.vmms = start(self.dir.path(), &store, &self.hypervisor, &self.options).await;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A machine with these disks, each with the format and size named.
    pub async fn machine(&self, disks: &[(&str, ImageFormat, u64)]) -> Bed<'_> {
        self.machine_of(1, disks).await
    }

    /// The same of a generation.
    pub async fn machine_of(&self, generation: u8, disks: &[(&str, ImageFormat, u64)]) -> Bed<'_> {
        let new = NewVm {
            id: None,
            name: "bed".to_owned(),
            generation,
            notes: Vec::new(),
            settings: Settings::default(),
        };
        let vm = vmms::machine::define(&self.vmms, new, |vm| {
            vm.memory.quantity = 32;
            Ok(())
        })
        .await
        .unwrap();
        let add = |new| vmms::machine::device::add(&self.vmms, vm, new, None);
        let controller = add(NewDevice::ScsiController).await.unwrap();
        let mut bed = Bed {
            bench: self,
            vm,
            disks: BTreeMap::new(),
        };
        std::fs::create_dir_all(self.path("images")).unwrap();
        for (name, format, size) in disks {
            let path = self.path(&format!("images/{name}"));
            self.vmms
                .images
                .create(&NewImage::new(&path, *format, *size))
                .await
                .unwrap();
            let drive = NewDevice::DiskDrive {
                controller: controller.clone(),
                slot: None,
            };
            let drive = add(drive).await.unwrap();
            add(NewDevice::Disk {
                drive,
                path,
                read_only: false,
            })
            .await
            .unwrap();
            bed.disks
                .insert((*name).to_owned(), vec![0; usize::try_from(*size).unwrap()]);
        }
        bed
    }

    pub async fn done(&self, job: Uuid) -> Job {
        let job = self.vmms.wait(job).await.unwrap();
        let chain: Vec<String> = job
            .faults
            .iter()
            .flat_map(|f| f.chain())
            .map(|f| f.text())
            .collect();
        assert_eq!(job.state, JobState::Completed, "{}: {chain:#?}", job.title);
        job
    }

    pub async fn contents(&self, path: &Path, format: ImageFormat) -> Vec<u8> {
        contents(&self.vmms.images, path, format).await
    }
}

async fn start(
    dir: &Path,
    store: &Arc<dyn Store>,
    hypervisor: &Arc<dyn Hypervisor>,
    options: &Options,
) -> Arc<Vmms> {
    let dirs = Dirs {
        state: dir.join("state"),
        run: dir.join("run"),
    };
    Vmms::start(
        Arc::clone(store),
        Arc::clone(hypervisor),
        ImageTool::default(),
        dirs,
        options.clone(),
        "here".to_owned(),
    )
    .await
    .unwrap()
}

/// Contents of an image with all that lies beneath it, even while a machine has it open.
pub async fn contents(images: &ImageTool, path: &Path, format: ImageFormat) -> Vec<u8> {
    try_contents(images, path, format).await.unwrap()
}

/// As [`contents`], where the image may be gone.
pub async fn try_contents(
    images: &ImageTool,
    path: &Path,
    format: ImageFormat,
) -> Result<Vec<u8>, hypervisor::Error> {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    let options = ConvertOptions {
        share: true,
        ..ConvertOptions::default()
    };
    images
        .convert((path, format), (&raw, ImageFormat::Raw), &options)
        .await?;
    Ok(std::fs::read(&raw).unwrap())
}

/// A machine and what its disks must hold now.
pub struct Bed<'a> {
    pub bench: &'a Bench,
    pub vm: Uuid,
    pub disks: BTreeMap<String, Vec<u8>>,
}

impl Bed<'_> {
    pub fn record(&self) -> Arc<Vm> {
        self.bench.vmms.db.get::<Vm>(self.vm).unwrap()
    }

    pub fn disk(&self, name: &str) -> vmms::machine::Disk {
        let path = self.bench.path(&format!("images/{name}"));
        let record = self.record();
        let found = record.disks().find(|(_, d)| d.path == path).unwrap();
        found.1.clone()
    }

    pub fn device(&self, name: &str) -> String {
        let path = self.bench.path(&format!("images/{name}"));
        let record = self.record();
        let found = record.disks().find(|(_, d)| d.path == path).unwrap();
        found.0.to_owned()
    }

    pub async fn state(&self, to: StateChange) {
        let asked = Asked::default();
        let job = vmms::machine::request_state(&self.bench.vmms, self.vm, to, &asked)
            .await
            .unwrap();
        self.bench.done(job).await;
    }

    pub async fn try_point(
        &self,
        kind: PointType,
        consistency: Option<Consistency>,
    ) -> (Uuid, Job) {
        let asked = Asked::default();
        let made =
            vmms::point::create_point(&self.bench.vmms, self.vm, kind, consistency, "p", &asked);
        let (point, job) = made.await.unwrap();
        (point, self.bench.vmms.wait(job).await.unwrap())
    }

    pub async fn point(&self, kind: PointType) -> Uuid {
        let (point, job) = self.try_point(kind, None).await;
        self.bench.done(job.id).await;
        point
    }

    pub async fn try_export(&self, point: Uuid, base: Option<Uuid>, to: &str) -> Job {
        let (dir, asked) = (self.bench.path(to), Asked::default());
        let job = vmms::export::export_point(&self.bench.vmms, point, base, &dir, &[], &asked)
            .await
            .unwrap();
        self.bench.vmms.wait(job).await.unwrap()
    }

    pub async fn export(&self, point: Uuid, base: Option<Uuid>, to: &str) -> Job {
        let job = self.try_export(point, base, to).await;
        self.bench.done(job.id).await
    }

    pub async fn destroy(&self, point: Uuid) -> Job {
        let asked = Asked::default();
        let job = vmms::point::destroy_point(&self.bench.vmms, point, &asked)
            .await
            .unwrap();
        self.bench.done(job).await
    }

    /// Gives a point another hold, or none.
    pub async fn set_hold(&self, point: Uuid, hold: Option<vmms::point::Hold>) {
        let change = |draft: &mut vmms::db::Draft<'_>| {
            draft.get_mut::<vmms::point::Point>(point)?.hold = hold;
            Ok(())
        };
        self.bench.vmms.db.change(change).await.unwrap();
    }

    /// Merges whatever is due, as the sweep would.
    pub async fn sweep(&self) {
        self.bench.vmms.tick().await;
        for job in self.bench.vmms.jobs() {
            self.bench.vmms.wait(job.id).await.unwrap();
        }
    }

    /// Writes to a disk and to what it must hold: through QEMU where the machine runs, else into the topmost layer.
    pub fn write(&mut self, name: &str, byte: u8, offset: u64, length: u64) {
        let disk = self.disk(name);
        let text = format!("write -P {byte} {offset} {length}");
        match self.bench.vmms.machine(self.vm) {
            Some(_) => {
                let device = hypervisor::names::device(&spec::drive_id(&disk));
                self.hmp(&format!(
                    "qemu-io -d /machine/peripheral/{device} \"{text}\""
                ));
            }
            None => {
                let top = disk.layers.active_chain().pop().unwrap();
                let done = Command::new("qemu-io")
                    .args(["-f", top.format.as_str(), "-c", &text])
                    .arg(&top.path)
                    .output()
                    .unwrap();
                assert!(
                    done.status.success(),
                    "{}",
                    String::from_utf8_lossy(&done.stdout)
                );
            }
        }
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap();
        self.disks.get_mut(name).unwrap()[range].fill(byte);
    }

    /// Makes a disk of a stopped machine larger.
    pub async fn grow(&mut self, name: &str, by: u64) {
        let top = self.disk(name).layers.active_chain().pop().unwrap();
        let held = self.disks.get_mut(name).unwrap();
        held.resize(held.len() + usize::try_from(by).unwrap(), 0);
        let images = &self.bench.vmms.images;
        images
            .resize(&top.path, top.format, held.len() as u64, false)
            .await
            .unwrap();
    }

    /// Flushes a disk of a running machine, as a guest's file system does.
    pub fn flush(&self, name: &str) {
        let device = hypervisor::names::device(&spec::drive_id(&self.disk(name)));
        self.hmp(&format!("qemu-io -d /machine/peripheral/{device} flush"));
    }

    /// Waits until the service has noticed the end of the process.
    pub async fn wait_off(&self) {
        let mut changes = self.bench.vmms.db.changes();
        while self.record().power != vmms::machine::Power::Off {
            changes.changed().await.unwrap();
        }
    }

    fn hmp(&self, line: &str) {
        let record = self.record();
        let socket = spec::run_dir(&self.bench.vmms.dirs, record.id).join("monitor.sock");
        let mut stream = UnixStream::connect(socket).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        lines.next().unwrap().unwrap();
        let mut call = |text: String| {
            stream.write_all(text.as_bytes()).unwrap();
            loop {
                let answer = lines.next().unwrap().unwrap();
                assert!(!answer.contains("\"error\""), "{answer}");
                if answer.contains("\"return\"") {
                    return;
                }
            }
        };
        call("{\"execute\":\"qmp_capabilities\"}\n".to_owned());
        let line = line.replace('"', "\\\"");
        call(format!(
            "{{\"execute\":\"human-monitor-command\",\"arguments\":{{\"command-line\":\"{line}\"}}}}\n"
        ));
    }

    /// Every exported image of a job, opened as it lies, shows what the disks held.
    pub async fn assert_exported(&self, job: &Job, expected: &BTreeMap<String, Vec<u8>>) {
        assert_eq!(job.output.disks.len(), expected.len());
        for disk in &job.output.disks {
            let name = self.name_of(&disk.device);
            let found = self.bench.contents(&disk.file, ImageFormat::Qcow2).await;
            assert_same(&found, &expected[&name], &disk.file.display().to_string());
        }
    }

    pub fn name_of(&self, device: &str) -> String {
        let record = self.record();
        match record.device(device).map(|d| &d.kind) {
            Some(DeviceKind::Disk(disk)) => disk
                .path
                .file_name()
                .unwrap()
                .to_string_lossy()
                .into_owned(),
            other => panic!("{device} is {other:?}"),
        }
    }

    /// The present of each disk, read through its topmost layer. Of a running machine only QEMU knows it: nothing is
    /// looked at then.
    pub async fn assert_present(&self) {
        if self.bench.vmms.machine(self.vm).is_some() {
            return;
        }
        for (name, expected) in &self.disks {
            let top = self.disk(name).layers.active_chain().pop().unwrap();
            let found = self.bench.contents(&top.path, top.format).await;
            assert_same(&found, expected, name);
        }
    }
}

/// Not `assert_eq`: a failing comparison of disks must not print them.
pub fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: size");
    if found == expected {
        return;
    }
    let at = found
        .iter()
        .zip(expected)
        .position(|(one, other)| one != other);
    assert_eq!(at, None, "{what}: first difference");
}

/// The files below a directory, relative to it, sorted.
pub fn files(dir: &Path) -> Vec<String> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(&at).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                out.push(path.strip_prefix(dir).unwrap().display().to_string());
            }
        }
    }
    out.sort();
    out
}

/// A runtime for one life of the service.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}
