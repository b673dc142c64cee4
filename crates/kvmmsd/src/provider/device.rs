//! The logical devices of a machine: what its resources become.

use std::sync::Arc;

use async_trait::async_trait;
use cim::{Instance, Path};
use msvm::class;
use vmms::Fault;
use vmms::machine::{DeviceKind, Vm};
use vmms::{fault, guid};

use crate::object::{self, Object, Part, What, resource_id};
use crate::view::{Call, CallResult, Outcome, Provider, View, unserved};

pub(crate) struct Devices;

fn class_of(vm: &Vm, part: &Part) -> Option<&'static str> {
    Some(match part {
        Part::Memory => class::MSVM_MEMORY,
        Part::Processor => class::MSVM_PROCESSOR,
        Part::Security => return None,
        Part::Device(id) => match vm.device(id)?.kind {
            DeviceKind::IdeController { .. } => class::MSVM_IDE_CONTROLLER,
            DeviceKind::ScsiController { .. } => class::MSVM_SCSI_PROTOCOL_CONTROLLER,
            DeviceKind::DiskDrive { .. } => class::MSVM_DISK_DRIVE,
            DeviceKind::DvdDrive { .. } => class::MSVM_DVD_DRIVE,
            DeviceKind::FloppyDrive => class::MSVM_DISKETTE_DRIVE,
            DeviceKind::Disk(_) | DeviceKind::Dvd { .. } => class::MSVM_LOGICAL_DISK,
            DeviceKind::SerialPort { .. } => class::MSVM_SERIAL_PORT,
            DeviceKind::Nic { .. } => class::MSVM_SYNTHETIC_ETHERNET_PORT,
            DeviceKind::NicConnection { .. } => return None,
        },
    })
}

fn object(vm: &Arc<Vm>, part: Part) -> Option<Object> {
    let class = class_of(vm, &part)?;
    let id = resource_id(vm.id, part.id());
    Some(Object::of_system(
        class,
        guid(vm.id),
        "DeviceID",
        id,
        What::Device(Arc::clone(vm), part),
    ))
}

/// The shutdown component is there as long as the guest runs.
fn shutdown(view: &View, vm: &Arc<Vm>) -> Option<Object> {
    view.vmms.machine(vm.id)?;
    let id = resource_id(vm.id, SHUTDOWN_ID);
    let part = Part::Device(SHUTDOWN_ID.to_owned());
    Some(Object::of_system(
        class::MSVM_SHUTDOWN_COMPONENT,
        guid(vm.id),
        "DeviceID",
        id,
        What::Device(Arc::clone(vm), part),
    ))
}

const SHUTDOWN_ID: &str = "9F8233AC-BE49-4C79-8EE3-E7E1985B2077";

/// The devices of a machine.
pub(crate) fn objects(vm: &Arc<Vm>) -> Vec<Object> {
    super::resource::parts(vm)
        .into_iter()
        .filter_map(|p| object(vm, p))
        .collect()
}

impl Devices {
    fn list(&self, view: &View, class: &str) -> Vec<Object> {
        let vms = view.all::<Vm>();
        if class == class::MSVM_SHUTDOWN_COMPONENT {
            return vms.iter().filter_map(|vm| shutdown(view, vm)).collect();
        }
        vms.iter()
            .flat_map(objects)
            .filter(|o| o.class == class)
            .collect()
    }

    fn find(&self, view: &View, class: &str, path: &Path) -> Vec<Object> {
        let vm = path.get_str("SystemName").and_then(object::guid_in);
        let mut all = match vm.map(|id| view.get::<Vm>(id)) {
            Some(Ok(vm)) if class != class::MSVM_SHUTDOWN_COMPONENT => objects(&vm),
            Some(Err(_)) => Vec::new(),
            _ => self.list(view, class),
        };
        all.retain(|o| o.class == class && o.is_named_by(path));
        all
    }
}

#[async_trait]
impl Provider for Devices {
    fn classes(&self) -> &'static [&'static str] {
        &[
            class::MSVM_MEMORY,
            class::MSVM_PROCESSOR,
            class::MSVM_IDE_CONTROLLER,
            class::MSVM_SCSI_PROTOCOL_CONTROLLER,
            class::MSVM_DISK_DRIVE,
            class::MSVM_DVD_DRIVE,
            class::MSVM_DISKETTE_DRIVE,
            class::MSVM_LOGICAL_DISK,
            class::MSVM_SERIAL_PORT,
            class::MSVM_SYNTHETIC_ETHERNET_PORT,
            class::MSVM_SHUTDOWN_COMPONENT,
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
        let What::Device(vm, part) = &object.what else {
            return Instance::new(object.class);
        };
        let name = match part {
            Part::Memory => "Memory",
            Part::Processor => "Processor",
            Part::Security => "Security",
            Part::Device(id) => vm.device(id).map_or("Shutdown", |d| d.name.as_str()),
        };
        let on = view.vmms.machine(vm.id).is_some();
        let mut i = Instance::new(object.class);
        i.set("Caption", name)
            .set("Description", format!("{name} of {}", vm.name))
            .set("ElementName", name)
            .set("Name", name)
            .set("OperationalStatus", vec![2u16])
            .set("StatusDescriptions", vec!["OK".to_owned()])
            .set("Status", "OK")
            .set("HealthState", 5u16)
            .set("EnabledDefault", 2u16)
            .set("RequestedState", 12u16);
        let state: u16 = if on { 2 } else { 3 };
        // Two classes declare it as a string on their pages; completion puts the type right.
        i.set("EnabledState", state);
        match part {
            Part::Memory => {
                i.set("BlockSize", 1_048_576u64)
                    .set("NumberOfBlocks", vm.memory.quantity);
            }
            Part::Device(id) => {
                if let Some(DeviceKind::Nic { mac, .. }) = vm.device(id).map(|d| &d.kind) {
                    i.set("PermanentAddress", mac.as_str());
                }
                if let Some(DeviceKind::Disk(disk)) = vm.device(id).map(|d| &d.kind)
                    && let Some(node) = disk.layers.nodes.get(&disk.layers.active)
                {
                    i.set("BlockSize", 512u64)
                        .set("NumberOfBlocks", node.size / 512);
                }
            }
            Part::Processor | Part::Security => {}
        }
        i
    }

    async fn invoke(&self, view: &View, call: Call<'_>) -> CallResult {
        use msvm::params::shutdown_component as p;
        let What::Device(vm, _) = &call.target.what else {
            return Err(unserved(call.target.class, call.method));
        };
        match (call.target.class, call.method) {
            (class::MSVM_SHUTDOWN_COMPONENT, "InitiateShutdown") => {
                let given = p::InitiateShutdownIn::read(call.parameters)?;
                tracing::info!(vm = %guid(vm.id), reason = given.reason, force = given.force, "shutdown asked for");
                let to = vmms::machine::StateChange::Shutdown;
                match vmms::machine::request_state(&view.vmms, vm.id, to, call.asked).await {
                    // The method has no job parameter: it answers that the guest was asked.
                    Ok(_) => Ok(Outcome::done()),
                    Err(f) if f.message == vmms::Message::VmBusy => Ok(Outcome {
                        return_value: msvm::code::SHUTDOWN_IN_PROGRESS,
                        fault: Some(f),
                        ..Outcome::default()
                    }),
                    Err(other) => Err(other.into()),
                }
            }
            (class, method) => Err(fault!(NotServed, format!("{class}.{method}")).into()),
        }
    }
}
