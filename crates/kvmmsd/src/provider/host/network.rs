//! The one switch: QEMU's user network, which lets guests out through the host's own connections.

use async_trait::async_trait;
use cim::{Datetime, Instance, Path};
use msvm::class;
use vmms::Fault;

use crate::object::{Object, What};
use crate::provider::services;
use crate::view::{Provider, View, named};

pub(crate) struct Network;

/// The identifier Windows gives the switch of this kind.
const SWITCH_ID: &str = "C08CB7B8-9B3C-408E-8E30-5E16A3AEB444";
const NAME: &str = "NAT";
const TITLE: &str = "Hyper-V Networking Management Service";

#[async_trait]
impl Provider for Network {
    fn classes(&self) -> &'static [&'static str] {
        &[
            class::MSVM_VIRTUAL_ETHERNET_SWITCH,
            class::MSVM_VIRTUAL_ETHERNET_SWITCH_SETTING_DATA,
            class::MSVM_VIRTUAL_ETHERNET_SWITCH_MANAGEMENT_SERVICE,
        ]
    }

    async fn objects(
        &self,
        view: &View,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        Ok(named(
            match class {
                class::MSVM_VIRTUAL_ETHERNET_SWITCH => vec![switch(view)],
                class::MSVM_VIRTUAL_ETHERNET_SWITCH_SETTING_DATA => vec![settings(view)],
                class::MSVM_VIRTUAL_ETHERNET_SWITCH_MANAGEMENT_SERVICE => vec![management(view)],
                _ => Vec::new(),
            },
            wanted,
        ))
    }

    fn instance(&self, view: &View, object: &Object) -> Instance {
        match object.what {
            What::Service => services::properties(view, object.class, TITLE),
            _ => object.fixed(),
        }
    }
}

/// The service that would make switches; no method of it is served.
pub(crate) fn management(view: &View) -> Object {
    let class = class::MSVM_VIRTUAL_ETHERNET_SWITCH_MANAGEMENT_SERVICE;
    Object::of_system(
        class,
        view.host.clone(),
        "Name",
        "nvspwmi".to_owned(),
        What::Service,
    )
}

/// The settings of the switch.
pub(crate) fn settings_of_switch(view: &View, _object: &Object) -> Vec<Object> {
    vec![settings(view)]
}

/// The switch of the settings.
pub(crate) fn switch_of_settings(view: &View, _object: &Object) -> Vec<Object> {
    vec![switch(view)]
}

fn switch(view: &View) -> Object {
    let class = class::MSVM_VIRTUAL_ETHERNET_SWITCH;
    let mut i = Instance::new(class);
    i.set("Caption", "Virtual Switch")
        .set(
            "Description",
            "QEMU's user network: guests reach out through the host, nothing reaches in",
        )
        .set("ElementName", NAME)
        .set("InstallDate", Datetime::from(view.vmms.started))
        .set("OperationalStatus", vec![2u16])
        .set("StatusDescriptions", vec!["OK".to_owned()])
        .set("Status", "OK")
        .set("HealthState", 5u16)
        .set("EnabledState", 5u16)
        .set("RequestedState", 12u16)
        .set("EnabledDefault", 2u16)
        .set("TimeOfLastStateChange", Datetime::from(view.vmms.started))
        .set("ResetCapability", 5u16)
        .set("MaxVMQOffloads", 0u32)
        .set("MaxIOVOffloads", 0u32);
    Object {
        class,
        keys: vec![
            ("CreationClassName", class.to_owned()),
            ("Name", SWITCH_ID.to_owned()),
        ],
        what: What::fixed(i),
    }
}

fn settings(view: &View) -> Object {
    let class = class::MSVM_VIRTUAL_ETHERNET_SWITCH_SETTING_DATA;
    let mut i = Instance::new(class);
    i.set("Caption", "Virtual Switch Settings")
        .set("Description", "Settings of the user network")
        .set("ElementName", NAME)
        .set("VirtualSystemIdentifier", SWITCH_ID)
        .set("CreationTime", Datetime::from(view.vmms.started));
    Object::with_id(class, format!("Microsoft:{SWITCH_ID}"), What::fixed(i))
}
