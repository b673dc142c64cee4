//! The singleton services, and where their methods go.

use async_trait::async_trait;
use cim::{Datetime, Instance, Path};
use msvm::class;
use vmms::Fault;
use vmms::job::Service as Owner;

use super::{
    collection, collection_point, collection_snapshot, image, management, migration, point,
    snapshot,
};
use crate::object::{Object, What};
use crate::view::{Call, CallResult, Provider, View, named, unserved};

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
pub(crate) fn object(view: &View, class: &str) -> Option<Object> {
    let (class, _, _) = SERVICES
        .iter()
        .find(|(c, _, _)| c.eq_ignore_ascii_case(class))?;
    let name = class.trim_start_matches("Msvm_").to_ascii_lowercase();
    Some(Object::of_system(
        class,
        view.host.clone(),
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
pub(crate) fn owner(view: &View, owner: Owner) -> Option<Object> {
    SERVICES
        .iter()
        .find(|(_, _, o)| *o == owner)
        .and_then(|(class, _, _)| object(view, class))
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

    async fn objects(
        &self,
        view: &View,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        Ok(named(object(view, class).into_iter().collect(), wanted))
    }

    fn instance(&self, view: &View, object: &Object) -> Instance {
        let name = SERVICES
            .iter()
            .find(|(c, _, _)| *c == object.class)
            .map_or("", |(_, name, _)| name);
        let mut i = properties(view, object.class, name);
        if object.class == class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SERVICE {
            migration::properties(view, &mut i);
        }
        i
    }

    async fn invoke(&self, view: &View, call: Call<'_>) -> CallResult {
        match call.target.class {
            class::MSVM_VIRTUAL_SYSTEM_MANAGEMENT_SERVICE => management::call(view, &call).await,
            class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT_SERVICE => point::call(view, &call).await,
            class::MSVM_COLLECTION_MANAGEMENT_SERVICE => collection::call(view, &call).await,
            class::MSVM_COLLECTION_REFERENCE_POINT_SERVICE => {
                collection_point::call(view, &call).await
            }
            class::MSVM_COLLECTION_SNAPSHOT_SERVICE => collection_snapshot::call(view, &call).await,
            class::MSVM_VIRTUAL_SYSTEM_SNAPSHOT_SERVICE => snapshot::call(view, &call).await,
            class::MSVM_IMAGE_MANAGEMENT_SERVICE => image::call(view, &call).await,
            class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SERVICE => migration::call(view, &call).await,
            _ => Err(unserved(call.target.class, call.method)),
        }
    }
}

/// What all services tell of themselves.
pub(crate) fn properties(view: &View, class: &'static str, name: &str) -> Instance {
    let mut i = Instance::new(class);
    i.set("Caption", name)
        .set("Description", name)
        .set("ElementName", name)
        .set("InstallDate", Datetime::from(view.vmms.started))
        .set("OperationalStatus", vec![2u16])
        .set("StatusDescriptions", vec!["OK".to_owned()])
        .set("Status", "OK")
        .set("HealthState", 5u16)
        .set("EnabledState", 5u16)
        .set("RequestedState", 12u16)
        .set("EnabledDefault", 2u16)
        .set("TimeOfLastStateChange", Datetime::from(view.vmms.started))
        .set("StartMode", "Automatic")
        .set("Started", true);
    i
}
