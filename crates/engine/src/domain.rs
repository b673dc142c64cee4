//! What this crate asks of the domain whose jobs it runs.

use std::fmt::Debug;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use store::StoreError;
use uuid::Uuid;

use crate::{Db, Engine, JobState, Subject, Task};

/// What can be a part of a record.
pub trait Stored:
    Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl<T> Stored for T where
    T: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

/// A domain: the types that its jobs are made of. Itself it has no values.
pub trait Domain: Clone + Debug + PartialEq + Send + Sync + Sized + 'static {
    /// What runs: the service with its records.
    type Host: Host<Domain = Self>;
    /// The work of a job, as it is stored.
    type Task: Task<Self>;
    /// How failures are told.
    type Fault: Failure;
    /// What jobs affect and failures are about.
    type Element: Stored;
    /// What a job does to an element.
    type Effect: Stored;
    /// What a job is shown as.
    type Class: Stored;
    /// What a job belongs to.
    type Service: Stored;
    /// What a job is doing, as far as its subject shows that.
    type Activity: Stored;
    /// What a job produces.
    type Output: Stored + Default;

    /// Whether an element comes to be by a job with this effect: it is not there when the job failed.
    fn creates(effect: &Self::Effect) -> bool;
}

/// The service that runs jobs.
pub trait Host: Send + Sync + 'static {
    /// Whose jobs.
    type Domain: Domain<Host = Self>;

    /// The records.
    fn db(&self) -> &Db<<Self::Domain as Domain>::Fault>;

    /// The jobs.
    fn engine(&self) -> &Engine<Self::Domain>;

    /// What is configured.
    fn policy(&self) -> Policy<'_>;

    /// The machine that is claimed by it or by one of its points; `None`: there is none any more.
    fn machine_of(&self, subject: &Subject) -> Option<Uuid>;

    /// That a machine has a job beside which the new one cannot run.
    fn busy(&self, machine: Uuid, job: Uuid, title: &str) -> <Self::Domain as Domain>::Fault;
}

/// What is configured of jobs.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// How long a job that is killed may take to end before it is shown as killed with its undo still under way.
    pub kill_deadline: Duration,
    /// How long a job stays visible after its end.
    pub keep: Duration,
    /// The host's name.
    pub host: &'a str,
}

/// The shape of failures: a catalogue of its own, causes beneath.
pub trait Failure: Stored + std::error::Error + From<StoreError> {
    /// What goes wrong with jobs and records themselves.
    fn of(trouble: Trouble<'_>) -> Self;

    /// Whether work ended because it was told to.
    fn is_cancelled(&self) -> bool;

    /// Adds what lies beneath, unless it is there already.
    fn add_cause(&mut self, cause: Self);
}

/// What goes wrong with jobs and records themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble<'a> {
    /// The service ends and takes nothing new.
    Ending,
    /// There is no job with that identifier.
    NoJob(Uuid),
    /// The job has ended and takes no request.
    Final(Uuid, JobState),
    /// The job was told to end, and cannot be asked for this any more.
    Leaving(Uuid, &'a str),
    /// The job is of a kind that cannot be asked for this.
    Transition(Uuid, &'a str),
    /// The job can be stopped no more.
    NotCancellable(Uuid),
    /// The job was ended in this way by somebody.
    Stopped(Uuid, &'a str, &'a str),
    /// The service was restarted while the job ran, and the job cannot go on.
    Interrupted(Uuid),
    /// What cannot happen.
    Internal(&'a str),
}
