//! What clients ask of a move: from Msvm_VirtualSystemMigrationSettingData and the settings for the destination to a
//! request of the domain. What is documented and not honoured is refused by name: a move is not done otherwise than asked.

use std::path::PathBuf;

use cim::{Instance, Value};
use msvm::class;
use uuid::Uuid;
use vmms::fault;
use vmms::machine::device::host_path;
use vmms::machine::{DeviceKind, Vm};
use vmms::migration::{MigrationKind, MoveOptions, Request, Shown};

use super::bandwidth;
use crate::object::{Part, guid_in};
use crate::provider::{expect_class, given, given_bool, given_text, resource, settings};
use crate::view::{CallError, View};

/// What all methods that move or look take.
pub(super) struct Given {
    /// The machine.
    pub(super) vm: Uuid,
    /// The other host; empty where none was named.
    pub(super) destination: String,
    /// MigrationSettingData.
    pub(super) settings: Option<Instance>,
    /// NewSystemSettingData.
    pub(super) system: Option<Instance>,
    /// NewResourceSettingData.
    pub(super) resources: Vec<Instance>,
}

const SETTINGS: &str = class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SETTING_DATA;
const SMB: u16 = 32768;

impl Given {
    /// That the embedded instances are of the classes the page names. Everything else is the matter of a job.
    pub(super) fn check_classes(&self) -> Result<(), CallError> {
        if let Some(settings) = &self.settings {
            expect_class("MigrationSettingData", settings, SETTINGS)?;
        }
        if let Some(system) = &self.system {
            let wanted = class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA;
            expect_class("NewSystemSettingData", system, wanted)?;
        }
        for resource in &self.resources {
            let wanted = "CIM_ResourceAllocationSettingData";
            expect_class("NewResourceSettingData", resource, wanted)?;
        }
        Ok(())
    }

    /// The kind of the move; without settings a machine goes live, and without a host its storage moves.
    pub(super) fn kind(&self) -> Result<MigrationKind, CallError> {
        let number = match &self.settings {
            Some(settings) => given::<u16>(settings, "MigrationType")?,
            None => None,
        };
        match number {
            None if self.destination.is_empty() => Ok(MigrationKind::Storage),
            None => Ok(MigrationKind::Live),
            Some(number) => MigrationKind::of(number).ok_or_else(|| {
                let why = "32768 (machine), 32769 (storage), 32770 (staged), 32771 (machine and storage) and 32772 (storage, checked in depth) exist";
                fault!(InvalidValue, "MigrationType", number, why).into()
            }),
        }
    }

    /// What clients see of it in the job, whatever becomes of it.
    pub(super) fn shown(&self) -> Shown {
        let texts = self.resources.iter().map(cim::embedded::write);
        Shown {
            system: self.system.as_ref().map(cim::embedded::write),
            resources: texts.collect(),
        }
    }

    /// The request.
    pub(super) fn request(&self, view: &View) -> Result<Request, CallError> {
        let kind = self.kind()?;
        let elsewhere = !matches!(kind, MigrationKind::Storage | MigrationKind::StorageCheck);
        if elsewhere && self.destination.is_empty() {
            return Err(fault!(MissingValue, "DestinationHost").into());
        }
        let vm = view.get::<Vm>(self.vm)?;
        let mut options = match &self.settings {
            Some(settings) => options(settings)?,
            None => MoveOptions {
                compression: view.vmms.migration_service().compression,
                ..MoveOptions::default()
            },
        };
        options.shown = self.shown();
        let mut changed = (*vm).clone();
        if let Some(system) = &self.system {
            self.system_settings(system, &mut changed)?;
        }
        for resource in &self.resources {
            self.resource(resource, &vm, &mut changed, &mut options)?;
        }
        if changed != *vm {
            options.changed = Some(Box::new(changed));
        }
        Ok(Request {
            vm: self.vm,
            destination: self.destination.clone(),
            kind,
            options,
        })
    }

    fn system_settings(&self, system: &Instance, changed: &mut Vm) -> Result<(), CallError> {
        let named = ["VirtualSystemIdentifier", "InstanceID"].into_iter();
        for property in named {
            let text = given_text(system, property);
            if let Some(text) = text.filter(|t| guid_in(t).is_some_and(|id| id != self.vm)) {
                let why = "it names another machine than ComputerSystem";
                return Err(fault!(InvalidValue, property, text, why).into());
            }
        }
        if given_text(system, "VirtualSystemSubType").is_some()
            && settings::generation(system)? != changed.generation
        {
            let why = "a machine keeps its generation when it moves";
            let told = given_text(system, "VirtualSystemSubType").unwrap_or_default();
            return Err(fault!(InvalidValue, "VirtualSystemSubType", told, why).into());
        }
        settings::apply(
            system,
            &mut changed.name,
            &mut changed.notes,
            &mut changed.settings,
        )
    }

    fn resource(
        &self,
        instance: &Instance,
        vm: &Vm,
        changed: &mut Vm,
        options: &mut MoveOptions,
    ) -> Result<(), CallError> {
        let (owner, part) = resource::target(instance)?;
        if owner != self.vm {
            let told = given_text(instance, "InstanceID").unwrap_or_default();
            let why = "it belongs to another machine than ComputerSystem";
            return Err(fault!(InvalidValue, "NewResourceSettingData", told, why).into());
        }
        match part {
            Part::Memory => resource::apply_memory(instance, &mut changed.memory),
            Part::Processor => resource::apply_processor(instance, &mut changed.processor),
            Part::Security => {
                let why = "security settings have nothing that could differ on another host";
                Err(fault!(MoveSettingUnserved, "Msvm_SecuritySettingData", why).into())
            }
            Part::Device(id) => {
                let known = vm.device(&id).map(|d| &d.kind);
                match known {
                    None => Err(fault!(DeviceNotFound, vmms::guid(self.vm), id).into()),
                    Some(DeviceKind::Disk(disk)) => {
                        if let Some(there) = image(instance)? {
                            // Sent back as it was read: it stays where it is.
                            if there != disk.path {
                                options.disk_locations.push((disk.path.clone(), there));
                            }
                        }
                        Ok(())
                    }
                    Some(_) => match changed.device_mut(&id) {
                        Some(device) => resource::apply_device(instance, device),
                        None => Ok(()),
                    },
                }
            }
        }
    }
}

/// Where the image goes: samples and os-win write it to HostResource, the page says Connection. An empty text leaves it to the
/// destination.
fn image(instance: &Instance) -> Result<Option<PathBuf>, CallError> {
    let text = ["HostResource", "Connection"]
        .into_iter()
        .find_map(|property| given_text(instance, property).filter(|t| !t.trim().is_empty()));
    Ok(text.map(host_path).transpose()?)
}

fn options(settings: &Instance) -> Result<MoveOptions, CallError> {
    let flag = |property: &str| given_bool(settings, property).unwrap_or(false);
    let transport = given::<u16>(settings, "TransportType")?;
    match transport {
        // TCP, as templates say it; what moves is inside TLS, which may be asked for by name.
        None | Some(3..=5 | SMB) => {}
        Some(other) => {
            let why =
                "only 5 (TCP), 3 and 4 (TLS) are served; what moves is inside TLS in any case";
            return Err(fault!(TransportRefused, format!("TransportType {other}"), why).into());
        }
    }
    match given::<u16>(settings, "CPUCappingMagnitude")? {
        None | Some(0) => {}
        Some(magnitude @ 1..=2) => {
            let why =
                "a guest that writes faster than it can be sent is slowed down as far as it takes";
            let what = format!("CPUCappingMagnitude {magnitude}");
            return Err(fault!(MoveSettingUnserved, what, why).into());
        }
        Some(other) => {
            let why = "0 (normal), 1 (low) and 2 (high) exist";
            return Err(fault!(InvalidValue, "CPUCappingMagnitude", other, why).into());
        }
    }
    if let Some(other) = given_text(settings, "OtherTransportType") {
        let why = "what moves is inside TLS over TCP";
        return Err(fault!(TransportRefused, other, why).into());
    }
    let planned = match given_text(settings, "DestinationPlannedVirtualSystemId") {
        None => None,
        Some(text) => Some(guid_in(text).ok_or_else(|| {
            let why = "it is no GUID of a planned machine";
            fault!(InvalidValue, "DestinationPlannedVirtualSystemId", text, why)
        })?),
    };
    let addresses = settings.get("DestinationIPAddressList").items().iter();
    let addresses = addresses.filter_map(Value::to_text);
    Ok(MoveOptions {
        addresses: addresses.filter(|a| !a.trim().is_empty()).collect(),
        compression: flag("EnableCompression"),
        bandwidth: bandwidth::of(settings)?,
        priority: given(settings, "Priority")?.unwrap_or_default(),
        cancel_if_blackout: flag("CancelIfBlackoutThresholdExceeded"),
        retain_vhds: flag("RetainVhdCopiesOnSource") || flag("AvoidRemovingVHDs"),
        allow_overwrite: flag("AllowOverwriteExistingFile"),
        planned,
        smb: transport == Some(SMB),
        unmanaged: unmanaged(settings)?,
        ..MoveOptions::default()
    })
}

/// UnmanagedVhds: embedded instances of Msvm_MoveUnmanagedVhd.
fn unmanaged(settings: &Instance) -> Result<Vec<(PathBuf, PathBuf)>, CallError> {
    let mut out = Vec::new();
    for value in settings.get("UnmanagedVhds").items() {
        let vhd = match value {
            Value::Object(instance) => (**instance).clone(),
            Value::String(text) if text.trim().is_empty() => continue,
            Value::String(text) => msvm::embedded_instance(text, "UnmanagedVhds")?,
            _ => continue,
        };
        expect_class("UnmanagedVhds", &vhd, class::MSVM_MOVE_UNMANAGED_VHD)?;
        let path = |property: &'static str| -> Result<PathBuf, CallError> {
            let text = given_text(&vhd, property);
            let text = text.ok_or_else(|| fault!(MissingValue, property))?;
            Ok(host_path(text)?)
        };
        out.push((path("VhdSourcePath")?, path("VhdDestinationPath")?));
    }
    Ok(out)
}
