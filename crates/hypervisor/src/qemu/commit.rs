//! Merging layers into the one beneath while the guest runs.
//!
//! # What is durable when
//! QEMU writes the header of the layer above before it flushes the base, flushes a raw base not at all, and reports no error of
//! that flush. So a merge in the middle of a chain stops before its last step (`auto-finalize` off): the base is flushed
//! through `blockdev-reopen`, which does say errors, and synced here; only then the header changes. When [`commit`] answers, base,
//! header and directories are durable. The job and the nodes of the layers that went stay until [`drop_merged`]: they prove what
//! happened to a service that was ended before it wrote its record.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::graph::{Graph, jobs};
use super::machine::QemuMachine;
use crate::block::{CommitOutcome, CommitSpec, JobControl, JobState, NodeState, Progress};
use crate::blockdev::{FileFacts, layer_nodes};
use crate::config::LayerFile;
use crate::confine::grants::Access;
use crate::error::{Error, Result};
use crate::machine::MachineEvent;
use crate::names;
use crate::written::Written;

/// Progress is looked at this often; the end is told by an event.
const LOOK: Duration = Duration::from_millis(200);

enum Plan {
    Done,
    Middle,
    Active,
}

pub(super) async fn commit(
    machine: &QemuMachine,
    spec: &CommitSpec,
    control: &JobControl,
) -> Result<CommitOutcome> {
    let job = names::commit_job(&spec.top_node);
    let events = machine.events_receiver();
    let mut adopted = find(machine, &job).await?;
    let graph = Graph::read(machine).await?;
    let chain = graph.chain_facts(machine, &spec.drive_id).await?;
    let plan = plan(&chain, spec)?;
    // Its layer is still there: it failed or was cancelled, and is begun anew.
    if !matches!(plan, Plan::Done)
        && adopted
            .as_ref()
            .is_some_and(|state| state.status == "concluded")
    {
        dismiss(machine, &job).await?;
        adopted = None;
    }
    let files = Files::open(&chain, spec)?;
    let outcome = match plan {
        Plan::Done => CommitOutcome::AlreadyDone,
        plan => {
            if control.is_cancelled() && adopted.is_none() {
                return Err(Error::Cancelled);
            }
            grant(machine, &chain, spec, Access::Write)?;
            if adopted.is_none() {
                start(machine, &chain, spec, &job, &plan).await?;
            }
            // The base may grow, whatever becomes of the job.
            machine.facts().forget(&spec.base_node);
            let ended = match plan {
                Plan::Middle => in_the_middle(machine, &job, events, control, &files).await,
                _ => to_the_end(machine, &job, events, control).await,
            };
            machine.facts().forget(&spec.base_node);
            ended?;
            if matches!(plan, Plan::Middle) {
                grant(machine, &chain, spec, Access::Read)?;
            }
            CommitOutcome::Committed
        }
    };
    if Graph::read(machine)
        .await?
        .chain(&spec.drive_id)?
        .contains(&spec.top_node)
    {
        return Err(Error::Job {
            job,
            desc: "it ended, and its layer is still there".to_owned(),
        });
    }
    // A base that went on being written to although the job ended could not be flushed; opening it anew flushes, and says errors.
    files.flush(machine, files.above.is_none()).await?;
    files.sync().await?;
    Ok(outcome)
}

/// Copies, makes the base durable, and only then lets QEMU change the chain.
async fn in_the_middle(
    machine: &QemuMachine,
    job: &str,
    mut events: Events,
    control: &JobControl,
    files: &Files,
) -> Result<()> {
    let state = follow(machine, job, &mut events, control, Until::Pending).await?;
    if state.status == "pending" {
        let durable = match files.flush(machine, true).await {
            Ok(()) => files.base.sync().await,
            failed => failed,
        };
        if let Err(error) = durable {
            machine.execute("job-cancel", json!({ "id": job })).await?;
            follow(machine, job, &mut events, &JobControl::new(), Until::Ended).await?;
            dismiss(machine, job).await?;
            return Err(error);
        }
        machine
            .execute("job-finalize", json!({ "id": job }))
            .await?;
        // From here on it cannot be cancelled.
        let state = follow(machine, job, &mut events, &JobControl::new(), Until::Ended).await?;
        return verdict(machine, state, false).await;
    }
    verdict(machine, state, control.is_cancelled()).await
}

/// The active layer: QEMU's own order is durable, and its errors are told.
async fn to_the_end(
    machine: &QemuMachine,
    job: &str,
    mut events: Events,
    control: &JobControl,
) -> Result<()> {
    let state = follow(machine, job, &mut events, control, Until::Ended).await?;
    verdict(machine, state, control.is_cancelled()).await
}

/// The files of a merge that must be durable.
struct Files {
    base: Written,
    /// What lies above the layer that goes; `None` where the base becomes the active layer.
    above: Option<Written>,
    dirs: BTreeSet<PathBuf>,
    /// The base as QEMU has it open, and the node beneath it.
    layer: LayerFile,
    below: Option<String>,
}

impl Files {
    fn open(chain: &[NodeState], spec: &CommitSpec) -> Result<Self> {
        let untold = || Error::conflict("QEMU does not tell the files of these layers");
        let place = chain
            .iter()
            .position(|node| node.node_name == spec.base_node)
            .ok_or_else(untold)?;
        let base = chain.get(place).ok_or_else(untold)?;
        let top = chain
            .iter()
            .position(|node| node.node_name == spec.top_node)
            .unwrap_or(place);
        let base_path = base.path.as_deref().ok_or_else(untold)?;
        let above = match chain.get(top + 1) {
            Some(node) => Some(node.path.as_deref().ok_or_else(untold)?),
            None => None,
        };
        let dirs = above.into_iter().chain([base_path]);
        let format = base.format.ok_or_else(untold)?;
        Ok(Self {
            base: Written::open(base_path)?,
            above: above.map(Written::open).transpose()?,
            dirs: dirs
                .filter_map(|path| path.parent().map(Path::to_owned))
                .collect(),
            layer: LayerFile::new(&base.node_name, base_path, format),
            below: place
                .checked_sub(1)
                .and_then(|below| chain.get(below))
                .map(|node| node.node_name.clone()),
        })
    }

    /// Opens the base anew as it is open: the one command that flushes a node and tells errors.
    async fn flush(&self, machine: &QemuMachine, writable: bool) -> Result<()> {
        let facts = FileFacts::of([&self.layer]);
        let [_, node] = layer_nodes(&self.layer, self.below.as_deref(), !writable, &facts)?;
        let options = json!({ "options": [node] });
        machine.execute("blockdev-reopen", options).await.map(drop)
    }

    async fn sync(&self) -> Result<()> {
        self.base.sync().await?;
        if let Some(above) = &self.above {
            above.sync().await?;
        }
        for dir in &self.dirs {
            Written::open(dir)?.sync().await?;
        }
        Ok(())
    }
}

/// The base is written by the job, and so is the header of the layer above; by nothing afterwards, unless it is the active layer. A
/// QEMU that may not open that layer for writing when the job ends does not say so: it crashes (seen with 10.0).
fn grant(
    machine: &QemuMachine,
    chain: &[NodeState],
    spec: &CommitSpec,
    access: Access,
) -> Result<()> {
    let place = |name: &str| chain.iter().position(|node| node.node_name == name);
    let above = place(&spec.top_node).map(|top| top + 1);
    let above = above.filter(|at| access == Access::Write || at + 1 < chain.len());
    let base = place(&spec.base_node);
    for node in base.into_iter().chain(above).filter_map(|at| chain.get(at)) {
        if let Some(path) = node.path.as_deref() {
            machine.grant(path, access)?;
        }
    }
    Ok(())
}

fn plan(chain: &[NodeState], spec: &CommitSpec) -> Result<Plan> {
    let place = |name: &str| chain.iter().position(|node| node.node_name == name);
    let base = place(&spec.base_node).ok_or_else(|| {
        Error::not_found(format!(
            "layer `{}` in drive `{}`",
            spec.base_node, spec.drive_id
        ))
    })?;
    let Some(top) = place(&spec.top_node) else {
        return Ok(Plan::Done);
    };
    if top <= base {
        return Err(Error::conflict(format!(
            "layer `{}` does not lie above `{}`",
            spec.top_node, spec.base_node
        )));
    }
    // QEMU only ever grows a base: bytes that a smaller layer had cut off would come back.
    let folded = chain.get(base + 1..=top).unwrap_or_default();
    let smallest = folded.iter().map(|node| node.size).min();
    if chain.get(base).map(|base| base.size) > smallest {
        return Err(Error::conflict(format!(
            "layer `{}` is larger than a layer above it: fold it while the machine is off",
            spec.base_node
        )));
    }
    Ok(if top + 1 < chain.len() {
        Plan::Middle
    } else {
        Plan::Active
    })
}

async fn start(
    machine: &QemuMachine,
    chain: &[NodeState],
    spec: &CommitSpec,
    job: &str,
    plan: &Plan,
) -> Result<()> {
    let mut arguments = json!({
        "job-id": job,
        "device": chain.last().map(|node| node.node_name.as_str()),
        "base-node": spec.base_node,
        "auto-dismiss": false,
    });
    if let (Plan::Middle, Some(members)) = (plan, arguments.as_object_mut()) {
        members.insert("top-node".into(), spec.top_node.as_str().into());
        // Without it QEMU records an absolute path, and the directory can no longer move.
        let name = match &spec.backing_name {
            Some(name) => name.clone(),
            None => recorded_name(chain, spec)?,
        };
        members.insert("backing-file".into(), name.into());
        members.insert("auto-finalize".into(), false.into());
    }
    machine.execute("block-commit", arguments).await.map(drop)
}

fn recorded_name(chain: &[NodeState], spec: &CommitSpec) -> Result<String> {
    let path = |name: &str| {
        chain
            .iter()
            .find(|node| node.node_name == name)
            .and_then(|node| node.path.clone())
    };
    let above = chain
        .iter()
        .skip_while(|node| node.node_name != spec.top_node)
        .nth(1)
        .and_then(|node| node.path.clone());
    match (above, path(&spec.base_node)) {
        (Some(above), Some(base)) => crate::layers::relative_name(&above, &base),
        _ => Err(Error::conflict(
            "QEMU does not tell the files of these layers",
        )),
    }
}

type Events = tokio::sync::broadcast::Receiver<MachineEvent>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// All is copied and nothing changed yet; or it ended before.
    Pending,
    /// It ended.
    Ended,
}

async fn find(machine: &QemuMachine, job: &str) -> Result<Option<JobState>> {
    let all = jobs(machine).await?;
    Ok(all.into_iter().find(|state| state.id == job))
}

async fn follow(
    machine: &QemuMachine,
    job: &str,
    events: &mut Events,
    control: &JobControl,
    until: Until,
) -> Result<JobState> {
    let mut cancel_sent = false;
    let mut completing = false;
    loop {
        let Some(state) = find(machine, job).await? else {
            // Dismissed by somebody else; the graph, read again by the caller's next attempt, tells what happened.
            return Err(Error::Job {
                job: job.to_owned(),
                desc: "the job vanished".to_owned(),
            });
        };
        control.report(Progress {
            done: state.done,
            total: state.total,
        });
        match state.status.as_str() {
            "concluded" => return Ok(state),
            "pending" if until == Until::Pending && !control.is_cancelled() => return Ok(state),
            "ready" if !cancel_sent && !completing && !control.is_cancelled() => {
                machine
                    .execute("job-complete", json!({ "id": job }))
                    .await?;
                completing = true;
            }
            "aborting" | "null" => {}
            // On its way to the end, not a stop on the way there.
            "pending" if until == Until::Ended => {}
            _ if control.is_cancelled() && !cancel_sent && !completing => {
                cancel_sent = true;
                match machine.execute("job-cancel", json!({ "id": job })).await {
                    // It was just past its last step.
                    Ok(_) | Err(Error::Qmp { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            _ => {}
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = changed(events, job) => {}
            () = control.cancelled(), if !cancel_sent && !completing => {}
        }
    }
}

/// Waits for news of the job. Lost events only cost until the next look.
async fn changed(events: &mut Events, job: &str) {
    loop {
        match events.recv().await {
            Ok(MachineEvent::JobStatus { id, .. } | MachineEvent::JobDone { id, .. })
                if id == job =>
            {
                return;
            }
            Ok(_) => {}
            Err(_) => return tokio::time::sleep(LOOK).await,
        }
    }
}

/// What an ended job says. One that failed is cleared away; one that did not stays, as the proof.
async fn verdict(machine: &QemuMachine, state: JobState, cancelled: bool) -> Result<()> {
    let Some(desc) = state.error else {
        return Ok(());
    };
    dismiss(machine, &state.id).await?;
    if cancelled {
        return Err(Error::Cancelled);
    }
    Err(Error::Job {
        job: state.id,
        desc,
    })
}

async fn dismiss(machine: &QemuMachine, job: &str) -> Result<()> {
    machine
        .execute("job-dismiss", json!({ "id": job }))
        .await
        .map(drop)
}

/// Closes layers that were merged, by their files, and clears their jobs away. What is still part of a disk is left alone.
pub(super) async fn drop_merged(machine: &QemuMachine, files: &[PathBuf]) -> Result<()> {
    let graph = Graph::read(machine).await?;
    let loose = graph.loose();
    let mut nodes = Vec::new();
    for file in files {
        let node = graph.node_of_path(machine, file).await?;
        nodes.extend(node.filter(|node| loose.contains(node)));
    }
    // From above: QEMU keeps what another layer lies on.
    nodes.sort_by_key(|node| std::cmp::Reverse(graph.downwards(node).len()));
    for node in nodes {
        let job = names::commit_job(&node);
        if let Some(state) = find(machine, &job).await?
            && state.status == "concluded"
        {
            dismiss(machine, &job).await?;
        }
        machine.delete_layer(&node).await?;
    }
    Ok(())
}
