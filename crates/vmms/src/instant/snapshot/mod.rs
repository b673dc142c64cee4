//! Snapshots of machines: the same frozen layers as reference points, with the machine's settings and, in full
//! snapshots, its memory.
//!
//! # Model
//! A snapshot names one node in the layer tree of each of its disks and keeps it readable for as long as it exists.
//! Applying it puts a new active layer on these nodes: the tree branches. The state before is given up: its active layers
//! are deleted, unless a snapshot was taken of it first.
//!
//! # Points and snapshots
//! Points stay when a snapshot is applied. A point on the branch that was left keeps its change map, and its data
//! where it holds any; it is still a base: a difference across branches is the union of the maps on the path between
//! the two nodes. Layers of a branch that nobody needs are deleted by the merging that comes round; a layer is never merged
//! into one that other branches lie on.

mod apply;
mod convert;
pub(crate) mod create;
mod definition;
mod destroy;
mod import;
mod record;

pub use apply::{ApplySnapshot, ClearSnapshot, apply, clear};
pub(crate) use apply::{Back, admit as admit_apply, undo as undo_apply};
pub use convert::{ConvertSnapshot, convert};
pub use create::{CreateSnapshot, create};
pub(crate) use definition::Definition;
pub use destroy::{DestroySnapshot, destroy};
pub use import::{ImportSnapshots, SnapshotImport, import};
pub use record::{Snapshot, SnapshotKind};

use std::sync::Arc;

use uuid::Uuid;

use crate::job::Job;
use crate::{Element, Result, Vmms, fault, guid, names};

/// The finished snapshots of a machine, the oldest first.
pub fn of_vm(vmms: &Vmms, vm: Uuid) -> Vec<Arc<Snapshot>> {
    let mut all = vmms.db.all::<Snapshot>();
    all.retain(|s| s.vm == vm && s.complete);
    all.sort_by_key(|s| s.sequence);
    all
}

/// The snapshot the machine's present descends from: the newest one all of whose disks' nodes the machine still has
/// lie beneath what the guest writes to now.
pub fn current(vmms: &Vmms, vm: &crate::machine::Vm) -> Option<Arc<Snapshot>> {
    let all = of_vm(vmms, vm.id);
    let imported = || all.iter().find(|s| Some(s.id) == vm.descends_from);
    let by_layers = all.iter().rev().find(|s| {
        let mut known = s
            .disks
            .iter()
            .filter_map(|d| Some((d, vm.disk(d.uid)?)))
            .peekable();
        known.peek().is_some()
            && known.all(|(d, disk)| disk.layers.is_ancestor(d.node, disk.layers.active))
    });
    by_layers.or_else(imported).cloned()
}

/// Changes what people read of a snapshot: its name, its notes. `None` leaves them.
pub async fn rename(
    vmms: &Vmms,
    snapshot: Uuid,
    name: Option<&str>,
    notes: Option<Vec<String>>,
) -> Result<()> {
    if let Some(name) = name {
        let named = names::check("ElementName", name);
        named.map_err(|fault| fault.about(Element::Snapshot(snapshot)))?;
    }
    vmms.db
        .change(|draft| {
            let record = draft.get_mut::<Snapshot>(snapshot)?;
            if let Some(name) = name {
                name.clone_into(&mut record.name);
            }
            if let Some(notes) = notes {
                record.notes = notes;
            }
            Ok(())
        })
        .await
}

/// Refuses a snapshot that a running export reads or builds on.
pub(crate) fn refuse_busy(vmms: &Vmms, snapshot: Uuid) -> Result<()> {
    for job in vmms.db.all::<Job>().iter().filter(|j| !j.is_over()) {
        if job.claims().needs(snapshot) {
            return Err(fault!(SnapshotBusy, guid(snapshot), guid(job.id))
                .about(Element::Snapshot(snapshot)));
        }
    }
    Ok(())
}
