//! The mirrors of a move as QEMU has them, and the end of them that is not one.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::super::graph::{Graph, jobs};
use super::super::machine::QemuMachine;
use super::cut;
use crate::block::JobState;
use crate::error::{Error, Result};
use crate::migration::{MirrorPhase, MirrorState};
use crate::names;

/// How often they are looked at.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// A mirror whose connection was cut ends at once; a loaded host is given time.
const CLOSE_DEADLINE: Duration = Duration::from_secs(60);

/// All of them.
pub(super) async fn states(machine: &QemuMachine) -> Result<Vec<MirrorState>> {
    let jobs = jobs(machine).await?;
    Ok(jobs.into_iter().filter_map(state).collect())
}

fn state(job: JobState) -> Option<MirrorState> {
    let drive_id = names::drive_of_move(&job.id)?.to_owned();
    let phase = match (job.status.as_str(), &job.error) {
        // Also one that QEMU calls successful must have copied all.
        ("concluded" | "null", None) if job.done == job.total => MirrorPhase::Ended,
        ("concluded" | "null" | "aborting", _) => MirrorPhase::Failed,
        ("ready", _) => MirrorPhase::Following,
        // Between ready and concluded too: it is not known yet how it ends.
        _ => MirrorPhase::Copying,
    };
    Some(MirrorState {
        drive_id,
        phase,
        done: job.done,
        total: job.total,
        error: job.error,
    })
}

/// The first that failed, as an error.
pub(super) fn failure(states: &[MirrorState]) -> Option<Error> {
    let failed = states.iter().find(|s| s.phase == MirrorPhase::Failed)?;
    Some(Error::Job {
        job: names::of_move(&failed.drive_id),
        desc: failed
            .error
            .clone()
            .unwrap_or_else(|| "it ended before it was equal".to_owned()),
    })
}

/// Ends all of them whatever they do: the other side's disks are worthless afterwards. The connections are cut first, since a
/// cancel would wait for a silent peer with the guest and the monitor standing still.
pub(super) async fn close(machine: &QemuMachine) -> Result<()> {
    match cut::disks(machine).await {
        Ok(()) | Err(Error::Unsupported { .. }) => {}
        Err(error) => return Err(error),
    }
    let deadline = Instant::now() + CLOSE_DEADLINE;
    let mut asked = false;
    loop {
        let states = states(machine).await?;
        let over = |s: &MirrorState| matches!(s.phase, MirrorPhase::Ended | MirrorPhase::Failed);
        for one in states.iter().filter(|s| !over(s) && !asked) {
            let id = names::of_move(&one.drive_id);
            let cancel = json!({ "device": id, "force": true });
            match machine.execute("block-job-cancel", cancel).await {
                // It ended meanwhile.
                Ok(_) | Err(Error::Qmp { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        asked = true;
        for one in &states {
            // Refused until it has concluded.
            let id = names::of_move(&one.drive_id);
            match machine.execute("job-dismiss", json!({ "id": id })).await {
                Ok(_) | Err(Error::Qmp { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if states.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            return Err(Error::Timeout {
                command: "block-job-cancel".into(),
                after: CLOSE_DEADLINE,
            });
        }
        tokio::time::sleep(LOOK).await;
    }
    disconnect(machine).await
}

/// Closes the other side's disks. A job that has just ended may hold one for a moment.
pub(super) async fn disconnect(machine: &QemuMachine) -> Result<()> {
    let deadline = Instant::now() + CLOSE_DEADLINE;
    loop {
        let graph = Graph::read(machine).await?;
        let nodes = graph.nodes().filter(|name| names::is_move_node(name));
        let mut refused = None;
        for node in nodes {
            let name = json!({ "node-name": node });
            match machine.execute("blockdev-del", name).await {
                Ok(_) => {}
                Err(error @ Error::Qmp { .. }) => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        match refused {
            None => return Ok(()),
            Some(error) if Instant::now() >= deadline => return Err(error),
            Some(_) => tokio::time::sleep(LOOK).await,
        }
    }
}
