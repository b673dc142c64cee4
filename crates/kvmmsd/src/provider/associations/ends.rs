//! The functions that walk associations.

use std::sync::Arc;

use cim::Instance;
use msvm::class;
use vmms::machine::{DeviceKind, Vm};
use vmms::point::Point;
use vmms::{Effect, Element};

use crate::object::{Object, Part, What};
use crate::provider::{device, host, resource, services};
use crate::view::View;

/// The machine that settings, a device or a point belong to; what a snapshot kept belongs to the snapshot.
fn vm(view: &View, object: &Object) -> Option<Arc<Vm>> {
    match object.what {
        What::Snapshot(_) | What::Resource(..) => None,
        _ => view.get::<Vm>(object.vm(&view.vmms.db)?).ok(),
    }
}

fn element(object: &Object) -> Option<Element> {
    Some(match &object.what {
        What::Vm(vm) => Element::Vm(vm.id),
        What::Resource(vm, Part::Device(id)) => Element::Resource {
            vm: vm.id,
            id: id.clone(),
        },
        What::Point(point) => Element::Point(point.id),
        What::Snapshot(snapshot) => Element::Snapshot(snapshot.id),
        What::CollectionSnapshot(snapshot) if object.class == class::MSVM_SNAPSHOT_COLLECTION => {
            Element::CollectionSnapshot(snapshot.id)
        }
        What::Collection(collection) => Element::Collection(collection.id),
        What::CollectionPoint(point) if object.class == class::MSVM_REFERENCE_POINT_COLLECTION => {
            Element::CollectionPoint(point.id)
        }
        What::Job(job) => Element::Job(job.id),
        What::Host => Element::Host,
        _ => return None,
    })
}

/// The jobs that affect an object, newest first.
pub(crate) fn jobs_of(view: &View, object: &Object) -> Vec<Object> {
    let Some(element) = element(object) else {
        return Vec::new();
    };
    let jobs = view.jobs().into_iter();
    jobs.filter(|j| j.affected.iter().any(|(e, _)| *e == element))
        .map(Object::of_job)
        .collect()
}

/// The storage jobs that affect an object.
pub(crate) fn storage_jobs_of(view: &View, object: &Object) -> Vec<Object> {
    let mut jobs = jobs_of(view, object);
    jobs.retain(|j| j.class == class::MSVM_STORAGE_JOB);
    jobs
}

/// What a job affects, as far as it exists.
pub(crate) fn affected_by(view: &View, object: &Object) -> Vec<Object> {
    match &object.what {
        What::Job(job) => job
            .affected
            .iter()
            .filter_map(|(e, _)| view.element(e))
            .collect(),
        _ => Vec::new(),
    }
}

/// ElementEffects of an affected element.
pub(crate) fn effects(_view: &View, left: &Object, right: &Object, instance: &mut Instance) {
    let (What::Job(job), Some(element)) = (&right.what, element(left)) else {
        return;
    };
    let effect = job
        .affected
        .iter()
        .find(|(e, _)| *e == element)
        .map(|(_, effect)| *effect);
    let number: u16 = match effect {
        Some(Effect::ExclusiveUse) => 2,
        Some(Effect::Performance) => 3,
        Some(Effect::Create) => 5,
        Some(Effect::Other) => 1,
        None => 0,
    };
    instance
        .set("ElementEffects", vec![number])
        .set("OtherElementEffectsDescriptions", vec![String::new()]);
}

/// The jobs a service owns.
pub(crate) fn owned_jobs(view: &View, object: &Object) -> Vec<Object> {
    let owner = services::SERVICES
        .iter()
        .find(|(c, _, _)| *c == object.class)
        .map(|(_, _, o)| *o);
    let jobs = view.jobs().into_iter();
    jobs.filter(|j| Some(j.service) == owner)
        .map(Object::of_job)
        .collect()
}

/// The service that owns a job.
pub(crate) fn owning_service(view: &View, object: &Object) -> Vec<Object> {
    match &object.what {
        What::Job(job) => services::owner(view, job.service).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// A machine's settings.
pub(crate) fn settings_of_vm(_view: &View, object: &Object) -> Vec<Object> {
    match &object.what {
        What::Vm(vm) => vec![Object::of_settings(Arc::clone(vm))],
        _ => Vec::new(),
    }
}

/// The machine settings or a device belong to.
pub(crate) fn vm_of(view: &View, object: &Object) -> Vec<Object> {
    vm(view, object).map(Object::of_vm).into_iter().collect()
}

/// The settings behind a device.
pub(crate) fn settings_of_device(_view: &View, object: &Object) -> Vec<Object> {
    match &object.what {
        What::Device(vm, part) => Object::of_resource(vm, part.clone()).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// The device of settings.
pub(crate) fn device_of_settings(view: &View, object: &Object) -> Vec<Object> {
    match &object.what {
        // What a snapshot kept is no device of any machine.
        What::Resource(vm, part) if view.get::<Vm>(vm.id).is_ok() => {
            let mut all = device::objects(vm);
            all.retain(|d| matches!(&d.what, What::Device(_, p) if p == part));
            all
        }
        _ => Vec::new(),
    }
}

/// The resources under a machine's settings.
pub(crate) fn resources_of(_view: &View, object: &Object) -> Vec<Object> {
    match &object.what {
        What::Settings(vm) => {
            let mut all = resource::objects(vm);
            all.retain(|o| !matches!(o.what, What::Resource(_, Part::Security)));
            all
        }
        What::Snapshot(snapshot) => super::snapshot::resources(snapshot),
        _ => Vec::new(),
    }
}

/// The security settings under a machine's settings, which are no resource.
pub(crate) fn security_of(_view: &View, object: &Object) -> Vec<Object> {
    match &object.what {
        What::Settings(vm) => Object::of_resource(vm, Part::Security)
            .into_iter()
            .collect(),
        _ => Vec::new(),
    }
}

/// The machine settings a resource belongs to.
pub(crate) fn settings_of_resource(view: &View, object: &Object) -> Vec<Object> {
    match &object.what {
        What::Resource(vm, _) => match view.snapshot(vm.id) {
            Some(snapshot) => vec![Object::of_snapshot(snapshot)],
            None => vec![Object::of_settings(Arc::clone(vm))],
        },
        _ => Vec::new(),
    }
}

/// A machine's devices.
pub(crate) fn devices_of(_view: &View, object: &Object) -> Vec<Object> {
    match &object.what {
        What::Vm(vm) => device::objects(vm),
        _ => Vec::new(),
    }
}

/// The services the host runs.
pub(crate) fn services_of_host(view: &View, object: &Object) -> Vec<Object> {
    match object.what {
        What::Host => {
            let own = services::SERVICES
                .iter()
                .filter_map(|(c, _, _)| services::object(view, c));
            own.chain([
                host::management(view),
                crate::provider::kvmms::export_service(view),
            ])
            .collect()
        }
        _ => Vec::new(),
    }
}

/// The host.
pub(crate) fn host_of(view: &View, object: &Object) -> Vec<Object> {
    match object.what {
        What::Service => vec![view.host_object()],
        _ => Vec::new(),
    }
}

/// The machines of the host.
pub(crate) fn vms_of_host(view: &View, object: &Object) -> Vec<Object> {
    match object.what {
        What::Host => view
            .all::<Vm>()
            .into_iter()
            .filter(|v| !v.planned)
            .map(Object::of_vm)
            .collect(),
        _ => Vec::new(),
    }
}

/// The host of a machine.
pub(crate) fn host_of_vm(view: &View, object: &Object) -> Vec<Object> {
    match object.what {
        What::Vm(_) => vec![view.host_object()],
        _ => Vec::new(),
    }
}

/// The services that act on a machine.
pub(crate) fn services_of_vm(view: &View, object: &Object) -> Vec<Object> {
    match object.what {
        What::Vm(_) => services_of_host(view, &view.host_object()),
        _ => Vec::new(),
    }
}

/// The machines a service acts on.
pub(crate) fn vms_of_service(view: &View, object: &Object) -> Vec<Object> {
    match object.what {
        What::Service => vms_of_host(view, &view.host_object()),
        _ => Vec::new(),
    }
}

/// A machine's reference points, oldest first.
pub(crate) fn points_of(view: &View, object: &Object) -> Vec<Object> {
    let What::Vm(vm) = &object.what else {
        return Vec::new();
    };
    let mut points = view.all::<Point>();
    points.retain(|p| p.vm == vm.id && p.complete);
    points.sort_by_key(|p| p.sequence);
    points.into_iter().map(Object::of_point).collect()
}

/// The machine of a point.
pub(crate) fn vm_of_point(view: &View, object: &Object) -> Vec<Object> {
    match object.what {
        What::Point(_) => vm(view, object).map(Object::of_vm).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// A machine's export settings.
pub(crate) fn export_settings_of(_view: &View, object: &Object) -> Vec<Object> {
    match &object.what {
        What::Vm(vm) => vec![Object::of_export_settings(Arc::clone(vm))],
        _ => Vec::new(),
    }
}

/// The machine of export settings.
pub(crate) fn vm_of_export_settings(view: &View, object: &Object) -> Vec<Object> {
    if object.class == class::MSVM_VIRTUAL_SYSTEM_EXPORT_SETTING_DATA {
        vm_of(view, object)
    } else {
        Vec::new()
    }
}

fn parent_id(kind: &DeviceKind) -> Option<&str> {
    match kind {
        DeviceKind::DiskDrive { controller, .. } | DeviceKind::DvdDrive { controller, .. } => {
            Some(controller)
        }
        DeviceKind::Disk(disk) => Some(&disk.drive),
        DeviceKind::Dvd { drive, .. } => Some(drive),
        DeviceKind::NicConnection { nic, .. } => Some(nic),
        _ => None,
    }
}

/// The resources that name this one as their parent.
pub(crate) fn children_of_resource(_view: &View, object: &Object) -> Vec<Object> {
    let What::Resource(vm, Part::Device(id)) = &object.what else {
        return Vec::new();
    };
    let children = vm
        .devices
        .iter()
        .filter(|d| parent_id(&d.kind).is_some_and(|p| p.eq_ignore_ascii_case(id)));
    children
        .filter_map(|d| Object::of_resource(vm, Part::Device(d.id.clone())))
        .collect()
}

/// The resource a resource names as its parent.
pub(crate) fn parent_of_resource(_view: &View, object: &Object) -> Vec<Object> {
    let What::Resource(vm, Part::Device(id)) = &object.what else {
        return Vec::new();
    };
    let parent = vm
        .device(id)
        .and_then(|d| parent_id(&d.kind))
        .and_then(|p| vm.device(p));
    parent
        .and_then(|d| Object::of_resource(vm, Part::Device(d.id.clone())))
        .into_iter()
        .collect()
}
