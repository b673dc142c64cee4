//! Snapshots of collections: one snapshot of each member, all of one instant, used as one.

mod apply;
mod convert;
mod create;
mod destroy;
mod export;

use std::sync::Arc;

pub use apply::{ApplyCollectionSnapshot, apply_snapshot};
pub use convert::{ConvertCollectionSnapshot, convert_snapshot};
pub use create::{CreateCollectionSnapshot, create_snapshot};
pub use destroy::{DestroyCollectionSnapshot, destroy_snapshot};
pub use export::{ExportCollectionSnapshot, export_snapshot};

use uuid::Uuid;

use super::CollectionSnapshot;
use crate::collection::member::MemberTask;
use crate::snapshot::SnapshotKind;
use crate::{Effect, Element, Result, Vmms, fault, guid};

/// A finished snapshot of a collection.
fn finished(vmms: &Vmms, id: Uuid) -> Result<Arc<CollectionSnapshot>> {
    let record = vmms.db.get::<CollectionSnapshot>(id)?;
    if record.complete {
        return Ok(record);
    }
    Err(fault!(SnapshotIncomplete, guid(id)).about(Element::CollectionSnapshot(id)))
}

/// Refuses what cannot be done with the snapshot of a backup that has not ended.
fn not_recovery(record: &CollectionSnapshot, what: &str) -> Result<()> {
    if record.kind != SnapshotKind::Recovery {
        return Ok(());
    }
    Err(fault!(SnapshotIsRecovery, guid(record.id), what)
        .about(Element::CollectionSnapshot(record.id)))
}

fn tasks(record: &CollectionSnapshot) -> Vec<MemberTask> {
    let of = |m: &super::MemberPoint| MemberTask {
        vm: m.vm,
        point: m.point,
    };
    record.members.iter().map(of).collect()
}

/// What a job on the snapshot affects: the snapshot and its collection, the members' snapshots, and the machines with `vms`.
fn affected(record: &CollectionSnapshot, snapshots: Effect, vms: Effect) -> Vec<(Element, Effect)> {
    let mut out = vec![
        (Element::CollectionSnapshot(record.id), snapshots),
        (Element::Collection(record.collection), Effect::Other),
    ];
    for member in &record.members {
        out.push((Element::Snapshot(member.point), snapshots));
        out.push((Element::Vm(member.vm), vms));
    }
    out
}
