//! The virtual machine management service itself: machines, reference points, exports, jobs.
//!
//! # Model
//! [`Vmms`] is the service of one host. What must survive is a record ([`machine::Vm`], [`point::Point`], [`job::Job`]) in
//! the store; every change of records is one transaction ([`db::Db::change`]). A disk is a tree of layers
//! ([`disk_tree::LayerTree`]), a point is a node in it. Every long operation is a [`job::Task`] run by the job engine.
//!
//! # Errors
//! One type, [`Fault`]: an entry of the error catalogue with its arguments and the causes beneath. This crate knows no
//! CIM, no XML and no QMP.
//!
//! # Concurrency
//! One asynchronous lock per machine serialises what touches its process and files; the admission rules say what
//! is refused at once and what waits. Long copies run on blocking threads and hold no lock.

mod blocking;
pub mod collection;
pub mod db;
pub mod disk_tree;
pub mod export;
mod fault;
mod host;
pub mod image;
mod instant;
pub mod job;
pub mod machine;
mod merge;
pub mod migration;
pub mod names;
mod restore;
mod service;
pub mod told;
mod trusted;

pub(crate) use blocking::blocking;
pub use fault::{Area, Effect, Element, Entry, Fault, Kind, Message, Result, Severity};
pub use host::production::{open_store, start_qemu};
#[cfg(feature = "in-memory")]
pub use host::scripted::in_memory;
pub use host::{Places, Use, check, owner, recover};
pub use hypervisor::confine::Level as ConfinementLevel;
pub use hypervisor::probe::{Features, KvmState};
pub use hypervisor::thaw::{SUBCOMMAND as THAW_WATCHDOG, stand_watch};
pub use hypervisor::{Acceleration, ImageFormat, plain_mode};
pub use instant::{audit, point, snapshot};
pub use restore::{adopt, boot, import, import_collection, verify};
pub use service::{Dirs, Options, TamperingPolicy, Vmms};
#[doc(hidden)]
pub use trusted::{FileId, KnownImage};

/// A GUID as Hyper-V writes it: upper case with hyphens.
pub fn guid(id: uuid::Uuid) -> String {
    id.hyphenated().to_string().to_ascii_uppercase()
}
