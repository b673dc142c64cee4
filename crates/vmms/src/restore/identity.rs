//! What makes an imported machine another one than the machine that was exported, which may still be there.

use uuid::Uuid;

use crate::machine::{DeviceKind, Vm};

/// AutomaticStartupAction: none.
const NO_START: u16 = 2;

/// A network address of its own, in the range Hyper-V hosts use.
pub(crate) fn new_mac() -> String {
    let random: String = Uuid::new_v4()
        .simple()
        .to_string()
        .chars()
        .take(6)
        .collect();
    format!("00155D{}", random.to_ascii_uppercase())
}

/// Gives a machine network addresses of its own, and leaves its start to people: two machines of one address, or of one service,
/// disturb each other.
pub(crate) fn renew(machine: &mut Vm) {
    machine.settings.automatic_startup_action = NO_START;
    for device in &mut machine.devices {
        if let DeviceKind::Nic {
            mac, static_mac, ..
        } = &mut device.kind
        {
            *mac = new_mac();
            *static_mac = false;
        }
    }
}
