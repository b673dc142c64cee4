//! What the management service can do, and how it is set.

use async_trait::async_trait;
use cim::{Instance, Path};
use msvm::class;
use vmms::Fault;

use crate::object::{Object, What};
use crate::provider::services;
use crate::view::{Provider, View, named};

pub(crate) struct Capabilities;

const MANAGEMENT: &str = class::MSVM_VIRTUAL_SYSTEM_MANAGEMENT_SERVICE;

#[async_trait]
impl Provider for Capabilities {
    fn classes(&self) -> &'static [&'static str] {
        &[
            class::MSVM_VIRTUAL_SYSTEM_MANAGEMENT_CAPABILITIES,
            class::MSVM_VIRTUAL_SYSTEM_MANAGEMENT_SERVICE_SETTING_DATA,
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
                class::MSVM_VIRTUAL_SYSTEM_MANAGEMENT_CAPABILITIES => vec![management()],
                class::MSVM_VIRTUAL_SYSTEM_MANAGEMENT_SERVICE_SETTING_DATA => {
                    vec![management_settings(view)]
                }
                _ => Vec::new(),
            },
            wanted,
        ))
    }

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        object.fixed()
    }
}

/// The capabilities of a service.
pub(crate) fn capabilities_of_service(_view: &View, object: &Object) -> Vec<Object> {
    match object.class {
        MANAGEMENT => vec![management()],
        _ => Vec::new(),
    }
}

/// The settings of a service.
pub(crate) fn settings_of_service(view: &View, object: &Object) -> Vec<Object> {
    match object.class {
        MANAGEMENT => vec![management_settings(view)],
        _ => Vec::new(),
    }
}

/// The service that capabilities or settings belong to.
pub(crate) fn service_of(view: &View, object: &Object) -> Vec<Object> {
    let class = match object.class {
        class::MSVM_VIRTUAL_SYSTEM_MANAGEMENT_CAPABILITIES
        | class::MSVM_VIRTUAL_SYSTEM_MANAGEMENT_SERVICE_SETTING_DATA => MANAGEMENT,
        _ => return Vec::new(),
    };
    services::object(view, class).into_iter().collect()
}

fn fixed(id: &str, instance: Instance, class: &'static str) -> Object {
    Object::with_id(class, id.to_owned(), What::fixed(instance))
}

fn management() -> Object {
    let class = class::MSVM_VIRTUAL_SYSTEM_MANAGEMENT_CAPABILITIES;
    let mut i = Instance::new(class);
    let name = "Hyper-V Virtual System Management Service Capabilities";
    i.set("Caption", name)
        .set(
            "Description",
            "What the virtual system management service can do",
        )
        .set("ElementName", name)
        .set("ElementNameEditSupported", true)
        .set("MaxElementNameLen", 256u16)
        .set("RequestedStatesSupported", vec![2u16, 3, 4, 6, 9, 10, 11])
        .set(
            "VirtualSystemTypesSupported",
            vec![
                "Microsoft:Hyper-V:SubType:1".to_owned(),
                "Microsoft:Hyper-V:SubType:2".to_owned(),
            ],
        )
        // DefineSystem, ModifyResourceSettings, ModifySystemSettings, RemoveResources, AddResources,
        // GetSummaryInformation, FormatError, GetSizeOfSystemFiles.
        .set(
            "SynchronousMethodsSupported",
            vec![2u16, 5, 6, 7, 10, 32784, 32788, 32797],
        )
        // DestroySystem, ValidatePlannedSystem, ImportSystemDefinition, RealizePlannedSystem,
        // ExportSystemDefinition.
        .set(
            "AsynchronousMethodsSupported",
            vec![3u16, 32767, 32770, 32771, 32772, 32778],
        );
    fixed("Microsoft:ManagementCapabilities", i, class)
}

fn management_settings(view: &View) -> Object {
    let class = class::MSVM_VIRTUAL_SYSTEM_MANAGEMENT_SERVICE_SETTING_DATA;
    let state = view.vmms.dirs.state.display().to_string();
    let mut i = Instance::new(class);
    i.set("Caption", "Hyper-V Virtual System Management Service")
        .set(
            "Description",
            "Settings of the virtual system management service",
        )
        .set("ElementName", "Hyper-V Virtual System Management Service")
        .set("DefaultExternalDataRoot", state.as_str())
        .set("DefaultVirtualHardDiskPath", state)
        .set("MinimumMacAddress", "00155D000000")
        .set("MaximumMacAddress", "00155DFFFFFF")
        .set("NumaSpanningEnabled", true)
        .set("PrimaryOwnerContact", "")
        .set("PrimaryOwnerName", "")
        .set("HypervisorRootSchedulerEnabled", false)
        .set("EnhancedSessionModeEnabled", false);
    fixed("Microsoft:host", i, class)
}
