//! Resource pools, what can be allocated from them, and the templates that say it in numbers. There is one pool for each
//! kind of resource, the host itself; no others can be made.

use std::sync::Arc;

use async_trait::async_trait;
use cim::{Instance, Path};
use msvm::class;
use vmms::Fault;
use vmms::machine::{Memory, Processor, Vm};

use super::kinds::{self, KINDS, Kind};
use super::system::Host;
use crate::object::{Object, What};
use crate::provider::{device, resource};
use crate::view::{Provider, View, named};

pub(crate) struct Pools;

/// What a template stands for, its name at the end of the InstanceID, and its ValueRole and ValueRange.
const ROLES: [(&str, u16, u16); 4] = [
    ("Default", 0, 0),
    ("Minimum", 3, 1),
    ("Maximum", 3, 2),
    ("Incremental", 3, 3),
];

impl Pools {
    fn list(&self, view: &View, class: &str) -> Vec<Object> {
        if class == class::MSVM_ALLOCATION_CAPABILITIES {
            return KINDS.iter().map(capabilities).collect();
        }
        KINDS
            .iter()
            .filter(|k| pool_class(k) == class)
            .map(|k| pool(view, k))
            .collect()
    }
}

#[async_trait]
impl Provider for Pools {
    fn classes(&self) -> &'static [&'static str] {
        &[
            class::MSVM_RESOURCE_POOL,
            class::MSVM_PROCESSOR_POOL,
            class::MSVM_ALLOCATION_CAPABILITIES,
        ]
    }

    async fn objects(
        &self,
        view: &View,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        Ok(named(self.list(view, class), wanted))
    }

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        object.fixed()
    }
}

fn pool_class(kind: &Kind) -> &'static str {
    if kind.ty == 3 {
        class::MSVM_PROCESSOR_POOL
    } else {
        class::MSVM_RESOURCE_POOL
    }
}

fn pool(view: &View, kind: &Kind) -> Object {
    let mut i = Instance::new(pool_class(kind));
    i.set("Caption", kind.name)
        .set(
            "Description",
            format!("What this host has of {}", kind.name),
        )
        .set("ElementName", kind.name)
        .set("Name", kind.name)
        .set("OperationalStatus", vec![2u16])
        .set("StatusDescriptions", vec!["OK".to_owned()])
        .set("Status", "OK")
        .set("HealthState", 5u16)
        .set("PoolID", "")
        .set("Primordial", true)
        .set("ResourceType", kind.ty)
        .set("ResourceSubType", kind.sub_type)
        .set("AllocationUnits", kind.units)
        .set("ConsumedResourceUnits", kind.units);
    let machines = view.all::<Vm>();
    let running = machines
        .iter()
        .filter(|vm| view.vmms.machine(vm.id).is_some());
    match kind.ty {
        3 => {
            let used: u64 = running.map(|vm| u64::from(vm.processor.count)).sum();
            i.set("Capacity", Host::processors())
                .set("Reserved", 0u64)
                .set("CurrentlyConsumedResource", used);
        }
        4 => {
            let used: u64 = running.map(|vm| vm.memory.quantity).sum();
            i.set(
                "Capacity",
                Host::memory_kib("MemTotal").map(|kib| kib / 1024),
            )
            .set("Reserved", used)
            .set("CurrentlyConsumedResource", used);
        }
        _ => {
            let used = machines
                .iter()
                .flat_map(|vm| resource::parts(vm).into_iter().map(move |p| (vm, p)));
            let used = used
                .filter(|(vm, p)| kinds::of_part(vm, p).is_some_and(|k| k.id == kind.id))
                .count();
            i.set(
                "CurrentlyConsumedResource",
                u64::try_from(used).unwrap_or(u64::MAX),
            );
        }
    }
    Object::with_id(
        pool_class(kind),
        format!("Microsoft:{}", kind.id),
        What::fixed(i),
    )
}

fn capabilities(kind: &Kind) -> Object {
    let mut i = Instance::new(class::MSVM_ALLOCATION_CAPABILITIES);
    i.set("Caption", "Allocation Capabilities")
        .set(
            "Description",
            format!("What a machine can have of {}", kind.name),
        )
        .set("ElementName", kind.name)
        .set("ResourceType", kind.ty)
        .set("ResourceSubType", kind.sub_type)
        .set("RequestTypesSupported", 2u16)
        .set("SharingMode", 3u16);
    let id = format!("Microsoft:Definition\\{}", kind.id);
    Object::with_id(class::MSVM_ALLOCATION_CAPABILITIES, id, What::fixed(i))
}

/// The templates of a class of settings.
pub(crate) fn templates(_view: &View, class: &str) -> Vec<Object> {
    KINDS
        .iter()
        .filter(|k| k.settings == class)
        .flat_map(templates_of)
        .collect()
}

fn templates_of(kind: &Kind) -> Vec<Object> {
    ROLES
        .iter()
        .map(|(role, _, range)| template(kind, role, *range))
        .collect()
}

fn template(kind: &Kind, role: &str, range: u16) -> Object {
    let [least, default, most] = kind.quantity;
    // Default, minimum, maximum, step.
    let pick = |values: [u64; 4]| values.get(usize::from(range)).copied().unwrap_or_default();
    let narrow = |values: [u64; 4]| u32::try_from(pick(values)).unwrap_or(u32::MAX);
    let quantity = pick([default, least, most, 1]);
    let mut i = match kind.ty {
        3 => resource::processor(&Processor {
            count: u32::try_from(quantity).unwrap_or(u32::MAX),
            reservation: pick([0, 0, 100_000, 1]),
            limit: pick([100_000, 0, 100_000, 1]),
            weight: narrow([100, 0, 10_000, 1]),
            limit_features: false,
        }),
        4 => resource::memory(&Memory {
            quantity,
            reservation: pick([512, least, most, 1]),
            limit: pick([most, least, most, 1]),
            weight: narrow([5000, 0, 10_000, 1]),
            dynamic: true,
            target_buffer: narrow([20, 5, 2000, 1]),
        }),
        _ => {
            let mut i = Instance::new(kind.settings);
            resource::common(&mut i, kind.ty, kind.sub_type, quantity);
            i.set("Caption", kind.name).set("ElementName", kind.name);
            usual(&mut i, kind.ty);
            i
        }
    };
    if kind.ty == 4 && range == 0 {
        i.set("DynamicMemoryEnabled", false);
    }
    i.set("Description", format!("{role} of {}", kind.name));
    let id = format!("Microsoft:Definition\\{}\\{role}", kind.id);
    Object::with_id(kind.settings, id, What::fixed(i))
}

/// What a device of that type has besides, unless a client says otherwise.
fn usual(i: &mut Instance, ty: u16) {
    match ty {
        10 => drop(
            i.set("StaticMacAddress", false)
                .set("ClusterMonitored", true),
        ),
        21 => drop(i.set("DebuggerMode", false)),
        // Read and write.
        31 => drop(
            i.set("Access", 3u16)
                .set("PersistentReservationsSupported", false),
        ),
        // Plugged in.
        33 => drop(i.set("EnabledState", 2u16)),
        _ => {}
    }
}

fn kind_of(object: &Object) -> Option<&'static Kind> {
    match &object.what {
        What::Fixed(_) => kinds::of_id(object.keys.first().map(|(_, id)| id.as_str())?),
        What::Resource(vm, part) | What::Device(vm, part) => kinds::of_part(vm, part),
        _ => None,
    }
}

/// What can be allocated from a pool; the capabilities a template belongs to.
pub(crate) fn capabilities_of(_view: &View, object: &Object) -> Vec<Object> {
    let fixed = matches!(object.what, What::Fixed(_));
    kind_of(object)
        .filter(|_| fixed)
        .map(capabilities)
        .into_iter()
        .collect()
}

/// The pool of capabilities, of a resource of a machine, of a device.
pub(crate) fn pool_of(view: &View, object: &Object) -> Vec<Object> {
    // Templates are allocated from nowhere.
    let template = matches!(object.what, What::Fixed(_))
        && object.class != class::MSVM_ALLOCATION_CAPABILITIES;
    kind_of(object)
        .filter(|_| !template)
        .map(|k| pool(view, k))
        .into_iter()
        .collect()
}

/// The templates of capabilities.
pub(crate) fn templates_of_capabilities(_view: &View, object: &Object) -> Vec<Object> {
    kind_of(object).map(templates_of).unwrap_or_default()
}

/// ValueRole and ValueRange of a template.
pub(crate) fn role(_view: &View, _left: &Object, right: &Object, instance: &mut Instance) {
    let id = right.keys.first().map_or("", |(_, id)| id.as_str());
    if let Some((_, role, range)) = ROLES.iter().find(|(name, _, _)| id.ends_with(name)) {
        instance
            .set("PropertyPolicy", 0u16)
            .set("ValueRole", *role)
            .set("ValueRange", *range);
    }
    instance.set("SupportStatement", 0u16);
}

/// The resources of machines that come from a pool.
pub(crate) fn resources_from(view: &View, object: &Object) -> Vec<Object> {
    from_pool(view, object, resource::objects)
}

/// The devices of machines that come from a pool.
pub(crate) fn devices_from(view: &View, object: &Object) -> Vec<Object> {
    from_pool(view, object, device::objects)
}

fn from_pool(view: &View, pool: &Object, of: fn(&Arc<Vm>) -> Vec<Object>) -> Vec<Object> {
    let Some(kind) = kind_of(pool) else {
        return Vec::new();
    };
    let machines = view.all::<Vm>();
    let all = machines.iter().flat_map(of);
    all.filter(|o| kind_of(o).is_some_and(|k| k.id == kind.id))
        .collect()
}

/// The pools of the host.
pub(crate) fn pools_of_host(view: &View, object: &Object) -> Vec<Object> {
    match object.what {
        What::Host => KINDS.iter().map(|k| pool(view, k)).collect(),
        _ => Vec::new(),
    }
}

/// The host of a pool.
pub(crate) fn host_of_pool(view: &View, _object: &Object) -> Vec<Object> {
    vec![view.host_object()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_with_a_place_and_an_image_can_be_added() {
        let own = uuid::Uuid::from_u128(7);
        let parent = r#"Msvm_ResourceAllocationSettingData.InstanceID="Microsoft:00000000-0000-0000-0000-000000000007\\\\X""#;
        // Given with the machine; not added one by one.
        let fixed = [
            "Memory",
            "Processor",
            "IDE Controller",
            "Floppy Drive",
            "Serial Port",
        ];
        for kind in KINDS.iter().filter(|k| !fixed.contains(&k.name)) {
            let mut default = template(kind, "Default", 0).fixed();
            default.set("Parent", parent);
            if kind.ty == 31 {
                default.set("HostResource", vec!["/x/a.img".to_owned()]);
            }
            let added = resource::new_device(&default, own);
            assert!(added.is_ok(), "{}: {:?}", kind.name, added.err());
        }
    }
}
