//! Machines: what is stored of them, how they are defined and changed, and the driver that runs them.

pub mod adopt;
mod autostart;
mod change;
mod consoles;
pub(crate) mod define;
pub mod device;
mod driver;
mod ended;
mod health;
pub(crate) mod host_shutdown;
pub mod losses;
pub(crate) mod planned;
mod record;
mod room;
mod runtime;
pub mod spec;
mod user;

pub(crate) use autostart::Starts;
pub use autostart::{Active, BootOptions, HostBoot, Waiting};
pub use change::{ChangeState, StateChange};
pub(crate) use consoles::Consoles;
pub(crate) use define::check_images;
pub use define::{DestroyVm, NewVm, change, define, destroy, install, new_vm, validate};
pub use driver::{Asked, admit, request_state};
pub(crate) use driver::{
    close_files, reattach, run as run_state_change, undo as undo_state_change,
};
pub(crate) use driver::{end_unknown, save, start, take_in};
pub use ended::Ended;
pub use health::{DiskFailure, Health};
pub use host_shutdown::{ShutDownGuests, shut_down_guests};
pub use planned::{Realize, ValidatePlanned, realize, validate_planned};
pub use record::{Device, DeviceKind, Disk, Memory, Power, Processor, Settings, Vm};
pub use room::RoomOptions;
pub(crate) use room::Rooms;
pub use runtime::{Runtime, VmState};
pub use user::{Confinement, MachineUser};
pub(crate) use user::{effective, of as user_of};

/// At the start of the service, before machines are looked for.
pub(crate) async fn begin(vmms: &std::sync::Arc<crate::Vmms>) -> crate::Result<()> {
    consoles::bound_all(vmms).await;
    autostart::plan(vmms).await
}

/// At the start of the service, once machines were looked for.
pub(crate) async fn begin_starts(vmms: &std::sync::Arc<crate::Vmms>) -> crate::Result<()> {
    autostart::begin_starts(vmms).await
}

/// Work that comes round: machines are started when the host has booted, consoles are kept within bounds, room is looked at,
/// guests that lacked it go on.
pub(crate) fn tick(vmms: &std::sync::Arc<crate::Vmms>) {
    autostart::look(vmms);
    consoles::look(vmms);
    room::look_around(vmms);
}
