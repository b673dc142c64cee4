//! Jobs: every long operation, with a record that outlives the service.

mod admission;
mod context;
mod engine;
mod live;
mod record;
mod task;

pub use admission::excludes;
pub use context::JobContext;
pub use engine::{Engine, JobRequest, Submission};
pub use record::{ExportedDisk, ExportedMachine, Job, JobClass, JobState, Output, Service, Stop};
pub use task::{ImageSpec, MemberExport, MemberTask, Recovery, StateChange, Subject, Task, Traits};
