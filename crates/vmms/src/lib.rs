//! The virtual machine management service itself: machines, reference points, exports, jobs.
//!
//! # Model
//! [`Vmms`] is the service of one host. What must survive is a record ([`vm::Vm`], [`point::Point`], [`job::Job`]) in
//! the store; every change of records is one transaction ([`db::Db::change`]). A disk is a tree of layers
//! ([`layer::LayerTree`]), a point is a node in it. Every long operation is a [`job::Task`] run by the job engine.
//!
//! # Errors
//! One type, [`Fault`]: an entry of the error catalogue with its arguments and the causes beneath. This crate knows no
//! CIM, no XML and no QMP.
//!
//! # Concurrency
//! One asynchronous lock per machine serialises what touches its process and files; the admission rules say what
//! is refused at once and what waits. Long copies run on blocking threads and hold no lock.

pub mod boot;
pub mod check;
pub mod db;
mod element;
pub mod export;
mod exported;
mod fault;
pub mod group;
mod identity;
pub mod image;
pub mod import;
pub mod import_group;
pub mod job;
pub mod layer;
pub mod names;
pub mod owner;
mod pick;
mod places;
pub mod point;
pub mod recover;
mod service;
pub mod snapshot;
pub mod told;
mod trusted;
pub mod verify;
pub mod vm;
mod wiring;

pub use element::{Effect, Element};
pub use fault::{Area, Entry, Fault, Kind, Message, Result, Severity};
pub use hypervisor::confine::Level as ConfinementLevel;
pub use hypervisor::probe::{Features, KvmState};
pub use hypervisor::thaw::{SUBCOMMAND as THAW_WATCHDOG, stand_watch};
pub use hypervisor::{Acceleration, ImageFormat, plain_mode};
pub use places::{Places, Use};
pub use service::{Dirs, Options, TamperingPolicy, Vmms};
#[doc(hidden)]
pub use trusted::{FileId, KnownImage};
pub use wiring::{in_memory, open_store, start_qemu};

/// A GUID as Hyper-V writes it: upper case with hyphens.
pub fn guid(id: uuid::Uuid) -> String {
    id.hyphenated().to_string().to_ascii_uppercase()
}
