//! Collections after a restart, and when a member's point goes by itself.

use std::sync::Arc;

use hypervisor::MachineStatus;
use uuid::Uuid;

use super::{CollectionPoint, CollectionSnapshot, MemberPoint, instant};
use crate::db::Draft;
use crate::machine::{Power, Vm};
use crate::point::Point;
use crate::snapshot::{Snapshot, SnapshotKind};
use crate::{Result, Vmms, guid};

/// At the start of the service, first of all: guests that a point which was not finished left standing still go on.
pub(crate) async fn release_all(vmms: &Arc<Vmms>) {
    let mut unfinished: Vec<MemberPoint> = Vec::new();
    for point in vmms.db.all::<CollectionPoint>() {
        if !point.complete {
            unfinished.extend(point.members.iter());
        }
    }
    for snapshot in vmms.db.all::<CollectionSnapshot>() {
        // Machines that were saved for their memory are brought back by the job, which knows what they were.
        if !snapshot.complete && snapshot.kind != SnapshotKind::Full {
            unfinished.extend(snapshot.members.iter());
        }
    }
    for member in unfinished.iter().filter(|m| m.running) {
        let Some(machine) = vmms.machine(member.vm) else {
            continue;
        };
        if !matches!(machine.status().await, Ok(MachineStatus::Paused)) {
            continue;
        }
        tracing::info!(vm = %guid(member.vm), "a guest was left standing still and goes on");
        instant::insist(&machine, member.vm).await;
        let noted = vmms
            .db
            .change(|draft| {
                draft.get_mut::<Vm>(member.vm)?.power = Power::Running;
                Ok(())
            })
            .await;
        if let Err(error) = noted {
            tracing::error!(vm = %guid(member.vm), %error, "the state of a machine could not be stored");
        }
    }
}

/// At the start of the service, when the machines are in order: points that were not finished go.
pub(crate) async fn recover(vmms: &Arc<Vmms>) -> Result<()> {
    vmms.db
        .change(|draft| {
            for point in draft.all::<CollectionPoint>() {
                if !point.complete {
                    for member in &point.members {
                        draft.delete::<Point>(member.point);
                    }
                    draft.delete::<CollectionPoint>(point.id);
                }
            }
            for snapshot in draft.all::<CollectionSnapshot>() {
                if !snapshot.complete {
                    for member in &snapshot.members {
                        draft.delete::<Snapshot>(member.point);
                    }
                    draft.delete::<CollectionSnapshot>(snapshot.id);
                }
            }
            Ok(())
        })
        .await
}

/// A point goes by itself, because its machine does: its collection's point goes on without it, or goes with the last one.
pub(crate) fn leave(draft: &mut Draft<'_>, point: Uuid) {
    let Some(collection) = draft
        .get_mut::<Point>(point)
        .ok()
        .and_then(|p| p.collection_point)
    else {
        return;
    };
    let Ok(record) = draft.get_mut::<CollectionPoint>(collection) else {
        return;
    };
    record.members.retain(|m| m.point != point);
    if record.members.is_empty() {
        draft.delete::<CollectionPoint>(collection);
    }
}

/// A snapshot goes by itself, because its machine does: its collection's snapshot goes on without it, or goes with the
/// last one.
pub(crate) fn leave_snapshot(draft: &mut Draft<'_>, snapshot: Uuid) {
    let Some(collection) = draft
        .get_mut::<Snapshot>(snapshot)
        .ok()
        .and_then(|s| s.collection_snapshot)
    else {
        return;
    };
    let Ok(record) = draft.get_mut::<CollectionSnapshot>(collection) else {
        return;
    };
    record.members.retain(|m| m.point != snapshot);
    if record.members.is_empty() {
        draft.delete::<CollectionSnapshot>(collection);
    }
}
