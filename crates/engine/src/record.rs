//! What is stored of a job.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::db::Index;
use crate::{Access, Claims, Db, Domain, Failure as _, Layers, Row, Task as _, Trouble};

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

/// A job as it is stored under `job/<guid>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Job<D: Domain> {
    /// Its GUID.
    pub id: Uuid,
    /// The class it is shown as.
    pub class: D::Class,
    /// JobType of its class; 0 where the class has none.
    pub job_type: u16,
    /// A short title.
    pub title: String,
    /// What it does, with its parameters.
    pub task: D::Task,
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
    pub service: D::Service,
    /// What it affects.
    pub affected: Vec<(D::Element, D::Effect)>,
    /// Why it failed, was stopped, or what it warns of. Empty while it runs and after plain success.
    #[serde(default)]
    pub faults: Vec<D::Fault>,
    /// What it produced.
    #[serde(default)]
    pub output: D::Output,
    /// The caller's key for idempotent retries: user and key.
    #[serde(default)]
    pub request_key: Option<String>,
}

impl<D: Domain> Job<D> {
    /// Whether it has ended and nothing of it is left to be taken back.
    pub fn is_over(&self) -> bool {
        self.state.is_final() && self.undo.is_none()
    }

    /// What it claims now: everything until its undo has finished. Where an undo failed and is tried again, the directory in which
    /// its files are left.
    pub fn claims(&self) -> Claims {
        let none = || Claims::of(Vec::new(), Access::Shared, Layers::Kept, []);
        match (self.state.is_final(), self.undo) {
            (false, _) | (true, Some(UndoLeft::Underway)) => self.task.claims(),
            (true, Some(UndoLeft::Failed)) => Claims {
                writes_to: self.task.claims().writes_to,
                ..none()
            },
            (true, None) => none(),
        }
    }

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
    pub(crate) fn stand_still(&mut self, at: SystemTime) {
        self.paused_since.get_or_insert(at);
    }

    /// It goes on.
    pub(crate) fn go_on(&mut self, now: SystemTime) {
        if let Some(since) = self.paused_since.take() {
            self.paused += now.duration_since(since).unwrap_or_default();
        }
        self.seen = Some(now);
    }

    /// A service that has just started takes it up: it stood still since it was seen last.
    pub(crate) fn taken_up(&mut self, now: SystemTime) {
        if let Some(seen) = self.seen {
            self.stand_still(seen.max(self.changed));
        }
        if self.state != JobState::Suspended {
            self.go_on(now);
        }
    }
}

impl<D: Domain> store::Versioned for Job<D> {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}

impl<D: Domain> Row for Job<D> {
    type Fault = D::Fault;
    const PREFIX: &'static str = "job/";
    const INDEXES: &'static [Index<Self>] = &[
        Index::new(BY_STATE, |job| vec![state_key(job).to_owned()]),
        Index::new(BY_REQUEST, |job| job.request_key.iter().cloned().collect()),
        Index::new(BY_ELEMENT, |job| {
            job.affected
                .iter()
                .filter_map(|(e, _)| element_key(e))
                .collect()
        }),
    ];

    fn id(&self) -> Uuid {
        self.id
    }

    fn missing(id: Uuid) -> D::Fault {
        D::Fault::of(Trouble::NoJob(id))
    }
}

/// The index of what is left to be done.
pub(crate) const BY_STATE: &str = "state";
/// The key of jobs of which something is left to be done or taken back.
pub(crate) const OPEN: &str = "open";
/// The index of requests that must not be carried out twice.
pub(crate) const BY_REQUEST: &str = "request";
/// The index of what jobs affect.
const BY_ELEMENT: &str = "element";

fn state_key<D: Domain>(job: &Job<D>) -> &'static str {
    if job.is_over() { "over" } else { OPEN }
}

fn element_key(element: &impl crate::Stored) -> Option<String> {
    serde_json::to_string(element).ok()
}

impl<D: Domain> Job<D> {
    /// The jobs that affect an element.
    pub fn affecting(db: &Db<D::Fault>, element: &D::Element) -> Vec<Arc<Self>> {
        element_key(element).map_or_else(Vec::new, |key| db.by(BY_ELEMENT, &key))
    }
}
