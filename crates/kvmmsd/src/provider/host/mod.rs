//! The host: what root/cimv2 and root/interop tell of it, its pools and templates, its capabilities, its switch.

mod capabilities;
mod cimv2;
mod counters;
mod files;
mod filesystems;
mod interop;
mod kinds;
mod network;
mod pools;
mod system;

pub(crate) use capabilities::Capabilities;
pub(crate) use cimv2::HostInventory;
pub(crate) use counters::Counters;
pub(crate) use files::Files;
pub(crate) use filesystems::FileSystems;
pub(crate) use interop::Interop;
pub(crate) use network::{Network, management};
pub(crate) use pools::{Pools, templates};

/// The kinds of resources.
#[cfg(test)]
pub(crate) fn kinds() -> &'static [kinds::Kind] {
    kinds::KINDS
}

/// Ends of associations.
pub(crate) mod follow {
    pub(crate) use super::capabilities::{
        capabilities_of_service, service_of, settings_of_service,
    };
    pub(crate) use super::network::{settings_of_switch, switch_of_settings};
    pub(crate) use super::pools::{
        capabilities_of, devices_from, host_of_pool, pool_of, pools_of_host, resources_from, role,
        templates_of_capabilities,
    };
}

/// The associations of a namespace other than that of Hyper-V.
pub(crate) fn associations(namespace: &str) -> &'static [crate::association::Association] {
    match namespace {
        "root/cimv2" => cimv2::ASSOCIATIONS,
        "root/interop" => interop::ASSOCIATIONS,
        _ => &[],
    }
}
