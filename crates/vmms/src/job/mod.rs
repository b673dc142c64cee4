//! Jobs: every long operation, with a record that outlives the service.
//!
//! # How a job ends
//! ```text
//!  told to stop      durable: the wish and who has it, state 6. The work sees it at its next safe place; only Kill is taken now
//!    -> deadline     Kill: a short one. It takes nothing away from the work, it bounds how long the answer takes:
//!                    then the job is shown as killed, with "undo under way" in its record
//!    -> undo         always, whatever the work was in the middle of
//!    -> final        8 terminated, 9 killed, 10 failed: nothing of it is left, or the record says that its undo is not finished
//! ```
//! * The work is never dropped at an await. It returns, at its next checkpoint or because the switch for blocking work was thrown, and
//!   only then its undo begins.
//! * A state is final when the undo has *finished*, or with [`UndoLeft`] in the record. What the job claims stays claimed
//!   until then ([`Claims`]); a service that starts carries it out before anything else can take what it claims.
//! * [`JobContext::no_return`] and a request to stop are decided in one transaction each: whoever is first has won, durably. A part of a
//!   larger job (`JobContext::part`) has no such place of its own.
//! * A service that ends parks its jobs ([`crate::Vmms::park`]): those that go on after a restart stop where they are, nothing is
//!   undone, and their records say since when they have been waiting. The next start goes on with them.
//! * A restart in the middle of ending: the undo is finished, then the job is terminated or killed as it was asked.

mod admission;
mod claims;
mod context;
mod engine;
mod live;
mod record;
mod task;

pub use admission::excludes;
pub use claims::{Access, Claims, Subject};
pub use context::JobContext;
pub use engine::{Engine, JobRequest, Submission};
pub use record::{
    ExportedDisk, ExportedMachine, Job, JobClass, JobState, Output, Service, Stop, UndoLeft,
};
pub use task::{ImageSpec, MemberExport, MemberTask, Recovery, StateChange, Task, Traits};
