//! Snapshots of collections: one snapshot of each member, all of one instant, used as one.

mod apply;
mod convert;
mod create;
mod destroy;
mod export;

use std::sync::Arc;

pub use apply::{ApplyGroupSnapshot, apply_snapshot};
pub use convert::{ConvertGroupSnapshot, convert_snapshot};
pub use create::{CreateGroupSnapshot, create_snapshot};
pub use destroy::{DestroyGroupSnapshot, destroy_snapshot};
pub use export::{ExportGroupSnapshot, export_snapshot};

use uuid::Uuid;

use super::GroupSnapshot;
use crate::group::member::MemberTask;
use crate::snapshot::SnapshotKind;
use crate::{Effect, Element, Result, Vmms, fault, guid};

/// A finished snapshot of a collection.
fn finished(vmms: &Vmms, id: Uuid) -> Result<Arc<GroupSnapshot>> {
    let record = vmms.db.get::<GroupSnapshot>(id)?;
    if record.complete {
        return Ok(record);
    }
    Err(fault!(SnapshotIncomplete, guid(id)).about(Element::GroupSnapshot(id)))
}

/// Refuses what cannot be done with the snapshot of a backup that has not ended.
fn not_recovery(record: &GroupSnapshot, what: &str) -> Result<()> {
    if record.kind != SnapshotKind::Recovery {
        return Ok(());
    }
    Err(fault!(SnapshotIsRecovery, guid(record.id), what).about(Element::GroupSnapshot(record.id)))
}

fn tasks(record: &GroupSnapshot) -> Vec<MemberTask> {
    let of = |m: &super::MemberPoint| MemberTask {
        vm: m.vm,
        point: m.point,
    };
    record.members.iter().map(of).collect()
}

/// What a job on the snapshot affects: the snapshot and its collection, the members' snapshots, and the machines with `vms`.
fn affected(record: &GroupSnapshot, snapshots: Effect, vms: Effect) -> Vec<(Element, Effect)> {
    let mut out = vec![
        (Element::GroupSnapshot(record.id), snapshots),
        (Element::Group(record.group), Effect::Other),
    ];
    for member in &record.members {
        out.push((Element::Snapshot(member.point), snapshots));
        out.push((Element::Vm(member.vm), vms));
    }
    out
}
