//! The methods of Msvm_VirtualSystemManagementService.

use cim::{Instance, Path, Value};
use msvm::{class, code, params};
use uuid::Uuid;
use vmms::machine::{NewVm, Settings, Vm};
use vmms::{Fault, Message, fault};

use super::{expect_class, exports, resource, settings, summary};
use crate::object::Part;
use crate::view::{Call, CallError, CallResult, Outcome, View, unserved};

use params::virtual_system_management_service as p;

/// Calls a method of the service.
pub(crate) async fn call(view: &View, call: &Call<'_>) -> CallResult {
    use msvm::method::VirtualSystemManagementService as Method;
    let Ok(method) = call.method.parse() else {
        return Err(unserved(call.target.class, call.method));
    };
    match method {
        Method::DefineSystem => define(view, call).await,
        Method::ModifySystemSettings => modify_system(view, call).await,
        Method::DestroySystem => {
            let given = p::DestroySystemIn::read(call.parameters)?;
            let vm = view
                .vm_reference("AffectedSystem", given.affected_system.as_ref())
                .await?;
            let job = vmms::machine::destroy(&view.vmms, vm, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::AddResourceSettings => add_resources(view, call).await,
        Method::ModifyResourceSettings => modify_resources(view, call).await,
        Method::RemoveResourceSettings => remove_resources(view, call).await,
        Method::GetSummaryInformation => summary::call(view, call).await,
        Method::FormatError => format_error(call),
        Method::ImportSnapshotDefinitions => import_snapshots(view, call).await,
        Method::GetSizeOfSystemFiles => {
            let given = p::GetSizeOfSystemFilesIn::read(call.parameters)?;
            let vm = view.vm_reference("Vssd", given.vssd.as_ref()).await?;
            let dir = vmms::machine::spec::state_dir(&view.vmms.dirs, vm);
            Ok(Outcome::done().with("Size", size_of(&dir)))
        }
        // What is declared and not served is refused one by one, so that a new method is a decision.
        Method::AddBootSourceSettings
        | Method::AddFeatureSettings
        | Method::AddFibreChannelChap
        | Method::AddGuestServiceSettings
        | Method::AddKvpItems
        | Method::AddSystemComponentSettings
        | Method::DefinePlannedSystem
        | Method::DiagnoseNetworkConnection
        | Method::GenerateWwpn
        | Method::GetCurrentWwpnFromGenerator
        | Method::GetDefinitionFileSummaryInformation
        | Method::GetVirtualSystemThumbnailImage
        | Method::ModifyDiskMergeSettings
        | Method::ModifyFeatureSettings
        | Method::ModifyGuestServiceSettings
        | Method::ModifyKvpItems
        | Method::ModifyServiceSettings
        | Method::ModifySystemComponentSettings
        | Method::RemoveBootSourceSettings
        | Method::RemoveFeatureSettings
        | Method::RemoveFibreChannelChap
        | Method::RemoveGuestServiceSettings
        | Method::RemoveKvpItems
        | Method::RemoveSystemComponentSettings
        | Method::RequestStateChange
        | Method::SetGuestNetworkAdapterConfiguration
        | Method::SetInitialMachineConfigurationData
        | Method::StartService
        | Method::StopService
        | Method::TestNetworkConnection
        | Method::UpgradeSystemVersion => Err(unserved(call.target.class, call.method)),
        Method::ExportSystemDefinition => exports::call(view, call).await,
        Method::ImportSystemDefinition => import(view, call).await,
        Method::ValidatePlannedSystem => {
            let given = p::ValidatePlannedSystemIn::read(call.parameters)?;
            let vm = view
                .vm_reference("PlannedSystem", given.planned_system.as_ref())
                .await?;
            let job = vmms::machine::validate_planned(&view.vmms, vm, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
        Method::RealizePlannedSystem => {
            let given = p::RealizePlannedSystemIn::read(call.parameters)?;
            let vm = view
                .vm_reference("PlannedSystem", given.planned_system.as_ref())
                .await?;
            let job = vmms::machine::realize(&view.vmms, vm, call.asked).await?;
            Ok(Outcome::started(view, job))
        }
    }
}

fn size_of(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.metadata().ok())
        .filter(std::fs::Metadata::is_file)
        .map(|m| m.len())
        .sum()
}

async fn define(view: &View, call: &Call<'_>) -> CallResult {
    let given = p::DefineSystemIn::read(call.parameters)?;
    if given.reference_configuration.is_some() {
        return Err(fault!(NotServed, "ReferenceConfiguration of DefineSystem").into());
    }
    let mut new = NewVm {
        id: None,
        name: "New Virtual Machine".to_owned(),
        generation: 1,
        notes: Vec::new(),
        settings: Settings::default(),
    };
    if let Some(instance) = &given.system_settings {
        expect_class(
            "SystemSettings",
            instance,
            class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA,
        )?;
        new.generation = settings::generation(instance)?;
        settings::apply(instance, &mut new.name, &mut new.notes, &mut new.settings)?;
    }
    // Memory and processors can come along; what needs a parent is added once there is one.
    let mut later = Vec::new();
    let mut hardware = Vec::new();
    for instance in given.resource_settings.unwrap_or_default() {
        if instance.class.is(class::MSVM_MEMORY_SETTING_DATA)
            || instance.class.is(class::MSVM_PROCESSOR_SETTING_DATA)
        {
            hardware.push(instance);
        } else {
            later.push(instance);
        }
    }
    let mut refused = None;
    let defined = vmms::machine::define(&view.vmms, new, |vm| {
        for instance in &hardware {
            let applied = if instance.class.is(class::MSVM_MEMORY_SETTING_DATA) {
                resource::apply_memory(instance, &mut vm.memory)
            } else {
                resource::apply_processor(instance, &mut vm.processor)
            };
            applied.map_err(|e| keep(&mut refused, e))?;
        }
        Ok(())
    })
    .await;
    let vm = defined.map_err(|f| refused.take().unwrap_or_else(|| f.into()))?;
    for instance in &later {
        if let Err(error) = add_one(view, vm, instance).await {
            // All or nothing: a machine that lacks what was asked for is not left behind.
            let job = vmms::machine::destroy(&view.vmms, vm, call.asked).await?;
            view.vmms.wait(job).await?;
            return Err(error);
        }
    }
    let path = view.element_path(&vmms::Element::Vm(vm));
    let out = p::DefineSystemOut {
        resulting_system: Some(path),
        ..p::DefineSystemOut::code(code::COMPLETED)
    };
    Ok(Outcome::of(out.return_value, out.into_values()))
}

/// Lets an error of the protocol side pass through the domain: it is kept here, and a stand-in goes on.
fn keep(kept: &mut Option<CallError>, error: CallError) -> Fault {
    let fault = match &error {
        CallError::Fault(fault) => fault.clone(),
        other => Fault::new(Message::Internal, [format!("{other:?}")]),
    };
    *kept = Some(error);
    fault
}

async fn modify_system(view: &View, call: &Call<'_>) -> CallResult {
    let given = p::ModifySystemSettingsIn::read(call.parameters)?;
    let instance = msvm::required("SystemSettings", given.system_settings)?;
    expect_class(
        "SystemSettings",
        &instance,
        class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA,
    )?;
    let id = super::given_text(&instance, "InstanceID")
        .ok_or_else(|| CallError::from(fault!(MissingValue, "InstanceID of SystemSettings")))?;
    let path = Path::class(class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA).key("InstanceID", id);
    if let Some(snapshot) = crate::object::guid_in(id).and_then(|id| view.snapshot(id)) {
        // Of a snapshot only what people read can change: the rest is what it was.
        let name = super::given_text(&instance, "ElementName");
        let notes = instance.get("Notes");
        let notes =
            (!notes.is_null()).then(|| notes.items().iter().filter_map(Value::to_text).collect());
        vmms::snapshot::rename(&view.vmms, snapshot.id, name, notes).await?;
        return Ok(Outcome::done());
    }
    let vm = view.vm_reference("SystemSettings", Some(&path)).await?;
    let mut refused = None;
    let changed = vmms::machine::change(&view.vmms, vm, |vm| {
        settings::apply(&instance, &mut vm.name, &mut vm.notes, &mut vm.settings)
            .map_err(|e| keep(&mut refused, e))
    })
    .await;
    changed.map_err(|f| refused.take().unwrap_or_else(|| f.into()))?;
    Ok(Outcome::done())
}

async fn add_one(view: &View, vm: Uuid, instance: &Instance) -> Result<String, CallError> {
    let new = resource::new_device(instance, vm)?;
    let name = super::given_text(instance, "ElementName").map(str::to_owned);
    Ok(vmms::machine::device::add(&view.vmms, vm, new, name).await?)
}

async fn add_resources(view: &View, call: &Call<'_>) -> CallResult {
    let given = p::AddResourceSettingsIn::read(call.parameters)?;
    let vm = view
        .vm_reference(
            "AffectedConfiguration",
            given.affected_configuration.as_ref(),
        )
        .await?;
    let instances = msvm::required("ResourceSettings", given.resource_settings)?;
    let mut added: Vec<String> = Vec::new();
    for instance in &instances {
        match add_one(view, vm, instance).await {
            Ok(id) => added.push(id),
            Err(error) => {
                for id in added.iter().rev() {
                    vmms::machine::device::remove(&view.vmms, vm, id).await?;
                }
                return Err(error);
            }
        }
    }
    let paths = added
        .iter()
        .map(|id| resource::path(view, vm, id))
        .collect();
    let out = p::AddResourceSettingsOut {
        resulting_resource_settings: Some(paths),
        ..p::AddResourceSettingsOut::code(code::COMPLETED)
    };
    Ok(Outcome::of(out.return_value, out.into_values()))
}

async fn modify_resources(view: &View, call: &Call<'_>) -> CallResult {
    let given = p::ModifyResourceSettingsIn::read(call.parameters)?;
    let instances = msvm::required("ResourceSettings", given.resource_settings)?;
    let mut paths = Vec::new();
    for instance in &instances {
        let (vm, part) = resource::target(instance)?;
        let vm = view.get::<Vm>(vm)?.id;
        let mut refused = None;
        let changed = match &part {
            Part::Memory => {
                vmms::machine::change(&view.vmms, vm, |vm| {
                    resource::apply_memory(instance, &mut vm.memory)
                        .map_err(|e| keep(&mut refused, e))
                })
                .await
            }
            Part::Processor => {
                vmms::machine::change(&view.vmms, vm, |vm| {
                    resource::apply_processor(instance, &mut vm.processor)
                        .map_err(|e| keep(&mut refused, e))
                })
                .await
            }
            Part::Device(id) => {
                vmms::machine::device::modify(&view.vmms, vm, id, |device| {
                    resource::apply_device(instance, device).map_err(|e| keep(&mut refused, e))
                })
                .await
            }
            Part::Security => return Err(fault!(NotServed, "changing security settings").into()),
        };
        changed.map_err(|f| refused.take().unwrap_or_else(|| f.into()))?;
        paths.push(resource::path(view, vm, part.id()));
    }
    let out = p::ModifyResourceSettingsOut {
        resulting_resource_settings: Some(paths),
        ..p::ModifyResourceSettingsOut::code(code::COMPLETED)
    };
    Ok(Outcome::of(out.return_value, out.into_values()))
}

async fn remove_resources(view: &View, call: &Call<'_>) -> CallResult {
    let given = p::RemoveResourceSettingsIn::read(call.parameters)?;
    let paths = msvm::required("ResourceSettings", given.resource_settings)?;
    let mut targets = Vec::new();
    for path in &paths {
        let object = view
            .reference(
                "ResourceSettings",
                path,
                "CIM_ResourceAllocationSettingData",
            )
            .await?;
        match object.what {
            crate::object::What::Resource(vm, Part::Device(id)) => targets.push((vm.id, id)),
            _ => return Err(fault!(NotServed, format!("removing {path}")).into()),
        }
    }
    for (vm, id) in targets {
        // What lay in it may have gone with its parent.
        if view.get::<Vm>(vm).is_ok_and(|vm| vm.device(&id).is_some()) {
            vmms::machine::device::remove(&view.vmms, vm, &id).await?;
        }
    }
    Ok(Outcome::done())
}

/// Makes the messages of several errors one text, with a blank line between them.
fn format_error(call: &Call<'_>) -> CallResult {
    let given = p::FormatErrorIn::read(call.parameters)?;
    let errors = msvm::required("Errors", given.errors)?;
    let mut messages = Vec::new();
    for error in &errors {
        expect_class("Errors", error, "CIM_Error")?;
        let mut text = error.get_str("Message").unwrap_or_default().to_owned();
        if let Some(id) = error.get_str("MessageID") {
            text = format!("{text} [{id}]");
        }
        if let Some(cause) = error.get_str("ProbableCauseDescription") {
            text = format!("{text}\n  Cause: {cause}");
        }
        for remedy in error
            .get("RecommendedActions")
            .items()
            .iter()
            .filter_map(Value::as_str)
        {
            text = format!("{text}\n  Remedy: {remedy}");
        }
        messages.push(text);
    }
    let out = p::FormatErrorOut {
        error_message: Some(messages.join("\n\n")),
        ..p::FormatErrorOut::code(code::COMPLETED)
    };
    Ok(Outcome::of(out.return_value, out.into_values()))
}

/// Makes a planned machine of an export of ours. It comes to be with the job, through which it is found.
async fn import(view: &View, call: &Call<'_>) -> CallResult {
    let given = p::ImportSystemDefinitionIn::read(call.parameters)?;
    let file = msvm::required("SystemDefinitionFile", given.system_definition_file)?;
    let file = vmms::machine::device::host_path(&file)?;
    // The definition lies in `Virtual Machines` under the directory of the export; disks go under the state directory unless
    // the caller named a folder.
    let export = file.ancestors().nth(2).unwrap_or(&file).to_owned();
    let disks = match given
        .snapshot_folder
        .as_deref()
        .filter(|f| !f.trim().is_empty())
    {
        Some(folder) => Some(vmms::machine::device::host_path(folder)?),
        None => None,
    };
    let keep_id = !given.generate_new_system_identifier.unwrap_or(false);
    let started =
        vmms::import::import_planned(&view.vmms, &export, keep_id, disks.as_deref(), call.asked)
            .await;
    let (vm, job) = started?;
    let planned = class::MSVM_PLANNED_COMPUTER_SYSTEM;
    let path = Path::class(planned)
        .in_namespace(crate::object::NAMESPACE)
        .on_host(&*view.host)
        .key("CreationClassName", planned)
        .key("Name", vmms::guid(vm));
    Ok(Outcome::started(view, job).with("ImportedSystem", path))
}

/// Imports the snapshots exported with a machine to the planned one. They come to be with the job; their names are known now.
async fn import_snapshots(view: &View, call: &Call<'_>) -> CallResult {
    let given = p::ImportSnapshotDefinitionsIn::read(call.parameters)?;
    let vm = view
        .vm_reference("PlannedSystem", given.planned_system.as_ref())
        .await?;
    let folder = msvm::required("SnapshotFolder", given.snapshot_folder)?;
    let folder = vmms::machine::device::host_path(&folder)?;
    let (made, job) = vmms::snapshot::import(&view.vmms, vm, &folder, call.asked).await?;
    let paths: Vec<Value> = made
        .into_iter()
        .map(|id| view.element_path(&vmms::Element::Snapshot(id)).into())
        .collect();
    Ok(Outcome::started(view, job).with("ImportedSnapshots", Value::Array(paths)))
}
