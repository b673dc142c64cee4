//! Jobs: every long operation, with a record that outlives the service.

mod context;
mod engine;
mod live;
mod record;
mod task;

pub use context::JobContext;
pub use engine::{Engine, JobRequest, Submission};
pub use record::{
    ExportedDisk, ExportedMachine, Job, JobClass, JobState, Output, Service, Stop,
};
pub use task::{ImageSpec, Recovery, StateChange, Task, Traits};
