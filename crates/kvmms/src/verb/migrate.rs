//! `kvmms migrate`: moves, what they would do, and machines of which nobody knows where they are.

use cim::{Instance, Name, Value};
use msvm::class;
use serde_json::json;

use super::group;
use super::storage::Storage;
use crate::cli::{MigrateArgs, MigrateVerb};
use crate::error::{Error, Result};
use crate::find::{self, Machine, Naming};
use crate::inspect::{as_number, boolean, lines, number, some_text, text, texts};
use crate::moving::detail;
use crate::output::Row;
use crate::session::{Followed, Session, parameters, service};
use crate::size::Size;
use crate::{vendor, watch};

/// MigrationType.
const LIVE: u16 = 32768;
const STORAGE: u16 = 32769;
const STAGED: u16 = 32770;
const EVERYTHING: u16 = 32771;

/// Carries out `migrate`.
pub(super) async fn run(session: &Session, mut arguments: MigrateArgs) -> Result<()> {
    if let Some(MigrateVerb::Resolve { vm, here, there }) = arguments.verb.take() {
        return match vm {
            Some(vm) if here || there => resolve(session, &vm, here).await,
            _ => in_doubt(session, vm.as_deref()).await,
        };
    }
    let Some(wanted) = arguments.group.as_deref() else {
        let wanted = arguments.vm.as_deref().unwrap_or_default();
        let machine = find::machine(session, wanted, Naming::Whole).await?;
        return one(session, &arguments, &machine).await;
    };
    let group = group::group(session, wanted, Naming::Whole).await?;
    let machines = group::machines(session, &group).await?;
    if machines.is_empty() {
        return Err(Error::usage(format!(
            "group {} has no machines",
            group.name
        )));
    }
    let mut moved: Vec<&str> = Vec::new();
    for machine in &machines {
        if let Err(error) = one(session, &arguments, machine).await {
            let left = machines
                .iter()
                .filter(|m| !moved.contains(&m.name.as_str()));
            let left: Vec<&str> = left.map(|m| m.name.as_str()).collect();
            let gone = match moved.is_empty() {
                true => "none moved".to_owned(),
                false => format!("{} moved", moved.join(", ")),
            };
            session.output.remark(&format!(
                "Of group {} {gone}; still here: {}.",
                group.name,
                left.join(", ")
            ));
            return Err(error);
        }
        moved.push(&machine.name);
    }
    Ok(())
}

/// What kind of move the arguments ask for.
fn kind(arguments: &MigrateArgs) -> u16 {
    match (arguments.staged, arguments.storage, &arguments.to) {
        (true, ..) => STAGED,
        (_, true, Some(_)) => EVERYTHING,
        (_, true, None) => STORAGE,
        _ => LIVE,
    }
}

async fn one(session: &Session, arguments: &MigrateArgs, machine: &Machine) -> Result<()> {
    let given = given(session, arguments, machine).await?;
    if arguments.dry_run {
        return plan(session, machine, &given).await;
    }
    let path = service(class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SERVICE);
    let method = match arguments.check {
        true => "CheckVirtualSystemIsMigratable",
        false => "MigrateVirtualSystemToHost",
    };
    let called = session.call(&path, method, &given).await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let detail = match &called.job {
        Some(job) => detail(session, &watch::id(job)).await?,
        None => None,
    };
    let place = match &arguments.to {
        Some(host) => format!("on {host}"),
        None => "where it was asked to be".to_owned(),
    };
    let line = match (arguments.check, arguments.staged, &arguments.to) {
        (true, ..) => format!("{} can move", machine.name),
        (_, true, _) => format!("a planned machine of {} is {place}", machine.name),
        (_, _, None) => format!("the storage of {} is {place}", machine.name),
        _ => format!("{} is {place}{}", machine.name, measured(detail.as_ref())),
    };
    let number = |name: &str| detail.as_ref().and_then(|d| number(d, name));
    let row = Row::new()
        .text("name", "Name", &machine.name)
        .text("id", "Id", &machine.id)
        .maybe("to", "To", arguments.to.clone())
        .hidden("checked", json!(arguments.check))
        .size("fileBytes", "Files", number("FileBytes"))
        .size("fileSkipped", "There already", number("FileSkipped"))
        .size("diskBytes", "Disks", number("DiskBytes"))
        .size("memoryBytes", "Memory", number("MemoryBytes"))
        .number("downtimeMilliseconds", "Downtime (ms)", number("Downtime"));
    session.output.done(&line, &row)
}

/// What a move that ended well has to tell.
fn measured(detail: Option<&Instance>) -> String {
    let Some(detail) = detail else {
        return String::new();
    };
    let mut parts = Vec::new();
    for (property, what) in [
        ("FileBytes", "of files"),
        ("DiskBytes", "mirrored"),
        ("MemoryBytes", "of memory"),
    ] {
        if let Some(bytes) = number(detail, property).filter(|b| *b > 0) {
            parts.push(format!("{} {what}", Size(bytes)));
        }
    }
    if let Some(ms) = number(detail, "Downtime") {
        parts.push(format!("its guest stood still for {ms} ms"));
    }
    match parts.is_empty() {
        true => String::new(),
        false => format!(" ({})", parts.join(", ")),
    }
}

/// The parameters that all methods about moves take.
async fn given(
    session: &Session,
    arguments: &MigrateArgs,
    machine: &Machine,
) -> Result<Vec<(Name, Value)>> {
    let settings = settings(session, arguments).await?;
    let mut resources = Vec::new();
    if let Some(directory) = &arguments.disks_to {
        // On the host they go to, which may be another: not made absolute from the directory we are in.
        if !directory.is_absolute() {
            return Err(Error::usage("--disks-to needs a whole path"));
        }
        let storage = Storage::of(session, machine).await?;
        for disk in storage.disks.iter().filter(|d| !d.read_only) {
            let name = std::path::Path::new(&disk.file).file_name();
            let name = name.ok_or_else(|| Error::usage(format!("{} has no name", disk.file)))?;
            let there = directory.join(name).display().to_string();
            let setting = Instance::new(class::MSVM_STORAGE_ALLOCATION_SETTING_DATA)
                .with("InstanceID", disk.id.as_str())
                .with("ResourceType", 31u16)
                .with("ResourceSubType", "Microsoft:Hyper-V:Virtual Hard Disk")
                .with("HostResource", vec![there]);
            resources.push(Value::from(setting));
        }
    }
    let resources = match resources.is_empty() {
        true => Value::Null,
        false => Value::Array(resources),
    };
    let host = arguments.to.as_deref();
    Ok(parameters([
        ("ComputerSystem", machine.path().into()),
        ("DestinationHost", host.map_or(Value::Null, Value::from)),
        ("MigrationSettingData", settings.into()),
        ("NewResourceSettingData", resources),
    ]))
}

/// The server's own template of that type, as arguments change it.
async fn settings(session: &Session, arguments: &MigrateArgs) -> Result<Instance> {
    let kind = kind(arguments);
    let class = class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SETTING_DATA;
    let wql = format!("SELECT * FROM {class} WHERE MigrationType = {kind}");
    let template = session.client.query(&wql).await?.into_iter().next();
    let mut settings = template.ok_or_else(|| {
        let why = format!("it has no template of MigrationType {kind}");
        Error::Answer(class.to_owned(), why)
    })?;
    settings.path = None;
    settings.properties.retain(|p| !p.value.is_null());
    settings.set("MigrationType", kind);
    if let Some(compress) = arguments.compress {
        settings.set("EnableCompression", compress);
    }
    if arguments.keep_downtime {
        settings.set("CancelIfBlackoutThresholdExceeded", true);
    }
    if arguments.retain {
        settings.set("RetainVhdCopiesOnSource", true);
    }
    if arguments.overwrite {
        settings.set("AllowOverwriteExistingFile", true);
    }
    if let Some(planned) = &arguments.planned {
        settings.set("DestinationPlannedVirtualSystemId", planned.as_str());
    }
    if !arguments.address.is_empty() {
        settings.set("DestinationIPAddressList", arguments.address.clone());
    }
    if let Some(Size(bytes)) = arguments.bandwidth {
        let (number, unit) = bandwidth(bytes)?;
        settings.set("Bandwidth", number).set("BandwidthUnit", unit);
    }
    Ok(settings)
}

/// Bytes per second as a 16-bit number with a unit: the finest that holds it.
fn bandwidth(bytes: u64) -> Result<(u16, String)> {
    (0..=40)
        .step_by(10)
        .find_map(|shift| {
            let number = u16::try_from(bytes >> shift).ok().filter(|n| *n > 0)?;
            Some((number, format!("byte / second * 2^{shift}")))
        })
        .ok_or_else(|| Error::usage("--bandwidth goes from 1 byte to 64 PiB in a second"))
}

/// Prints what would move.
async fn plan(session: &Session, machine: &Machine, given: &[(Name, Value)]) -> Result<()> {
    session.needs_kvmms("migrate --dry-run")?;
    let path = service(vendor::MIGRATION_SERVICE);
    let called = session.call(&path, "PlanMigration", given).await?;
    let number = |name| as_number(called.invoked.get(name));
    let row = Row::new()
        .text("name", "Name", &machine.name)
        .number("files", "Files", number("Files"))
        .size("fileBytes", "In them", number("FileBytes"))
        .size("memoryBytes", "Memory", number("MemoryBytes"))
        .number("points", "Points", number("ReferencePoints"))
        .number("snapshots", "Snapshots", number("Snapshots"))
        .lines("lines", "Plan", lines(called.invoked.get("Lines")))
        .lines("risks", "Risks", lines(called.invoked.get("Risks")));
    session.output.one(&row)
}

/// Machines that are being moved away, those in doubt first.
async fn in_doubt(session: &Session, wanted: Option<&str>) -> Result<()> {
    session.needs_kvmms("migrate resolve")?;
    let mut all = session.client.enumerate(vendor::MIGRATION_PERMIT).await?;
    if let Some(wanted) = wanted {
        let machine = find::machine(session, wanted, Naming::Whole).await?;
        all.retain(|i| text(i, "VirtualSystemName").eq_ignore_ascii_case(&machine.id));
    }
    all.retain(|i| boolean(i, "InDoubt") == Some(true));
    let rows: Vec<Row> = all
        .iter()
        .map(|i| {
            Row::new()
                .text("name", "Name", text(i, "VirtualSystemElementName"))
                .text("to", "To", text(i, "DestinationHost"))
                .text("state", "State", text(i, "State"))
                .lines("doubt", "Why", texts(i, "Doubt"))
                .hidden("id", json!(text(i, "VirtualSystemName")))
                .hidden("job", json!(some_text(i, "Job")))
        })
        .collect();
    session
        .output
        .list(&rows, "Of every machine it is known where it is.")
}

async fn resolve(session: &Session, wanted: &str, here: bool) -> Result<()> {
    session.needs_kvmms("migrate resolve")?;
    let machine = find::machine(session, wanted, Naming::Whole).await?;
    let path = service(vendor::MIGRATION_SERVICE);
    let verdict = if here { "here" } else { "there" };
    let given = parameters([
        ("ComputerSystem", machine.path().into()),
        ("Verdict", verdict.into()),
    ]);
    session.call(&path, "ResolveMigration", &given).await?;
    let line = match here {
        true => format!(
            "{} is here: it may run here, and its move is given up for ever",
            machine.name
        ),
        false => format!(
            "{} is at the destination: what is left of it here is removed",
            machine.name
        ),
    };
    let row = Row::new()
        .text("name", "Name", &machine.name)
        .text("verdict", "Verdict", verdict);
    session.output.done(&line, &row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bandwidth_fits_its_sixteen_bits_as_finely_as_it_can() {
        let told = |bytes| bandwidth(bytes).ok();
        assert_eq!(told(1000), Some((1000, "byte / second * 2^0".to_owned())));
        assert_eq!(
            told(100 << 20),
            Some((100, "byte / second * 2^20".to_owned()))
        );
        assert_eq!(told(0), None);
    }
}
