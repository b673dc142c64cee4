//! `kvmms point`.

use cim::{Instance, Value};
use msvm::class;
use serde_json::json;

use super::collection_instant as of_group;
use super::disk::setting_data;
use super::export;
use super::snapshot::settings;
use super::storage::{Disk, Storage};
use crate::cli::{ChangesArgs, Consistency, CreatePointArgs, ExportArgs, PointKind, PointVerb};
use crate::error::{Error, Result};
use crate::find::{self, Machine, Naming, Point};
use crate::inspect::{
    as_number, boolean, instant, moment, number, short_id, some_text, text, texts,
};
use crate::output::Row;
use crate::session::{Called, Followed, Session, images, parameters, points, service};
use crate::size::Size;
use crate::vendor;

/// Carries out a verb of `point`.
pub(super) async fn run(session: &Session, verb: PointVerb) -> Result<()> {
    match verb {
        PointVerb::List {
            group: Some(group), ..
        } => of_group::list(session, &of_group::POINT, &group).await,
        PointVerb::List { vm, group: None } => list(session, vm.as_deref()).await,
        PointVerb::Create(arguments) => create(session, arguments).await,
        PointVerb::Show {
            point,
            group: Some(group),
        } => of_group::show(session, &of_group::POINT, &group, &point).await,
        PointVerb::Show { point, group: None } => {
            let point = find::point(session, None, &point, Naming::Beginning).await?;
            let machines = find::machines(session).await?;
            session.output.one(&whole(&point, &machines))
        }
        PointVerb::Export(ExportArgs {
            what,
            group: Some(group),
            target,
        }) => of_group::export_point(session, &group, &what, &target).await,
        PointVerb::Export(arguments) => export::point(session, arguments).await,
        PointVerb::Changes(arguments) => changes(session, arguments).await,
        PointVerb::Audit { point, base } => audit(session, &point, base.as_deref()).await,
        PointVerb::RemoveData { point, group } => {
            let (method, done) = ("RemoveAssociatedData", "has no data any more");
            match group {
                Some(group) => {
                    let called = (method, "AffectedReferencePointCollection");
                    of_group::ask(session, &of_group::POINT, &group, &point, called, done).await
                }
                None => ask(session, &point, method, done).await,
            }
        }
        PointVerb::Delete { point, group } => {
            let (method, done) = ("DestroyReferencePoint", "is deleted");
            match group {
                Some(group) => {
                    let called = (method, "AffectedReferencePointCollection");
                    of_group::ask(session, &of_group::POINT, &group, &point, called, done).await
                }
                None => ask(session, &point, method, done).await,
            }
        }
    }
}

fn kind(point: &Point) -> String {
    match number(&point.instance, "ReferencePointType") {
        Some(1) => "log".to_owned(),
        Some(2) => "rct".to_owned(),
        other => other.map_or_else(String::new, |n| n.to_string()),
    }
}

fn consistency(point: &Point) -> String {
    match number(&point.instance, "ConsistencyLevel") {
        Some(1) => "application".to_owned(),
        Some(2) => "crash".to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// What only a kvmms tells: when, and whether it can be exported.
fn with_detail(row: Row, point: &Point) -> Row {
    let data = boolean(&point.instance, "HasAssociatedData");
    let Some(detail) = &point.detail else {
        return row.yes("hasData", "Data", data);
    };
    let until = instant(detail, "HoldUntil").map(moment);
    row.maybe("taken", "Taken", instant(detail, "Instant").map(moment))
        .yes("exportable", "Exportable", boolean(detail, "Held"))
        .yes("trusted", "Trusted", boolean(detail, "Trusted"))
        .hidden("hasData", json!(data))
        .hidden("exportableUntil", json!(until))
}

/// A point among those of its machine.
pub(super) fn short_row(point: &Point) -> Row {
    let row = Row::new()
        .text("name", "Name", &point.name)
        .text("type", "Type", kind(point))
        .text("consistency", "Consistency", consistency(point));
    with_detail(row, point).text("id", "Id", &point.id)
}

fn row(point: &Point, machines: &[Machine]) -> Row {
    let machine = machines
        .iter()
        .find(|m| m.id.eq_ignore_ascii_case(&point.machine));
    let disks = texts(&point.instance, "VirtualDiskIdentifiers");
    let tracking = texts(&point.instance, "ResilientChangeTrackingIdentifiers");
    let name = machine.map_or(&*point.machine, |m| &m.name);
    let row = Row::new()
        .text("name", "Name", &point.name)
        .text("machine", "Machine", name)
        .text("type", "Type", kind(point))
        .text("consistency", "Consistency", consistency(point));
    with_detail(row, point)
        .both("disks", "Disks", disks.len().to_string(), json!(disks))
        .text("id", "Id", &point.id)
        .hidden("machineId", json!(point.machine))
        .hidden("trackingIds", json!(tracking))
        .hidden("instanceId", json!(text(&point.instance, "InstanceID")))
}

/// Everything about a point.
fn whole(point: &Point, machines: &[Machine]) -> Row {
    let row = row(point, machines);
    let Some(detail) = &point.detail else {
        return row;
    };
    let paused = number(detail, "PauseMicroseconds").filter(|us| *us > 0);
    let words = paused.map_or_else(String::new, |us| {
        format!("{}.{:03} ms", us / 1000, us % 1000)
    });
    row.both("pauseUs", "Guest paused for", words, json!(paused))
        .maybe(
            "heldUntil",
            "Held until",
            instant(detail, "HoldUntil").map(moment),
        )
        .size("contentSize", "Content", number(detail, "ContentSize"))
        .size("diskSize", "Disk size", number(detail, "DiskSize"))
        .lines("diskPaths", "Disk files", texts(detail, "DiskPaths"))
        .lines(
            "trustProblems",
            "Not trusted",
            texts(detail, "TrustProblems"),
        )
        .lines("decisions", "Decisions", texts(detail, "Decisions"))
        .lines("exports", "Exports", texts(detail, "Exports"))
        .lines("audit", "Audited", audit_lines(detail))
        .hidden("auditPassed", json!(boolean(detail, "AuditPassed")))
        .hidden("auditProof", json!(some_text(detail, "AuditProof")))
        .hidden(
            "auditBaseId",
            json!(some_text(detail, "AuditBase").as_deref().map(short_id)),
        )
        .hidden("auditMissed", json!(texts(detail, "AuditMissedRanges")))
}

/// What the last audit of a point found: none where there was none.
fn audit_lines(detail: &Instance) -> Vec<String> {
    let Some(at) = instant(detail, "AuditTime") else {
        return Vec::new();
    };
    let found = match boolean(detail, "AuditPassed") {
        Some(true) => "nothing was missed",
        _ => "CHANGES WERE MISSED",
    };
    let mut lines = vec![format!(
        "{} against {}, by {}: {found}",
        moment(at),
        short_id(&text(detail, "AuditBase")),
        text(detail, "AuditProof")
    )];
    let numbers = |name: &str| -> Vec<u64> {
        let all = detail.get(name);
        all.items().iter().filter_map(as_number).collect()
    };
    let (compared, different) = (
        numbers("AuditBytesCompared"),
        numbers("AuditBytesDifferent"),
    );
    let (mapped, missed) = (numbers("AuditBytesInMap"), numbers("AuditBytesMissed"));
    let size = |list: &[u64], n: usize| Size(list.get(n).copied().unwrap_or(0));
    for (n, disk) in texts(detail, "AuditDisks").iter().enumerate() {
        lines.push(format!(
            "{disk}: {} compared, {} differ, {} in the map, {} missed",
            size(&compared, n),
            size(&different, n),
            size(&mapped, n),
            size(&missed, n)
        ));
    }
    let ranges = texts(detail, "AuditMissedRanges");
    lines.extend(ranges.into_iter().map(|r| format!("missed {r}")));
    lines
}

async fn list(session: &Session, vm: Option<&str>) -> Result<()> {
    let machines = find::machines(session).await?;
    let machine = match vm {
        Some(vm) => Some(find::machine(session, vm, Naming::Beginning).await?),
        None => None,
    };
    let points = find::points(session, machine.as_ref()).await?;
    let rows: Vec<_> = points.iter().map(|p| row(p, &machines)).collect();
    session
        .output
        .list(&rows, "No points. Take one: kvmms point create VM")
}

/// Asks for a new point.
pub(super) async fn request(
    session: &Session,
    machine: &Machine,
    kind: PointKind,
    consistency: Consistency,
    name: Option<&str>,
) -> Result<Called> {
    let class = class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT_SETTING_DATA;
    let settings = settings(class, name, consistency);
    let kind: u16 = match kind {
        PointKind::Log => 1,
        PointKind::Rct => 2,
    };
    session
        .call(
            &points(),
            "CreateReferencePoint",
            &parameters([
                ("AffectedSystem", machine.path().into()),
                ("ReferencePointSettings", settings),
                ("ReferencePointType", kind.into()),
            ]),
        )
        .await
}

/// The point a call made.
pub(super) async fn made(session: &Session, called: &Called) -> Result<Point> {
    let named = called.invoked.get("ResultingReferencePoint").as_path();
    let found = match (&called.job, named) {
        (_, Some(path)) => Some(session.client.get(&path).await?),
        (Some(job), None) => {
            let class = class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT;
            session.results(job, class).await?.pop()
        }
        (None, None) => None,
    };
    found.map(Point::of).ok_or_else(|| {
        Error::Answer(
            called.method.clone(),
            "it does not name the new point".to_owned(),
        )
    })
}

async fn create(session: &Session, a: CreatePointArgs) -> Result<()> {
    let vm = match (&a.vm, &a.group) {
        (_, Some(group)) => {
            let name = a.name.as_deref();
            return of_group::create_point(session, group, a.kind, a.consistency, name).await;
        }
        (Some(vm), None) => vm,
        (None, None) => return Err(Error::usage("name a machine, or a collection with --group")),
    };
    let machine = find::machine(session, vm, Naming::Whole).await?;
    let called = request(session, &machine, a.kind, a.consistency, a.name.as_deref()).await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let point = made(session, &called).await?;
    let line = format!(
        "point {} of {} is taken, {} consistent ({})",
        point.name,
        machine.name,
        consistency(&point),
        point.id
    );
    let row = row(&point, std::slice::from_ref(&machine));
    session.output.done(&line, &row)
}

async fn ask(session: &Session, wanted: &str, method: &str, done: &str) -> Result<()> {
    let point = find::point(session, None, wanted, Naming::Whole).await?;
    let called = session
        .call(
            &points(),
            method,
            &parameters([("AffectedReferencePoint", point.path().into())]),
        )
        .await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let row = Row::new()
        .text("name", "Name", &point.name)
        .text("id", "Id", &point.id);
    session
        .output
        .done(&format!("point {} {done}", point.name), &row)
}

/// Proves a change map.
async fn audit(session: &Session, wanted: &str, base: Option<&str>) -> Result<()> {
    session.needs_kvmms("point audit")?;
    let point = find::point(session, None, wanted, Naming::Whole).await?;
    let base = match base {
        Some(base) => {
            let machine = find::machine(session, &point.machine, Naming::Whole).await?;
            let base = find::point(session, Some(&machine), base, Naming::Whole).await?;
            base.path().into()
        }
        None => Value::Null,
    };
    let called = session
        .call(
            &service(vendor::EXPORT_SERVICE),
            "AuditReferencePoint",
            &parameters([
                ("ReferencePoint", point.path().into()),
                ("BaseReferencePoint", base),
            ]),
        )
        .await?;
    if let Followed::Left = session.follow(&called).await? {
        return Ok(());
    }
    let point = find::point(session, None, &point.id, Naming::Whole).await?;
    let mut line = format!("the change map of point {} missed nothing", point.name);
    for told in point.detail.iter().flat_map(audit_lines) {
        line.push_str(&format!("\n  {told}"));
    }
    let machines = find::machines(session).await?;
    session.output.done(&line, &whole(&point, &machines))
}

/// Ids of a disk's settings differ in their last part between drive and medium.
fn same_disk(a: &str, b: &str) -> bool {
    let bare = |id: &str| {
        let id = id.replace("\\\\", "\\").to_lowercase();
        let end = id.strip_suffix("\\l").or_else(|| id.strip_suffix("\\d"));
        end.map_or(id.clone(), str::to_owned)
    };
    bare(a) == bare(b)
}

/// The change tracking id of a disk at a point.
fn tracking_id(point: &Point, disk: &Disk) -> Result<String> {
    let disks = texts(&point.instance, "VirtualDiskIdentifiers");
    let at = disks.iter().position(|id| same_disk(id, &disk.id));
    let at = at
        .ok_or_else(|| Error::usage(format!("point {} does not hold {}", point.name, disk.file)))?;
    let ids = texts(&point.instance, "ResilientChangeTrackingIdentifiers");
    ids.get(at).cloned().ok_or_else(|| {
        Error::usage(format!(
            "point {} has no change tracking ids: only points of type rct do. Export it instead.",
            point.name
        ))
    })
}

async fn changes(session: &Session, a: ChangesArgs) -> Result<()> {
    let machine = find::machine(session, &a.vm, Naming::Beginning).await?;
    let point = find::point(session, Some(&machine), &a.since, Naming::Beginning).await?;
    let storage = Storage::of(session, &machine).await?;
    let disk = match (&a.disk, storage.disks.as_slice()) {
        (Some(wanted), _) => storage.disk(wanted, Naming::Beginning)?,
        (None, [one]) => one,
        (None, disks) => {
            return Err(Error::usage(format!(
                "{} has {} disks; name one of them: {}",
                machine.name,
                disks.len(),
                disks
                    .iter()
                    .map(|d| d.place.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            )));
        }
    };
    let id = tracking_id(&point, disk)?;
    let setting = setting_data(session, &disk.file).await?;
    let size = setting
        .and_then(|s| number(&s, "MaxInternalSize"))
        .ok_or_else(|| {
            Error::Answer(
                "GetVirtualHardDiskSettingData".to_owned(),
                "it does not tell the size".to_owned(),
            )
        })?;
    let ranges = ranges(session, &disk.file, short_id(&id), size).await?;
    let changed: u64 = ranges.iter().map(|(_, length)| length).sum();
    if session.output.is_json() {
        let list: Vec<_> = ranges
            .iter()
            .map(|(offset, length)| json!({"offset": offset, "length": length}))
            .collect();
        let row = Row::new()
            .text("machine", "Machine", &machine.name)
            .text("disk", "Disk", &disk.file)
            .text("since", "Since", &point.id)
            .number("size", "Size", Some(size))
            .number("changed", "Changed", Some(changed))
            .hidden("ranges", json!(list));
        return session.output.one(&row);
    }
    let rows: Vec<_> = ranges
        .iter()
        .map(|(offset, length)| {
            Row::new().number("offset", "Offset", Some(*offset)).number(
                "length",
                "Length",
                Some(*length),
            )
        })
        .collect();
    session.output.list(&rows, "Nothing changed.")?;
    session.output.remark(&format!(
        "{} of {} changed since {}, in {} ranges",
        Size(changed),
        Size(size),
        point.name,
        ranges.len()
    ));
    Ok(())
}

/// Asks until the end of the disk: each answer covers a part of it.
async fn ranges(session: &Session, file: &str, limit: &str, size: u64) -> Result<Vec<(u64, u64)>> {
    const METHOD: &str = "GetVirtualDiskChanges";
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut offset = 0u64;
    while offset < size {
        let called = session
            .call(
                &images(),
                METHOD,
                &parameters([
                    ("Path", file.into()),
                    ("LimitId", limit.into()),
                    ("ByteOffset", offset.into()),
                    ("ByteLength", (size - offset).into()),
                ]),
            )
            .await?;
        let out = &called.invoked;
        let processed = as_number(out.get("ProcessedByteLength")).unwrap_or(0);
        let numbers = |name: &str| -> Vec<u64> {
            out.get(name).items().iter().filter_map(as_number).collect()
        };
        let (offsets, lengths) = (numbers("ChangedByteOffsets"), numbers("ChangedByteLengths"));
        if processed == 0 || offsets.len() != lengths.len() {
            return Err(Error::Answer(
                METHOD.to_owned(),
                "it makes no progress".to_owned(),
            ));
        }
        for (start, length) in offsets.into_iter().zip(lengths) {
            match ranges.last_mut() {
                // Answers end where they like; what touches is one range.
                Some((last, extent)) if last.checked_add(*extent) == Some(start) => {
                    *extent = extent.saturating_add(length);
                }
                _ => ranges.push((start, length)),
            }
        }
        offset = offset.saturating_add(processed);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drive_and_medium_of_one_disk_are_the_same() {
        assert!(same_disk(r"Microsoft:A\B\0\0\L", r"microsoft:a\b\0\0\D"));
        assert!(same_disk(
            r"Microsoft:A\\B\\0\\0\\L",
            r"Microsoft:A\B\0\0\L"
        ));
        assert!(!same_disk(r"Microsoft:A\B\0\0\L", r"Microsoft:A\B\0\1\L"));
    }
}
