//! Collections after a restart, and when a member's point goes by itself.

use std::sync::Arc;

use hypervisor::MachineStatus;
use uuid::Uuid;

use super::{GroupPoint, instant};
use crate::db::Draft;
use crate::point::Point;
use crate::vm::{Power, Vm};
use crate::{Result, Vmms, guid};

/// At the start of the service, first of all: guests that a point which was not finished left standing still go on.
pub(crate) async fn release_all(vmms: &Arc<Vmms>) {
    for point in vmms.db.all::<GroupPoint>() {
        if point.complete {
            continue;
        }
        for member in point.members.iter().filter(|m| m.running) {
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
}

/// At the start of the service, when the machines are in order: points that were not finished go.
pub(crate) async fn recover(vmms: &Arc<Vmms>) -> Result<()> {
    vmms.db
        .change(|draft| {
            for point in draft.all::<GroupPoint>() {
                if !point.complete {
                    for member in &point.members {
                        draft.delete::<Point>(member.point);
                    }
                    draft.delete::<GroupPoint>(point.id);
                }
            }
            Ok(())
        })
        .await
}

/// A point goes by itself, because its machine does: its collection's point goes on without it, or goes with the last one.
pub(crate) fn leave(draft: &mut Draft<'_>, point: Uuid) {
    let Some(group) = draft
        .get_mut::<Point>(point)
        .ok()
        .and_then(|p| p.group_point)
    else {
        return;
    };
    let Ok(record) = draft.get_mut::<GroupPoint>(group) else {
        return;
    };
    record.members.retain(|m| m.point != point);
    if record.members.is_empty() {
        draft.delete::<GroupPoint>(group);
    }
}
