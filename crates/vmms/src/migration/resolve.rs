//! What a person decides where the two hosts cannot, and what goes on after a restart.

use std::sync::Arc;

use uuid::Uuid;

use super::depart::Depart;
use super::permit::{Permit, PermitState};
use super::{MoveOptions, Request};
use crate::machine::{Asked, Vm};
use crate::{Effect, Element, Result, Vmms, fault, guid};

/// What a person decides of a machine whose destination does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It never came there, or what came is given up: it is this host's. Where the destination has it after all, two machines run.
    Here,
    /// It is there: what is left of it here is removed. Where it never came there, it is lost.
    There,
}

/// Decides a move whose outcome nobody knows. The move's job goes on with it.
///
/// # Errors
/// [`crate::Message::NotInDoubt`]; the store.
pub async fn resolve(vmms: &Arc<Vmms>, vm: Uuid, verdict: Verdict, asked: &Asked) -> Result<()> {
    let name = vmms.db.get::<Vm>(vm)?.name.clone();
    let not = || fault!(NotInDoubt, name).about(Element::Vm(vm));
    let permit = vmms.db.get::<Permit>(vm).map_err(|_| not())?;
    vmms.db
        .change(|draft| {
            let permit = draft.get_mut::<Permit>(vm)?;
            if permit.state != PermitState::Granted || permit.doubt.is_none() {
                return Err(not());
            }
            permit.doubt = None;
            permit.state = match verdict {
                Verdict::Here => PermitState::Here,
                Verdict::There => PermitState::Gone,
            };
            Ok(())
        })
        .await?;
    tracing::warn!(vm = %guid(vm), ?verdict, by = asked.owner, "a person decided a move");
    if !vmms.is_driven(permit.job) {
        take_up(vmms, &permit, asked).await?;
    }
    Ok(())
}

/// Whether a machine may run here.
///
/// # Errors
/// [`crate::Message::MachineGranted`].
pub(crate) fn may_run(vmms: &Vmms, vm: Uuid) -> Result<()> {
    match vmms.db.get::<Permit>(vm) {
        Ok(permit) if permit.state != PermitState::Here => {
            let name = vmms
                .db
                .get::<Vm>(vm)
                .map_or_else(|_| guid(vm), |v| v.name.clone());
            let refused = fault!(MachineGranted, name, permit.destination);
            Err(permit
                .doubt
                .iter()
                .cloned()
                .fold(refused, crate::Fault::caused_by)
                .about(Element::Vm(vm)))
        }
        _ => Ok(()),
    }
}

async fn take_up(vmms: &Arc<Vmms>, permit: &Permit, asked: &Asked) -> Result<()> {
    let request = Request {
        vm: permit.id,
        destination: permit.destination.clone(),
        kind: permit.kind,
        options: MoveOptions::default(),
    };
    let affected = vec![(Element::Vm(permit.id), Effect::ExclusiveUse)];
    let mut submission = asked.submission(affected);
    submission.output.migration = Some(Box::new(super::depart::progress(vmms, &request)));
    vmms.submit(Depart { request }, submission).await.map(drop)
}

/// At the start of the service, once jobs are picked up: a machine that was granted is followed to its end, whatever became of its job.
pub(crate) async fn follow_up(vmms: &Arc<Vmms>) -> Result<()> {
    for permit in super::permits(vmms) {
        if vmms.is_driven(permit.job) {
            continue;
        }
        match permit.state {
            PermitState::Here => {
                vmms.db
                    .change(|draft| {
                        draft.delete::<Permit>(permit.id);
                        Ok(())
                    })
                    .await?;
            }
            PermitState::Granted | PermitState::Gone => {
                take_up(vmms, &permit, &Asked::default()).await?;
            }
        }
    }
    Ok(())
}

impl Permit {
    /// That a machine is about to move.
    pub(crate) fn new(request: &Request, job: Uuid, destination: &str) -> Self {
        Permit {
            id: request.vm,
            moving: job,
            job,
            destination: destination.to_owned(),
            kind: request.kind,
            state: PermitState::Here,
            live: false,
            doubt: None,
            leaves: Vec::new(),
        }
    }
}
