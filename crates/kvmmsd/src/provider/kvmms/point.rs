//! Kvmms_ReferencePointDetail: what is known of a point beyond its standard properties.

use async_trait::async_trait;
use cim::{Datetime, Instance, Path};
use msvm::class;
use vmms::Fault;
use vmms::audit::{Audit, DiskAudit};
use vmms::guid;
use vmms::machine::Vm;
use vmms::point::{Point, PointType};

use super::disk::allocated_file;
use crate::object::{self, Object, What, resource_id};
use crate::view::{Provider, View};

pub(crate) struct PointDetails;

impl PointDetails {
    fn list(&self, view: &View, _class: &str) -> Vec<Object> {
        let mut points = view.all::<Point>();
        points.retain(|p| p.complete);
        points.sort_by_key(|p| (p.vm, p.sequence));
        points.iter().map(|p| object(view, p)).collect()
    }

    fn find(&self, view: &View, _class: &str, path: &Path) -> Vec<Object> {
        let id = path.get_str("InstanceID").or_else(|| path.get_str(""));
        let id = id.and_then(|id| object::guid_in(id.rsplit(['\\', ':']).next().unwrap_or(id)));
        let point = id
            .and_then(|id| view.get::<Point>(id).ok())
            .filter(|p| p.complete);
        point.map(|p| object(view, &p)).into_iter().collect()
    }
}

#[async_trait]
impl Provider for PointDetails {
    fn classes(&self) -> &'static [&'static str] {
        &[class::KVMMS_REFERENCE_POINT_DETAIL]
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

    fn instance(&self, _view: &View, object: &Object) -> Instance {
        object.fixed()
    }
}

fn object(view: &View, point: &Point) -> Object {
    let id = format!("Microsoft:{}", guid(point.id));
    Object::with_id(
        class::KVMMS_REFERENCE_POINT_DETAIL,
        id,
        What::fixed_of(instance(view, point), vec![point.vm]),
    )
}

fn instance(view: &View, point: &Point) -> Instance {
    let disks = || point.disks.iter();
    let hold = point.hold.as_ref().filter(|_| point.kind == PointType::Rct);
    let problems = vmms::point::problems(&view.vmms, point);
    let mut i = Instance::new(class::KVMMS_REFERENCE_POINT_DETAIL);
    i.set("Caption", "Reference Point Detail")
        .set("Description", "What is known of a reference point")
        .set("ElementName", point.name.as_str())
        .set("VirtualSystemIdentifier", guid(point.vm))
        .set("Instant", Datetime::from(point.instant))
        .set("PauseMicroseconds", point.pause_us)
        .set("Sequence", point.sequence)
        .set("Held", point.holds_content() && problems.content.is_empty())
        .set("Trusted", problems.all().is_empty())
        .set("TrustProblems", problems.all())
        .set("HoldUntil", hold.map(|h| Datetime::from(h.until)))
        .set("HoldBytes", hold.map(|h| h.bytes))
        .set("ContentSize", content(view, point))
        .set("DiskSize", disks().map(|d| d.size).sum::<u64>())
        .set(
            "Disks",
            disks()
                .map(|d| resource_id(point.vm, &d.device))
                .collect::<Vec<_>>(),
        )
        .set(
            "DiskPaths",
            disks()
                .map(|d| d.path.display().to_string())
                .collect::<Vec<_>>(),
        )
        .set(
            "ChangeTrackingIdentifiers",
            disks().map(|d| guid(d.node)).collect::<Vec<_>>(),
        )
        .set(
            "Decisions",
            point
                .decisions
                .iter()
                .chain(&point.export_decisions)
                .map(|d| format!("{}: {}", d.what, d.reason))
                .collect::<Vec<_>>(),
        )
        .set(
            "Exports",
            point
                .exports
                .iter()
                .map(|e| e.display().to_string())
                .collect::<Vec<_>>(),
        );
    if let Some(audit) = &point.audit {
        audited(&mut i, point, audit);
    }
    i
}

fn audited(i: &mut Instance, point: &Point, audit: &Audit) {
    let id = |disk: &DiskAudit| resource_id(point.vm, &disk.device);
    let numbers = |of: fn(&DiskAudit) -> u64| audit.disks.iter().map(of).collect::<Vec<_>>();
    let ranges = audit.disks.iter().flat_map(|disk| {
        let ends = |(at, len): &(u64, u64)| (*at, at.saturating_add(*len));
        let told = disk.missed.iter().map(ends);
        let more = disk.missed_ranges.saturating_sub(disk.missed.len() as u64);
        let more = (more > 0).then(|| format!("{}: and {more} more ranges", id(disk)));
        told.map(move |(from, to)| format!("{}: {from}-{to}", id(disk)))
            .chain(more)
    });
    i.set("AuditTime", Datetime::from(audit.at))
        .set("AuditPassed", audit.passed())
        .set("AuditBase", format!("Microsoft:{}", guid(audit.base)))
        .set("AuditProof", audit.proof.word())
        .set("AuditDisks", audit.disks.iter().map(id).collect::<Vec<_>>())
        .set("AuditBytesCompared", numbers(|d| d.compared))
        .set("AuditBytesDifferent", numbers(|d| d.different))
        .set("AuditBytesInMap", numbers(|d| d.mapped))
        .set("AuditBytesMissed", numbers(|d| d.missed_bytes))
        .set("AuditMissedRanges", ranges.collect::<Vec<_>>());
}

/// What the files of the point's own layers take: the file of each instant, as long as nothing was merged into it and
/// it is not the base that was attached.
fn content(view: &View, point: &Point) -> u64 {
    let Ok(vm) = view.get::<Vm>(point.vm) else {
        return 0;
    };
    let own = point.disks.iter().filter_map(|d| {
        let tree = &vm.disk(d.uid)?.layers;
        let node = tree.nodes.get(&d.node)?;
        node.parent?;
        node.file.as_ref()
    });
    own.map(|f| allocated_file(&f.path)).sum()
}
