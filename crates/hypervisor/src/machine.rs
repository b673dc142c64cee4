//! The traits the domain codes against: a [`Hypervisor`] makes and finds machines, a [`Machine`] is one that runs.
//!
//! A `Machine` stands for one QEMU process. When the process ends, every call answers [`Error::ProcessGone`] and the
//! last event is [`MachineEvent::Exited`]; the next start is a new `Machine`. Methods take `&self` and may be called
//! from several tasks; the monitor keeps them in order. Dropping a `Machine` leaves the process running.
//!
//! After [`Error::Timeout`] the outcome is unknown: ask [`Machine::reconcile`] or [`Machine::status`] before acting.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::agent::{GuestInfo, GuestInterface};
use crate::block::{
    BlockState, CommitOutcome, CommitSpec, FreezeReport, JobControl, NbdExport, NewOverlay,
    PreparedLayers, Quiesced,
};
use crate::config::{DriveConfig, LayerFile, MachineConfig};
use crate::confine::grants::Access;
use crate::error::{Error, Result};
use crate::migration::Migrate;
use crate::probe::Features;

/// Makes machines and finds those that already run.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// What this host and its QEMU can do.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where QEMU is missing, with the remedy.
    async fn features(&self) -> Result<Arc<Features>>;

    /// Starts a process for the machine. The guest does not run yet: [`Machine::resume`] starts it.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`], [`Error::Config`], [`Error::Unsupported`], [`Error::StartFailed`], …
    async fn launch(&self, config: &MachineConfig, launch: Launch) -> Result<Arc<dyn Machine>>;

    /// Finds the process of the machine after a restart of the service. `None`: it does not run.
    ///
    /// # Errors
    /// Where a process runs but its monitor cannot be reached.
    async fn reattach(&self, config: &MachineConfig) -> Result<Option<Arc<dyn Machine>>>;
}

/// How a machine starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Launch {
    /// From power-on.
    #[default]
    Fresh,
    /// From a state that [`Machine::save_state`] wrote.
    Restore(PathBuf),
    /// As the destination of a move: its images are open, but not locked, until [`Migrate::offer_disks`] or
    /// [`Migrate::take_over`]; the chains must be whole. Goes on with [`Migrate::receive`].
    Incoming,
}

/// One running (or paused) machine.
#[async_trait]
pub trait Machine: Migrate + Send + Sync {
    /// The machine's GUID.
    fn id(&self) -> Uuid;

    /// Process id of QEMU.
    fn pid(&self) -> i32;

    /// Everything that happens from now on. A slow reader loses the oldest events and is told how many.
    fn events(&self) -> broadcast::Receiver<MachineEvent>;

    /// What QEMU says the machine is doing.
    ///
    /// # Errors
    /// [`Error::ProcessGone`], [`Error::Timeout`].
    async fn status(&self) -> Result<MachineStatus>;

    /// The drives whose failed requests wait to be repeated: why a guest is [`MachineStatus::IoError`].
    ///
    /// # Errors
    /// As QEMU says.
    async fn failed_drives(&self) -> Result<Vec<FailedDrive>>;

    /// Starts or continues the guest. Continuing a running guest is fine.
    ///
    /// # Errors
    /// [`Error::Conflict`] where a move forbids it ([`crate::MovePhase::forbids_running`]); as QEMU says.
    async fn resume(&self) -> Result<()>;

    /// Stops the guest's processors; memory and devices stay.
    ///
    /// # Errors
    /// As QEMU says.
    async fn pause(&self) -> Result<()>;

    /// Presses the power button. Whether the guest obeys is its own affair: watch the events.
    ///
    /// # Errors
    /// As QEMU says.
    async fn powerdown(&self) -> Result<()>;

    /// Presses the reset button.
    ///
    /// # Errors
    /// As QEMU says.
    async fn reset(&self) -> Result<()>;

    /// Turns the power off: asks QEMU to end, flushing its images, and kills it when `within` has passed. Returns once
    /// the process is gone; fine if it already was.
    ///
    /// # Errors
    /// Only if the process survives even that.
    async fn quit(&self, within: Duration) -> Result<()>;

    /// Ends the process at once, as a power cut would. Returns once it is gone; fine if it already was.
    ///
    /// # Errors
    /// Only if the process survives.
    async fn kill(&self) -> Result<()>;

    /// Lets the process open that file so from now on, before it is asked to: its user may be one that nothing else is open to. Taken
    /// back when the process ends.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Config`], [`Error::Unsupported`] with a remedy.
    fn grant(&self, _path: &Path, _access: Access) -> Result<()> {
        Ok(())
    }

    /// Waits for the end of the process.
    async fn exited(&self) -> Exit;

    /// Stops the guest, writes memory and device state to `path` (complete or not at all), ends the process. Asked
    /// again after the service died meanwhile, it goes on with what QEMU is doing or has done.
    ///
    /// # Errors
    /// Where writing fails the guest stays paused and the process stays.
    async fn save_state(&self, path: &Path) -> Result<SavedState>;

    /// Plugs a drive into a SCSI controller while the machine runs. Fine if exactly this drive is there already.
    ///
    /// # Errors
    /// [`Error::Config`] for an IDE drive, [`Error::Conflict`] for a taken slot or id.
    async fn add_drive(&self, drive: &DriveConfig) -> Result<()>;

    /// Unplugs a SCSI drive and closes its images. Fine if it is gone already.
    ///
    /// # Errors
    /// [`Error::Timeout`] where the guest does not let go.
    async fn remove_drive(&self, drive_id: &str) -> Result<()>;

    /// Puts another medium into a DVD drive, or none.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Qmp`] where the guest locks the tray.
    async fn change_medium(&self, drive_id: &str, medium: Option<&LayerFile>) -> Result<()>;

    /// Changes the size of a disk, in bytes, and tells the guest.
    ///
    /// # Errors
    /// [`Error::NotFound`], or as QEMU says (formats that cannot grow).
    async fn resize(&self, drive_id: &str, bytes: u64) -> Result<()>;

    /// Gets layers ready while the guest runs: creates the files and adds the nodes. Repeating it is fine: what an
    /// earlier attempt left is used again. If it fails, what it made itself is removed.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a drive, [`Error::Conflict`] for a file with foreign content at an overlay's path.
    async fn prepare_layers(&self, overlays: &[NewOverlay]) -> Result<PreparedLayers>;

    /// Stops the guest for a mark. Fine if it stands still already.
    ///
    /// # Errors
    /// As QEMU says.
    async fn quiesce(&self) -> Result<Quiesced>;

    /// Puts all prepared layers on top at one instant, in one transaction: all or none. The layers beneath are from
    /// then on frozen, flushed and readable from their files. Works on a running guest as well as between
    /// [`Machine::quiesce`] and [`Machine::release`].
    ///
    /// # Errors
    /// After [`Error::Qmp`] nothing changed; the prepared layers are still there.
    async fn mark(&self, prepared: &PreparedLayers) -> Result<FreezeReport>;

    /// Continues a guest that [`Machine::quiesce`] stopped.
    ///
    /// # Errors
    /// As QEMU says.
    async fn release(&self, quiesced: Quiesced) -> Result<()>;

    /// Removes prepared layers that are not on top: nodes and files. Fine if they are gone; those that are on top stay.
    ///
    /// # Errors
    /// As QEMU or the file system says.
    async fn discard_layers(&self, prepared: &PreparedLayers) -> Result<()>;

    /// Makes a point of one machine: prepare, mark, and undo if the mark is refused.
    ///
    /// # Errors
    /// Those of [`Machine::prepare_layers`] and [`Machine::mark`].
    async fn freeze_layers(&self, overlays: &[NewOverlay]) -> Result<FreezeReport> {
        let prepared = self.prepare_layers(overlays).await?;
        match self.mark(&prepared).await {
            Err(refused @ Error::Qmp { .. }) => {
                // The refusal is what the caller must see; left-overs show up in `reconcile` as loose nodes.
                if let Err(error) = self.discard_layers(&prepared).await {
                    tracing::warn!(machine = %self.id(), %error, "prepared layers could not be removed");
                }
                Err(refused)
            }
            other => other,
        }
    }

    /// Merges layers into the one beneath them while the guest runs. When it answers, the data in the base and the name in the
    /// header of the layer above are durable. The layers that went are still open, and their job is still known, until
    /// [`Machine::drop_merged`], for a caller who was ended before its record said so: it calls this again and is told
    /// [`CommitOutcome::AlreadyDone`]. A running job is taken over.
    /// While it runs, and after it was cancelled, the *base alone* no longer is the disk of its instant (the layers
    /// above it still are exactly theirs).
    ///
    /// # Errors
    /// [`Error::Job`], [`Error::Cancelled`], [`Error::NotFound`] where neither layer is in the chain; [`Error::Qmp`] and
    /// [`Error::Io`] where the base cannot be made durable: then the layers stay.
    async fn commit(&self, spec: &CommitSpec, control: &JobControl) -> Result<CommitOutcome>;

    /// Closes layers that were merged, given by their files, once the caller's record says that they are gone. The files stay for
    /// the caller to delete. What is still part of a disk is left alone; what is closed already is fine.
    async fn drop_merged(&self, files: &[PathBuf]) -> Result<()>;

    /// Asks QEMU what nodes, jobs and exports there are.
    ///
    /// # Errors
    /// As QEMU says.
    async fn reconcile(&self) -> Result<BlockState>;

    /// Closes nodes that belong to no drive: what an interrupted call left, as [`BlockState::loose_nodes`] names it.
    /// Fine if they are gone; their files stay.
    ///
    /// # Errors
    /// [`Error::Conflict`] for a node that a drive uses.
    async fn close_nodes(&self, nodes: &[String]) -> Result<()>;

    /// Opens the active layer of a drive for reading over NBD. Fine if it is open already. Close it before the next
    /// mark: an export follows the drive to its new active layer.
    ///
    /// # Errors
    /// [`Error::NotFound`], or as QEMU says.
    async fn export_active(&self, drive_id: &str) -> Result<NbdExport>;

    /// Closes that export, disconnecting readers. Fine if it is closed.
    ///
    /// # Errors
    /// As QEMU says.
    async fn close_export(&self, drive_id: &str) -> Result<()>;

    /// Whether the guest agent answers within the deadline.
    ///
    /// # Errors
    /// [`Error::AgentAbsent`], [`Error::Unsupported`] without a channel.
    async fn guest_ping(&self, within: Duration) -> Result<()>;

    /// Freezes the guest's file systems; answers how many. Always pair with [`Machine::guest_thaw`].
    ///
    /// # Errors
    /// [`Error::AgentAbsent`], [`Error::Agent`]. On an error a thaw has been tried.
    async fn guest_freeze(&self, within: Duration) -> Result<u64>;

    /// Thaws the guest's file systems; answers how many. Fine if none is frozen.
    ///
    /// # Errors
    /// [`Error::AgentAbsent`], [`Error::Agent`].
    async fn guest_thaw(&self, within: Duration) -> Result<u64>;

    /// Whether the guest's file systems are frozen.
    ///
    /// # Errors
    /// [`Error::AgentAbsent`], [`Error::Agent`].
    async fn guest_frozen(&self, within: Duration) -> Result<bool>;

    /// Asks the agent to shut the guest down. The guest answers by ending: watch the events.
    ///
    /// # Errors
    /// [`Error::AgentAbsent`].
    async fn guest_shutdown(&self, within: Duration) -> Result<()>;

    /// What the agent tells of the guest's operating system.
    ///
    /// # Errors
    /// [`Error::AgentAbsent`], [`Error::Agent`].
    async fn guest_info(&self, within: Duration) -> Result<GuestInfo>;

    /// The guest's network interfaces as its agent sees them.
    ///
    /// # Errors
    /// [`Error::AgentAbsent`], [`Error::Agent`].
    async fn guest_interfaces(&self, within: Duration) -> Result<Vec<GuestInterface>>;
}

/// What a machine is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineStatus {
    /// Started, the guest has never run.
    Prelaunch,
    /// The guest runs.
    Running,
    /// Stopped by request.
    Paused,
    /// Stopped by a disk error; continuing repeats the request.
    IoError,
    /// Receiving a saved state or a migration.
    Incoming,
    /// Stopped for writing out its state.
    Saving,
    /// The state has been written; the images are no longer ours.
    Saved,
    /// The guest reported a crash.
    Crashed,
    /// The guest has shut down; the process is about to end.
    ShutDown,
    /// A state this version has no word for.
    Other(String),
}

impl MachineStatus {
    /// From QEMU's `RunState`.
    #[must_use]
    pub fn from_run_state(state: &str) -> Self {
        match state {
            "prelaunch" => Self::Prelaunch,
            "running" => Self::Running,
            "paused" | "suspended" | "debug" | "save-vm" | "restore-vm" | "watchdog" => {
                Self::Paused
            }
            "io-error" => Self::IoError,
            "inmigrate" => Self::Incoming,
            "finish-migrate" | "colo" => Self::Saving,
            "postmigrate" => Self::Saved,
            "guest-panicked" | "internal-error" => Self::Crashed,
            "shutdown" => Self::ShutDown,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// A drive with a failed request that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedDrive {
    /// The drive.
    pub drive: String,
    /// There was no room; otherwise another error.
    pub no_space: bool,
}

/// Something that happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MachineEvent {
    /// The guest's processors stopped.
    Stopped,
    /// The guest's processors run.
    Resumed,
    /// The guest was told to power down.
    PowerdownRequested,
    /// The guest (or we) turned the power off.
    Shutdown {
        /// The guest did it.
        guest: bool,
        /// QEMU's reason, for example `guest-shutdown`.
        reason: String,
    },
    /// The machine was reset.
    Reset {
        /// The guest did it.
        guest: bool,
    },
    /// The guest reported a crash.
    GuestCrashed,
    /// A disk request failed.
    BlockIoError {
        /// The drive, where it is one of ours.
        drive: Option<String>,
        /// The node.
        node: Option<String>,
        /// Write (else read).
        write: bool,
        /// `stop`, `report` or `ignore`.
        action: String,
        /// The target is full.
        no_space: bool,
        /// The OS error in words.
        reason: String,
    },
    /// A block job changed its status.
    JobStatus {
        /// Job id.
        id: String,
        /// QEMU's job status.
        status: String,
    },
    /// A block job finished its work.
    JobDone {
        /// Job id.
        id: String,
        /// Why it failed or was cancelled.
        error: Option<String>,
    },
    /// A migration, or the writing of a saved state, came to another status.
    Migration {
        /// QEMU's status, for example `pre-switchover`.
        status: String,
    },
    /// A DVD tray moved.
    TrayMoved {
        /// The drive.
        drive: Option<String>,
        /// Open now.
        open: bool,
    },
    /// A device was unplugged.
    DriveRemoved {
        /// The drive.
        drive: String,
    },
    /// The guest opened or closed the agent channel.
    AgentChannel {
        /// Opened.
        open: bool,
    },
    /// The process ended: always the last event.
    Exited(Exit),
    /// An event without a word of its own.
    Other {
        /// QEMU's name of it.
        name: String,
    },
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; `None` after a signal, or where another service instance had started the process.
    pub code: Option<i32>,
    /// Signal number.
    pub signal: Option<i32>,
    /// The last lines QEMU wrote.
    pub log_tail: String,
}

/// What [`Machine::save_state`] wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedState {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// When the guest stopped.
    pub stopped_at: SystemTime,
    /// How long writing took.
    pub took: Duration,
}
