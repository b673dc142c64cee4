//! The host as root/cimv2 shows it, and the templates and pools of root/virtualization/v2.

use async_trait::async_trait;
use cim::Instance;
use msvm::class;

use super::Provider;
use crate::Service;
use crate::association::Association;
use crate::object::{Object, What};

/// The associations of root/cimv2 and root/interop.
pub(crate) fn associations(_namespace: &str) -> &'static [Association] {
    &[]
}

/// The templates of a class of settings.
pub(crate) fn templates(_service: &Service, _class: &str) -> Vec<Object> {
    Vec::new()
}

pub(crate) struct HostInventory;

#[async_trait]
impl Provider for HostInventory {
    fn namespace(&self) -> &'static str {
        "root/cimv2"
    }

    fn classes(&self) -> &'static [&'static str] {
        &["Win32_ComputerSystemProduct"]
    }

    fn list(&self, _service: &Service, _class: &str) -> Vec<Object> {
        Vec::new()
    }

    fn instance(&self, _service: &Service, object: &Object) -> Instance {
        match &object.what {
            What::Fixed(instance) => (**instance).clone(),
            _ => Instance::new(class::MSVM_COMPUTER_SYSTEM),
        }
    }
}
