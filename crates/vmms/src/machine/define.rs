//! Defining machines and changing their settings.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Asked, Device, DeviceKind, Memory, Power, Processor, Settings, Vm, spec};
use crate::job::Kind as _;
use crate::job::{Job, JobContext, JobRequest, Machines, Service, Traits, concrete};
use crate::merge::MergeLayers;
use crate::point::Point;
use crate::{Effect, Element, Fault, Result, Vmms, fault, guid, names};

/// Deletes a machine with its points; its disks are folded into plain files, which stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DestroyVm {
    /// The machine.
    pub vm: Uuid,
}

#[async_trait]
impl Work<Machines> for DestroyVm {
    fn traits(&self) -> Traits {
        concrete(
            Service::Management,
            3,
            "Deleting the virtual machine",
            Recovery::Resume,
        )
        .to_the_end()
    }

    fn claims(&self) -> Claims {
        Claims::of_machine(self.vm, Access::Whole, Layers::Changed, &[])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run_destroy(vmms, ctx, self.vm).await
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        // Deleting goes on where it stopped when it is asked for again.
        Ok(())
    }
}

/// A machine to define.
#[derive(Clone, Debug)]
pub struct NewVm {
    /// Its GUID; `None` makes one.
    pub id: Option<Uuid>,
    /// Its name.
    pub name: String,
    /// 1 or 2.
    pub generation: u8,
    /// Free text.
    pub notes: Vec<String>,
    /// Settings.
    pub settings: Settings,
}

/// What a machine has when nothing is asked for: 1 GiB, one processor, and the devices of its generation.
pub fn new_vm(new: NewVm, owner: &str, dirs: &crate::Dirs) -> Vm {
    let id = new.id.unwrap_or_else(Uuid::new_v4);
    let now = SystemTime::now();
    let mut settings = new.settings;
    if settings.bios_guid.is_nil() {
        settings.bios_guid = id;
    }
    let root = spec::state_dir(dirs, id).display().to_string();
    for field in [
        &mut settings.configuration_data_root,
        &mut settings.snapshot_data_root,
        &mut settings.suspend_data_root,
        &mut settings.swap_file_data_root,
    ] {
        if field.is_empty() {
            field.clone_from(&root);
        }
    }
    Vm {
        id,
        name: new.name,
        notes: new.notes,
        planned: false,
        generation: new.generation,
        created: now,
        changed: now,
        power: Power::Off,
        power_changed: now,
        settings,
        memory: Memory {
            quantity: 1024,
            reservation: 512,
            limit: 1024 * 1024,
            weight: 5000,
            dynamic: false,
            target_buffer: 20,
        },
        processor: Processor {
            count: 1,
            reservation: 0,
            limit: 100_000,
            weight: 100,
            limit_features: false,
        },
        devices: default_devices(new.generation),
        machine_type: None,
        saved_state: None,
        last_applied: None,
        descends_from: None,
        last_end: None,
        owner: owner.to_owned(),
    }
}

/// The fixed identifier of the IDE controllers' family; clients show it, nothing depends on it.
const IDE: &str = "83F8638B-8DCA-4152-9EDA-2CA8B33039B4";
const FLOPPY: &str = "8F0D2762-0B00-4E04-AF4F-19010527CB93";
const SERIAL: &str = "8E3A359F-559A-4B6A-98A9-1690A6100ED7";

fn default_devices(generation: u8) -> Vec<Device> {
    let device = |id: String, name: String, kind| Device { id, name, kind };
    let mut out = Vec::new();
    if generation == 1 {
        for number in 0..2 {
            let kind = DeviceKind::IdeController { number };
            out.push(device(
                format!("{IDE}\\{number}"),
                format!("IDE Controller {number}"),
                kind,
            ));
        }
        out.push(device(
            format!("{FLOPPY}\\0\\0\\D"),
            "Floppy Drive".to_owned(),
            DeviceKind::FloppyDrive,
        ));
    }
    for number in 1..=2u8 {
        let kind = DeviceKind::SerialPort {
            number,
            connection: None,
        };
        out.push(device(
            format!("{SERIAL}\\{}", number - 1),
            format!("COM {number}"),
            kind,
        ));
    }
    out
}

/// Checks what does not depend on the host.
pub fn validate(vm: &Vm) -> Result<()> {
    let invalid = |what: &str, value: String, why: &str| {
        Err(fault!(InvalidValue, what, value, why).about(Element::Vm(vm.id)))
    };
    let named = |what: &str, name: &str| {
        names::check(what, name).map_err(|fault| fault.about(Element::Vm(vm.id)))
    };
    named("ElementName", &vm.name)?;
    for device in &vm.devices {
        named("ElementName of a resource", &device.name)?;
    }
    if !matches!(vm.generation, 1 | 2) {
        return invalid(
            "VirtualSystemSubType",
            vm.generation.to_string(),
            "generations 1 and 2 exist",
        );
    }
    if !(32..=12 * 1024 * 1024).contains(&vm.memory.quantity) {
        return invalid(
            "VirtualQuantity of the memory",
            vm.memory.quantity.to_string(),
            "machines have 32 MiB to 12 TiB, in MiB",
        );
    }
    if !(1..=240).contains(&vm.processor.count) {
        return invalid(
            "VirtualQuantity of the processor",
            vm.processor.count.to_string(),
            "machines have 1 to 240 processors",
        );
    }
    if vm.memory.weight > 10_000 || vm.processor.weight > 10_000 {
        return invalid(
            "Weight",
            vm.memory.weight.max(vm.processor.weight).to_string(),
            "weights go from 0 to 10000",
        );
    }
    if vm.settings.boot_order.iter().any(|b| *b > 3) {
        return invalid(
            "BootOrder",
            format!("{:?}", vm.settings.boot_order),
            "its elements are 0 to 3",
        );
    }
    Ok(())
}

/// Defines a machine. It is there when this returns.
pub async fn define(
    vmms: &Arc<Vmms>,
    new: NewVm,
    edit: impl FnOnce(&mut Vm) -> Result<()>,
) -> Result<Uuid> {
    let mut vm = new_vm(new, &vmms.host, &vmms.dirs);
    edit(&mut vm)?;
    validate(&vm)?;
    install(vmms, vm).await
}

/// Stores a finished machine.
pub async fn install(vmms: &Arc<Vmms>, vm: Vm) -> Result<Uuid> {
    let id = vm.id;
    names::check("ElementName", &vm.name)?;
    vmms.db
        .change(|draft| {
            if draft.get_mut::<Vm>(id).is_ok() {
                return Err(fault!(NameTaken, "machine", guid(id)));
            }
            check_images(&draft.all::<Vm>(), &vm)?;
            draft.put(vm);
            Ok(id)
        })
        .await
}

/// An image belongs to one machine only, whatever path leads to it.
pub(crate) fn check_images(all: &[Vm], vm: &Vm) -> Result<()> {
    for other in all.iter().filter(|o| o.id != vm.id && !o.planned) {
        for (_, disk) in vm.disks().filter(|(_, d)| !d.read_only) {
            if other.disks().any(|(_, d)| d.path == disk.path) {
                return Err(fault!(ImageInUse, disk.path.display(), other.name)
                    .about(Element::Vm(other.id)));
            }
        }
    }
    Ok(())
}

/// Changes a machine's settings: `edit` works on a copy; what may not change in the present state is refused.
pub async fn change(
    vmms: &Arc<Vmms>,
    id: Uuid,
    edit: impl FnOnce(&mut Vm) -> Result<()>,
) -> Result<()> {
    let _lock = vmms.lock(id).await;
    let state = vmms.runtime(id).state(&*vmms.db.get::<Vm>(id)?);
    vmms.db
        .change(|draft| {
            let before = draft.get_mut::<Vm>(id)?.clone();
            let mut after = before.clone();
            edit(&mut after)?;
            if after == before {
                return Ok(());
            }
            validate(&after)?;
            if before.power != Power::Off
                && let Some(what) = fixed_while_on(&before, &after)
            {
                return Err(fault!(
                    WrongVmState,
                    before.name,
                    state.word(),
                    format!("changing {what}"),
                    "off"
                )
                .about(Element::Vm(id)));
            }
            after.changed = SystemTime::now();
            draft.put(after);
            Ok(())
        })
        .await
}

/// What differs between two versions of a machine that cannot change while it has memory contents.
fn fixed_while_on(a: &Vm, b: &Vm) -> Option<&'static str> {
    let (x, y) = (&a.settings, &b.settings);
    let hardware = |s: &Settings| {
        (
            s.bios_guid,
            s.bios_serial.clone(),
            s.baseboard_serial.clone(),
            s.chassis_serial.clone(),
        )
    };
    if a.memory.quantity != b.memory.quantity {
        Some("the amount of memory")
    } else if a.processor.count != b.processor.count {
        Some("the number of processors")
    } else if a.generation != b.generation {
        Some("the generation")
    } else if hardware(x) != hardware(y) || x.chassis_asset_tag != y.chassis_asset_tag {
        Some("SMBIOS data")
    } else if x.boot_order != y.boot_order || x.boot_source_order != y.boot_source_order {
        Some("the boot order")
    } else if x.secure_boot != y.secure_boot {
        Some("secure boot")
    } else {
        None
    }
}

/// Background merging makes way.
pub(crate) async fn end_merging(vmms: &Arc<Vmms>, id: Uuid) -> Result<()> {
    for job in vmms.db.all::<Job>() {
        if !job.state.is_final() && MergeLayers::of(&job.task).is_some_and(|merge| merge.vm == id) {
            let _ = vmms.request_job_state(job.id, JobRequest::Terminate).await;
            vmms.wait(job.id).await?;
        }
    }
    Ok(())
}

/// Starts the job that deletes a machine.
pub async fn destroy(vmms: &Arc<Vmms>, id: Uuid, asked: &Asked) -> Result<Uuid> {
    let record = vmms.db.get::<Vm>(id)?;
    let state = vmms.runtime(id).state(&record);
    if !matches!(state, super::VmState::Off | super::VmState::Saved) {
        return Err(fault!(
            WrongVmState,
            record.name,
            state.word(),
            "deleting",
            "off or saved"
        )
        .about(Element::Vm(id)));
    }
    // Before anything is deleted: its points would be gone, and the machine would stay.
    if let Some((gone, image)) = super::losses::first_missing(&record) {
        return Err(fault!(LayerMissing, gone.display(), image.display()).about(Element::Vm(id)));
    }
    end_merging(vmms, id).await?;
    let affected = vec![(Element::Vm(id), Effect::ExclusiveUse)];
    vmms.submit(DestroyVm { vm: id }, asked.submission(affected))
        .await
}

/// Refuses a machine that has a process: deleting it would leave one that nobody knows.
fn without_process(vm: &Vm) -> Result<()> {
    match vm.power {
        Power::Off | Power::Saved => Ok(()),
        Power::Running | Power::Paused => {
            let state = super::VmState::from(vm.power).word();
            let refused = fault!(WrongVmState, vm.name, state, "deleting", "off or saved");
            Err(refused.about(Element::Vm(vm.id)))
        }
    }
}

/// Deletes a machine: its points go, its disks become plain files again and stay.
pub(crate) async fn run_destroy(vmms: &Arc<Vmms>, ctx: &JobContext, id: Uuid) -> Result<()> {
    if vmms.db.get::<Vm>(id).is_err() {
        return Ok(());
    }
    // Between the request and this job it may have been started.
    {
        let _lock = vmms.lock(id).await;
        without_process(&*vmms.db.get::<Vm>(id)?)?;
    }
    crate::point::drop_all(vmms, ctx, id).await?;
    let _lock = vmms.lock(id).await;
    let record = match vmms.db.get::<Vm>(id) {
        Ok(record) => record,
        Err(_) => return Ok(()),
    };
    let known: Vec<_> = record
        .disks()
        .flat_map(|(_, disk)| crate::trusted::known_files(disk))
        .collect();
    vmms.db
        .change(|draft| {
            without_process(draft.get_mut::<Vm>(id)?)?;
            for point in draft.all::<Point>() {
                if point.vm == id {
                    draft.delete::<Point>(point.id);
                }
            }
            known.into_iter().for_each(|image| draft.put(image));
            crate::collection::manage::forget_member(draft, id)?;
            draft.delete::<Vm>(id);
            Ok(())
        })
        .await?;
    vmms.drop_runtime(id);
    // Log and sockets of its last process: nobody looks for them any more.
    match std::fs::remove_dir_all(spec::run_dir(&vmms.dirs, id)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(vm = %guid(id), %error, "the run directory of a deleted machine stays");
        }
        _ => {}
    }
    let dir = spec::state_dir(&vmms.dirs, id);
    match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Fault::io("remove", &dir, &e)),
        _ => Ok(()),
    }
}
