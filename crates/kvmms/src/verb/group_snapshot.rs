//! `kvmms snapshot` for snapshots of collections (`--group`).

use cim::{Instance, Path, Value};
use msvm::class;
use serde_json::json;

use super::group::{Group, group, milliseconds, walk};
use super::snapshot::settings;
use crate::cli::{CreateSnapshotArgs, ExportSnapshotArgs, SnapshotKind};
use crate::error::{Error, Result};
use crate::find::{self, Candidate, Machine, Naming, pick};
use crate::inspect::{as_number, instant, moment, number, text, texts};
use crate::output::Row;
use crate::session::{Followed, NAMESPACE, Session, parameters, service};
use crate::size::Size;
use crate::{vendor, watch};

/// A snapshot of a collection.
struct Snapshot {
    id: String,
    name: String,
    path: Path,
    detail: Option<Instance>,
}

fn snapshots_service() -> Path {
    service(class::MSVM_COLLECTION_SNAPSHOT_SERVICE)
}

/// The snapshots of a collection, the oldest first.
async fn snapshots(session: &Session, group: &Group) -> Result<Vec<Snapshot>> {
    let association = class::MSVM_SNAPSHOT_OF_VIRTUAL_SYSTEM_COLLECTION;
    let found = session
        .client
        .associators(&group.path(), &walk(association, "Antecedent"))
        .await?;
    let wql = format!("SELECT * FROM {}", vendor::GROUP_SNAPSHOT_DETAIL);
    let mut details = session.optional(&wql).await?;
    let of = |instance: Instance| {
        let id = text(&instance, "CollectionID");
        let detail = details
            .iter()
            .position(|d| text(d, "CollectionID").eq_ignore_ascii_case(&id));
        let made = || {
            Path::class(class::MSVM_SNAPSHOT_COLLECTION)
                .in_namespace(NAMESPACE)
                .key("CollectionID", id.as_str())
        };
        Snapshot {
            name: text(&instance, "ElementName"),
            path: instance.path.clone().unwrap_or_else(made),
            detail: detail.map(|at| details.swap_remove(at)),
            id,
        }
    };
    Ok(found.into_iter().map(of).collect())
}

async fn one(session: &Session, group: &Group, wanted: &str) -> Result<Snapshot> {
    let mut all = snapshots(session, group).await?;
    let candidates: Vec<Candidate> = all
        .iter()
        .map(|s| Candidate {
            id: s.id.clone(),
            name: s.name.clone(),
        })
        .collect();
    let hint = "kvmms snapshot list --group GROUP shows them.";
    let at = pick(
        "snapshot of the group",
        &candidates,
        wanted,
        Naming::Whole,
        hint,
    )?;
    Ok(all.swap_remove(at))
}

impl Snapshot {
    fn known(&self, property: &str) -> Option<u64> {
        self.detail.as_ref().and_then(|d| number(d, property))
    }

    fn pauses(&self) -> Vec<u64> {
        let Some(detail) = &self.detail else {
            return Vec::new();
        };
        let pauses = detail.get("PauseMicroseconds");
        pauses.items().iter().filter_map(as_number).collect()
    }

    fn row(&self, group: &Group) -> Row {
        let kind = match self.known("SnapshotType") {
            Some(1) => "full",
            Some(2) => "recovery",
            Some(32771) => "disk",
            _ => "unknown",
        };
        let consistency = match self.known("ConsistencyLevel") {
            Some(1) => "application",
            Some(2) => "crash",
            _ => "unknown",
        };
        let taken = self.detail.as_ref().and_then(|d| instant(d, "Instant"));
        let skew = self.known("SkewMicroseconds");
        let longest = self.pauses().into_iter().max();
        let shown = |us: Option<u64>| us.map_or_else(String::new, milliseconds);
        Row::new()
            .text("name", "Name", &self.name)
            .text("group", "Group", &group.name)
            .text("type", "Type", kind)
            .text("consistency", "Consistency", consistency)
            .maybe("taken", "Taken", taken.map(moment))
            .both("skewUs", "Skew", shown(skew), json!(skew))
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
        let parts = texts(detail, "VirtualSystemIdentifiers").into_iter();
        let parts = parts.zip(texts(detail, "Snapshots")).zip(self.pauses());
        let rows: Vec<Row> = parts
            .map(|((id, snapshot), pause)| {
                let machine = machines.iter().find(|m| m.id.eq_ignore_ascii_case(&id));
                let name = machine.map_or(id.as_str(), |m| &m.name);
                Row::new()
                    .text("machine", "Machine", name)
                    .both(
                        "pauseUs",
                        "Stood still for",
                        milliseconds(pause),
                        json!(pause),
                    )
                    .hidden("machineId", json!(id))
                    .hidden("snapshotId", json!(snapshot))
            })
            .collect();
        self.row(group).rows("machines", "Machines", &rows)
    }
}

/// `snapshot list --group`.
pub(super) async fn list(session: &Session, wanted: &str) -> Result<()> {
    let group = group(session, wanted, Naming::Beginning).await?;
    let all = snapshots(session, &group).await?;
    let rows: Vec<Row> = all.iter().map(|s| s.row(&group)).collect();
    let hint = "No snapshots. Take one: kvmms snapshot create --group GROUP";
    session.output.list(&rows, hint)
}

/// `snapshot create --group`.
pub(super) async fn create(session: &Session, wanted: &str, a: &CreateSnapshotArgs) -> Result<()> {
    let group = group(session, wanted, Naming::Whole).await?;
    let kind: u16 = match a.kind {
        SnapshotKind::Full => 1,
        SnapshotKind::Recovery => 2,
        SnapshotKind::Disk => 32771,
    };
    let given = parameters([
        ("Collection", group.path().into()),
        ("SnapshotSettings", settings(a)),
        ("SnapshotType", kind.into()),
    ]);
    let called = session
        .call(&snapshots_service(), "CreateSnapshot", &given)
        .await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let unnamed = || {
        let why = "it does not name the new snapshot".to_owned();
        Error::Answer(called.method.clone(), why)
    };
    let job = called.job.as_ref().ok_or_else(unnamed)?;
    let made = session
        .results(job, class::MSVM_SNAPSHOT_COLLECTION)
        .await?;
    let id = text(made.last().ok_or_else(unnamed)?, "CollectionID");
    let made = one(session, &group, &id).await?;
    let skew = made.known("SkewMicroseconds");
    let skew = skew.map_or_else(String::new, |us| format!(", skew {}", milliseconds(us)));
    let line = format!(
        "snapshot {} of group {} is taken{skew} ({})",
        made.name, group.name, made.id
    );
    let machines = find::machines(session).await?;
    session.output.done(&line, &made.whole(&group, &machines))
}

/// `snapshot apply`, `convert` and `delete` with `--group`.
pub(super) async fn ask(
    session: &Session,
    wanted: &str,
    name: &str,
    (method, parameter): (&str, &'static str),
    done: &str,
) -> Result<()> {
    let group = group(session, wanted, Naming::Whole).await?;
    let snapshot = one(session, &group, name).await?;
    let given = parameters([(parameter, snapshot.path.clone().into())]);
    let called = session.call(&snapshots_service(), method, &given).await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let row = Row::new()
        .text("name", "Name", &snapshot.name)
        .text("id", "Id", &snapshot.id);
    let line = format!("snapshot {} of group {} {done}", snapshot.name, group.name);
    session.output.done(&line, &row)
}

/// The path of an older point or snapshot of the collection.
async fn base(session: &Session, group: &Group, wanted: &str) -> Result<Path> {
    let none = match one(session, group, wanted).await {
        Ok(found) => return Ok(found.path),
        Err(none) => none,
    };
    let association = class::MSVM_REFERENCE_POINT_OF_VIRTUAL_SYSTEM_COLLECTION;
    let points = session
        .client
        .associators(&group.path(), &walk(association, "Antecedent"))
        .await?;
    let means = |p: &&Instance| {
        text(p, "ElementName") == wanted || text(p, "CollectionID").eq_ignore_ascii_case(wanted)
    };
    let found = points.iter().rfind(means);
    found.and_then(|p| p.path.clone()).ok_or(none)
}

/// `snapshot export --group`.
pub(super) async fn export(session: &Session, a: ExportSnapshotArgs) -> Result<()> {
    let group = group(session, &a.group, Naming::Whole).await?;
    let snapshot = one(session, &group, &a.snapshot).await?;
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
        ("SnapshotCollection", snapshot.path.clone().into()),
        ("ExportDirectory", directory.as_str().into()),
        ("ExportSettingData", Value::from(settings)),
    ]);
    let called = session
        .call(&snapshots_service(), "ExportSnapshot", &given)
        .await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let record = match &called.job {
        Some(job) => watch::record(session, &watch::id(job)).await?,
        None => None,
    };
    let written = record.as_ref().and_then(|r| number(r, "BytesWritten"));
    let row = Row::new()
        .text("snapshot", "Snapshot", &snapshot.name)
        .hidden("snapshotId", json!(snapshot.id))
        .text("group", "Group", &group.name)
        .text("directory", "Directory", &directory)
        .size("written", "Written", written)
        .hidden("job", json!(called.job.as_ref().map(watch::id)));
    let written = written.map_or_else(String::new, |n| format!(" ({} written)", Size(n)));
    let line = format!(
        "snapshot {} of group {} is exported to {directory}{written}",
        snapshot.name, group.name
    );
    session.output.done(&line, &row)
}
