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
    /// The same with a deadline, after which the job is shown as killed while its undo is under way.
    Kill,
}

/// What is left of a job in its final state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UndoLeft {
    /// It was killed, and its undo, or even the work itself, has not ended yet. The next start carries it out.
    Underway,
    /// Files of an export could not be removed. It is tried again from time to time, and at the next start.
    Failed,
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
    /// Who asked it to end.
    #[serde(default)]
    pub stopped_by: Option<String>,
    /// What of its undo is not done although it is in its final state.
    #[serde(default)]
    pub undo: Option<UndoLeft>,
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
    /// How long it stood still altogether: suspended, or while no service ran.
    #[serde(default)]
    pub paused: Duration,
    /// Since when it stands still.
    #[serde(default)]
    pub paused_since: Option<SystemTime>,
    /// When it was seen at work last: a service that is killed cannot say when.
    #[serde(default)]
    pub seen: Option<SystemTime>,
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
    /// When it vanishes from view, once it has ended and nothing is left of it.
    pub fn vanishes(&self) -> Option<SystemTime> {
        self.is_over()
            .then(|| self.changed.checked_add(self.keep))
            .flatten()
    }

    /// How long it ran, or has been running at `now`. Time in which it stood still does not count.
    pub fn elapsed(&self, now: SystemTime) -> Duration {
        let end = if self.state.is_final() {
            self.changed
        } else {
            now
        };
        let since = |from: SystemTime| end.duration_since(from).unwrap_or_default();
        let standing = self.paused_since.map_or(Duration::ZERO, since);
        since(self.submitted)
            .saturating_sub(self.paused)
            .saturating_sub(standing)
    }

    /// It stands still from `at` on, if it did not already.
    pub(super) fn stand_still(&mut self, at: SystemTime) {
        self.paused_since.get_or_insert(at);
    }

    /// It goes on.
    pub(super) fn go_on(&mut self, now: SystemTime) {
        if let Some(since) = self.paused_since.take() {
            self.paused += now.duration_since(since).unwrap_or_default();
        }
        self.seen = Some(now);
    }

    /// A service that has just started takes it up: it stood still since it was seen last.
    pub(super) fn taken_up(&mut self, now: SystemTime) {
        if let Some(seen) = self.seen {
            self.stand_still(seen.max(self.changed));
        }
        if self.state != JobState::Suspended {
            self.go_on(now);
        }
    }
}

impl store::Versioned for Job {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(text: &str) -> Job {
        serde_json::from_str(text).expect("a job as version 6f3f60e stored it")
    }

    /// A record of before claims, undo and pauses were kept.
    const OLD: &str = r#"{"id":"00000000-0000-0000-0000-000000000007","class":"PointExport","job_type":0,
        "title":"Exporting a reference point","task":{"ExportPoint":{"point":"00000000-0000-0000-0000-000000000001",
        "base":null,"directory":"/x","disks":[]}},"notes":null,"state":"ShuttingDown","cancellable":true,
        "suspendable":true,"stop":"Kill","percent":12,"done":12,"total":100,
        "submitted":{"secs_since_epoch":1000,"nanos_since_epoch":0},"changed":{"secs_since_epoch":1010,"nanos_since_epoch":0},
        "keep":{"secs":300,"nanos":0},"owner":"me","host":"here","service":"ReferencePoint","affected":[]}"#;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn records_of_before_load_and_claim_what_their_task_claims() {
        let old = job(OLD);
        assert_eq!((old.undo, old.stopped_by.as_deref()), (None, None));
        assert_eq!(old.claims(), old.task.claims());
        assert_eq!(old.claims().writes_to, [PathBuf::from("/x")]);
    }

    #[test]
    fn a_killed_job_claims_everything_until_its_undo_has_finished() {
        let mut killed = job(OLD);
        killed.state = JobState::Killed;
        killed.undo = Some(UndoLeft::Underway);
        assert_eq!(killed.claims(), killed.task.claims());
        assert!(!killed.is_over() && killed.vanishes().is_none());
        killed.undo = Some(UndoLeft::Failed);
        assert_eq!(killed.claims().writes_to, [PathBuf::from("/x")]);
        assert!(killed.claims().reads.is_empty());
        killed.undo = None;
        assert!(killed.claims().writes_to.is_empty() && killed.is_over());
    }

    #[test]
    fn elapsed_time_counts_no_pauses_also_across_restarts() {
        let mut job = job(OLD);
        job.state = JobState::Running;
        assert_eq!(job.elapsed(at(1020)), Duration::from_secs(20));
        job.stand_still(at(1020));
        job.stand_still(at(1025));
        assert_eq!(job.elapsed(at(1500)), Duration::from_secs(20));
        job.go_on(at(1500));
        assert_eq!(job.elapsed(at(1510)), Duration::from_secs(30));
        // The service is killed at 1510 or later and starts at 2000.
        job.seen = Some(at(1510));
        job.taken_up(at(2000));
        assert_eq!(job.elapsed(at(2001)), Duration::from_secs(31));
        // It ends while the job is suspended.
        job.state = JobState::Suspended;
        job.stand_still(at(2010));
        job.taken_up(at(3000));
        assert_eq!(job.elapsed(at(4000)), Duration::from_secs(40));
    }
}
