//! `kvmms vm create`: a machine with its disks, or nothing.

use cim::{Instance, Path, Value};
use msvm::class;

use super::storage::{self, Bus};
use super::vm::{describe, destroy, mebibytes};
use crate::cli::{CreateVmArgs, DiskFormat, Generation};
use crate::error::{Error, Result};
use crate::find;
use crate::session::{Session, management, parameters};
use crate::verb::disk;

/// Makes the disks, defines the machine, attaches the disks. A machine that cannot be finished is removed.
pub(super) async fn create(session: &Session, arguments: CreateVmArgs) -> Result<()> {
    let mut files = Vec::new();
    for path in &arguments.disks {
        files.push(session.host_path(path)?);
    }
    let memory = arguments.memory.map(mebibytes).transpose()?;
    let mut made = Vec::new();
    for new in &arguments.new_disks {
        let file = session.host_path(&new.path)?;
        let setting = disk::setting(&file, Some(new.size), DiskFormat::Native, false, None);
        disk::create_image(session, setting).await?;
        made.push(file);
    }
    files.extend(made.iter().cloned());
    let built = build(session, &arguments, memory, &files).await;
    if let (Err(_), false) = (&built, made.is_empty()) {
        let made = made.join(", ");
        session
            .output
            .remark(&format!("New disks stay for the next try: {made}"));
    }
    let machine = built?;
    let row = describe(session, &machine).await?;
    let line = format!("{} is defined ({})", machine.name, machine.id);
    session.output.done(&line, &row)
}

/// Plugs an adapter into the host's switch, where there is no choice.
async fn connect(session: &Session, machine: &find::Machine, nic: &Path) -> Result<()> {
    let switches = session
        .optional("SELECT * FROM Msvm_VirtualEthernetSwitch")
        .await?;
    let [switch] = switches.as_slice() else {
        session.output.remark(&format!(
            "The network adapter is not plugged in: the host has {} switches.",
            switches.len()
        ));
        return Ok(());
    };
    let name = switch.get_str("Name").unwrap_or_default();
    let switch = Path::class(class::MSVM_VIRTUAL_ETHERNET_SWITCH)
        .key("CreationClassName", class::MSVM_VIRTUAL_ETHERNET_SWITCH)
        .key("Name", name);
    storage::add(session, machine, storage::connection(nic, &switch)).await?;
    Ok(())
}

async fn build(
    session: &Session,
    arguments: &CreateVmArgs,
    memory: Option<u64>,
    files: &[String],
) -> Result<find::Machine> {
    let system = define(session, arguments, memory).await?;
    let machine = find::machine(session, &system.id, find::Naming::Whole).await?;
    let buses: &[Bus] = match arguments.generation {
        Generation::First => &[Bus::Ide, Bus::Scsi],
        Generation::Second => &[Bus::Scsi],
    };
    let finished = async {
        for file in files {
            storage::attach(session, &machine, file, buses, false).await?;
        }
        if arguments.nic {
            let nic = storage::add(session, &machine, storage::nic()).await?;
            connect(session, &machine, &nic).await?;
        }
        Ok(())
    }
    .await;
    let Err(error) = finished else {
        return Ok(machine);
    };
    let removed = match destroy(session, &machine.path()).await {
        Ok(called) => session.finish(&called).await.map(drop),
        Err(error) => Err(error),
    };
    session.output.remark(&match removed {
        Ok(()) => format!(
            "The machine {} could not be finished and was removed again.",
            machine.name
        ),
        Err(why) => format!(
            "The machine {} could not be finished, and removing it failed: {why}. Delete it with \
             kvmms vm delete {}",
            machine.name, machine.id
        ),
    });
    Err(error)
}

struct Defined {
    id: String,
}

async fn define(
    session: &Session,
    arguments: &CreateVmArgs,
    memory: Option<u64>,
) -> Result<Defined> {
    let mut settings = Instance::new(class::MSVM_VIRTUAL_SYSTEM_SETTING_DATA)
        .with("ElementName", arguments.name.as_str())
        .with("VirtualSystemSubType", arguments.generation.sub_type());
    if let Some(notes) = &arguments.notes {
        settings.set("Notes", vec![notes.clone()]);
    }
    let mut resources = Vec::new();
    if let Some(memory) = memory {
        let memory = Instance::new(class::MSVM_MEMORY_SETTING_DATA)
            .with("ResourceType", 4u16)
            .with("ResourceSubType", "Microsoft:Hyper-V:Memory")
            .with("VirtualQuantity", memory);
        resources.push(Value::from(memory));
    }
    if let Some(cpus) = arguments.cpus {
        let processor = Instance::new(class::MSVM_PROCESSOR_SETTING_DATA)
            .with("ResourceType", 3u16)
            .with("ResourceSubType", "Microsoft:Hyper-V:Processor")
            .with("VirtualQuantity", u64::from(cpus));
        resources.push(Value::from(processor));
    }
    let resources = match resources.is_empty() {
        true => Value::Null,
        false => Value::Array(resources),
    };
    let called = session
        .call(
            &management(),
            "DefineSystem",
            &parameters([
                ("SystemSettings", settings.into()),
                ("ResourceSettings", resources),
            ]),
        )
        .await?;
    session.finish(&called).await?;
    let path = called.invoked.get("ResultingSystem").as_path();
    let id = path.and_then(|p| p.get_str("Name").map(str::to_owned));
    id.map(|id| Defined { id })
        .ok_or_else(|| Error::Answer(called.method, "it does not name the new machine".to_owned()))
}
