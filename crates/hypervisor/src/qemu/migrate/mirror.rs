//! The active layers, kept equal to those of the destination.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::graph::Graph;
use super::super::machine::QemuMachine;
use super::mirrors::{self, LOOK};
use super::{seen, setup, wire};
use crate::block::{JobControl, Progress};
use crate::error::{Error, Result};
use crate::migration::{Link, MirrorPhase, MirrorState, MirrorTarget, MovePhase, Side, Tls};
use crate::names;
use crate::qmp::codec::{flag, items, text};

/// What the connection is called in QEMU, until it is used.
const CONNECTION: &str = "move-disk";

pub(super) async fn start(
    machine: &QemuMachine,
    targets: Vec<MirrorTarget>,
    tls: Option<&Tls>,
    max_bandwidth: Option<u64>,
    control: &JobControl,
) -> Result<()> {
    let state = seen::moving(machine).await?;
    if state.phase != MovePhase::None {
        return Err(Error::conflict(format!(
            "a move of this machine is under way ({:?})",
            state.phase
        )));
    }
    let graph = Graph::read(machine).await?;
    for target in &targets {
        graph.active(&target.drive_id)?;
    }
    setup::credentials(machine, Side::Source, tls).await?;
    let started = async {
        for target in targets {
            let active = graph.active(&target.drive_id)?;
            connect(machine, target, &active, tls).await?;
        }
        for drive in connected_drives(machine, &graph).await? {
            let active = graph.active(&drive)?;
            copy(machine, &drive, &active, max_bandwidth).await?;
        }
        until_equal(machine, control).await
    };
    let result = started.await;
    if result.is_err() {
        // The first error is the one that matters; what stays is shown by `moving` and ended by `abandon`.
        if let Err(error) = mirrors::close(machine).await {
            tracing::warn!(%error, "mirrors of a move that failed could not be closed");
        }
    }
    result
}

async fn connect(
    machine: &QemuMachine,
    target: MirrorTarget,
    active: &str,
    tls: Option<&Tls>,
) -> Result<()> {
    let link = Link {
        channel: target.channel,
        tls: tls.cloned(),
    };
    let server_name = setup::server_name(&link);
    let connection = wire::connected(link.channel).await?;
    wire::give(machine, CONNECTION, connection).await?;
    let mut node = json!({
        "driver": "nbd", "node-name": names::move_node(active),
        "server": { "type": "fd", "str": CONNECTION },
        "export": names::of_move(&target.drive_id),
        // What the guest discards must read as zeros there too.
        "discard": "unmap",
    });
    if let (Some(_), Some(members)) = (tls, node.as_object_mut()) {
        members.insert("tls-creds".into(), setup::TLS.into());
        if let Some(name) = server_name {
            members.insert("tls-hostname".into(), name.into());
        }
    }
    let added = machine.execute("blockdev-add", node).await;
    if added.is_err() {
        wire::withdraw(machine, CONNECTION).await;
    }
    added.map(drop)
}

/// The drives whose counterparts are connected.
async fn connected_drives(machine: &QemuMachine, before: &Graph) -> Result<Vec<String>> {
    let now = Graph::read(machine).await?;
    let connected = |drive: &&str| {
        let active = before.active(drive).unwrap_or_default();
        now.has_node(&names::move_node(&active))
    };
    let drives = before.drives().filter(connected);
    Ok(drives.map(str::to_owned).collect())
}

async fn copy(
    machine: &QemuMachine,
    drive: &str,
    active: &str,
    max_bandwidth: Option<u64>,
) -> Result<()> {
    // In the background the guest does not wait for the other side; before QEMU 8.2 a mirror cannot change later.
    let mode = match machine.features().migration.job_change {
        true => "background",
        false => "write-blocking",
    };
    let job = json!({
        "device": active, "target": names::move_node(active), "job-id": names::of_move(drive),
        "sync": "top", "copy-mode": mode, "auto-dismiss": false, "on-target-error": "report",
        "speed": max_bandwidth.unwrap_or(0),
    });
    machine.execute("blockdev-mirror", job).await.map(drop)
}

async fn until_equal(machine: &QemuMachine, control: &JobControl) -> Result<()> {
    loop {
        let states = mirrors::states(machine).await?;
        control.report(progress(&states));
        if let Some(failure) = mirrors::failure(&states) {
            return Err(failure);
        }
        if states.iter().all(|s| s.phase == MirrorPhase::Following) {
            return Ok(());
        }
        tokio::select! {
            () = control.cancelled() => return Err(Error::Cancelled),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn progress(states: &[MirrorState]) -> Progress {
    Progress {
        done: states.iter().map(|s| s.done).sum(),
        total: states.iter().map(|s| s.total).sum(),
    }
}

pub(super) async fn tighten(
    machine: &QemuMachine,
    within: Duration,
    control: &JobControl,
) -> Result<()> {
    let states = mirrors::states(machine).await?;
    if let Some(failure) = mirrors::failure(&states) {
        return Err(failure);
    }
    if !machine.features().migration.job_change {
        return Ok(());
    }
    for one in &states {
        let change = json!({
            "id": names::of_move(&one.drive_id), "type": "mirror", "copy-mode": "write-blocking",
        });
        machine.execute("block-job-change", change).await?;
    }
    let deadline = Instant::now() + within;
    loop {
        let states = mirrors::states(machine).await?;
        control.report(progress(&states));
        if let Some(failure) = mirrors::failure(&states) {
            return Err(failure);
        }
        let jobs = machine.execute("query-block-jobs", Value::Null).await?;
        let mut ours = items(&jobs)
            .iter()
            .filter(|job| text(job, "device").is_some_and(|id| names::drive_of_move(id).is_some()));
        if ours.all(|job| flag(job, "actively-synced")) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::Timeout {
                command: "block-job-change".into(),
                after: within,
            });
        }
        tokio::select! {
            () = control.cancelled() => return Err(Error::Cancelled),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

pub(super) async fn end(machine: &QemuMachine, within: Duration) -> Result<()> {
    let state = seen::moving(machine).await?;
    if state.phase != MovePhase::ReadyToSwitch {
        return Err(Error::conflict(format!(
            "mirrors end while the guest stands still for the hand-over, which it does not ({:?})",
            state.phase
        )));
    }
    if let Some(one) = state
        .mirrors
        .iter()
        .find(|mirror| mirror.phase == MirrorPhase::Copying)
    {
        return Err(Error::conflict(format!(
            "the mirror of drive `{}` was never equal",
            one.drive_id
        )));
    }
    for one in &state.mirrors {
        if one.phase == MirrorPhase::Following {
            let softly = json!({ "device": names::of_move(&one.drive_id), "force": false });
            machine.execute("block-job-cancel", softly).await?;
        }
    }
    let deadline = Instant::now() + within;
    loop {
        let states = mirrors::states(machine).await?;
        if let Some(failure) = mirrors::failure(&states) {
            return Err(failure);
        }
        if states.iter().all(|s| s.phase == MirrorPhase::Ended) {
            // The jobs stay to be seen: they vouch for the other side's disks should this be asked again.
            return mirrors::disconnect(machine).await;
        }
        if Instant::now() >= deadline {
            return Err(Error::Timeout {
                command: "block-job-cancel".into(),
                after: within,
            });
        }
        // The guest stands still meanwhile.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
