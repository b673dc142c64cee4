//! Machines: what is stored of them, how they are defined and changed, and the driver that runs them.

pub mod adopt;
mod define;
pub mod device;
mod driver;
pub mod losses;
mod planned;
mod record;
mod runtime;
pub mod spec;

pub use define::{NewVm, change, define, destroy, install, new_vm, validate};
pub(crate) use define::{check_images, run_destroy};
pub use driver::{Asked, admit, request_state};
pub(crate) use driver::{autostart, reattach, run as run_state_change, undo as undo_state_change};
pub(crate) use driver::{end_unknown, save, start};
pub use planned::{realize, validate_planned};
pub(crate) use planned::{run_realize, run_validate};
pub use record::{Device, DeviceKind, Disk, Memory, Power, Processor, Settings, Vm};
pub use runtime::{Runtime, VmState};
