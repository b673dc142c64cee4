//! Machines as QEMU processes.
//!
//! ```text
//!  domain ──> trait Hypervisor ──> trait Machine ──┬── fake (scripted, for tests)
//!                                                  └── qemu ──┬── argv      configuration -> command line
//!                                                             ├── process   spawn, reattach, exit, kill
//!                                                             ├── qmp       the monitor
//!                                                             ├── agent     inside the guest
//!                                                             └── thaw      who thaws when the service cannot
//!  domain ──> trait Migrate (of every Machine): moves between two processes
//!  domain ──> ImageTool: images of machines that do not run
//!  confine: what those programs may do
//! ```
//!
//! **Model.** A [`MachineConfig`] is the machine as the domain wants it; [`Hypervisor::launch`] makes a process of it
//! that outlives the service; [`Hypervisor::reattach`] finds it again. A disk is a chain of [`LayerFile`]s; a point is
//! made by putting a new layer on top ([`Machine::prepare_layers`], [`Machine::mark`]).
//!
//! **Errors.** One [`Error`]; [`Error::kind`] is what callers branch on. After a timeout the outcome is unknown: ask
//! [`Machine::reconcile`]. Nothing here panics on what QEMU, a guest or a file says.
//!
//! **Concurrency.** Machines are `Send + Sync` and may be called from several tasks; calls that change layers are
//! expected one at a time per machine (the domain has one driver task per machine). Dropping a handle never ends a
//! process.

pub mod agent;
pub mod argv;
pub mod block;
pub mod blockdev;
pub mod config;
pub mod confine;
pub mod console;
pub mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod fuzz;
pub mod host;
pub mod image;
pub mod machine;
pub mod migration;
pub mod names;
pub mod probe;
pub mod process;
pub mod qemu;
pub mod qmp;
pub mod thaw;

mod cancel;
mod layers;
mod written;

pub use block::{
    BlockState, CommitOutcome, CommitSpec, FreezeReport, JobControl, NbdExport, NewOverlay,
    PreparedLayers, Progress, Quiesced,
};
pub use config::{
    Acceleration, BootSource, Confinement, Controller, DriveConfig, DriveKind, Generation,
    ImageFormat, LayerFile, MachineConfig, Nic, NicBackend, SerialPort,
};
pub use confine::acl::plain_mode;
pub use confine::grants::Access;
pub use error::{Error, ErrorKind, Result};
pub use image::{ImageTool, NewImage};
pub use layers::relative_name;
pub use machine::{
    Exit, FailedDrive, Hypervisor, Launch, Machine, MachineEvent, MachineStatus, SavedState,
};
pub use migration::{Migrate, MovePhase, MoveState};
pub use qemu::QemuHypervisor;
