//! `kvmms group`, and `kvmms point` for points of collections (`--group`).

use cim::{Instance, Name, Path, Value};
use msvm::class;
use serde_json::json;
use wbem::Walk;

use crate::cli::{Consistency, GroupVerb, PointKind, Target};
use crate::error::{Error, Result};
use crate::find::{self, Candidate, Machine, Naming, pick};
use crate::inspect::{as_number, boolean, instant, moment, number, some_text, text, texts};
use crate::output::Row;
use crate::session::{Followed, NAMESPACE, Session, parameters, quoted, service};
use crate::size::Size;
use crate::{vendor, watch};

/// A collection.
pub(super) struct Group {
    pub(super) id: String,
    pub(super) name: String,
    instance: Instance,
}

impl Group {
    fn of(instance: Instance) -> Self {
        Group {
            id: text(&instance, "CollectionID"),
            name: text(&instance, "ElementName"),
            instance,
        }
    }

    pub(super) fn path(&self) -> Path {
        self.instance.path.clone().unwrap_or_else(|| {
            Path::class(self.instance.class.clone())
                .in_namespace(NAMESPACE)
                .key("CollectionID", self.id.as_str())
        })
    }

    fn is_of_groups(&self) -> bool {
        self.instance.class.is(class::MSVM_MANAGEMENT_COLLECTION)
    }
}

fn management() -> Path {
    service(class::MSVM_COLLECTION_MANAGEMENT_SERVICE)
}

fn points_service() -> Path {
    service(class::MSVM_COLLECTION_REFERENCE_POINT_SERVICE)
}

async fn groups(session: &Session) -> Result<Vec<Group>> {
    let mut all = Vec::new();
    for class in [
        class::MSVM_VIRTUAL_SYSTEM_COLLECTION,
        class::MSVM_MANAGEMENT_COLLECTION,
    ] {
        all.extend(
            session
                .client
                .enumerate(class)
                .await?
                .into_iter()
                .map(Group::of),
        );
    }
    all.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    Ok(all)
}

pub(super) async fn group(session: &Session, wanted: &str, naming: Naming) -> Result<Group> {
    let mut all = groups(session).await?;
    let candidates: Vec<Candidate> = all
        .iter()
        .map(|g| Candidate {
            id: g.id.clone(),
            name: g.name.clone(),
        })
        .collect();
    let at = pick(
        "group",
        &candidates,
        wanted,
        naming,
        "kvmms group list shows them.",
    )?;
    Ok(all.swap_remove(at))
}

/// Carries out a verb of `group`.
pub(super) async fn run(session: &Session, verb: GroupVerb) -> Result<()> {
    match verb {
        GroupVerb::List => list(session).await,
        GroupVerb::Show { group } => show(session, &group).await,
        GroupVerb::Create {
            name,
            members,
            of_groups,
            id,
        } => create(session, &name, &members, of_groups, id).await,
        GroupVerb::Add { group, members } => {
            change(session, &group, &members, "AddMember", "is in").await
        }
        GroupVerb::Remove { group, members } => {
            change(session, &group, &members, "RemoveMember", "is not in").await
        }
        GroupVerb::Rename { group, name } => {
            let found = self::group(session, &group, Naming::Whole).await?;
            let given = parameters([
                ("Collection", found.path().into()),
                ("NewName", name.as_str().into()),
            ]);
            let called = session
                .call(&management(), "RenameCollection", &given)
                .await?;
            session.finish(&called).await?;
            let row = Row::new()
                .text("name", "Name", &name)
                .text("id", "Id", &found.id);
            session
                .output
                .done(&format!("{} is {name} now", found.name), &row)
        }
        GroupVerb::Import {
            directory,
            at,
            name,
            to,
            with_memory,
            keep_identity,
        } => {
            let keep = keep_identity;
            super::export::import_group(session, &directory, at, name, to, with_memory, keep).await
        }
        GroupVerb::Delete { group } => {
            let found = self::group(session, &group, Naming::Whole).await?;
            let given = parameters([("Collection", found.path().into())]);
            let called = session
                .call(&management(), "DestroyCollection", &given)
                .await?;
            session.finish(&called).await?;
            let row = row(&found, &[]);
            session
                .output
                .done(&format!("group {} is deleted", found.name), &row)
        }
    }
}

pub(super) fn walk(association: &'static str, role: &'static str) -> Walk {
    Walk {
        assoc_class: Some(Name::of(association)),
        role: Some(Name::of(role)),
        ..Walk::default()
    }
}

/// The names of the members.
async fn members(session: &Session, group: &Group) -> Result<Vec<String>> {
    let association = if group.is_of_groups() {
        class::MSVM_COLLECTED_COLLECTIONS
    } else {
        class::MSVM_COLLECTED_VIRTUAL_SYSTEMS
    };
    let walk = walk(association, "Collection");
    let found = session.client.associators(&group.path(), &walk).await?;
    Ok(found.iter().map(|i| text(i, "ElementName")).collect())
}

/// The machines of a group of machines.
pub(super) async fn machines(session: &Session, group: &Group) -> Result<Vec<Machine>> {
    if group.is_of_groups() {
        let why = format!("group {} is of groups, not of machines", group.name);
        return Err(Error::usage(why));
    }
    let walk = Walk {
        result_class: Some(Name::of(class::MSVM_COMPUTER_SYSTEM)),
        ..walk(class::MSVM_COLLECTED_VIRTUAL_SYSTEMS, "Collection")
    };
    let found = session.client.associators(&group.path(), &walk).await?;
    let mut machines: Vec<Machine> = found.into_iter().filter_map(Machine::of).collect();
    machines.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    Ok(machines)
}

fn row(group: &Group, members: &[String]) -> Row {
    let of = if group.is_of_groups() {
        "groups"
    } else {
        "machines"
    };
    Row::new()
        .text("name", "Name", &group.name)
        .text("of", "Of", of)
        .both("members", "Members", members.join(", "), json!(members))
        .text("id", "Id", &group.id)
}

async fn list(session: &Session) -> Result<()> {
    let mut rows = Vec::new();
    for group in groups(session).await? {
        rows.push(row(&group, &members(session, &group).await?));
    }
    session
        .output
        .list(&rows, "No groups. Make one: kvmms group create NAME VM...")
}

pub(super) async fn show(session: &Session, wanted: &str) -> Result<()> {
    let group = group(session, wanted, Naming::Beginning).await?;
    let mut rows = Vec::new();
    if !group.is_of_groups() {
        for point in points(session, &group).await? {
            rows.push(point.row(&group));
        }
    }
    let row = row(&group, &members(session, &group).await?).rows("points", "Points", &rows);
    session.output.one(&row)
}

async fn member_path(session: &Session, group: &Group, wanted: &str) -> Result<(Path, String)> {
    if group.is_of_groups() {
        let member = self::group(session, wanted, Naming::Whole).await?;
        return Ok((member.path(), member.name));
    }
    let machine = find::machine(session, wanted, Naming::Whole).await?;
    Ok((machine.path(), machine.name))
}

async fn create(
    session: &Session,
    name: &str,
    wanted: &[String],
    of_groups: bool,
    id: Option<String>,
) -> Result<()> {
    let class = if of_groups {
        class::MSVM_MANAGEMENT_COLLECTION
    } else {
        class::MSVM_VIRTUAL_SYSTEM_COLLECTION
    };
    let mut group = Group {
        id: String::new(),
        name: name.to_owned(),
        instance: Instance::new(class),
    };
    // What cannot be found is better known before anything is made.
    let mut paths = Vec::new();
    for member in wanted {
        paths.push(member_path(session, &group, member).await?);
    }
    let given = parameters([
        ("Name", name.into()),
        ("Id", id.map_or(Value::Null, Value::from)),
        ("Type", u16::from(of_groups).into()),
    ]);
    let called = session
        .call(&management(), "DefineCollection", &given)
        .await?;
    session.finish(&called).await?;
    let made = called.invoked.get("DefinedCollection").as_path();
    let made = made.ok_or_else(|| {
        let why = "it does not name the new collection".to_owned();
        Error::Answer(called.method.clone(), why)
    })?;
    group.id = made.get_str("CollectionID").unwrap_or_default().to_owned();
    group.instance.path = Some(made);
    let mut names = Vec::new();
    for (path, name) in paths {
        call_member(session, &group, path, "AddMember").await?;
        names.push(name);
    }
    let row = row(&group, &names);
    session
        .output
        .done(&format!("group {name} is made ({})", group.id), &row)
}

async fn call_member(session: &Session, group: &Group, member: Path, method: &str) -> Result<()> {
    let given = parameters([
        ("Member", member.into()),
        ("Collection", group.path().into()),
    ]);
    let called = session.call(&management(), method, &given).await?;
    session.finish(&called).await.map(drop)
}

async fn change(
    session: &Session,
    wanted: &str,
    members: &[String],
    method: &str,
    done: &str,
) -> Result<()> {
    let group = group(session, wanted, Naming::Whole).await?;
    for member in members {
        let (path, name) = member_path(session, &group, member).await?;
        call_member(session, &group, path, method).await?;
        session
            .output
            .remark(&format!("{name} {done} {}", group.name));
    }
    let now = self::members(session, &group).await?;
    let line = format!("group {}: {}", group.name, now.join(", "));
    session.output.done(&line, &row(&group, &now))
}

/// A point of a collection.
struct Point {
    id: String,
    name: String,
    instance: Instance,
    detail: Option<Instance>,
}

/// The points of a collection, the oldest first.
async fn points(session: &Session, group: &Group) -> Result<Vec<Point>> {
    let wql = format!(
        "SELECT * FROM {} WHERE VirtualSystemCollectionId = {}",
        class::MSVM_REFERENCE_POINT_COLLECTION,
        quoted(&group.id)
    );
    let found = session.client.query(&wql).await?;
    let wql = format!(
        "SELECT * FROM {} WHERE VirtualSystemCollectionId = {}",
        vendor::GROUP_POINT_DETAIL,
        quoted(&group.id)
    );
    let mut details = session.optional(&wql).await?;
    let of = |instance: Instance| {
        let id = text(&instance, "CollectionID");
        let detail = details
            .iter()
            .position(|d| text(d, "CollectionID").eq_ignore_ascii_case(&id));
        Point {
            name: text(&instance, "ElementName"),
            detail: detail.map(|at| details.swap_remove(at)),
            id,
            instance,
        }
    };
    let mut points: Vec<Point> = found.into_iter().map(of).collect();
    points.sort_by_key(|p| p.detail.as_ref().and_then(|d| number(d, "Sequence")));
    Ok(points)
}

async fn point(session: &Session, group: &Group, wanted: &str, naming: Naming) -> Result<Point> {
    let mut all = points(session, group).await?;
    let candidates: Vec<Candidate> = all
        .iter()
        .map(|p| Candidate {
            id: p.id.clone(),
            name: p.name.clone(),
        })
        .collect();
    let hint = "kvmms point list --group GROUP shows them.";
    let at = pick("point of the group", &candidates, wanted, naming, hint)?;
    Ok(all.swap_remove(at))
}

/// Microseconds in words.
pub(super) fn milliseconds(us: u64) -> String {
    format!("{}.{:03} ms", us / 1000, us % 1000)
}

impl Point {
    fn path(&self) -> Path {
        self.instance.path.clone().unwrap_or_else(|| {
            Path::class(class::MSVM_REFERENCE_POINT_COLLECTION)
                .in_namespace(NAMESPACE)
                .key("CollectionID", self.id.as_str())
        })
    }

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
        let kind = match number(&self.instance, "ReferencePointType") {
            Some(1) => "log",
            Some(2) => "rct",
            _ => "unknown",
        };
        let consistency = match number(&self.instance, "ConsistencyLevel") {
            Some(1) => "application",
            Some(2) => "crash",
            _ => "unknown",
        };
        let taken = self
            .detail
            .as_ref()
            .and_then(|d| instant(d, "Instant"))
            .map(moment);
        let skew = self.known("SkewMicroseconds");
        let longest = self.pauses().into_iter().max();
        Row::new()
            .text("name", "Name", &self.name)
            .text("group", "Group", &group.name)
            .text("type", "Type", kind)
            .text("consistency", "Consistency", consistency)
            .maybe("taken", "Taken", taken)
            .yes(
                "hasData",
                "Data",
                boolean(&self.instance, "HasAssociatedLog"),
            )
            .both(
                "skewUs",
                "Skew",
                skew.map_or_else(String::new, milliseconds),
                json!(skew),
            )
            .both(
                "longestPauseUs",
                "Longest pause",
                longest.map_or_else(String::new, milliseconds),
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
        let running = detail.get("WasRunning");
        let running: Vec<bool> = running
            .items()
            .iter()
            .map(|v| v.to_text().is_some_and(|t| t.eq_ignore_ascii_case("true")))
            .collect();
        let ids = texts(detail, "VirtualSystemIdentifiers");
        let points = texts(detail, "ReferencePoints");
        let parts = ids.iter().zip(points).zip(self.pauses()).zip(running);
        let rows: Vec<Row> = parts
            .map(|(((id, point), pause), ran)| {
                let machine = machines.iter().find(|m| m.id.eq_ignore_ascii_case(id));
                let stood = if ran {
                    milliseconds(pause)
                } else {
                    String::new()
                };
                Row::new()
                    .text(
                        "machine",
                        "Machine",
                        machine.map_or(id.as_str(), |m| &m.name),
                    )
                    .yes("running", "Ran", Some(ran))
                    .both("pauseUs", "Stood still for", stood, json!(pause))
                    .hidden("machineId", json!(id))
                    .hidden("pointId", json!(point))
            })
            .collect();
        let limit = self.known("SkewLimitMicroseconds");
        self.row(group)
            .both(
                "skewLimitUs",
                "Skew at most",
                limit.map_or_else(String::new, milliseconds),
                json!(limit),
            )
            .rows("machines", "Machines", &rows)
    }
}

/// `point list --group`.
pub(super) async fn list_points(session: &Session, wanted: &str) -> Result<()> {
    let group = group(session, wanted, Naming::Beginning).await?;
    let points = points(session, &group).await?;
    let rows: Vec<Row> = points.iter().map(|p| p.row(&group)).collect();
    session.output.list(
        &rows,
        "No points. Take one: kvmms point create --group GROUP",
    )
}

/// `point show --group`.
pub(super) async fn show_point(session: &Session, wanted: &str, name: &str) -> Result<()> {
    let group = group(session, wanted, Naming::Beginning).await?;
    let point = point(session, &group, name, Naming::Beginning).await?;
    let machines = find::machines(session).await?;
    session.output.one(&point.whole(&group, &machines))
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
    let mut settings = Instance::new(class::MSVM_COLLECTION_REFERENCE_POINT_SETTING_DATA);
    if let Some(name) = name {
        settings.set("ElementName", name);
    }
    match consistency {
        // Left out: the host does what it can.
        Consistency::Auto => {}
        Consistency::Application => drop(settings.set("ConsistencyLevel", 1u8)),
        Consistency::Crash => drop(settings.set("ConsistencyLevel", 2u8)),
    }
    let settings = match settings.properties.is_empty() {
        true => Value::Null,
        false => settings.into(),
    };
    let kind: u16 = match kind {
        PointKind::Log => 1,
        PointKind::Rct => 2,
    };
    let given = parameters([
        ("Collection", group.path().into()),
        ("ReferencePointSettings", settings),
        ("ReferencePointType", kind.into()),
    ]);
    let called = session
        .call(&points_service(), "CreateReferencePoint", &given)
        .await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let unnamed = || {
        let why = "it does not name the new point".to_owned();
        Error::Answer(called.method.clone(), why)
    };
    let job = called.job.as_ref().ok_or_else(unnamed)?;
    let made = session
        .results(job, class::MSVM_REFERENCE_POINT_COLLECTION)
        .await?
        .pop();
    let id = text(&made.ok_or_else(unnamed)?, "CollectionID");
    let point = point(session, &group, &id, Naming::Whole).await?;
    let skew = point
        .known("SkewMicroseconds")
        .map_or_else(String::new, |us| {
            let longest = point.pauses().into_iter().max().unwrap_or_default();
            format!(
                ", skew {}, longest pause {}",
                milliseconds(us),
                milliseconds(longest)
            )
        });
    let line = format!(
        "point {} of group {} is taken{skew} ({})",
        point.name, group.name, point.id
    );
    let machines = find::machines(session).await?;
    session.output.done(&line, &point.whole(&group, &machines))
}

/// `point remove-data --group` and `point delete --group`.
pub(super) async fn ask(
    session: &Session,
    wanted: &str,
    name: &str,
    method: &str,
    done: &str,
) -> Result<()> {
    let group = group(session, wanted, Naming::Whole).await?;
    let point = point(session, &group, name, Naming::Whole).await?;
    let given = parameters([("AffectedReferencePointCollection", point.path().into())]);
    let called = session.call(&points_service(), method, &given).await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let row = Row::new()
        .text("name", "Name", &point.name)
        .text("id", "Id", &point.id);
    let line = format!("point {} of group {} {done}", point.name, group.name);
    session.output.done(&line, &row)
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
    let exported = point(session, &group, name, Naming::Whole).await?;
    let directory = session.host_path(&target.to)?;
    let settings = match &target.base {
        None => Value::Null,
        Some(base) => {
            let base = point(session, &group, base, Naming::Whole).await?;
            let mut settings =
                Instance::new(class::MSVM_COLLECTION_REFERENCE_POINT_EXPORT_SETTING_DATA);
            settings.set("BaseReferencePointCollection", base.path().to_string());
            settings.into()
        }
    };
    let given = parameters([
        ("ReferencePointCollection", exported.path().into()),
        ("ExportDirectory", directory.as_str().into()),
        ("ExportSettingData", settings),
    ]);
    let called = session
        .call(&points_service(), "ExportReferencePoint", &given)
        .await?;
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
    let row = Row::new()
        .text("point", "Point", &exported.name)
        .hidden("pointId", json!(exported.id))
        .maybe(
            "basePointId",
            "Base",
            some_text(&ended, "BaseReferencePointGroupId"),
        )
        .text("group", "Group", &group.name)
        .text("directory", "Directory", &directory)
        .lines("machines", "Machines", texts(&ended, "VirtualMachineId"))
        .lines(
            "configurations",
            "Configurations",
            texts(&ended, "ExportedConfigFilePaths"),
        )
        .size("written", "Written", written)
        .rows("disks", "Disks", &rows)
        .hidden("job", json!(called.job.as_ref().map(watch::id)));
    let written = written.map_or_else(String::new, |n| format!(", {} written", Size(n)));
    let what = match &target.base {
        Some(base) => format!("changes since {base}"),
        None => "whole".to_owned(),
    };
    let mut line = format!(
        "point {} of group {} is exported to {directory} ({what}{written})",
        exported.name, group.name
    );
    for file in &files {
        line.push_str(&format!("\n  {file}"));
    }
    session.output.done(&line, &row)
}
