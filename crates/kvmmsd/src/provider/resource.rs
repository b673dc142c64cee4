//! The settings of a machine's resources: memory, processors, controllers, drives, disks, adapters, ports.

use std::sync::Arc;

use async_trait::async_trait;
use cim::{Instance, Path, Value};
use msvm::class;
use uuid::Uuid;
use vmms::Fault;
use vmms::machine::device::{NewDevice, host_path};
use vmms::machine::{Device, DeviceKind, Memory, Processor, Vm};
use vmms::{fault, guid};

use super::{given, given_bool, given_text};
use crate::object::{self, Object, Part, What, resource_id};
use crate::view::{CallError, Provider, View};

pub(crate) struct Resources;

/// ResourceType, ResourceSubType and the pool's name of a kind of resource.
pub(crate) fn type_of(kind: &DeviceKind) -> (u16, &'static str) {
    match kind {
        DeviceKind::IdeController { .. } => (5, "Microsoft:Hyper-V:Emulated IDE Controller"),
        DeviceKind::ScsiController { .. } => (6, "Microsoft:Hyper-V:Synthetic SCSI Controller"),
        DeviceKind::DiskDrive { .. } => (17, "Microsoft:Hyper-V:Synthetic Disk Drive"),
        DeviceKind::DvdDrive { .. } => (16, "Microsoft:Hyper-V:Synthetic DVD Drive"),
        DeviceKind::FloppyDrive => (14, "Microsoft:Hyper-V:Synthetic Diskette Drive"),
        DeviceKind::Disk(_) => (31, "Microsoft:Hyper-V:Virtual Hard Disk"),
        DeviceKind::Dvd { .. } => (31, "Microsoft:Hyper-V:Virtual CD/DVD Disk"),
        DeviceKind::SerialPort { .. } => (21, "Microsoft:Hyper-V:Serial Port"),
        DeviceKind::Nic { .. } => (10, "Microsoft:Hyper-V:Synthetic Ethernet Port"),
        DeviceKind::NicConnection { .. } => (33, "Microsoft:Hyper-V:Ethernet Connection"),
    }
}

/// The parts of a machine, in the order in which they are shown.
pub(crate) fn parts(vm: &Vm) -> Vec<Part> {
    let devices = vm.devices.iter().map(|d| Part::Device(d.id.clone()));
    [Part::Memory, Part::Processor, Part::Security]
        .into_iter()
        .chain(devices)
        .collect()
}

/// All resources of a machine as objects.
pub(crate) fn objects(vm: &Arc<Vm>) -> Vec<Object> {
    parts(vm)
        .into_iter()
        .filter_map(|p| Object::of_resource(vm, p))
        .collect()
}

impl Resources {
    fn list(&self, view: &View, class: &str) -> Vec<Object> {
        let own = view.all::<Vm>();
        let snapshots = super::snapshot::all(view);
        let kept = snapshots.iter().flat_map(|s| super::snapshot::resources(s));
        let own = own
            .iter()
            .flat_map(objects)
            .chain(kept)
            .filter(|o| o.class == class);
        own.chain(super::host::templates(view, class)).collect()
    }

    fn find(&self, view: &View, class: &str, path: &Path) -> Vec<Object> {
        let text = path.keys.first().and_then(|(_, v)| v.as_str());
        let vm = text.and_then(object::guid_in).and_then(|id| {
            let snapshot = || view.snapshot(id).map(|s| super::snapshot::machine(&s));
            view.get::<Vm>(id).ok().or_else(snapshot)
        });
        match vm {
            Some(vm) => {
                let mut all = objects(&vm);
                all.retain(|o| o.class == class && o.is_named_by(path));
                all
            }
            None => {
                let templates = super::host::templates(view, class).into_iter();
                templates.filter(|o| o.is_named_by(path)).collect()
            }
        }
    }
}

#[async_trait]
impl Provider for Resources {
    fn classes(&self) -> &'static [&'static str] {
        &[
            class::MSVM_MEMORY_SETTING_DATA,
            class::MSVM_PROCESSOR_SETTING_DATA,
            class::MSVM_SECURITY_SETTING_DATA,
            class::MSVM_RESOURCE_ALLOCATION_SETTING_DATA,
            class::MSVM_STORAGE_ALLOCATION_SETTING_DATA,
            class::MSVM_SYNTHETIC_ETHERNET_PORT_SETTING_DATA,
            class::MSVM_ETHERNET_PORT_ALLOCATION_SETTING_DATA,
            class::MSVM_SERIAL_PORT_SETTING_DATA,
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
            What::Resource(vm, part) => read(view, vm, part),
            What::Fixed(_) => object.fixed(),
            _ => Instance::new(object.class),
        }
    }
}

/// What the settings of all kinds of resources have.
pub(crate) fn common(i: &mut Instance, ty: u16, sub_type: &str, quantity: u64) {
    i.set("ResourceType", ty)
        .set("ResourceSubType", sub_type)
        .set("PoolID", "")
        .set("ConsumerVisibility", 3u16)
        .set("AllocationUnits", "count")
        .set("VirtualQuantity", quantity)
        .set("Reservation", quantity)
        .set("Limit", quantity)
        .set("Weight", 0u32)
        .set("AutomaticAllocation", true)
        .set("AutomaticDeallocation", true)
        .set("VirtualQuantityUnits", "count");
}

/// Memory settings as an instance.
pub(crate) fn memory(m: &Memory) -> Instance {
    let mut i = Instance::new(class::MSVM_MEMORY_SETTING_DATA);
    common(&mut i, 4, "Microsoft:Hyper-V:Memory", m.quantity);
    i.set("Caption", "Memory")
        .set(
            "Description",
            "Settings for Microsoft Virtual Machine Memory.",
        )
        .set("ElementName", "Memory")
        .set("AllocationUnits", "byte * 2^20")
        .set("VirtualQuantityUnits", "byte * 2^20")
        .set(
            "Reservation",
            if m.dynamic { m.reservation } else { m.quantity },
        )
        .set("Limit", if m.dynamic { m.limit } else { m.quantity })
        .set("Weight", m.weight)
        .set("DynamicMemoryEnabled", m.dynamic)
        .set("TargetMemoryBuffer", m.target_buffer)
        .set("IsVirtualized", true)
        .set("SwapFilesInUse", false)
        .set("MaxMemoryBlocksPerNumaNode", 1_048_576u64);
    i
}

/// Processor settings as an instance.
pub(crate) fn processor(p: &Processor) -> Instance {
    let mut i = Instance::new(class::MSVM_PROCESSOR_SETTING_DATA);
    common(&mut i, 3, "Microsoft:Hyper-V:Processor", u64::from(p.count));
    i.set("Caption", "Processor")
        .set("Description", "Settings for Microsoft Virtual Processor.")
        .set("ElementName", "Processor")
        .set("AllocationUnits", "percent / 1000")
        .set("VirtualQuantityUnits", "count")
        .set("Reservation", p.reservation)
        .set("Limit", p.limit)
        .set("Weight", p.weight)
        .set("LimitCPUID", false)
        .set("LimitProcessorFeatures", p.limit_features)
        .set("MaxProcessorsPerNumaNode", 64u64)
        .set("MaxNumaNodesPerSocket", 1u64);
    i
}

fn parent_path(view: &View, vm: &Arc<Vm>, id: &str) -> Option<String> {
    let id = vm.device(id)?.id.clone();
    let object = Object::of_resource(vm, Part::Device(id))?;
    Some(object.path(&view.host, object::NAMESPACE).to_string())
}

fn read(view: &View, vm: &Arc<Vm>, part: &Part) -> Instance {
    match part {
        Part::Memory => memory(&vm.memory),
        Part::Processor => processor(&vm.processor),
        Part::Security => Instance::new(class::MSVM_SECURITY_SETTING_DATA)
            .with("ElementName", "Security Settings")
            .with("Caption", "Security Settings"),
        Part::Device(id) => vm.device(id).map_or_else(
            || Instance::new(class::MSVM_RESOURCE_ALLOCATION_SETTING_DATA),
            |device| read_device(view, vm, device),
        ),
    }
}

fn read_device(view: &View, vm: &Arc<Vm>, device: &Device) -> Instance {
    let (ty, sub_type) = type_of(&device.kind);
    let mut i = Instance::new(object::resource_class(&device.kind));
    common(&mut i, ty, sub_type, 1);
    i.set("Caption", device.name.as_str())
        .set("Description", format!("Settings for {}.", device.name))
        .set("ElementName", device.name.as_str());
    match &device.kind {
        DeviceKind::IdeController { number } | DeviceKind::ScsiController { number } => {
            i.set("Address", number.to_string());
        }
        DeviceKind::DiskDrive { controller, slot } | DeviceKind::DvdDrive { controller, slot } => {
            i.set("Parent", parent_path(view, vm, controller))
                .set("AddressOnParent", slot.to_string());
        }
        DeviceKind::FloppyDrive => {
            i.set("AddressOnParent", "0");
        }
        DeviceKind::Disk(disk) => {
            i.set("Parent", parent_path(view, vm, &disk.drive))
                .set("HostResource", vec![disk.path.display().to_string()])
                .set("Access", if disk.read_only { 1u16 } else { 3 })
                .set("VirtualResourceBlockSize", 512u64)
                .set("HostResourceBlockSize", 512u64)
                .set("PersistentReservationsSupported", false);
        }
        DeviceKind::Dvd { drive, path } => {
            i.set("Parent", parent_path(view, vm, drive))
                .set("HostResource", vec![path.display().to_string()])
                .set("Access", 1u16);
        }
        DeviceKind::SerialPort { number, connection } => {
            i.set("Address", (number - 1).to_string())
                .set("Connection", vec![connection.clone().unwrap_or_default()])
                .set("DebuggerMode", false);
        }
        DeviceKind::Nic {
            mac,
            static_mac,
            guid: nic,
        } => {
            i.set("Address", mac.as_str())
                .set("StaticMacAddress", *static_mac)
                .set("ClusterMonitored", true)
                .set(
                    "VirtualSystemIdentifiers",
                    vec![format!("{{{}}}", guid(*nic))],
                );
        }
        DeviceKind::NicConnection {
            nic,
            switch,
            enabled,
        } => {
            i.set("Parent", parent_path(view, vm, nic))
                .set("HostResource", switch.iter().cloned().collect::<Vec<_>>())
                .set("EnabledState", if *enabled { 2u16 } else { 3 });
        }
    }
    i
}

/// What an embedded instance asks to be added to a machine.
pub(crate) fn new_device(instance: &Instance, own: Uuid) -> Result<NewDevice, CallError> {
    let ty = given::<u16>(instance, "ResourceType")?;
    let sub_type = given_text(instance, "ResourceSubType").unwrap_or_default();
    let is = |suffix: &str| {
        sub_type
            .to_ascii_lowercase()
            .ends_with(&suffix.to_ascii_lowercase())
    };
    let parent = || parent_id(instance, own);
    let slot = || given::<u16>(instance, "AddressOnParent");
    let host_resource = || -> Result<std::path::PathBuf, CallError> {
        let text =
            given_text(instance, "HostResource").or_else(|| given_text(instance, "Connection"));
        let text = text.ok_or_else(|| CallError::from(fault!(MissingValue, "HostResource")))?;
        Ok(host_path(text)?)
    };
    match ty {
        Some(6) => Ok(NewDevice::ScsiController),
        Some(17) if is("Physical Disk Drive") => Err(fault!(
            NotServed,
            "passing a physical disk through; attach the block device as a Virtual Hard Disk"
        )
        .into()),
        Some(17) => Ok(NewDevice::DiskDrive {
            controller: parent()?,
            slot: slot()?,
        }),
        Some(16) => Ok(NewDevice::DvdDrive {
            controller: parent()?,
            slot: slot()?,
        }),
        Some(31) if is("Virtual CD/DVD Disk") => Ok(NewDevice::Dvd {
            drive: parent()?,
            path: host_resource()?,
        }),
        Some(31) if is("Virtual Floppy Disk") => Err(fault!(NotServed, "floppy disks").into()),
        Some(31) => Ok(NewDevice::Disk {
            drive: parent()?,
            path: host_resource()?,
            read_only: given::<u16>(instance, "Access")? == Some(1),
        }),
        Some(10) => Ok(NewDevice::Nic {
            mac: given_text(instance, "Address")
                .filter(|_| given_bool(instance, "StaticMacAddress") == Some(true))
                .map(str::to_owned),
            guid: given_text(instance, "VirtualSystemIdentifiers")
                .and_then(|t| Uuid::parse_str(t.trim_matches(['{', '}'])).ok()),
        }),
        Some(33) => Ok(NewDevice::NicConnection {
            nic: parent()?,
            switch: given_text(instance, "HostResource").map(str::to_owned),
            enabled: given::<u16>(instance, "EnabledState")?.is_none_or(|s| s == 2),
        }),
        Some(other) => Err(fault!(
            NotServed,
            format!("adding a resource of type {other} ({sub_type})")
        )
        .into()),
        None => Err(fault!(MissingValue, "ResourceType").into()),
    }
}

/// The id within machine `own` that `Parent` names.
fn parent_id(instance: &Instance, own: Uuid) -> Result<String, CallError> {
    let text = match instance.get("Parent") {
        Value::Reference(path) => path.to_string(),
        other => other.as_str().unwrap_or_default().to_owned(),
    };
    if text.is_empty() {
        return Err(fault!(MissingValue, "Parent").into());
    }
    let path = Path::parse(&text)
        .map_err(|e| CallError::from(fault!(InvalidValue, "Parent", format!("{text:?}"), e)))?;
    let id = path
        .get_str("InstanceID")
        .unwrap_or_default()
        .replace("\\\\", "\\");
    match split_id(&id) {
        Some((vm, rest)) if vm == own => Ok(rest),
        Some((vm, _)) => Err(fault!(
            InvalidValue,
            "Parent",
            id,
            format!("it belongs to machine {}", guid(vm))
        )
        .into()),
        None => Err(fault!(
            InvalidValue,
            "Parent",
            format!("{text:?}"),
            "it names no resource of a machine"
        )
        .into()),
    }
}

/// The machine and the id within it of a resource's InstanceID.
pub(crate) fn split_id(id: &str) -> Option<(Uuid, String)> {
    let rest = id
        .get(..10)
        .filter(|p| p.eq_ignore_ascii_case("Microsoft:"))
        .and(id.get(10..))?;
    let (vm, rest) = rest.split_once('\\')?;
    Some((Uuid::parse_str(vm).ok()?, rest.to_owned()))
}

/// Which resource an embedded instance means, by its InstanceID.
pub(crate) fn target(instance: &Instance) -> Result<(Uuid, Part), CallError> {
    let id = given_text(instance, "InstanceID")
        .ok_or_else(|| CallError::from(fault!(MissingValue, "InstanceID")))?;
    let id = id.replace("\\\\", "\\");
    let Some((vm, rest)) = split_id(&id) else {
        return Err(fault!(
            InvalidValue,
            "InstanceID",
            format!("{id:?}"),
            "it names no resource of a machine"
        )
        .into());
    };
    let part = if rest.eq_ignore_ascii_case(object::MEMORY_ID) {
        Part::Memory
    } else if rest.eq_ignore_ascii_case(object::PROCESSOR_ID) {
        Part::Processor
    } else if rest.eq_ignore_ascii_case(object::SECURITY_ID) {
        Part::Security
    } else {
        Part::Device(rest)
    };
    Ok((vm, part))
}

/// What an embedded instance changes in memory settings.
pub(crate) fn apply_memory(instance: &Instance, m: &mut Memory) -> Result<(), CallError> {
    if let Some(dynamic) = given_bool(instance, "DynamicMemoryEnabled") {
        m.dynamic = dynamic;
    }
    if let Some(quantity) = given(instance, "VirtualQuantity")? {
        m.quantity = quantity;
    }
    if let Some(reservation) = given(instance, "Reservation")? {
        m.reservation = reservation;
    }
    if let Some(limit) = given(instance, "Limit")? {
        m.limit = limit;
    }
    if let Some(weight) = given(instance, "Weight")? {
        m.weight = weight;
    }
    if let Some(buffer) = given(instance, "TargetMemoryBuffer")? {
        m.target_buffer = buffer;
    }
    Ok(())
}

/// What an embedded instance changes in processor settings.
pub(crate) fn apply_processor(instance: &Instance, p: &mut Processor) -> Result<(), CallError> {
    if let Some(count) = given(instance, "VirtualQuantity")? {
        p.count = count;
    }
    if let Some(reservation) = given(instance, "Reservation")? {
        p.reservation = reservation;
    }
    if let Some(limit) = given(instance, "Limit")? {
        p.limit = limit;
    }
    if let Some(weight) = given(instance, "Weight")? {
        p.weight = weight;
    }
    if let Some(limited) = given_bool(instance, "LimitProcessorFeatures") {
        p.limit_features = limited;
    }
    Ok(())
}

/// What an embedded instance changes in a device.
pub(crate) fn apply_device(instance: &Instance, device: &mut Device) -> Result<(), CallError> {
    if let Some(name) = given_text(instance, "ElementName") {
        name.clone_into(&mut device.name);
    }
    match &mut device.kind {
        DeviceKind::Disk(disk) => {
            if let Some(text) = given_text(instance, "HostResource") {
                disk.path = host_path(text)?;
            }
        }
        DeviceKind::Dvd { path, .. } => {
            if let Some(text) = given_text(instance, "HostResource") {
                *path = host_path(text)?;
            }
        }
        DeviceKind::Nic {
            mac, static_mac, ..
        } => {
            if let Some(fixed) = given_bool(instance, "StaticMacAddress") {
                *static_mac = fixed;
            }
            if let Some(address) = given_text(instance, "Address") {
                address.clone_into(mac);
            }
        }
        DeviceKind::NicConnection {
            switch, enabled, ..
        } => {
            if !instance.get("HostResource").is_null() {
                *switch = given_text(instance, "HostResource").map(str::to_owned);
            }
            if let Some(state) = given::<u16>(instance, "EnabledState")? {
                *enabled = state == 2;
            }
        }
        DeviceKind::SerialPort { connection, .. } => {
            if !instance.get("Connection").is_null() {
                *connection = given_text(instance, "Connection")
                    .map(|t| host_path(t).map(|p| p.display().to_string()))
                    .transpose()?;
            }
        }
        DeviceKind::IdeController { .. }
        | DeviceKind::ScsiController { .. }
        | DeviceKind::DiskDrive { .. }
        | DeviceKind::DvdDrive { .. }
        | DeviceKind::FloppyDrive => {}
    }
    Ok(())
}

/// The path of a resource's settings.
pub(crate) fn path(view: &View, vm: Uuid, id: &str) -> Path {
    view.get::<Vm>(vm)
        .ok()
        .and_then(|vm| {
            let part = match id {
                object::MEMORY_ID => Part::Memory,
                object::PROCESSOR_ID => Part::Processor,
                object::SECURITY_ID => Part::Security,
                device => Part::Device(vm.device(device)?.id.clone()),
            };
            Some(Object::of_resource(&vm, part)?.path(&view.host, object::NAMESPACE))
        })
        .unwrap_or_else(|| {
            Path::class(class::MSVM_RESOURCE_ALLOCATION_SETTING_DATA)
                .in_namespace(object::NAMESPACE)
                .on_host(&*view.host)
                .key("InstanceID", resource_id(vm, id))
        })
}
