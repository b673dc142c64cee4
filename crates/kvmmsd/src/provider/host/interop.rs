//! root/interop: the namespaces, the object manager, and the profiles behind the schema.

use async_trait::async_trait;
use cim::{Datetime, Instance, Path};
use vmms::Fault;

use crate::association::{Association, link};
use crate::object::{Object, What};
use crate::view::{Provider, View, named};

pub(crate) struct Interop;

const NAMESPACE: &str = "CIM_Namespace";
const MANAGER: &str = "CIM_ObjectManager";
const PROFILE: &str = "CIM_RegisteredProfile";
const MANAGER_NAME: &str = "kvmms";

/// Organization, its name where it is not on the list, name and version of the profiles.
const PROFILES: [(u16, Option<&str>, &str, &str); 3] = [
    (1, Some("kvmms"), "Hyper-V management, version 2", "2"),
    (2, None, "System Virtualization", "1.0.0"),
    (2, None, "Virtual System Profile", "1.0.0"),
];

/// The associations of root/interop.
pub(super) static ASSOCIATIONS: &[Association] = &[link(
    "CIM_NamespaceInManager",
    ("Antecedent", MANAGER),
    ("Dependent", NAMESPACE),
    namespaces_of,
    manager_of,
)];

#[async_trait]
impl Provider for Interop {
    fn namespace(&self) -> &'static str {
        "root/interop"
    }

    fn classes(&self) -> &'static [&'static str] {
        &[NAMESPACE, MANAGER, PROFILE]
    }

    async fn objects(
        &self,
        view: &View,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        Ok(named(
            match class {
                NAMESPACE => namespaces(view),
                MANAGER => vec![manager(view)],
                PROFILE => PROFILES.iter().map(profile).collect(),
                _ => Vec::new(),
            },
            wanted,
        ))
    }

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        object.fixed()
    }
}

/// The namespaces of the object manager.
fn namespaces_of(view: &View, _object: &Object) -> Vec<Object> {
    namespaces(view)
}

/// The object manager of a namespace.
fn manager_of(view: &View, _object: &Object) -> Vec<Object> {
    vec![manager(view)]
}

fn manager(view: &View) -> Object {
    let version = env!("CARGO_PKG_VERSION");
    let mut i = Instance::new(MANAGER);
    i.set("Caption", "kvmms")
        .set("Description", format!("kvmms version {version}"))
        .set("ElementName", "kvmms")
        .set("InstallDate", Datetime::from(view.vmms.started))
        .set("OperationalStatus", vec![2u16])
        .set("HealthState", 5u16)
        .set("EnabledState", 5u16)
        .set("RequestedState", 12u16)
        .set("Started", true)
        .set("GatherStatisticalData", false)
        .set("Version", version);
    Object::of_system(
        MANAGER,
        view.host.clone(),
        "Name",
        MANAGER_NAME.to_owned(),
        What::fixed(i),
    )
}

fn namespaces(view: &View) -> Vec<Object> {
    let all = msvm::namespaces().into_iter().map(|n| n.name());
    let object = |name: &str| {
        let i = Instance::new(NAMESPACE)
            .with("Caption", name)
            .with("Description", name)
            .with("ElementName", name)
            .with("ClassInfo", 0u16)
            .with("ClassType", 2u16);
        Object {
            class: NAMESPACE,
            keys: vec![
                (
                    "SystemCreationClassName",
                    msvm::class::MSVM_COMPUTER_SYSTEM.to_owned(),
                ),
                ("SystemName", view.host.clone()),
                ("ObjectManagerCreationClassName", MANAGER.to_owned()),
                ("ObjectManagerName", MANAGER_NAME.to_owned()),
                ("CreationClassName", NAMESPACE.to_owned()),
                ("Name", name.to_owned()),
            ],
            what: What::fixed(i),
        }
    };
    all.map(object).collect()
}

fn profile((organization, other, name, version): &(u16, Option<&str>, &str, &str)) -> Object {
    let i = Instance::new(PROFILE)
        .with("Caption", *name)
        .with("Description", *name)
        .with("ElementName", *name)
        .with("RegisteredOrganization", *organization)
        .with("OtherRegisteredOrganization", *other)
        .with("RegisteredName", *name)
        .with("RegisteredVersion", *version)
        .with("AdvertiseTypes", vec![2u16])
        .with("SpecificationType", 2u16);
    let owner = other.unwrap_or("DMTF");
    Object::with_id(PROFILE, format!("{owner}:{name}:{version}"), What::fixed(i))
}
