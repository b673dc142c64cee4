//! Msvm_VirtualSystemSettingData and Msvm_VirtualSystemExportSettingData of the machines.

use async_trait::async_trait;
use cim::{Datetime, Instance, Path, Value};
use msvm::class;
use uuid::Uuid;
use vmms::Fault;
use vmms::machine::{Power, Settings as VmSettings, Vm};
use vmms::{fault, guid};

use super::{given, given_bool, given_text, snapshot};
use crate::object::{self, Object, What};
use crate::view::{CallError, Provider, View};

pub(crate) struct Settings;

impl Settings {
    fn list(&self, view: &View, class: &str) -> Vec<Object> {
        let export = class == class::MSVM_VIRTUAL_SYSTEM_EXPORT_SETTING_DATA;
        let vms = view.all::<Vm>().into_iter();
        if export {
            return vms.map(Object::of_export_settings).collect();
        }
        let snapshots = snapshot::all(view).into_iter().map(Object::of_snapshot);
        vms.map(Object::of_settings).chain(snapshots).collect()
    }

    fn find(&self, view: &View, class: &str, path: &Path) -> Vec<Object> {
        let id = path
            .keys
            .first()
            .and_then(|(_, v)| v.as_str())
            .and_then(object::guid_in);
        let Some(vm) = id.and_then(|id| view.get::<Vm>(id).ok()) else {
            let found = id.filter(|_| class == class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA);
            let found = found
                .and_then(|id| view.snapshot(id))
                .map(Object::of_snapshot);
            return found.filter(|o| o.is_named_by(path)).into_iter().collect();
        };
        let object = if class == class::MSVM_VIRTUAL_SYSTEM_EXPORT_SETTING_DATA {
            Object::of_export_settings(vm)
        } else {
            Object::of_settings(vm)
        };
        Some(object)
            .filter(|o| o.is_named_by(path))
            .into_iter()
            .collect()
    }
}

#[async_trait]
impl Provider for Settings {
    fn classes(&self) -> &'static [&'static str] {
        &[
            class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA,
            class::MSVM_VIRTUAL_SYSTEM_EXPORT_SETTING_DATA,
        ]
    }

    async fn objects(
        &self,
        view: &View,
        class: &str,
        wanted: Option<&Path>,
    ) -> Result<Vec<Object>, Fault> {
        Ok(match wanted {
            Some(path) => self.find(view, class, path),
            None => self.list(view, class),
        })
    }

    fn instance(&self, view: &View, object: &Object) -> Instance {
        match &object.what {
            What::Snapshot(snapshot) => snapshot::read(view, snapshot),
            What::Settings(vm) if object.class == class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA => {
                let current = vmms::snapshot::current(&view.vmms, vm).map(|s| s.id);
                read(vm).with("Parent", snapshot::parent_path(view, current))
            }
            What::Settings(vm) => Instance::new(object.class)
                .with("ElementName", vm.name.as_str())
                .with("CopySnapshotConfiguration", 1u8)
                .with("CopyVmRuntimeInformation", true)
                .with("CopyVmStorage", true)
                .with("CreateVmExportSubdirectory", true)
                .with("CaptureLiveState", 0u8),
            _ => Instance::new(object.class),
        }
    }
}

/// The sub type that stands for a generation.
fn sub_type(generation: u8) -> String {
    format!("Microsoft:Hyper-V:SubType:{generation}")
}

fn interval(seconds: u64) -> Datetime {
    Datetime::interval(std::time::Duration::from_secs(seconds))
}

/// A machine's settings as an instance.
pub(crate) fn read(vm: &Vm) -> Instance {
    let s = &vm.settings;
    let kind = if vm.planned { "Planned" } else { "Realized" };
    let mut i = Instance::new(class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA);
    i.set("Caption", "Virtual Machine Settings")
        .set("Description", "Active settings for the virtual machine.")
        .set("ElementName", vm.name.as_str())
        .set("VirtualSystemIdentifier", guid(vm.id))
        .set(
            "VirtualSystemType",
            format!("Microsoft:Hyper-V:System:{kind}"),
        )
        .set("VirtualSystemSubType", sub_type(vm.generation))
        .set("Notes", vm.notes.clone())
        .set("CreationTime", Datetime::from(vm.created))
        .set("ConfigurationID", guid(vm.id))
        .set("ConfigurationDataRoot", s.configuration_data_root.as_str())
        .set("ConfigurationFile", format!("{}.json", guid(vm.id)))
        .set("SnapshotDataRoot", s.snapshot_data_root.as_str())
        .set("SuspendDataRoot", s.suspend_data_root.as_str())
        .set("SwapFileDataRoot", s.swap_file_data_root.as_str())
        .set("LogDataRoot", s.configuration_data_root.as_str())
        .set("AutomaticStartupAction", s.automatic_startup_action)
        .set(
            "AutomaticStartupActionDelay",
            interval(s.automatic_startup_delay),
        )
        .set(
            "AutomaticStartupActionSequenceNumber",
            s.automatic_startup_sequence,
        )
        .set("AutomaticShutdownAction", s.automatic_shutdown_action)
        .set("AutomaticRecoveryAction", s.automatic_recovery_action)
        .set("BIOSGUID", format!("{{{}}}", guid(s.bios_guid)))
        .set("BIOSSerialNumber", s.bios_serial.as_str())
        .set("BaseBoardSerialNumber", s.baseboard_serial.as_str())
        .set("ChassisSerialNumber", s.chassis_serial.as_str())
        .set("ChassisAssetTag", s.chassis_asset_tag.as_str())
        .set("BIOSNumLock", s.bios_num_lock)
        .set("BootOrder", s.boot_order.clone())
        .set("BootSourceOrder", s.boot_source_order.clone())
        .set("IsSaved", vm.power == Power::Saved)
        .set("AllowFullSCSICommandSet", false)
        .set("AllowReducedFcRedundancy", false)
        .set("DebugChannelId", 0u32)
        .set("DebugPort", 0u32)
        .set("DebugPortEnabled", 0u16)
        .set("Version", "9.0")
        .set("IncrementalBackupEnabled", s.incremental_backup_enabled)
        .set("VirtualNumaEnabled", s.virtual_numa)
        .set("PauseAfterBootFailure", false)
        .set("NetworkBootPreferredProtocol", 4096u16)
        .set("SecureBootEnabled", s.secure_boot)
        .set("LowMmioGapSize", 128u64)
        .set("UserSnapshotType", s.user_snapshot_type);
    i
}

/// The generation an instance asks for.
pub(crate) fn generation(instance: &Instance) -> Result<u8, CallError> {
    match given_text(instance, "VirtualSystemSubType") {
        None => Ok(1),
        Some(text) if text.eq_ignore_ascii_case(&sub_type(1)) => Ok(1),
        Some(text) if text.eq_ignore_ascii_case(&sub_type(2)) => Ok(2),
        Some(text) => Err(fault!(
            InvalidValue,
            "VirtualSystemSubType",
            text,
            "Microsoft:Hyper-V:SubType:1 and :2 exist"
        )
        .into()),
    }
}

fn guid_of(text: &str) -> Result<Uuid, CallError> {
    Uuid::parse_str(text.trim_matches(['{', '}']))
        .map_err(|e| fault!(InvalidValue, "BIOSGUID", text, e).into())
}

/// What an instance changes in a machine: only properties that are there and not null.
pub(crate) fn apply(
    instance: &Instance,
    name: &mut String,
    notes: &mut Vec<String>,
    s: &mut VmSettings,
) -> Result<(), CallError> {
    if let Some(text) = instance.get_str("ElementName") {
        text.clone_into(name);
    }
    if !instance.get("Notes").is_null() {
        *notes = instance
            .get("Notes")
            .items()
            .iter()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect();
    }
    let limited = |property: &str, allowed: &[u16]| -> Result<Option<u16>, CallError> {
        match given::<u16>(instance, property)? {
            Some(value) if !allowed.contains(&value) => Err(fault!(
                InvalidValue,
                property,
                value,
                format!("its values are {allowed:?}")
            )
            .into()),
            other => Ok(other),
        }
    };
    let set = |field: &mut u16, value: Option<u16>| {
        if let Some(value) = value {
            *field = value;
        }
    };
    set(
        &mut s.automatic_startup_action,
        limited("AutomaticStartupAction", &[2, 3, 4])?,
    );
    set(
        &mut s.automatic_shutdown_action,
        limited("AutomaticShutdownAction", &[2, 3, 4])?,
    );
    set(
        &mut s.automatic_recovery_action,
        limited("AutomaticRecoveryAction", &[2, 3, 4])?,
    );
    set(
        &mut s.user_snapshot_type,
        limited("UserSnapshotType", &[2, 3, 4, 5])?,
    );
    set(
        &mut s.automatic_startup_sequence,
        given::<u16>(instance, "AutomaticStartupActionSequenceNumber")?,
    );
    if let Value::Datetime(delay) = instance.get("AutomaticStartupActionDelay")
        && let Some(delay) = delay.as_duration()
    {
        s.automatic_startup_delay = delay.as_secs();
    }
    for (property, field) in [
        ("BIOSSerialNumber", &mut s.bios_serial),
        ("BaseBoardSerialNumber", &mut s.baseboard_serial),
        ("ChassisSerialNumber", &mut s.chassis_serial),
        ("ChassisAssetTag", &mut s.chassis_asset_tag),
    ] {
        if let Some(text) = instance.get_str(property) {
            if text.len() > 255 || text.chars().any(char::is_control) {
                return Err(fault!(
                    InvalidValue,
                    property,
                    format!("{text:?}"),
                    "at most 255 printable characters"
                )
                .into());
            }
            text.clone_into(field);
        }
    }
    for (property, field) in [
        ("ConfigurationDataRoot", &mut s.configuration_data_root),
        ("SnapshotDataRoot", &mut s.snapshot_data_root),
        ("SuspendDataRoot", &mut s.suspend_data_root),
        ("SwapFileDataRoot", &mut s.swap_file_data_root),
    ] {
        if let Some(text) = given_text(instance, property) {
            *field = vmms::machine::device::host_path(text)?
                .display()
                .to_string();
        }
    }
    if let Some(text) = given_text(instance, "BIOSGUID") {
        s.bios_guid = guid_of(text)?;
    }
    for (property, field) in [
        ("BIOSNumLock", &mut s.bios_num_lock),
        (
            "IncrementalBackupEnabled",
            &mut s.incremental_backup_enabled,
        ),
        ("VirtualNumaEnabled", &mut s.virtual_numa),
        ("SecureBootEnabled", &mut s.secure_boot),
    ] {
        if let Some(value) = given_bool(instance, property) {
            *field = value;
        }
    }
    if !instance.get("BootOrder").is_null() {
        let order = instance.get("BootOrder").items().iter();
        s.boot_order = order
            .filter_map(|v| v.as_u64().and_then(|n| u16::try_from(n).ok()))
            .collect();
    }
    if !instance.get("BootSourceOrder").is_null() {
        let order = instance.get("BootSourceOrder").items().iter();
        s.boot_source_order = order.filter_map(Value::to_text).collect();
    }
    Ok(())
}
