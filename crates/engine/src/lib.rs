//! Jobs and records, without the domain they are of.
//!
//! # Records
//! [`Db`] keeps every record in memory and changes them in transactions of the store: durable first, then visible, then told
//! to whoever follows the [`Feed`]. A kind of record is a type that implements [`Row`].
//!
//! # Jobs
//! A long operation is a type that implements [`Work`]: what it is ([`Traits`]), what it touches ([`Claims`]), how it runs, how it is
//! undone. The [`Engine`] makes a durable [`Job`] of it, refuses what cannot run beside others ([`excludes`]), runs it, stops it,
//! and takes it up again after a restart.
//!
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
//!   larger job ([`JobContext::part`]) has no such place of its own.
//! * A service that ends parks its jobs ([`Engine::park`]): those that go on after a restart stop where they are, nothing is
//!   undone, and their records say since when they have been waiting. The next start goes on with them.
//! * A restart in the middle of ending: the undo is finished, then the job is terminated or killed as it was asked.
//!
//! # Domain
//! What a job is about, what it produces and how failures look is the [`Domain`]'s. This crate knows no machine, no point and no export
//! but as identifiers that are claimed.

mod admission;
mod claims;
mod context;
mod db;
mod domain;
mod live;
mod record;
mod request;
mod run;
mod tend;
mod work;

pub use admission::excludes;
pub use claims::{Access, Claims, Layers, Subject};
pub use context::JobContext;
pub use db::{Change, Db, Draft, Feed, Index, Kinds, Missed, Place, Row};
pub use domain::{Domain, Failure, Host, Policy, Stored, Trouble};
pub use record::{Job, JobState, Stop, UndoLeft};
pub use request::JobRequest;
pub use run::{Engine, Submission};
pub use work::{Recovery, Task, Traits, Work};

/// An identifier as people and Hyper-V write it: upper case with hyphens.
pub fn guid(id: uuid::Uuid) -> String {
    id.hyphenated().to_string().to_ascii_uppercase()
}
