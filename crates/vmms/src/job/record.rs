//! What is stored of a job.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Task;
use crate::boot::BootEvidence;
use crate::{Effect, Element, Fault};

/// The CIM class a job is shown as; the six differ only in data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum JobClass {
    /// Msvm_ConcreteJob
    Concrete,
    /// Msvm_StorageJob
    Storage,
    /// Msvm_MigrationJob
    Migration,
    /// Msvm_VirtualSystemReferencePointExportJob
    PointExport,
    /// Msvm_CollectionReferencePointExportJob
    GroupPointExport,
    /// Msvm_CopyFileToGuestJob
    CopyFileToGuest,
}

/// Where a job stands; the numbers are CIM's JobState.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum JobState {
    /// 4
    Running,
    /// 5
    Suspended,
    /// 6
    ShuttingDown,
    /// 7
    Completed,
    /// 8
    Terminated,
    /// 9
    Killed,
    /// 10
    Exception,
}

impl JobState {
    /// Whether it has ended.
    pub fn is_final(self) -> bool {
        !matches!(
            self,
            JobState::Running | JobState::Suspended | JobState::ShuttingDown
        )
    }

    /// CIM's number.
    pub fn number(self) -> u16 {
        match self {
            JobState::Running => 4,
            JobState::Suspended => 5,
            JobState::ShuttingDown => 6,
            JobState::Completed => 7,
            JobState::Terminated => 8,
            JobState::Killed => 9,
            JobState::Exception => 10,
        }
    }

    /// A word for people.
    pub fn word(self) -> &'static str {
        match self {
            JobState::Running => "running",
            JobState::Suspended => "suspended",
            JobState::ShuttingDown => "shutting down",
            JobState::Completed => "completed",
            JobState::Terminated => "terminated",
            JobState::Killed => "killed",
            JobState::Exception => "failed",
        }
    }
}

/// How a client asked a job to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// Undo cleanly, then end.
    Terminate,
    /// End now; undo afterwards.
    Kill,
}

/// Which service a job belongs to (Msvm_OwningJobElement).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Service {
    /// Msvm_VirtualSystemManagementService
    Management,
    /// Msvm_VirtualSystemReferencePointService
    ReferencePoint,
    /// Msvm_VirtualSystemSnapshotService
    Snapshot,
    /// Msvm_ImageManagementService
    Image,
    /// Msvm_VirtualSystemMigrationService
    Migration,
    /// Msvm_CollectionManagementService
    Collection,
    /// Msvm_CollectionReferencePointService
    CollectionReferencePoint,
    /// Msvm_CollectionSnapshotService
    CollectionSnapshot,
}

/// A job as it is stored under `job/<guid>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its GUID.
    pub id: Uuid,
    /// The class it is shown as.
    pub class: JobClass,
    /// JobType of its class; 0 where the class has none.
    pub job_type: u16,
    /// A short title.
    pub title: String,
    /// What it does, with its parameters.
    pub task: Task,
    /// What the task has noted of its way, to go on or undo after a restart.
    #[serde(default)]
    pub notes: serde_json::Value,
    /// Where it stands.
    pub state: JobState,
    /// Whether a client may still stop it.
    pub cancellable: bool,
    /// Whether a client may suspend it.
    pub suspendable: bool,
    /// How it was asked to end.
    #[serde(default)]
    pub stop: Option<Stop>,
    /// 0 to 100; 100 only with a final state.
    pub percent: u8,
    /// Bytes done, where the task counts bytes.
    #[serde(default)]
    pub done: u64,
    /// Bytes to do.
    #[serde(default)]
    pub total: u64,
    /// When it was submitted and started.
    pub submitted: SystemTime,
    /// When the state changed last.
    pub changed: SystemTime,
    /// How long after its end it stays visible.
    pub keep: Duration,
    /// Who asked; the user's name.
    pub owner: String,
    /// The host it runs on.
    pub host: String,
    /// The service it belongs to.
    pub service: Service,
    /// What it affects.
    pub affected: Vec<(Element, Effect)>,
    /// Why it failed, was stopped, or what it warns of. Empty while it runs and after plain success.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// What it produced.
    #[serde(default)]
    pub output: Output,
    /// The caller's key for idempotent retries: user and key.
    #[serde(default)]
    pub request_key: Option<String>,
}

/// What a job produced; the properties of the export and storage job classes come from here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Output {
    /// The directory exported to.
    pub directory: Option<PathBuf>,
    /// The exported point, and the base it builds on.
    pub point: Option<Uuid>,
    /// See `point`.
    pub base: Option<Uuid>,
    /// The machine, or the collection for a collection's export.
    pub subject: Option<Uuid>,
    /// The machines, with their files in parallel.
    pub machines: Vec<ExportedMachine>,
    /// Disks and their files.
    pub disks: Vec<ExportedDisk>,
    /// An object the job made.
    pub created: Option<Element>,
    /// Bytes read and written by an export.
    pub bytes_read: u64,
    /// See `bytes_read`.
    pub bytes_written: u64,
    /// Free text for people, one line each.
    pub report: Vec<String>,
    /// What was done otherwise than asked, and why, one line each.
    pub decisions: Vec<String>,
    /// What machines showed that were booted from exports.
    pub boots: Vec<BootEvidence>,
}

/// The files of one exported machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExportedMachine {
    /// The machine.
    pub vm: Uuid,
    /// Its configuration.
    pub config: Option<PathBuf>,
    /// Its runtime state.
    pub runtime: Option<PathBuf>,
    /// Its guest state.
    pub guest_state: Option<PathBuf>,
}

/// One exported disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportedDisk {
    /// The machine.
    pub vm: Uuid,
    /// The resource id within the machine.
    pub device: String,
    /// The file it went to.
    pub file: PathBuf,
}

impl Job {
    /// When it vanishes from view, once it has ended.
    pub fn vanishes(&self) -> Option<SystemTime> {
        self.state
            .is_final()
            .then(|| self.changed.checked_add(self.keep))
            .flatten()
    }

    /// How long it ran, or has been running at `now`.
    pub fn elapsed(&self, now: SystemTime) -> Duration {
        let end = if self.state.is_final() {
            self.changed
        } else {
            now
        };
        end.duration_since(self.submitted).unwrap_or_default()
    }
}

impl store::Versioned for Job {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}
