//! `kvmms disk`.

use std::path::Path as FilePath;

use cim::{Instance, Value};
use msvm::class;
use serde_json::json;

use super::storage::{self, Bus, Storage};
use crate::cli::{AdoptArgs, AttachArgs, CreateDiskArgs, DiskFormat, DiskVerb};
use crate::error::Result;
use crate::find::{self, Naming};
use crate::inspect::{boolean, embedded, lines, number, some_text, text, texts};
use crate::output::Row;
use crate::session::{Followed, Session, images, parameters, quoted, service};
use crate::size::Size;
use crate::vendor;

/// Carries out a verb of `disk`.
pub(super) async fn run(session: &Session, verb: DiskVerb) -> Result<()> {
    match verb {
        DiskVerb::List { vm } => list(session, vm.as_deref()).await,
        DiskVerb::Create(arguments) => create(session, arguments).await,
        DiskVerb::Attach(arguments) => attach(session, arguments).await,
        DiskVerb::AdoptLayers(arguments) => adopt(session, arguments).await,
        DiskVerb::Detach { vm, disk } => detach(session, &vm, &disk).await,
        DiskVerb::Resize { path, size } => resize(session, &path, size).await,
        DiskVerb::Show { path } => show(session, &path).await,
        DiskVerb::Check { path } => check(session, &path).await,
    }
}

async fn list(session: &Session, vm: Option<&str>) -> Result<()> {
    let machines = match vm {
        Some(vm) => vec![find::machine(session, vm, Naming::Beginning).await?],
        None => find::machines(session).await?,
    };
    let mut rows = Vec::new();
    for machine in &machines {
        let storage = Storage::of(session, machine).await?;
        rows.extend(storage.disks.iter().map(|d| d.row(machine)));
    }
    session.output.list(&rows, "No disks.")
}

/// What an image shall be.
pub(super) fn setting(
    path: &str,
    size: Option<Size>,
    format: DiskFormat,
    fixed: bool,
    parent: Option<&str>,
) -> Instance {
    let kind: u16 = match (parent, fixed) {
        (Some(_), _) => 4,
        (None, true) => 2,
        (None, false) => 3,
    };
    let format: u16 = match format {
        DiskFormat::Vhd => 2,
        DiskFormat::Native => 3,
    };
    let mut setting = Instance::new(class::MSVM_VIRTUAL_HARD_DISK_SETTING_DATA)
        .with("Type", kind)
        .with("Format", format)
        .with("Path", path);
    if let Some(size) = size {
        setting.set("MaxInternalSize", size.0);
    }
    if let Some(parent) = parent {
        setting.set("ParentPath", parent);
    }
    setting
}

/// Makes an image, to its end.
pub(super) async fn create_image(session: &Session, setting: Instance) -> Result<()> {
    let parameters = parameters([("VirtualDiskSettingData", setting.into())]);
    let called = session
        .call(&images(), "CreateVirtualHardDisk", &parameters)
        .await?;
    session.finish(&called).await.map(drop)
}

async fn create(session: &Session, arguments: CreateDiskArgs) -> Result<()> {
    let path = session.host_path(&arguments.path)?;
    let parent = arguments.parent.as_deref().map(|p| session.host_path(p));
    let parent = parent.transpose()?;
    let setting = setting(
        &path,
        arguments.size,
        arguments.format,
        arguments.fixed,
        parent.as_deref(),
    );
    let parameters = parameters([("VirtualDiskSettingData", setting.into())]);
    let called = session
        .call(&images(), "CreateVirtualHardDisk", &parameters)
        .await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let row =
        Row::new()
            .text("path", "Path", &path)
            .size("size", "Size", arguments.size.map(|s| s.0));
    session.output.done(&format!("{path} is made"), &row)
}

async fn attach(session: &Session, arguments: AttachArgs) -> Result<()> {
    let machine = find::machine(session, &arguments.vm, Naming::Whole).await?;
    let file = session.host_path(&arguments.path)?;
    let bus = match arguments.bus {
        crate::cli::Bus::Ide => Bus::Ide,
        crate::cli::Bus::Scsi => Bus::Scsi,
    };
    let path = storage::attach(session, &machine, &file, &[bus], arguments.read_only).await?;
    let storage = Storage::of(session, &machine).await?;
    let id = path.get_str("InstanceID").unwrap_or_default();
    let disk = storage.disk(id, Naming::Whole)?;
    let line = format!("{file} is attached to {} at {}", machine.name, disk.place);
    session.output.done(&line, &disk.row(&machine))
}

async fn adopt(session: &Session, a: AdoptArgs) -> Result<()> {
    session.needs_kvmms("disk adopt-layers")?;
    let machine = find::machine(session, &a.vm, Naming::Whole).await?;
    let file = session.host_path(&a.path)?;
    let top = a.top.as_deref().map(|t| session.host_path(t)).transpose()?;
    let bus = match a.bus {
        crate::cli::Bus::Ide => Bus::Ide,
        crate::cli::Bus::Scsi => Bus::Scsi,
    };
    let there = Storage::of(session, &machine).await?;
    let made = match there.disks.iter().any(|d| d.file == file) {
        true => None,
        false => Some(storage::drive(session, &machine, &[bus]).await?),
    };
    let drive = made.as_ref().and_then(|p| p.get_str("InstanceID"));
    let text = |text: Option<&str>| text.map_or(Value::Null, Value::from);
    let called = session
        .call(
            &service(vendor::HOST_SERVICE),
            "AdoptLayers",
            &parameters([
                ("AffectedSystem", machine.path().into()),
                ("Path", file.as_str().into()),
                ("Drive", text(drive)),
                ("Top", text(top.as_deref())),
                ("OfOthers", a.of_others.into()),
            ]),
        )
        .await;
    let called = match (called, made) {
        (Err(error), Some(drive)) => {
            // An empty drive is nothing anybody asked for. If it stays, the first error still says why.
            let _ = storage::remove(session, &[drive]).await;
            return Err(error);
        }
        (called, _) => called?,
    };
    let (layers, remarks) = (
        lines(called.invoked.get("Layers")),
        lines(called.invoked.get("Remarks")),
    );
    let mut line = format!(
        "{file} and {} layers on it belong to {} now",
        layers.len(),
        machine.name
    );
    for told in layers.iter().chain(&remarks) {
        line.push_str(&format!("\n  {told}"));
    }
    let row = Row::new()
        .text("machine", "Machine", &machine.name)
        .text("path", "Path", &file)
        .lines("layers", "Layers", layers)
        .lines("remarks", "Remarks", remarks);
    session.output.done(&line, &row)
}

async fn detach(session: &Session, vm: &str, wanted: &str) -> Result<()> {
    let machine = find::machine(session, vm, Naming::Whole).await?;
    let storage = Storage::of(session, &machine).await?;
    let disk = storage.disk(wanted, Naming::Whole)?;
    storage::remove(session, std::slice::from_ref(&disk.path)).await?;
    if let Some(drive) = &disk.drive {
        storage::remove(session, std::slice::from_ref(drive)).await?;
    }
    let line = format!(
        "{} is detached from {}; the file stays",
        disk.file, machine.name
    );
    session.output.done(&line, &disk.row(&machine))
}

async fn resize(session: &Session, path: &FilePath, size: Size) -> Result<()> {
    let path = session.host_path(path)?;
    let called = session
        .call(
            &images(),
            "ResizeVirtualHardDisk",
            &parameters([
                ("Path", path.as_str().into()),
                ("MaxInternalSize", size.0.into()),
            ]),
        )
        .await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let row = Row::new()
        .text("path", "Path", &path)
        .size("size", "Size", Some(size.0));
    session.output.done(&format!("{path} has {size} now"), &row)
}

async fn check(session: &Session, path: &FilePath) -> Result<()> {
    let path = session.host_path(path)?;
    let called = session
        .call(
            &images(),
            "ValidateVirtualHardDisk",
            &parameters([("Path", path.as_str().into())]),
        )
        .await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let row = Row::new()
        .text("path", "Path", &path)
        .yes("sound", "Sound", Some(true));
    session.output.done(&format!("{path} is sound"), &row)
}

/// The settings of an image, as the server reads them.
pub(super) async fn setting_data(session: &Session, path: &str) -> Result<Option<Instance>> {
    let called = session
        .call(
            &images(),
            "GetVirtualHardDiskSettingData",
            &parameters([("Path", path.into())]),
        )
        .await?;
    session.finish(&called).await?;
    Ok(embedded(called.invoked.get("SettingData")).pop())
}

async fn show(session: &Session, path: &FilePath) -> Result<()> {
    let path = session.host_path(path)?;
    let setting = setting_data(session, &path).await?;
    let setting =
        setting.unwrap_or_else(|| Instance::new(class::MSVM_VIRTUAL_HARD_DISK_SETTING_DATA));
    let called = session
        .call(
            &images(),
            "GetVirtualHardDiskState",
            &parameters([("Path", path.as_str().into())]),
        )
        .await?;
    session.finish(&called).await?;
    let state = embedded(called.invoked.get("State")).pop();
    let state = state.unwrap_or_else(|| Instance::new(class::MSVM_VIRTUAL_HARD_DISK_STATE));
    let own = match session.is_kvmms() {
        true => {
            let wql = format!(
                "SELECT * FROM {} WHERE Path = {}",
                vendor::DISK,
                quoted(&path)
            );
            session.optional(&wql).await?.pop()
        }
        false => None,
    };
    let kind = match number(&setting, "Type") {
        Some(2) => "fixed".to_owned(),
        Some(3) => "dynamic".to_owned(),
        Some(4) => "differencing".to_owned(),
        other => other.map_or_else(String::new, |n| n.to_string()),
    };
    let format = match (&own, number(&setting, "Format")) {
        (Some(own), _) if some_text(own, "Format").is_some() => text(own, "Format"),
        (_, Some(2)) => "VHD".to_owned(),
        (_, Some(3)) if session.is_kvmms() => "native (qcow2 or what the file is)".to_owned(),
        (_, Some(3)) => "VHDX".to_owned(),
        (_, other) => other.map_or_else(String::new, |n| n.to_string()),
    };
    let mut row = Row::new()
        .text("path", "Path", &path)
        .text("format", "Format", format)
        .text("type", "Type", kind)
        .size("size", "Size", number(&setting, "MaxInternalSize"))
        .size("fileSize", "File size", number(&state, "FileSize"))
        .maybe("parent", "Parent", some_text(&setting, "ParentPath"))
        .yes("inUse", "In use", boolean(&state, "InUse"));
    if let Some(own) = &own {
        row = row
            .text("machine", "Machine", text(own, "VirtualSystemName"))
            .size("allocated", "All files take", number(own, "AllocatedSize"))
            .maybe("activeFile", "Written to", some_text(own, "ActiveFile"))
            .lines("layers", "Layers", texts(own, "Layers"))
            .lines("instants", "Instants", texts(own, "Instants"))
            .maybe("warning", "Warning", some_text(own, "Warning"))
            .hidden("diskId", json!(some_text(own, "DiskIdentifier")))
            .hidden("instanceId", json!(some_text(own, "InstanceID")))
            .hidden(
                "machineId",
                json!(some_text(own, "VirtualSystemIdentifier")),
            );
    }
    session.output.one(&row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_follows_from_parent_and_fixed() {
        let kind = |fixed, parent| {
            let s = setting("/a", Some(Size(1)), DiskFormat::Native, fixed, parent);
            number(&s, "Type")
        };
        assert_eq!(kind(false, None), Some(3));
        assert_eq!(kind(true, None), Some(2));
        assert_eq!(kind(false, Some("/b")), Some(4));
    }
}
