//! Points and snapshots of collections: what `kvmms point` and `kvmms snapshot` do with `--group`.

use cim::{Instance, Name, Path, Value};
use msvm::class;
use serde_json::json;

use super::group::{Group, group, walk};
use super::snapshot::settings;
use crate::cli::{
    Consistency, CreateSnapshotArgs, ExportSnapshotArgs, PointKind, SnapshotKind, Target,
};
use crate::error::{Error, Result};
use crate::find::{self, Candidate, Machine, Naming, pick};
use crate::inspect::{as_number, boolean, instant, moment, number, some_text, text, texts};
use crate::output::Row;
use crate::session::{Followed, NAMESPACE, Session, parameters, quoted, service};
use crate::size::Size;
use crate::{vendor, watch};

/// Which of the two an instant is, and what the service calls it.
pub(super) struct Kind {
    /// For people, and the key in JSON.
    word: &'static str,
    title: &'static str,
    id: &'static str,
    class: &'static str,
    of_collection: &'static str,
    detail: &'static str,
    /// As a candidate among others.
    of_group: &'static str,
    /// The property of the detail with the members' instants, and what their ids are called in JSON.
    parts: &'static str,
    service: &'static str,
    kinds: fn(&Taken) -> Option<&'static str>,
}

pub(super) static POINT: Kind = Kind {
    word: "point",
    of_group: "point of the group",
    title: "Point",
    id: "pointId",
    class: class::MSVM_REFERENCE_POINT_COLLECTION,
    of_collection: class::MSVM_REFERENCE_POINT_OF_VIRTUAL_SYSTEM_COLLECTION,
    detail: vendor::GROUP_POINT_DETAIL,
    parts: "ReferencePoints",
    service: class::MSVM_COLLECTION_REFERENCE_POINT_SERVICE,
    kinds: |taken| match taken.known("ReferencePointType") {
        Some(1) => Some("log"),
        Some(2) => Some("rct"),
        _ => None,
    },
};

pub(super) static SNAPSHOT: Kind = Kind {
    word: "snapshot",
    of_group: "snapshot of the group",
    title: "Snapshot",
    id: "snapshotId",
    class: class::MSVM_SNAPSHOT_COLLECTION,
    of_collection: class::MSVM_SNAPSHOT_OF_VIRTUAL_SYSTEM_COLLECTION,
    detail: vendor::GROUP_SNAPSHOT_DETAIL,
    parts: "Snapshots",
    service: class::MSVM_COLLECTION_SNAPSHOT_SERVICE,
    kinds: |taken| match taken.known("SnapshotType") {
        Some(1) => Some("full"),
        Some(2) => Some("recovery"),
        Some(32771) => Some("disk"),
        _ => None,
    },
};

/// A point or a snapshot of a collection.
struct Taken {
    kind: &'static Kind,
    id: String,
    name: String,
    instance: Instance,
    /// What only a kvmms tells.
    detail: Option<Instance>,
}

/// Those of a collection, the oldest first.
async fn all(session: &Session, kind: &'static Kind, group: &Group) -> Result<Vec<Taken>> {
    let found = session
        .client
        .associators(&group.path(), &walk(kind.of_collection, "Antecedent"))
        .await?;
    let wql = format!(
        "SELECT * FROM {} WHERE VirtualSystemCollectionId = {}",
        kind.detail,
        quoted(&group.id)
    );
    let mut details = session.optional(&wql).await?;
    let of = |instance: Instance| {
        let id = text(&instance, "CollectionID");
        let detail = details
            .iter()
            .position(|d| text(d, "CollectionID").eq_ignore_ascii_case(&id));
        Taken {
            kind,
            name: text(&instance, "ElementName"),
            detail: detail.map(|at| details.swap_remove(at)),
            id,
            instance,
        }
    };
    let mut all: Vec<Taken> = found.into_iter().map(of).collect();
    all.sort_by_key(|t| t.known("Sequence"));
    Ok(all)
}

async fn one(
    session: &Session,
    kind: &'static Kind,
    group: &Group,
    wanted: &str,
    naming: Naming,
) -> Result<Taken> {
    let mut all = all(session, kind, group).await?;
    let candidates: Vec<Candidate> = all
        .iter()
        .map(|t| Candidate {
            id: t.id.clone(),
            name: t.name.clone(),
        })
        .collect();
    let hint = format!("kvmms {} list --group GROUP shows them.", kind.word);
    let at = pick(kind.of_group, &candidates, wanted, naming, &hint)?;
    Ok(all.swap_remove(at))
}

/// Microseconds in words.
fn milliseconds(us: u64) -> String {
    format!("{}.{:03} ms", us / 1000, us % 1000)
}

fn shown(us: Option<u64>) -> String {
    us.map_or_else(String::new, milliseconds)
}

impl Taken {
    fn path(&self) -> Path {
        self.instance.path.clone().unwrap_or_else(|| {
            Path::class(self.kind.class)
                .in_namespace(NAMESPACE)
                .key("CollectionID", self.id.as_str())
        })
    }

    fn known(&self, property: &str) -> Option<u64> {
        let detailed = self.detail.as_ref().and_then(|d| number(d, property));
        detailed.or_else(|| number(&self.instance, property))
    }

    fn pauses(&self) -> Vec<u64> {
        let Some(detail) = &self.detail else {
            return Vec::new();
        };
        let pauses = detail.get("PauseMicroseconds");
        pauses.items().iter().filter_map(as_number).collect()
    }

    fn row(&self, group: &Group) -> Row {
        let consistency = match self.known("ConsistencyLevel") {
            Some(1) => "application",
            Some(2) => "crash",
            _ => "unknown",
        };
        let taken = self.detail.as_ref().and_then(|d| instant(d, "Instant"));
        let skew = self.known("SkewMicroseconds");
        let longest = self.pauses().into_iter().max();
        let data = boolean(&self.instance, "HasAssociatedLog");
        let mut row = Row::new()
            .text("name", "Name", &self.name)
            .text("group", "Group", &group.name)
            .text("type", "Type", (self.kind.kinds)(self).unwrap_or("unknown"))
            .text("consistency", "Consistency", consistency)
            .maybe("taken", "Taken", taken.map(moment));
        if data.is_some() {
            row = row.yes("hasData", "Data", data);
        }
        row.both("skewUs", "Skew", shown(skew), json!(skew))
            .both(
                "longestPauseUs",
                "Longest pause",
                shown(longest),
                json!(longest),
            )
            .text("id", "Id", &self.id)
            .hidden("groupId", json!(group.id))
    }

    /// Everything, machine by machine.
    fn whole(&self, group: &Group, machines: &[Machine]) -> Row {
        let Some(detail) = &self.detail else {
            return self.row(group);
        };
        let ran = detail.get("WasRunning");
        let ran = ran
            .items()
            .iter()
            .map(|v| v.to_text().is_some_and(|t| t.eq_ignore_ascii_case("true")));
        let ids = texts(detail, "VirtualSystemIdentifiers").into_iter();
        let parts = ids.zip(texts(detail, self.kind.parts));
        let rows: Vec<Row> = parts
            .zip(self.pauses())
            .zip(ran)
            .map(|(((id, part), pause), ran)| {
                let machine = machines.iter().find(|m| m.id.eq_ignore_ascii_case(&id));
                let name = machine.map_or(id.as_str(), |m| &m.name);
                let stood = shown(ran.then_some(pause));
                Row::new()
                    .text("machine", "Machine", name)
                    .yes("running", "Ran", Some(ran))
                    .both("pauseUs", "Stood still for", stood, json!(pause))
                    .hidden("machineId", json!(id))
                    .hidden(self.kind.id, json!(part))
            })
            .collect();
        let limit = self.known("SkewLimitMicroseconds");
        self.row(group)
            .both("skewLimitUs", "Skew at most", shown(limit), json!(limit))
            .rows("machines", "Machines", &rows)
    }

    /// How it is named when something was done with it.
    fn named(&self, group: &Group) -> String {
        format!("{} {} of group {}", self.kind.word, self.name, group.name)
    }
}

/// Rows of all points, for `group show`.
pub(super) async fn points(session: &Session, group: &Group) -> Result<Vec<Row>> {
    let all = all(session, &POINT, group).await?;
    Ok(all.iter().map(|t| t.row(group)).collect())
}

/// `list --group`.
pub(super) async fn list(session: &Session, kind: &'static Kind, wanted: &str) -> Result<()> {
    let group = group(session, wanted, Naming::Beginning).await?;
    let all = all(session, kind, &group).await?;
    let rows: Vec<Row> = all.iter().map(|t| t.row(&group)).collect();
    let word = kind.word;
    let none = format!("No {word}s. Take one: kvmms {word} create --group GROUP");
    session.output.list(&rows, &none)
}

/// `show --group`.
pub(super) async fn show(
    session: &Session,
    kind: &'static Kind,
    wanted: &str,
    name: &str,
) -> Result<()> {
    let group = group(session, wanted, Naming::Beginning).await?;
    let taken = one(session, kind, &group, name, Naming::Beginning).await?;
    let machines = find::machines(session).await?;
    session.output.one(&taken.whole(&group, &machines))
}

/// `point create --group`.
pub(super) async fn create_point(
    session: &Session,
    wanted: &str,
    kind: PointKind,
    consistency: Consistency,
    name: Option<&str>,
) -> Result<()> {
    let group = group(session, wanted, Naming::Whole).await?;
    let class = class::MSVM_COLLECTION_REFERENCE_POINT_SETTING_DATA;
    let kind: u16 = match kind {
        PointKind::Log => 1,
        PointKind::Rct => 2,
    };
    let given = parameters([
        ("Collection", group.path().into()),
        ("ReferencePointSettings", settings(class, name, consistency)),
        ("ReferencePointType", kind.into()),
    ]);
    create(session, &POINT, &group, "CreateReferencePoint", &given).await
}

/// `snapshot create --group`.
pub(super) async fn create_snapshot(
    session: &Session,
    wanted: &str,
    a: &CreateSnapshotArgs,
) -> Result<()> {
    let group = group(session, wanted, Naming::Whole).await?;
    let class = class::MSVM_VIRTUAL_SYSTEM_SNAPSHOT_SETTING_DATA;
    let kind: u16 = match a.kind {
        SnapshotKind::Full => 1,
        SnapshotKind::Recovery => 2,
        SnapshotKind::Disk => 32771,
    };
    let settings = settings(class, a.name.as_deref(), a.consistency);
    let given = parameters([
        ("Collection", group.path().into()),
        ("SnapshotSettings", settings),
        ("SnapshotType", kind.into()),
    ]);
    create(session, &SNAPSHOT, &group, "CreateSnapshot", &given).await
}

async fn create(
    session: &Session,
    kind: &'static Kind,
    group: &Group,
    method: &str,
    given: &[(Name, Value)],
) -> Result<()> {
    let called = session.call(&service(kind.service), method, given).await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let unnamed = || {
        let why = format!("it does not name the new {}", kind.word);
        Error::Answer(called.method.clone(), why)
    };
    let job = called.job.as_ref().ok_or_else(unnamed)?;
    let made = session.results(job, kind.class).await?;
    let id = text(made.last().ok_or_else(unnamed)?, "CollectionID");
    let taken = one(session, kind, group, &id, Naming::Whole).await?;
    let skew = taken.known("SkewMicroseconds").map(|us| {
        let longest = taken.pauses().into_iter().max().unwrap_or_default();
        let (skew, longest) = (milliseconds(us), milliseconds(longest));
        format!(", skew {skew}, longest pause {longest}")
    });
    let line = format!(
        "{} is taken{} ({})",
        taken.named(group),
        skew.unwrap_or_default(),
        taken.id
    );
    let machines = find::machines(session).await?;
    session.output.done(&line, &taken.whole(group, &machines))
}

/// Verbs with `--group` that ask for one thing to be done with it: `method` with it as `parameter`.
pub(super) async fn ask(
    session: &Session,
    kind: &'static Kind,
    wanted: &str,
    name: &str,
    (method, parameter): (&str, &'static str),
    done: &str,
) -> Result<()> {
    let group = group(session, wanted, Naming::Whole).await?;
    let taken = one(session, kind, &group, name, Naming::Whole).await?;
    let given = parameters([(parameter, taken.path().into())]);
    let called = session.call(&service(kind.service), method, &given).await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let row = Row::new()
        .text("name", "Name", &taken.name)
        .text("id", "Id", &taken.id);
    session
        .output
        .done(&format!("{} {done}", taken.named(&group)), &row)
}

/// `point export --group`.
pub(super) async fn export_point(
    session: &Session,
    wanted: &str,
    name: &str,
    target: &Target,
) -> Result<()> {
    if !target.disks.is_empty() {
        return Err(Error::usage(
            "--disk names a disk of one machine; a point of a group is exported whole",
        ));
    }
    let group = group(session, wanted, Naming::Whole).await?;
    let taken = one(session, &POINT, &group, name, Naming::Whole).await?;
    let directory = session.host_path(&target.to)?;
    let settings = match &target.base {
        None => Value::Null,
        Some(base) => {
            let base = one(session, &POINT, &group, base, Naming::Whole).await?;
            let class = class::MSVM_COLLECTION_REFERENCE_POINT_EXPORT_SETTING_DATA;
            let mut settings = Instance::new(class);
            settings.set("BaseReferencePointCollection", base.path().to_string());
            settings.into()
        }
    };
    let given = parameters([
        ("ReferencePointCollection", taken.path().into()),
        ("ExportDirectory", directory.as_str().into()),
        ("ExportSettingData", settings),
    ]);
    let what = whole_or_changes(target.base.as_deref());
    let asked = ("ExportReferencePoint", &given[..]);
    export(session, &taken, &group, &directory, asked, &what).await
}

/// `snapshot export --group`.
pub(super) async fn export_snapshot(session: &Session, a: ExportSnapshotArgs) -> Result<()> {
    let group = group(session, &a.group, Naming::Whole).await?;
    let taken = one(session, &SNAPSHOT, &group, &a.snapshot, Naming::Whole).await?;
    let directory = session.host_path(&a.to)?;
    let mut settings = Instance::new(class::MSVM_COLLECTION_SNAPSHOT_EXPORT_SETTING_DATA);
    settings.set("CopyVmStorage", !a.without_disks);
    if let Some(wanted) = &a.base {
        let base = base(session, &group, wanted).await?;
        settings
            .set("DifferentialBackupBase", base.to_string())
            .set("BackupIntent", if a.merge { 2u16 } else { 1 });
    }
    let given = parameters([
        ("SnapshotCollection", taken.path().into()),
        ("ExportDirectory", directory.as_str().into()),
        ("ExportSettingData", Value::from(settings)),
    ]);
    let what = match (a.without_disks, a.merge) {
        (true, _) => "without disks".to_owned(),
        (false, true) => whole_or_changes(None),
        (false, false) => whole_or_changes(a.base.as_deref()),
    };
    let asked = ("ExportSnapshot", &given[..]);
    export(session, &taken, &group, &directory, asked, &what).await
}

fn whole_or_changes(base: Option<&str>) -> String {
    base.map_or_else(
        || "whole".to_owned(),
        |base| format!("changes since {base}"),
    )
}

/// The path of an older snapshot or point of the collection.
async fn base(session: &Session, group: &Group, wanted: &str) -> Result<Path> {
    match one(session, &SNAPSHOT, group, wanted, Naming::Whole).await {
        Ok(found) => Ok(found.path()),
        // What is neither is missed as a snapshot.
        Err(none) => match one(session, &POINT, group, wanted, Naming::Whole).await {
            Ok(found) => Ok(found.path()),
            Err(_) => Err(none),
        },
    }
}

async fn export(
    session: &Session,
    taken: &Taken,
    group: &Group,
    directory: &str,
    (method, given): (&str, &[(Name, Value)]),
    what: &str,
) -> Result<()> {
    let kind = taken.kind;
    let called = session.call(&service(kind.service), method, given).await?;
    let ended = match session.follow(&called).await? {
        Followed::Left => return Ok(()),
        Followed::Done(ended) => ended.unwrap_or_else(|| Instance::new(class::MSVM_CONCRETE_JOB)),
    };
    let files = texts(&ended, "ExportedLogFilePaths");
    let rows: Vec<Row> = texts(&ended, "ExportedDisks")
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
    let base = some_text(&ended, "BaseReferencePointGroupId");
    let mut row = Row::new()
        .text(kind.word, kind.title, &taken.name)
        .hidden(kind.id, json!(taken.id))
        .maybe("basePointId", "Base", base)
        .text("group", "Group", &group.name)
        .text("directory", "Directory", directory);
    for (key, title, property) in [
        ("machines", "Machines", "VirtualMachineId"),
        (
            "configurations",
            "Configurations",
            "ExportedConfigFilePaths",
        ),
    ] {
        let lines = texts(&ended, property);
        if !lines.is_empty() {
            row = row.lines(key, title, lines);
        }
    }
    row = row.size("written", "Written", written);
    if !rows.is_empty() {
        row = row.rows("disks", "Disks", &rows);
    }
    let row = row.hidden("job", json!(called.job.as_ref().map(watch::id)));
    let written = written.map_or_else(String::new, |n| format!(", {} written", Size(n)));
    let mut line = format!(
        "{} is exported to {directory} ({what}{written})",
        taken.named(group)
    );
    for file in &files {
        line.push_str(&format!("\n  {file}"));
    }
    session.output.done(&line, &row)
}
