//! `kvmms export`, `kvmms point export`, `kvmms import`, `kvmms verify`.

use std::path::{Path as FilePath, PathBuf};

use cim::{Instance, Value};
use msvm::class;
use serde_json::json;
use uuid::Uuid;

use super::point as points_verb;
use super::storage::{Storage, full};
use crate::cli::{ExportArgs, ImportArgs, QuickExportArgs, Target};
use crate::error::{Error, Result};
use crate::find::{self, Machine, Naming, Point};
use crate::inspect::{number, some_text, texts};
use crate::output::Row;
use crate::session::{Followed, Session, parameters, points, service};
use crate::size::Size;
use crate::{vendor, watch};

/// Exports a point that is there.
pub(super) async fn point(session: &Session, arguments: ExportArgs) -> Result<()> {
    let point = find::point_or_newest(session, &arguments.what).await?;
    let machine = find::machine(session, &point.machine, Naming::Whole).await?;
    export(session, &machine, &point, &arguments.target).await
}

/// Takes a point and exports it.
pub(super) async fn quick(session: &Session, a: QuickExportArgs) -> Result<()> {
    let machine = find::machine(session, &a.vm, Naming::Whole).await?;
    if a.newest {
        let point = find::newest(find::points(session, Some(&machine)).await?, &machine)?;
        return export(session, &machine, &point, &a.target).await;
    }
    // What cannot be found is better known before a point is taken.
    settings(session, &machine, &a.target).await?;
    let name = a.name.as_deref();
    let called = points_verb::request(session, &machine, a.kind, a.consistency, name).await?;
    session.finish(&called).await?;
    let point = points_verb::made(session, &called).await?;
    let words = format!(
        "point {} of {} is taken ({})",
        point.name, machine.name, point.id
    );
    session.output.remark(&words);
    export(session, &machine, &point, &a.target).await
}

/// Which disks against which base; `None` for all, whole.
async fn settings(
    session: &Session,
    machine: &Machine,
    target: &Target,
) -> Result<Option<Instance>> {
    if target.base.is_none() && target.disks.is_empty() {
        return Ok(None);
    }
    let mut settings =
        Instance::new(class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT_EXPORT_SETTING_DATA);
    if let Some(base) = &target.base {
        let base = find::point(session, Some(machine), base, Naming::Whole).await?;
        settings.set("BaseReferencePoint", full(&base.path()));
    }
    if !target.disks.is_empty() {
        let storage = Storage::of(session, machine).await?;
        let mut ids = Vec::new();
        for wanted in &target.disks {
            ids.push(storage.disk(wanted, Naming::Whole)?.id.clone());
        }
        settings.set("DisksToExport", ids);
    }
    Ok(Some(settings))
}

async fn export(
    session: &Session,
    machine: &Machine,
    point: &Point,
    target: &Target,
) -> Result<()> {
    let directory = session.host_path(&target.to)?;
    let settings = settings(session, machine, target).await?;
    let called = session
        .call(
            &points(),
            "ExportReferencePoint",
            &parameters([
                ("ReferencePoint", point.path().into()),
                ("ExportDirectory", directory.as_str().into()),
                (
                    "ExportSettingData",
                    settings.map_or(Value::Null, Value::from),
                ),
            ]),
        )
        .await?;
    let ended = match session.follow(&called).await? {
        Followed::Left => return Ok(()),
        Followed::Done(ended) => ended.unwrap_or_else(|| Instance::new(class::MSVM_CONCRETE_JOB)),
    };
    let disks = texts(&ended, "ExportedDisks");
    let files = texts(&ended, "ExportedLogFilePaths");
    let rows: Vec<_> = disks
        .iter()
        .zip(&files)
        .map(|(disk, file)| {
            Row::new()
                .text("file", "File", file)
                .hidden("disk", json!(disk))
        })
        .collect();
    let record = match &called.job {
        Some(job) => watch::record(session, &watch::id(job)).await?,
        None => None,
    };
    let written = record.as_ref().and_then(|r| number(r, "BytesWritten"));
    let decisions = record.as_ref().map(|r| texts(r, "Decisions"));
    let decisions = decisions.unwrap_or_default();
    let row = Row::new()
        .text("point", "Point", &point.name)
        .hidden("pointId", json!(point.id))
        .maybe(
            "basePointId",
            "Base",
            some_text(&ended, "BaseReferencePointId"),
        )
        .text("machine", "Machine", &machine.name)
        .text("directory", "Directory", &directory)
        .maybe(
            "configuration",
            "Configuration",
            some_text(&ended, "ExportedConfigFilePath"),
        )
        .maybe(
            "runtime",
            "Runtime state",
            some_text(&ended, "ExportedRuntimeFilePath"),
        )
        .maybe(
            "guestState",
            "Guest state",
            some_text(&ended, "ExportedGuestStateFilePath"),
        )
        .size("written", "Written", written)
        .lines("decisions", "Decisions", decisions.clone())
        .rows("disks", "Disks", &rows)
        .hidden("job", json!(called.job.as_ref().map(watch::id)));
    let written = written.map_or_else(String::new, |n| format!(", {} written", Size(n)));
    // A policy of the host may have made a whole export of it.
    let has_base = some_text(&ended, "BaseReferencePointId").is_some();
    let what = match &target.base {
        Some(base) if has_base || called.job.is_none() => format!("changes since {base}"),
        _ => "whole".to_owned(),
    };
    let mut line = format!(
        "point {} of {} is exported to {directory} ({what}{written})",
        point.name, machine.name
    );
    for told in files.iter().chain(&decisions) {
        line.push_str(&format!("\n  {told}"));
    }
    session.output.done(&line, &row)
}

/// The lines a job has to say about what it did.
pub(super) async fn job_report(session: &Session, job: Option<&cim::Path>) -> Result<Vec<String>> {
    let Some(job) = job else {
        return Ok(Vec::new());
    };
    let record = watch::record(session, &watch::id(job)).await?;
    Ok(record.map(|r| texts(&r, "Report")).unwrap_or_default())
}

/// Where the disks of an imported machine go unless told: a directory of its own beside the service's state.
async fn default_directory(session: &Session, name: Option<&str>) -> Result<String> {
    let wql = format!("SELECT * FROM {}", vendor::HOST);
    let host = session.optional(&wql).await?.pop();
    let state = host
        .and_then(|h| some_text(&h, "StateDirectory"))
        .ok_or_else(|| {
            Error::usage(
                "the server does not tell its directories: name one for the disks with --to DIR",
            )
        })?;
    let name: String = name
        .unwrap_or("imported")
        .chars()
        .map(|c| if c.is_alphanumeric() { c } else { '-' })
        .collect();
    let unique = Uuid::new_v4().simple().to_string();
    let unique: String = unique.chars().take(8).collect();
    Ok(format!("{state}/images/{name}-{unique}"))
}

/// Makes a machine of an export.
pub(super) async fn import(session: &Session, a: ImportArgs) -> Result<()> {
    session.needs_kvmms("import")?;
    let directory = session.host_path(&a.directory)?;
    let text = |text: Option<String>| text.map_or(Value::Null, Value::from);
    let disks = match &a.to {
        Some(to) => session.host_path(to)?,
        None => default_directory(session, a.name.as_deref()).await?,
    };
    let called = session
        .call(
            &service(vendor::EXPORT_SERVICE),
            "ImportExport",
            &parameters([
                ("ExportDirectory", directory.as_str().into()),
                ("NewName", text(a.name)),
                ("DiskDirectory", disks.into()),
                ("Point", text(a.at)),
                ("RestoreMemory", asked_for(a.with_memory)),
                ("KeepIdentity", asked_for(a.keep_identity)),
            ]),
        )
        .await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let named = called.invoked.get("ImportedSystem").as_path();
    let mut id = named.and_then(|p| p.get_str("Name").map(str::to_owned));
    if let (None, Some(job)) = (&id, &called.job) {
        let found = session.results(job, class::MSVM_COMPUTER_SYSTEM).await?;
        id = found.iter().find_map(|i| some_text(i, "Name"));
    }
    let id = id.ok_or_else(|| {
        Error::Answer(
            called.method.clone(),
            "it does not name the new machine".to_owned(),
        )
    })?;
    let machine = find::machine(session, &id, Naming::Whole).await?;
    let row = super::vm::describe(session, &machine).await?;
    let mut line = format!("{} is imported ({})", machine.name, machine.id);
    for told in job_report(session, called.job.as_ref()).await? {
        line.push_str(&format!("\n  {told}"));
    }
    session.output.done(&line, &row)
}

/// A switch that older services do not know is sent only when it is used.
fn asked_for(switch: bool) -> Value {
    if switch { true.into() } else { Value::Null }
}

/// Makes machines and a collection of the exports of a collection's point.
pub(super) async fn import_group(
    session: &Session,
    directory: &FilePath,
    at: Option<String>,
    name: Option<String>,
    to: Option<PathBuf>,
    with_memory: bool,
    keep_identity: bool,
) -> Result<()> {
    session.needs_kvmms("import a collection")?;
    let text = |text: Option<String>| text.map_or(Value::Null, Value::from);
    let disks = match &to {
        Some(to) => session.host_path(to)?,
        None => default_directory(session, name.as_deref()).await?,
    };
    let called = session
        .call(
            &service(vendor::EXPORT_SERVICE),
            "ImportCollectionExport",
            &parameters([
                ("ExportDirectory", session.host_path(directory)?.into()),
                ("Point", text(at)),
                ("NewName", text(name)),
                ("DiskDirectory", disks.into()),
                ("RestoreMemory", asked_for(with_memory)),
                ("KeepIdentity", asked_for(keep_identity)),
            ]),
        )
        .await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let named = called.invoked.get("ImportedCollection").as_path();
    let id = named.and_then(|p| p.get_str("CollectionID").map(str::to_owned));
    let id = id.ok_or_else(|| {
        Error::Answer(
            called.method.clone(),
            "it does not name the new collection".to_owned(),
        )
    })?;
    super::group::show(session, &id).await
}

/// Proves an export.
pub(super) async fn verify(session: &Session, directory: &FilePath) -> Result<()> {
    session.needs_kvmms("verify")?;
    let directory = session.host_path(directory)?;
    let called = session
        .call(
            &service(vendor::EXPORT_SERVICE),
            "VerifyExport",
            &parameters([("ExportDirectory", directory.as_str().into())]),
        )
        .await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let told = job_report(session, called.job.as_ref()).await?;
    let mut line = format!("{directory} is what its manifest says");
    for told in &told {
        line.push_str(&format!("\n  {told}"));
    }
    let row = Row::new()
        .text("directory", "Directory", &directory)
        .yes("verified", "Verified", Some(true))
        .lines("report", "Report", told);
    session.output.done(&line, &row)
}
