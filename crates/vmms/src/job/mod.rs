//! The jobs of this domain: what they are of, what they are shown as, how the service runs them. How jobs work is told in [`engine`].
//!
//! A kind of long operation is a type that implements [`engine::Work`], in the module it belongs to, and one line in `task.rs`.

mod host;
mod record;
mod refuse;
mod task;

use engine::Recovery;
use serde::{Deserialize, Serialize};

use crate::{Effect, Element, Fault, Vmms};

pub use engine::{Access, Claims, JobRequest, JobState, Layers, Stop, Subject, UndoLeft};
pub use record::{ExportedDisk, ExportedMachine, JobClass, Output, Service};
pub use refuse::Refuse;
pub use task::{Kind, Task};

/// The domain of these jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machines {}

impl engine::Domain for Machines {
    type Host = Vmms;
    type Task = Task;
    type Fault = Fault;
    type Element = Element;
    type Effect = Effect;
    type Class = JobClass;
    type Service = Service;
    type Activity = Activity;
    type Output = Output;

    fn creates(effect: &Effect) -> bool {
        *effect == Effect::Create
    }
}

/// A job of this domain.
pub type Job = engine::Job<Machines>;
/// What work sees of its job.
pub type JobContext = engine::JobContext<Machines>;
/// How work behaves as a job.
pub type Traits = engine::Traits<Machines>;
/// What surrounds a new job.
pub type Submission = engine::Submission<Machines>;

/// What a machine shows while a job works on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Activity {
    /// Its disk layers are merged.
    Merging,
    /// It is exported.
    Exporting,
    /// A reference point of it is taken.
    CreatingPoint,
}

/// What the machines of a job show.
pub fn activity(job: &Job) -> Option<Activity> {
    engine::Task::traits(&job.task).activity
}

/// Work that is shown as an Msvm_ConcreteJob and can be stopped.
pub(crate) fn concrete(
    service: Service,
    job_type: u16,
    title: &'static str,
    recovery: Recovery,
) -> Traits {
    Traits::new(JobClass::Concrete, service, job_type, title, recovery)
}

/// Work that is shown as an Msvm_StorageJob and can be stopped.
pub(crate) fn storage(job_type: u16, title: &'static str) -> Traits {
    let class = JobClass::Storage;
    Traits::new(class, Service::Image, job_type, title, Recovery::Undo)
}
