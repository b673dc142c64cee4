//! The service of one host: its records, its machines, its options.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hypervisor::{Hypervisor, ImageTool, Machine};
use store::Store;
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use crate::db::Db;
use crate::job::Machines;
use crate::machine::Runtime;
use crate::{Places, Result, collection, machine, merge, migration, point};

/// Directories of the service.
#[derive(Clone, Debug)]
pub struct Dirs {
    /// What must survive: store, maps, point configurations, saved states.
    pub state: PathBuf,
    /// Sockets and pid files; empty after a reboot.
    pub run: PathBuf,
}

/// What a differential export does where it is not known what changed since its base, because something other than kvmms wrote to a
/// file of the disk, or a change map is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TamperingPolicy {
    /// It fails.
    Fail,
    /// It is written whole.
    Full,
    /// What changed is found by the hashes of the base's blocks: it costs a read of the disk.
    #[default]
    Repair,
}

impl TamperingPolicy {
    /// All of them.
    pub const ALL: [TamperingPolicy; 3] = [
        TamperingPolicy::Fail,
        TamperingPolicy::Full,
        TamperingPolicy::Repair,
    ];

    /// Its name in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            TamperingPolicy::Fail => "fail",
            TamperingPolicy::Full => "full",
            TamperingPolicy::Repair => "repair",
        }
    }
}

/// What can be configured.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long an RCT point keeps its content for its first export; zero: not at all.
    pub hold_time: Duration,
    /// How far the layers above a held point may grow, in bytes.
    pub hold_bytes: u64,
    /// Most layers of one disk.
    pub max_layers: usize,
    /// How long a job stays visible after its end.
    pub job_keep: Duration,
    /// Threads that read and hash during an export.
    pub export_threads: usize,
    /// How long the guest agent may take to answer or to freeze.
    pub agent_deadline: Duration,
    /// The service's own program, which thaws frozen guests when the service dies or hangs; `None`: only the next start of the
    /// service does.
    pub thaw_watchdog: Option<PathBuf>,
    /// How long each member of a collection may take to stand still, to have its disks marked, and to go on, before the
    /// whole point fails. All members stand still meanwhile.
    pub stop_deadline: Duration,
    /// How long a job that is killed may take to end before it is shown as killed with its undo still under way.
    pub kill_deadline: Duration,
    /// How long a guest may take to shut down before the job fails.
    pub shutdown_deadline: Duration,
    /// KVM or emulation.
    pub acceleration: hypervisor::Acceleration,
    /// What a differential export does where changes are not known.
    pub tampering: TamperingPolicy,
    /// How long what cleaning took away lies in quarantine before it is deleted.
    pub quarantine: Duration,
    /// How long all machines together may take to end when the host goes down.
    pub host_shutdown_deadline: Duration,
    /// What tells boots of the host apart.
    pub boot: machine::BootOptions,
    /// When too little room for what guests write is warned of.
    pub room: machine::RoomOptions,
    /// How long the log of a console may be, in bytes; as much again is kept of what was cut away.
    pub console_bytes: u64,
    /// How long a guest that was asked to shut down may take before it is asked again.
    pub shutdown_again: Duration,
    /// How QEMU is shut in.
    pub confinement: machine::Confinement,
    /// How long hosts wait for each other when machines move.
    pub patience: migration::Patience,
    /// Where exports, images and imports may lie.
    pub places: Places,
    /// Bytes of content that an export of a disk writes between two marks it can go on from after a restart.
    pub export_mark: u64,
    /// Whether imports by the documented methods, which cannot ask for it, take exported memory over: QEMU runs what it says.
    pub import_memory: bool,
    /// How the migration service is set until somebody changes it.
    pub migration: migration::MigrationDefaults,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            hold_time: Duration::from_secs(24 * 3600),
            hold_bytes: 64 << 30,
            max_layers: 64,
            job_keep: Duration::from_secs(300),
            export_threads: std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8)),
            agent_deadline: Duration::from_secs(10),
            thaw_watchdog: None,
            stop_deadline: Duration::from_secs(3),
            kill_deadline: Duration::from_secs(3),
            shutdown_deadline: Duration::from_secs(180),
            acceleration: hypervisor::Acceleration::Auto,
            tampering: TamperingPolicy::default(),
            quarantine: Duration::from_secs(14 * 24 * 3600),
            host_shutdown_deadline: Duration::from_secs(120),
            boot: machine::BootOptions::default(),
            room: machine::RoomOptions::default(),
            console_bytes: 16 << 20,
            shutdown_again: Duration::from_secs(15),
            confinement: machine::Confinement::default(),
            patience: migration::Patience::default(),
            places: Places::default(),
            export_mark: 256 << 20,
            import_memory: false,
            migration: migration::MigrationDefaults::default(),
        }
    }
}

/// The service.
pub struct Vmms {
    /// The records.
    pub db: Db,
    /// What makes machines.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// The tool for images of machines that do not run.
    pub images: ImageTool,
    /// Directories.
    pub dirs: Dirs,
    /// Options.
    pub options: Options,
    /// The host's name.
    pub host: String,
    /// The identifier of the state directory, which layers name as their owner.
    pub identity: Uuid,
    /// When the service started.
    pub started: SystemTime,
    pub(crate) engine: engine::Engine<Machines>,
    pub(crate) points: merge::Memory,
    pub(crate) rooms: machine::Rooms,
    pub(crate) consoles: machine::Consoles,
    pub(crate) starts: machine::Starts,
    pub(crate) moves: migration::Moves,
    runtimes: Mutex<HashMap<Uuid, Arc<Runtime>>>,
}

impl Vmms {
    /// The service over a store: reattaches machines that still run, brings points and layers in order, then goes on with
    /// jobs.
    pub async fn start(
        store: Arc<dyn Store>,
        hypervisor: Arc<dyn Hypervisor>,
        images: ImageTool,
        dirs: Dirs,
        options: Options,
        host: String,
    ) -> Result<Arc<Self>> {
        let vmms = Self::idle(store, hypervisor, images, dirs, options, host).await?;
        machine::begin(&vmms).await?;
        machine::reattach(&vmms).await;
        machine::begin_starts(&vmms).await?;
        machine::close_files(&vmms);
        collection::release_all(&vmms).await;
        crate::instant::freeze::thaw_left(&vmms);
        merge::recover(&vmms).await?;
        collection::recover(&vmms).await?;
        vmms.recover_jobs();
        migration::settle_arrivals(&vmms).await?;
        migration::follow_up(&vmms).await?;
        Ok(vmms)
    }

    /// The records and files without anything going on: no machine is reattached, no job picked up.
    pub(crate) async fn idle(
        store: Arc<dyn Store>,
        hypervisor: Arc<dyn Hypervisor>,
        images: ImageTool,
        dirs: Dirs,
        options: Options,
        host: String,
    ) -> Result<Arc<Self>> {
        for dir in [&dirs.state, &dirs.run] {
            point::make_dir(dir)?;
        }
        Ok(Arc::new(Vmms {
            db: crate::db::open(store).await?,
            hypervisor,
            images,
            identity: crate::host::owner::state_id(&dirs.state)?,
            dirs,
            options,
            host,
            started: SystemTime::now(),
            engine: engine::Engine::default(),
            points: merge::Memory::default(),
            rooms: machine::Rooms::default(),
            consoles: machine::Consoles::default(),
            starts: machine::Starts::default(),
            moves: migration::Moves::default(),
            runtimes: Mutex::default(),
        }))
    }

    /// Work that comes round: called every few seconds by the service's main loop.
    pub async fn tick(self: &Arc<Self>) {
        machine::tick(self);
        self.tend_jobs().await;
        merge::sweep(self).await;
        point::forget_memories(self).await;
        migration::expire(self, SystemTime::now()).await;
        let vmms = Arc::clone(self);
        let expired = crate::blocking(move || {
            crate::host::check::expire(&vmms, SystemTime::now());
            Ok(())
        });
        if let Err(error) = expired.await {
            tracing::warn!(%error, "the quarantine was not looked through");
        }
    }

    /// What is known of a machine's process; made when first asked for.
    pub(crate) fn runtime(&self, vm: Uuid) -> Arc<Runtime> {
        let mut runtimes = self.runtimes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(runtimes.entry(vm).or_default())
    }

    pub(crate) fn drop_runtime(&self, vm: Uuid) {
        self.runtimes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&vm);
    }

    /// The running process of a machine; `None` when it is off or saved.
    pub fn machine(&self, vm: Uuid) -> Option<Arc<dyn Machine>> {
        self.runtime(vm).machine()
    }

    /// The state of a machine as clients see it.
    pub fn state_of(&self, vm: &machine::Vm) -> machine::VmState {
        self.runtime(vm.id).state(vm)
    }

    /// The machine's lock: held while its process, files or layers are touched, never during a long copy.
    pub async fn lock(&self, vm: Uuid) -> OwnedMutexGuard<()> {
        self.runtime(vm).lock().await
    }
}
