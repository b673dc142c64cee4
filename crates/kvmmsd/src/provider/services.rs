//! The singleton services, and where their methods go.

use async_trait::async_trait;
use cim::{Datetime, Instance};
use msvm::class;
use vmms::job::Service as Owner;

use super::{
    Call, CallResult, Provider, collection, collection_point, collection_snapshot, image,
    management, point, snapshot, unserved,
};
use crate::Service;
use crate::object::{Object, What};

pub(crate) struct Services;

/// The services: class, element name, whose jobs they own.
pub(crate) const SERVICES: &[(&str, &str, Owner)] = &[
    (
        class::MSVM_VIRTUAL_SYSTEM_MANAGEMENT_SERVICE,
        "Hyper-V Virtual System Management Service",
        Owner::Management,
    ),
    (
        class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT_SERVICE,
        "Hyper-V Virtual System Reference Point Service",
        Owner::ReferencePoint,
    ),
    (
        class::MSVM_VIRTUAL_SYSTEM_SNAPSHOT_SERVICE,
        "Hyper-V Virtual System Snapshot Service",
        Owner::Snapshot,
    ),
    (
        class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SERVICE,
        "Hyper-V Virtual System Migration Service",
        Owner::Migration,
    ),
    (
        class::MSVM_IMAGE_MANAGEMENT_SERVICE,
        "Hyper-V Image Management Service",
        Owner::Image,
    ),
    (
        class::MSVM_COLLECTION_MANAGEMENT_SERVICE,
        "Hyper-V Collection Management Service",
        Owner::Collection,
    ),
    (
        class::MSVM_COLLECTION_REFERENCE_POINT_SERVICE,
        "Hyper-V Collection Reference Point Service",
        Owner::CollectionReferencePoint,
    ),
    (
        class::MSVM_COLLECTION_SNAPSHOT_SERVICE,
        "Hyper-V Collection Snapshot Service",
        Owner::CollectionSnapshot,
    ),
];

/// The object of a service class.
pub(crate) fn object(service: &Service, class: &str) -> Option<Object> {
    let (class, _, _) = SERVICES
        .iter()
        .find(|(c, _, _)| c.eq_ignore_ascii_case(class))?;
    let name = class.trim_start_matches("Msvm_").to_ascii_lowercase();
    Some(Object::of_system(
        class,
        service.host.clone(),
        "Name",
        name,
        What::Service,
    ))
}

/// The class of the service that owns jobs of that kind.
pub(crate) fn class_of(owner: Owner) -> &'static str {
    SERVICES
        .iter()
        .find(|(_, _, o)| *o == owner)
        .map_or("", |(class, _, _)| class)
}

/// The service that owns jobs of that kind.
pub(crate) fn owner(service: &Service, owner: Owner) -> Option<Object> {
    SERVICES
        .iter()
        .find(|(_, _, o)| *o == owner)
        .and_then(|(class, _, _)| object(service, class))
}

#[async_trait]
impl Provider for Services {
    fn classes(&self) -> &'static [&'static str] {
        const NAMES: [&str; 8] = [
            SERVICES[0].0,
            SERVICES[1].0,
            SERVICES[2].0,
            SERVICES[3].0,
            SERVICES[4].0,
            SERVICES[5].0,
            SERVICES[6].0,
            SERVICES[7].0,
        ];
        &NAMES
    }

    fn list(&self, service: &Service, class: &str) -> Vec<Object> {
        object(service, class).into_iter().collect()
    }

    fn instance(&self, service: &Service, object: &Object) -> Instance {
        let name = SERVICES
            .iter()
            .find(|(c, _, _)| *c == object.class)
            .map_or("", |(_, name, _)| name);
        properties(service, object.class, name)
    }

    async fn invoke(&self, service: &Service, call: Call<'_>) -> CallResult {
        match call.target.class {
            class::MSVM_VIRTUAL_SYSTEM_MANAGEMENT_SERVICE => management::call(service, &call).await,
            class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT_SERVICE => point::call(service, &call).await,
            class::MSVM_COLLECTION_MANAGEMENT_SERVICE => collection::call(service, &call).await,
            class::MSVM_COLLECTION_REFERENCE_POINT_SERVICE => {
                collection_point::call(service, &call).await
            }
            class::MSVM_COLLECTION_SNAPSHOT_SERVICE => {
                collection_snapshot::call(service, &call).await
            }
            class::MSVM_VIRTUAL_SYSTEM_SNAPSHOT_SERVICE => snapshot::call(service, &call).await,
            class::MSVM_IMAGE_MANAGEMENT_SERVICE => image::call(service, &call).await,
            _ => Err(unserved(call.target.class, call.method)),
        }
    }
}

/// What all services tell of themselves.
pub(crate) fn properties(service: &Service, class: &'static str, name: &str) -> Instance {
    let mut i = Instance::new(class);
    i.set("Caption", name)
        .set("Description", name)
        .set("ElementName", name)
        .set("InstallDate", Datetime::from(service.vmms.started))
        .set("OperationalStatus", vec![2u16])
        .set("StatusDescriptions", vec!["OK".to_owned()])
        .set("Status", "OK")
        .set("HealthState", 5u16)
        .set("EnabledState", 5u16)
        .set("RequestedState", 12u16)
        .set("EnabledDefault", 2u16)
        .set(
            "TimeOfLastStateChange",
            Datetime::from(service.vmms.started),
        )
        .set("StartMode", "Automatic")
        .set("Started", true);
    i
}
