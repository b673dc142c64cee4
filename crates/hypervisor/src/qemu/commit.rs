//! Folding layers into the one beneath while the guest runs.

use std::time::Duration;

use serde_json::json;

use super::graph::{Graph, jobs};
use super::machine::QemuMachine;
use crate::block::{CommitOutcome, CommitSpec, JobControl, JobState, NodeState, Progress};
use crate::error::{Error, Result};
use crate::machine::MachineEvent;
use crate::names;

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
    // A job left by an earlier attempt: failed or cancelled ones are cleared away and started again.
    let mut adopted = jobs(machine)
        .await?
        .into_iter()
        .find(|state| state.id == job);
    if adopted
        .as_ref()
        .is_some_and(|state| state.status == "concluded")
    {
        dismiss(machine, &job).await?;
        adopted = None;
    }
    let graph = Graph::read(machine).await?;
    let chain = graph.chain_facts(machine, &spec.drive_id).await?;
    let outcome = match plan(&chain, spec)? {
        Plan::Done => CommitOutcome::AlreadyDone,
        plan => {
            if control.is_cancelled() && adopted.is_none() {
                return Err(Error::Cancelled);
            }
            if adopted.is_none() {
                start(machine, &chain, spec, &job, &plan).await?;
            }
            // The base may grow, whatever becomes of the job.
            machine.facts().forget(&spec.base_node);
            let ended = watch(machine, &job, events, control).await;
            machine.facts().forget(&spec.base_node);
            ended?;
            CommitOutcome::Committed
        }
    };
    close_committed(machine, spec).await?;
    Ok(outcome)
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

async fn watch(
    machine: &QemuMachine,
    job: &str,
    mut events: tokio::sync::broadcast::Receiver<MachineEvent>,
    control: &JobControl,
) -> Result<()> {
    let mut cancel_sent = false;
    let mut completing = false;
    loop {
        let Some(state) = jobs(machine)
            .await?
            .into_iter()
            .find(|state| state.id == job)
        else {
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
            "concluded" => {
                dismiss(machine, job).await?;
                return verdict(state, cancel_sent);
            }
            "ready" if !cancel_sent && !completing && !control.is_cancelled() => {
                machine
                    .execute("job-complete", json!({ "id": job }))
                    .await?;
                completing = true;
            }
            "aborting" | "pending" | "null" => {}
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
            () = changed(&mut events, job) => {}
            () = control.cancelled(), if !cancel_sent && !completing => {}
        }
    }
}

/// Waits for news of the job. Lost events only cost until the next look.
async fn changed(events: &mut tokio::sync::broadcast::Receiver<MachineEvent>, job: &str) {
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

fn verdict(state: JobState, cancelled: bool) -> Result<()> {
    match state.error {
        None => Ok(()),
        Some(_) if cancelled => Err(Error::Cancelled),
        Some(desc) => Err(Error::Job {
            job: state.id,
            desc,
        }),
    }
}

async fn dismiss(machine: &QemuMachine, job: &str) -> Result<()> {
    machine
        .execute("job-dismiss", json!({ "id": job }))
        .await
        .map(drop)
}

/// Closes the layers that went, also those of an earlier attempt: from the top node down to the base.
async fn close_committed(machine: &QemuMachine, spec: &CommitSpec) -> Result<()> {
    let graph = Graph::read(machine).await?;
    let used = graph.used();
    let gone: Vec<String> = graph
        .downwards(&spec.top_node)
        .into_iter()
        .take_while(|name| *name != spec.base_node && !used.contains(name))
        .collect();
    for node in gone {
        machine.delete_layer(&node).await?;
    }
    Ok(())
}
