//! Associations: one line each. A link is walked from either end by a function from an object to the objects
//! at the other end.

use cim::{Instance, Path, Schema, Value};
use msvm::{Namespace, class};
use wbem::{Error, Status, Walk};

use crate::Service;
use crate::errors;
use crate::object::Object;
use crate::provider::host::follow;
use crate::provider::links;
use crate::provider::{collection, collection_point, collection_snapshot, snapshot};

/// From one end of an association to the other.
pub(crate) type Follow = fn(&Service, &Object) -> Vec<Object>;

/// An association class and how it is walked.
pub(crate) struct Association {
    /// The class.
    pub(crate) class: &'static str,
    /// The role of the first end, and the class of objects that can stand there.
    pub(crate) left: (&'static str, &'static str),
    /// The role of the second end, and the class of objects that can stand there.
    pub(crate) right: (&'static str, &'static str),
    /// From the first end to the second.
    pub(crate) forward: Follow,
    /// From the second end to the first.
    pub(crate) back: Follow,
    /// Properties besides the two ends.
    pub(crate) more: Option<fn(&Service, &Object, &Object, &mut Instance)>,
}

/// An association without properties besides its ends.
pub(crate) const fn link(
    class: &'static str,
    left: (&'static str, &'static str),
    right: (&'static str, &'static str),
    forward: Follow,
    back: Follow,
) -> Association {
    Association {
        class,
        left,
        right,
        forward,
        back,
        more: None,
    }
}

/// All associations of `root/virtualization/v2` that have instances.
pub(crate) static ASSOCIATIONS: &[Association] = &[
    Association {
        more: Some(links::effects),
        ..link(
            class::MSVM_AFFECTED_JOB_ELEMENT,
            ("AffectedElement", "CIM_ManagedElement"),
            ("AffectingElement", "CIM_ConcreteJob"),
            links::jobs_of,
            links::affected_by,
        )
    },
    Association {
        more: Some(links::effects),
        ..link(
            class::MSVM_AFFECTED_STORAGE_JOB_ELEMENT,
            ("AffectedElement", "CIM_ManagedElement"),
            ("AffectingElement", class::MSVM_STORAGE_JOB),
            links::storage_jobs_of,
            links::affected_by,
        )
    },
    link(
        class::MSVM_OWNING_JOB_ELEMENT,
        ("OwningElement", "CIM_Service"),
        ("OwnedElement", "CIM_ConcreteJob"),
        links::owned_jobs,
        links::owning_service,
    ),
    link(
        class::MSVM_SETTINGS_DEFINE_STATE,
        ("ManagedElement", "CIM_ComputerSystem"),
        ("SettingData", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        links::settings_of_vm,
        links::vm_of,
    ),
    link(
        class::MSVM_SETTINGS_DEFINE_STATE,
        ("ManagedElement", "CIM_LogicalDevice"),
        ("SettingData", "CIM_ResourceAllocationSettingData"),
        links::settings_of_device,
        links::device_of_settings,
    ),
    link(
        class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA_COMPONENT,
        ("GroupComponent", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        ("PartComponent", "CIM_ResourceAllocationSettingData"),
        links::resources_of,
        links::settings_of_resource,
    ),
    link(
        class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA_COMPONENT,
        ("GroupComponent", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        ("PartComponent", class::MSVM_SECURITY_SETTING_DATA),
        links::security_of,
        links::settings_of_resource,
    ),
    link(
        class::MSVM_SYSTEM_DEVICE,
        ("GroupComponent", "CIM_ComputerSystem"),
        ("PartComponent", "CIM_LogicalDevice"),
        links::devices_of,
        links::vm_of,
    ),
    link(
        class::MSVM_HOSTED_SERVICE,
        ("Antecedent", "CIM_ComputerSystem"),
        ("Dependent", "CIM_Service"),
        links::services_of_host,
        links::host_of,
    ),
    link(
        class::MSVM_HOSTED_DEPENDENCY,
        ("Antecedent", "CIM_ComputerSystem"),
        ("Dependent", "CIM_ComputerSystem"),
        links::vms_of_host,
        links::host_of_vm,
    ),
    link(
        class::MSVM_SERVICE_AFFECTS_ELEMENT,
        ("AffectedElement", "CIM_ComputerSystem"),
        ("AffectingElement", "CIM_Service"),
        links::services_of_vm,
        links::vms_of_service,
    ),
    link(
        class::MSVM_REFERENCE_POINT_OF_VIRTUAL_SYSTEM,
        ("Antecedent", class::MSVM_COMPUTER_SYSTEM),
        ("Dependent", class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT),
        links::points_of,
        links::vm_of_point,
    ),
    link(
        class::MSVM_COLLECTED_VIRTUAL_SYSTEMS,
        ("Collection", class::MSVM_VIRTUAL_SYSTEM_COLLECTION),
        ("Member", class::MSVM_COMPUTER_SYSTEM),
        collection::machines_of,
        collection::collections_of_vm,
    ),
    link(
        class::MSVM_COLLECTED_COLLECTIONS,
        ("Collection", class::MSVM_MANAGEMENT_COLLECTION),
        ("Member", "CIM_CollectionOfMSEs"),
        collection::collections_of,
        collection::collections_above,
    ),
    link(
        class::MSVM_REFERENCE_POINT_OF_VIRTUAL_SYSTEM_COLLECTION,
        ("Antecedent", class::MSVM_VIRTUAL_SYSTEM_COLLECTION),
        ("Dependent", class::MSVM_REFERENCE_POINT_COLLECTION),
        collection_point::points_of,
        collection_point::collection_of,
    ),
    link(
        class::MSVM_COLLECTED_REFERENCE_POINTS,
        ("Collection", class::MSVM_REFERENCE_POINT_COLLECTION),
        ("Member", class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT),
        collection_point::members_of,
        collection_point::collected_in,
    ),
    link(
        class::MSVM_SNAPSHOT_OF_VIRTUAL_SYSTEM_COLLECTION,
        ("Antecedent", class::MSVM_VIRTUAL_SYSTEM_COLLECTION),
        ("Dependent", class::MSVM_SNAPSHOT_COLLECTION),
        collection_snapshot::snapshots_of,
        collection_snapshot::collection_of,
    ),
    link(
        class::MSVM_COLLECTED_SNAPSHOTS,
        ("Collection", class::MSVM_SNAPSHOT_COLLECTION),
        ("Member", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        collection_snapshot::members_of,
        collection_snapshot::collected_in,
    ),
    link(
        class::MSVM_SNAPSHOT_OF_VIRTUAL_SYSTEM,
        ("Antecedent", class::MSVM_COMPUTER_SYSTEM),
        ("Dependent", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        snapshot::snapshots_of,
        snapshot::vm_of_snapshot,
    ),
    link(
        class::MSVM_MOST_CURRENT_SNAPSHOT_IN_BRANCH,
        ("Antecedent", class::MSVM_COMPUTER_SYSTEM),
        ("Dependent", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        snapshot::current_of,
        snapshot::vm_at,
    ),
    link(
        class::MSVM_LAST_APPLIED_SNAPSHOT,
        ("Dependent", class::MSVM_COMPUTER_SYSTEM),
        ("Antecedent", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        snapshot::applied_to,
        snapshot::vm_applied,
    ),
    link(
        class::MSVM_PARENT_CHILD_SETTING_DATA,
        ("Antecedent", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        ("Dependent", class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA),
        snapshot::children_of,
        snapshot::parent_of,
    ),
    link(
        class::MSVM_SYSTEM_EXPORT_SETTING_DATA,
        ("ManagedElement", "CIM_ComputerSystem"),
        (
            "SettingData",
            class::MSVM_VIRTUAL_SYSTEM_EXPORT_SETTING_DATA,
        ),
        links::export_settings_of,
        links::vm_of_export_settings,
    ),
    link(
        class::MSVM_RESOURCE_DEPENDENT_ON_RESOURCE,
        ("Antecedent", "CIM_ResourceAllocationSettingData"),
        ("Dependent", "CIM_ResourceAllocationSettingData"),
        links::children_of_resource,
        links::parent_of_resource,
    ),
    link(
        class::MSVM_HOSTED_RESOURCE_POOL,
        ("GroupComponent", class::MSVM_COMPUTER_SYSTEM),
        ("PartComponent", "CIM_ResourcePool"),
        follow::pools_of_host,
        follow::host_of_pool,
    ),
    link(
        class::MSVM_ELEMENT_CAPABILITIES,
        ("ManagedElement", "CIM_ResourcePool"),
        ("Capabilities", class::MSVM_ALLOCATION_CAPABILITIES),
        follow::capabilities_of,
        follow::pool_of,
    ),
    link(
        class::MSVM_ELEMENT_CAPABILITIES,
        ("ManagedElement", "CIM_Service"),
        ("Capabilities", "CIM_Capabilities"),
        follow::capabilities_of_service,
        follow::service_of,
    ),
    Association {
        more: Some(follow::role),
        ..link(
            class::MSVM_SETTINGS_DEFINE_CAPABILITIES,
            ("GroupComponent", class::MSVM_ALLOCATION_CAPABILITIES),
            ("PartComponent", "CIM_ResourceAllocationSettingData"),
            follow::templates_of_capabilities,
            follow::capabilities_of,
        )
    },
    link(
        class::MSVM_RESOURCE_ALLOCATION_FROM_POOL,
        ("Antecedent", "CIM_ResourcePool"),
        ("Dependent", "CIM_ResourceAllocationSettingData"),
        follow::resources_from,
        follow::pool_of,
    ),
    link(
        class::MSVM_ELEMENT_ALLOCATED_FROM_POOL,
        ("Antecedent", "CIM_ResourcePool"),
        ("Dependent", "CIM_LogicalDevice"),
        follow::devices_from,
        follow::pool_of,
    ),
    link(
        class::MSVM_ELEMENT_SETTING_DATA,
        ("ManagedElement", "CIM_Service"),
        ("SettingData", "CIM_SettingData"),
        follow::settings_of_service,
        follow::service_of,
    ),
    link(
        class::MSVM_SETTINGS_DEFINE_STATE,
        ("ManagedElement", class::MSVM_VIRTUAL_ETHERNET_SWITCH),
        (
            "SettingData",
            class::MSVM_VIRTUAL_ETHERNET_SWITCH_SETTING_DATA,
        ),
        follow::settings_of_switch,
        follow::switch_of_settings,
    ),
];

/// The associations of a namespace.
pub(crate) fn table(namespace: &'static Namespace) -> &'static [Association] {
    if namespace.name() == crate::object::NAMESPACE {
        ASSOCIATIONS
    } else {
        links::cimv2_associations(namespace.name())
    }
}

/// One direction of a link.
struct Side {
    association: &'static Association,
    forward: bool,
}

impl Side {
    fn near(&self) -> (&'static str, &'static str) {
        if self.forward {
            self.association.left
        } else {
            self.association.right
        }
    }
    fn far(&self) -> (&'static str, &'static str) {
        if self.forward {
            self.association.right
        } else {
            self.association.left
        }
    }
    fn follow(&self, service: &Service, from: &Object) -> Vec<Object> {
        let follow = if self.forward {
            self.association.forward
        } else {
            self.association.back
        };
        follow(service, from)
    }
}

fn both(association: &'static Association) -> [Side; 2] {
    [
        Side {
            association,
            forward: true,
        },
        Side {
            association,
            forward: false,
        },
    ]
}

/// The sides by which an association can be walked from `object` under a filter of association class and near role.
fn sides<'a>(
    namespace: &'static Namespace,
    object: &'a Object,
    assoc_class: Option<&'a str>,
    role: Option<&'a str>,
) -> impl Iterator<Item = Side> + 'a {
    table(namespace)
        .iter()
        .filter(move |a| assoc_class.is_none_or(|wanted| namespace.is_a(a.class, wanted)))
        .flat_map(both)
        .filter(move |s| namespace.is_a(object.class, s.near().1))
        .filter(move |s| role.is_none_or(|role| s.near().0.eq_ignore_ascii_case(role)))
}

fn start(
    service: &Service,
    namespace: &'static Namespace,
    path: &Path,
    walk: &Walk,
) -> Result<Object, Error> {
    for class in [&walk.assoc_class, &walk.result_class]
        .into_iter()
        .flatten()
    {
        if namespace.class(class.as_str()).is_none() {
            return Err(Error::new(
                Status::InvalidParameter,
                format!("there is no class {class}"),
            ));
        }
    }
    let found = service.find(namespace, path);
    found.map_err(|fault| errors::operation_error(service, &fault))
}

/// What is associated with an object.
pub(crate) fn associators(
    service: &Service,
    namespace: &'static Namespace,
    path: &Path,
    walk: &Walk,
) -> Result<Vec<Instance>, Error> {
    let object = start(service, namespace, path, walk)?;
    let assoc = walk.assoc_class.as_ref().map(cim::Name::as_str);
    let role = walk.role.as_ref().map(cim::Name::as_str);
    let mut seen: Vec<(&'static str, Vec<(&'static str, String)>)> = Vec::new();
    let mut found = Vec::new();
    for side in sides(namespace, &object, assoc, role) {
        if walk
            .result_role
            .as_ref()
            .is_some_and(|wanted| !wanted.is(side.far().0))
        {
            continue;
        }
        for other in side.follow(service, &object) {
            if walk
                .result_class
                .as_ref()
                .is_some_and(|c| !namespace.is_a(other.class, c.as_str()))
            {
                continue;
            }
            let key = (other.class, other.keys.clone());
            if !seen.contains(&key) {
                seen.push(key);
                found.push(service.instance(namespace, &other));
            }
        }
    }
    Ok(found)
}

/// The association instances that name an object.
pub(crate) fn references(
    service: &Service,
    namespace: &'static Namespace,
    path: &Path,
    walk: &Walk,
) -> Result<Vec<Instance>, Error> {
    let object = start(service, namespace, path, walk)?;
    let result = walk.result_class.as_ref().map(cim::Name::as_str);
    let role = walk.role.as_ref().map(cim::Name::as_str);
    let mut found = Vec::new();
    for side in sides(namespace, &object, result, role) {
        for other in side.follow(service, &object) {
            let (left, right) = if side.forward {
                (&object, &other)
            } else {
                (&other, &object)
            };
            found.push(instance(service, namespace, side.association, left, right));
        }
    }
    Ok(found)
}

fn instance(
    service: &Service,
    namespace: &'static Namespace,
    association: &'static Association,
    left: &Object,
    right: &Object,
) -> Instance {
    let paths = [
        (association.left.0, left.path(service, namespace.name())),
        (association.right.0, right.path(service, namespace.name())),
    ];
    let mut instance = Instance::new(association.class);
    let mut path = Path::class(association.class)
        .in_namespace(namespace.name())
        .on_host(&*service.host);
    for (role, end) in paths {
        instance.set(role, end.clone());
        path = path.key(role, end);
    }
    if let Some(more) = association.more {
        more(service, left, right, &mut instance);
    }
    if let Err(error) = namespace.complete(&mut instance) {
        tracing::error!(class = association.class, %error, "an association does not fit its class");
    }
    instance.path = Some(path);
    instance
}

/// All instances of an association class and its subclasses.
pub(crate) fn instances(
    service: &Service,
    namespace: &'static Namespace,
    class: &str,
) -> Vec<Instance> {
    let mut found = Vec::new();
    for association in table(namespace)
        .iter()
        .filter(|a| namespace.is_a(a.class, class))
    {
        for left in service.objects(namespace, association.left.1) {
            for right in (association.forward)(service, &left) {
                found.push(instance(service, namespace, association, &left, &right));
            }
        }
    }
    found
}

/// The association instance a path names by its two ends.
pub(crate) fn get(
    service: &Service,
    namespace: &'static Namespace,
    path: &Path,
) -> Result<Instance, Error> {
    let end = path.keys.iter().find_map(|(_, value)| value.as_path());
    let end = end.ok_or_else(|| errors::not_found(service, path))?;
    let walk = Walk {
        result_class: Some(path.class.clone()),
        ..Walk::default()
    };
    let found = references(service, namespace, &end, &walk)?;
    let same = |instance: &Instance| {
        path.keys.iter().all(
            |(role, value)| match (value.as_path(), instance.get(role.as_str())) {
                (Some(wanted), Value::Reference(actual)) => wanted == **actual,
                _ => false,
            },
        )
    };
    found
        .into_iter()
        .find(same)
        .ok_or_else(|| errors::not_found(service, path))
}
