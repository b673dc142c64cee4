//! Two processes of one machine, and ways between them that can break.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hypervisor::config::{BootSource, ImageFormat, LayerFile, MachineConfig, SerialPort};
use hypervisor::migration::{
    Address, Channel, DiskOffer, Limits, Link, MirrorTarget, Moved, Terms, Tls, Transfer,
};
use hypervisor::qemu::QemuMachine;
use hypervisor::{JobControl, Launch, Machine, MachineStatus, Migrate, MovePhase, NewImage};
use rustix::process::{Pid, Signal};
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::{Bench, Running, guest};

/// Long on a loaded machine, and only reached where something is wrong.
pub const LONG: Duration = Duration::from_secs(120);

/// Bytes per second of [`slow`].
pub const SLOW: u64 = 2 << 20;

/// A machine here, and what it becomes there.
pub struct Two {
    pub bench: Bench,
    pub there: MachineConfig,
    pub source: Running,
    pub log: PathBuf,
    /// Whether it tells of records it writes.
    writes: bool,
}

/// What the source does.
pub enum Guest {
    /// Nothing: there is nothing to start.
    Idle,
    /// Writes records to its first disk.
    Writer,
    /// Changes memory.
    Hog,
}

impl Two {
    /// On disks that both have.
    pub async fn shared(guest: Guest) -> Self {
        Self::with(Bench::new(), guest).await
    }

    pub async fn with(mut bench: Bench, guest: Guest) -> Self {
        bench.add_disk("sda", ImageFormat::Raw, guest::SIZE).await;
        let code = match guest {
            Guest::Idle => Vec::new(),
            Guest::Writer => guest::writer(bench.dir.path()),
            Guest::Hog => guest::hog(bench.dir.path()),
        };
        let disk = std::fs::File::options()
            .write(true)
            .open(bench.path("sda.base"))
            .unwrap();
        std::os::unix::fs::FileExt::write_all_at(&disk, &code, 0).unwrap();
        bench.config.boot_order = vec![BootSource::Drive("sda".into())];
        let log = bench.path("com1.log");
        bench.config.serial[0] = Some(SerialPort {
            socket: bench.path("com1.sock"),
            log: Some(log.clone()),
        });
        let mut there = bench.config.clone();
        there.run_dir = bench.path("there");
        there.serial[0] = Some(SerialPort {
            socket: bench.path("com1-there.sock"),
            log: Some(log.clone()),
        });
        let source = bench.launch().await;
        source.resume().await.unwrap();
        let two = Self {
            bench,
            there,
            source,
            log,
            writes: matches!(guest, Guest::Writer),
        };
        match guest {
            Guest::Idle => {}
            Guest::Writer => two.writes_on().await,
            Guest::Hog => two.said_something().await,
        }
        two
    }

    /// Puts a layer on the disk, here and (with a file of its own) there, where the layers beneath are copied.
    pub async fn layered(guest: Guest, layers: usize) -> Self {
        Self::shared(guest).await.with_layers(layers).await
    }

    pub async fn with_layers(self, layers: usize) -> Self {
        let mut two = self;
        for number in 1..=layers {
            let name = format!("l{number}");
            let overlay = two.bench.overlay("sda", &name);
            two.source.freeze_layers(&[overlay]).await.unwrap();
            let path = two.bench.path(&format!("{name}.qcow2"));
            let layer = LayerFile::new(&name, path, ImageFormat::Qcow2);
            two.there.drives[0].chain.push(layer);
            if two.writes {
                two.writes_on().await;
            }
        }
        two.copy_frozen().await;
        two
    }

    /// What the domain does beforehand: frozen layers as files, and an empty active one.
    async fn copy_frozen(&mut self) {
        let dir = self.bench.path("elsewhere");
        std::fs::create_dir(&dir).unwrap();
        let disks = self.source.disks().await.unwrap();
        let mut chain = Vec::new();
        for node in disks[0].frozen.iter().chain([&disks[0].active]) {
            let path = node.path.as_ref().unwrap();
            let copy = dir.join(path.file_name().unwrap());
            if *node != disks[0].active {
                std::fs::copy(path, &copy).unwrap();
            }
            chain.push(LayerFile::new(&node.node_name, copy, node.format.unwrap()));
        }
        let active = chain.last().unwrap().path.clone();
        let image = match chain.len() {
            1 => NewImage::new(&active, chain[0].format, disks[0].active.size),
            count => {
                let below = &chain[count - 2];
                let name = format!("./{}", below.path.file_name().unwrap().to_str().unwrap());
                NewImage::overlay(&active, name, below.format, disks[0].active.size)
            }
        };
        self.bench.images.create(&image).await.unwrap();
        self.there.drives[0].chain = chain;
    }

    pub async fn destination(&self) -> Running {
        let launched = self
            .bench
            .hypervisor
            .launch_qemu(&self.there, Launch::Incoming);
        Running::new(launched.await.unwrap())
    }

    pub fn socket(&self, name: &str) -> Address {
        Address::Unix(self.bench.path(name))
    }

    /// The topmost file of the disk there.
    pub fn active_there(&self) -> (PathBuf, ImageFormat) {
        let layer = self.there.drives[0].chain.last().unwrap();
        (layer.path.clone(), layer.format)
    }

    /// The number up to which that image holds all records.
    pub async fn records(&self, file: &str, format: ImageFormat) -> u32 {
        guest::records(&self.bench.contents(&self.bench.path(file), format).await)
    }

    pub fn reports(&self) -> usize {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        assert!(
            !log.lines().any(|line| line.starts_with("E ")),
            "a write failed in the guest: {log}"
        );
        log.lines().filter(|line| line.starts_with("N ")).count()
    }

    /// Waits until its guest runs.
    async fn said_something(&self) {
        let said = async {
            while !std::fs::read(&self.log).is_ok_and(|log| !log.is_empty()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, said).await.unwrap();
    }

    /// Waits until some hundred more records are written.
    pub async fn writes_on(&self) {
        let before = self.reports();
        let more = async {
            while self.reports() <= before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LONG, more).await.unwrap();
    }

    /// Opens the disks there and mirrors them.
    pub async fn mirror(&self, destination: &QemuMachine, tls: Option<(Tls, Tls)>) {
        let (here, there) = tls.unzip();
        let address = match &there {
            Some(_) => Address::Tcp {
                host: "127.0.0.1".into(),
                port: 0,
            },
            None => self.socket("disks.sock"),
        };
        let offer = DiskOffer {
            address,
            tls: there,
            drives: vec!["sda".into()],
        };
        let address = destination.offer_disks(&offer).await.unwrap();
        let control = JobControl::new();
        self.source
            .mirror(vec![target(address)], here.as_ref(), None, &control)
            .await
            .unwrap();
        let progress = control.progress();
        assert!(progress.done <= progress.total, "{progress:?}");
        self.source.tighten(LONG, &control).await.unwrap();
    }
}

pub fn target(address: Address) -> MirrorTarget {
    MirrorTarget {
        drive_id: "sda".into(),
        channel: address.into(),
    }
}

pub fn plain(channel: impl Into<Channel>) -> Link {
    Link {
        channel: channel.into(),
        tls: None,
    }
}

/// Lets the destination listen; the address it has.
pub async fn receive(destination: &QemuMachine, address: Address) -> Address {
    let listening = destination.receive(plain(address), &Terms::default()).await;
    listening.unwrap().unwrap()
}

/// Sends to there until the guest stands still.
pub async fn send(source: &QemuMachine, address: Address) -> hypervisor::error::Result<()> {
    source
        .send(
            plain(address),
            &Terms::default(),
            &Limits::default(),
            &Transfer::new(),
        )
        .await
}

/// From the guest that stands still to the one that runs there.
pub async fn hand_over(source: &QemuMachine, destination: &QemuMachine) -> Moved {
    assert_eq!(phase(source).await, MovePhase::ReadyToSwitch);
    source.end_mirrors(LONG).await.unwrap();
    source.end_mirrors(LONG).await.unwrap();
    let moved = source.switch_over(LONG).await.unwrap();
    assert_eq!(phase(source).await, MovePhase::HandedOver);
    assert!(source.resume().await.is_err());
    destination.arrived(LONG).await.unwrap();
    assert_eq!(phase(destination).await, MovePhase::Arrived);
    assert!(destination.resume().await.is_err());
    destination.take_over(true).await.unwrap();
    destination.take_over(true).await.unwrap();
    assert_eq!(phase(destination).await, MovePhase::None);
    source.quit(LONG).await.unwrap();
    moved
}

pub async fn phase(machine: &QemuMachine) -> MovePhase {
    machine.moving().await.unwrap().phase
}

/// The guest runs at the source, and nothing is left of a move.
pub async fn still_runs(two: &Two) {
    until(&two.source, MovePhase::None).await;
    assert_eq!(two.source.status().await.unwrap(), MachineStatus::Running);
}

pub async fn until(machine: &QemuMachine, wanted: MovePhase) {
    let reached = async {
        while phase(machine).await != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(LONG, reached).await.is_err() {
        panic!("{wanted:?} was not reached: {:?}", machine.moving().await);
    }
}

/// So slow that it never ends with [`Guest::Hog`]. QEMU sends a tenth of a second's worth at a time, and no less than 128 KiB.
pub fn slow() -> Limits {
    Limits {
        bandwidth: Some(SLOW),
        downtime: Duration::from_millis(1),
        auto_converge: false,
    }
}

pub fn signal(machine: &QemuMachine, signal: Signal) {
    let pid = Pid::from_raw(machine.pid()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// A link between two sockets that can be broken.
pub struct Relay {
    pub address: Address,
    task: JoinHandle<()>,
    links: Arc<Mutex<Vec<tokio::task::AbortHandle>>>,
}

impl Relay {
    pub fn new(at: &Path, to: &Path) -> Self {
        let listener = UnixListener::bind(at).unwrap();
        let links = Arc::new(Mutex::new(Vec::new()));
        let (kept, to) = (Arc::clone(&links), to.to_owned());
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let to = to.clone();
                let link = tokio::spawn(async move {
                    let mut far = UnixStream::connect(to).await.unwrap();
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                });
                kept.lock().unwrap().push(link.abort_handle());
            }
        });
        Self {
            address: Address::Unix(at.to_owned()),
            task,
            links,
        }
    }

    /// Both sides see the end of it.
    pub fn cut(&self) {
        self.task.abort();
        self.links
            .lock()
            .unwrap()
            .iter()
            .for_each(|link| link.abort());
    }
}
