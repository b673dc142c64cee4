//! Snapshots as settings of their own, the methods of their service, and their associations.

use std::sync::Arc;

use cim::{Datetime, Instance, Path};
use msvm::{class, params};
use uuid::Uuid;
use vmms::machine::Vm;
use vmms::point::Consistency;
use vmms::snapshot::{self, Snapshot, SnapshotKind};
use vmms::{fault, guid};

use super::{expect_class, given, given_text, internal, resource, settings};
use crate::object::{NAMESPACE, Object, Part, What};
use crate::view::{Call, CallError, CallResult, Outcome, View, unserved};

/// All finished snapshots, each machine's together, the oldest first.
pub(crate) fn all(view: &View) -> Vec<Arc<Snapshot>> {
    let mut all = view.all::<Snapshot>();
    all.retain(|s| s.complete);
    all.sort_by_key(|s| (s.vm, s.sequence));
    all
}

/// The machine as it was, under the snapshot's id: its resource settings are named by that.
pub(crate) fn machine(snapshot: &Snapshot) -> Arc<Vm> {
    let mut vm = (*snapshot.settings).clone();
    vm.id = snapshot.id;
    Arc::new(vm)
}

/// A snapshot's settings as an instance.
pub(crate) fn read(view: &View, snapshot: &Snapshot) -> Instance {
    let planned = |vm: Arc<Vm>| vm.planned;
    let kind = if snapshot.kind == SnapshotKind::Recovery {
        "Recovery"
    } else if view.get::<Vm>(snapshot.vm).is_ok_and(planned) {
        "Planned"
    } else {
        "Realized"
    };
    let mut i = settings::read(&snapshot.settings);
    i.set(
        "Description",
        "Settings of a snapshot of the virtual machine.",
    )
    .set("ElementName", snapshot.name.as_str())
    .set(
        "VirtualSystemType",
        format!("Microsoft:Hyper-V:Snapshot:{kind}"),
    )
    .set("Notes", snapshot.notes.clone())
    .set("CreationTime", Datetime::from(snapshot.instant))
    .set("ConfigurationID", guid(snapshot.id))
    .set("ConfigurationFile", format!("{}.json", guid(snapshot.id)))
    .set("IsSaved", snapshot.memory.is_some())
    .set("Parent", parent_path(view, snapshot.parent));
    i
}

/// The path of a snapshot as text.
pub(crate) fn parent_path(view: &View, snapshot: Option<Uuid>) -> Option<String> {
    let found = view.snapshot(snapshot?)?;
    Some(
        Object::of_snapshot(found)
            .path(&view.host, NAMESPACE)
            .to_string(),
    )
}

/// The snapshot a REF parameter names.
pub(crate) async fn reference(
    view: &View,
    parameter: &'static str,
    path: Option<&Path>,
) -> Result<Uuid, CallError> {
    let path = path.ok_or_else(|| CallError::from(fault!(MissingValue, parameter)))?;
    let object = view
        .reference(parameter, path, class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA)
        .await?;
    match object.what {
        What::Snapshot(snapshot) => Ok(snapshot.id),
        What::Settings(_) => Err(fault!(
            WrongType,
            parameter,
            "these are settings of a machine, not of a snapshot"
        )
        .into()),
        _ => Err(internal(format!("{} is not a snapshot", path.class))),
    }
}

/// The ConsistencyLevel of settings: 0 or nothing is application where it can be had, else crash.
pub(crate) fn consistency(settings: &Instance) -> Result<Option<Consistency>, CallError> {
    match given::<u16>(settings, "ConsistencyLevel")? {
        None | Some(0) => Ok(None),
        Some(1) => Ok(Some(Consistency::Application)),
        Some(2) => Ok(Some(Consistency::Crash)),
        Some(other) => Err(fault!(
            InvalidValue,
            "ConsistencyLevel",
            other,
            "0, 1 (application) and 2 (crash) exist"
        )
        .into()),
    }
}

/// The consistency that the settings of a new snapshot ask for. What else they ask for is refused where it cannot be had.
pub(crate) fn wanted(settings: &Instance) -> Result<Option<Consistency>, CallError> {
    // A guest's agent freezes its file systems and tells no application that it was backed up: that is a copy (2). Every disk
    // that a guest can write to can be part of a snapshot, so that IgnoreNonSnapshottableDisks leaves nothing out.
    match given::<u8>(settings, "GuestBackupType")? {
        None | Some(0 | 2) => {}
        Some(1) => {
            return Err(fault!(NotServed, "GuestBackupType 1 (full); 2 (copy) is").into());
        }
        Some(other) => {
            let known = "0 (undefined), 1 (full) and 2 (copy) exist";
            return Err(fault!(InvalidValue, "GuestBackupType", other, known).into());
        }
    }
    consistency(settings)
}

/// Calls a method of Msvm_VirtualSystemSnapshotService.
pub(crate) async fn call(view: &View, call: &Call<'_>) -> CallResult {
    use msvm::method::VirtualSystemSnapshotService as Method;
    use params::virtual_system_snapshot_service as p;
    let vmms = &view.vmms;
    let Ok(method) = call.method.parse() else {
        return Err(unserved(call.target.class, call.method));
    };
    let job = match method {
        Method::CreateSnapshot => return create(view, call).await,
        Method::ApplySnapshot => {
            let given = p::ApplySnapshotIn::read(call.parameters)?;
            let id = reference(view, "Snapshot", given.snapshot.as_ref()).await?;
            snapshot::apply(vmms, id, call.asked).await?
        }
        Method::ClearSnapshotState => {
            let given = p::ClearSnapshotStateIn::read(call.parameters)?;
            let id = reference(
                view,
                "SnapshotSettingData",
                given.snapshot_setting_data.as_ref(),
            )
            .await?;
            snapshot::clear(vmms, id, call.asked).await?
        }
        Method::DestroySnapshot => {
            let given = p::DestroySnapshotIn::read(call.parameters)?;
            let id = reference(view, "AffectedSnapshot", given.affected_snapshot.as_ref()).await?;
            snapshot::destroy(vmms, id, false, call.asked).await?
        }
        Method::DestroySnapshotTree => {
            let given = p::DestroySnapshotTreeIn::read(call.parameters)?;
            let id = reference(
                view,
                "SnapshotSettingData",
                given.snapshot_setting_data.as_ref(),
            )
            .await?;
            snapshot::destroy(vmms, id, true, call.asked).await?
        }
        Method::ConvertToReferencePoint => {
            let given = p::ConvertToReferencePointIn::read(call.parameters)?;
            let id = reference(view, "AffectedSnapshot", given.affected_snapshot.as_ref()).await?;
            if let Some(settings) = &given.reference_point_settings {
                expect_class(
                    "ReferencePointSettings",
                    settings,
                    class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT_SETTING_DATA,
                )?;
                // What was reached at the instant cannot be had better afterwards.
                let reached = view.get::<Snapshot>(id)?.consistency;
                if consistency(settings)? == Some(Consistency::Application)
                    && reached == Consistency::Crash
                {
                    let why = "the snapshot is crash consistent";
                    return Err(fault!(InvalidValue, "ConsistencyLevel", 1, why).into());
                }
            }
            snapshot::convert(vmms, id, call.asked).await?
        }
        Method::RequestStateChange | Method::StartService | Method::StopService => {
            return Err(unserved(call.target.class, call.method));
        }
    };
    Ok(Outcome::started(view, job))
}

async fn create(view: &View, call: &Call<'_>) -> CallResult {
    use params::virtual_system_snapshot_service as p;
    let given_in = p::CreateSnapshotIn::read(call.parameters)?;
    let vm = view
        .vm_reference("AffectedSystem", given_in.affected_system.as_ref())
        .await?;
    let kind = match given_in.snapshot_type {
        Some(2) | None => SnapshotKind::Full,
        Some(3) => SnapshotKind::Disk,
        Some(32768) => SnapshotKind::Recovery,
        Some(other) => {
            let why = "2 (full), 3 (disk) and 32768 (recovery) exist";
            return Err(fault!(InvalidValue, "SnapshotType", other, why).into());
        }
    };
    let (mut level, mut name) = (None, String::new());
    if let Some(settings) = &given_in.snapshot_settings {
        expect_class(
            "SnapshotSettings",
            settings,
            class::MSVM_VIRTUAL_SYSTEM_SNAPSHOT_SETTING_DATA,
        )?;
        level = wanted(settings)?;
        given_text(settings, "ElementName")
            .unwrap_or_default()
            .clone_into(&mut name);
    }
    let (_, job) = snapshot::create(&view.vmms, vm, kind, level, &name, call.asked).await?;
    Ok(Outcome::started(view, job))
}

/// A machine's snapshots, oldest first.
pub(crate) fn snapshots_of(view: &View, object: &Object) -> Vec<Object> {
    match &object.what {
        What::Vm(vm) => snapshot::of_vm(&view.vmms, vm.id)
            .into_iter()
            .map(Object::of_snapshot)
            .collect(),
        _ => Vec::new(),
    }
}

/// The machine of a snapshot.
pub(crate) fn vm_of_snapshot(view: &View, object: &Object) -> Vec<Object> {
    match &object.what {
        What::Snapshot(s) => view
            .get::<Vm>(s.vm)
            .ok()
            .map(Object::of_vm)
            .into_iter()
            .collect(),
        _ => Vec::new(),
    }
}

/// The snapshot a machine's present descends from.
pub(crate) fn current_of(view: &View, object: &Object) -> Vec<Object> {
    match &object.what {
        What::Vm(vm) => snapshot::current(&view.vmms, vm)
            .map(Object::of_snapshot)
            .into_iter()
            .collect(),
        _ => Vec::new(),
    }
}

/// The machine whose present descends from a snapshot.
pub(crate) fn vm_at(view: &View, object: &Object) -> Vec<Object> {
    let mut vms = vm_of_snapshot(view, object);
    vms.retain(|vm| current_of(view, vm).iter().any(|s| s.keys == object.keys));
    vms
}

/// The snapshot applied last to a machine.
pub(crate) fn applied_to(view: &View, object: &Object) -> Vec<Object> {
    match &object.what {
        What::Vm(vm) => vm
            .last_applied
            .and_then(|id| view.snapshot(id))
            .map(Object::of_snapshot)
            .into_iter()
            .collect(),
        _ => Vec::new(),
    }
}

/// The machine a snapshot was the last to be applied to.
pub(crate) fn vm_applied(view: &View, object: &Object) -> Vec<Object> {
    let mut vms = vm_of_snapshot(view, object);
    vms.retain(|vm| applied_to(view, vm).iter().any(|s| s.keys == object.keys));
    vms
}

/// What descends from a snapshot: other snapshots, and the machine's settings.
pub(crate) fn children_of(view: &View, object: &Object) -> Vec<Object> {
    let What::Snapshot(parent) = &object.what else {
        return Vec::new();
    };
    let mut out: Vec<Object> = snapshot::of_vm(&view.vmms, parent.vm)
        .into_iter()
        .filter(|s| s.parent == Some(parent.id))
        .map(Object::of_snapshot)
        .collect();
    if let Ok(vm) = view.get::<Vm>(parent.vm)
        && snapshot::current(&view.vmms, &vm).is_some_and(|s| s.id == parent.id)
    {
        out.push(Object::of_settings(vm));
    }
    out
}

/// The snapshot that settings descend from.
pub(crate) fn parent_of(view: &View, object: &Object) -> Vec<Object> {
    let parent = match &object.what {
        What::Snapshot(s) => s.parent.and_then(|p| view.snapshot(p)),
        What::Settings(vm) => snapshot::current(&view.vmms, vm),
        _ => None,
    };
    parent.map(Object::of_snapshot).into_iter().collect()
}

/// The resources a snapshot kept.
pub(crate) fn resources(snapshot: &Snapshot) -> Vec<Object> {
    let mut all = resource::objects(&machine(snapshot));
    all.retain(|o| !matches!(o.what, What::Resource(_, Part::Security)));
    all
}
