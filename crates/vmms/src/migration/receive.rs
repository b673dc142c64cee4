//! The destination's job: as long as it runs, a machine may come.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use engine::{Claims, Recovery, Work};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::permit::{Arrival, ArrivalState};
use super::{MigrationKind, Phase, Progress, arrive};
use crate::job::{JobClass, JobContext, Machines, Service, Traits};
use crate::{Result, Vmms, fault, guid};

/// How often it is looked whether the source is still heard.
const LOOK: Duration = Duration::from_secs(1);

/// Receives a machine of another host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receive {
    /// The move.
    pub id: Uuid,
    /// The machine.
    pub vm: Uuid,
    /// Its name.
    pub name: String,
}

/// When sources were heard last.
#[derive(Default)]
pub(crate) struct Heard(Mutex<HashMap<Uuid, Instant>>);

impl Heard {
    /// The source of that move is there.
    pub(crate) fn from(&self, id: Uuid) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.insert(id, Instant::now());
    }

    /// For how long it was not. A service that has just started begins to listen now.
    fn silent(&self, id: Uuid) -> Duration {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.entry(id).or_insert_with(Instant::now).elapsed()
    }

    fn forget(&self, id: Uuid) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.remove(&id);
    }
}

/// What the job tells from the first moment.
pub(crate) fn progress(vmms: &Vmms, arrival: &Arrival, kind: MigrationKind) -> Progress {
    Progress {
        incoming: true,
        source: arrival.from.clone(),
        destination: vmms.host.clone(),
        phase: Phase::CopyingFiles,
        file_total: arrival.cargo.as_ref().map_or(0, |cargo| cargo.bytes()),
        ..Progress::new(kind, arrival.vm, &arrival.name)
    }
}

#[async_trait]
impl Work<Machines> for Receive {
    fn traits(&self) -> Traits {
        Traits::new(
            JobClass::Migration,
            Service::Migration,
            307,
            "Receiving a virtual machine",
            Recovery::Resume,
        )
    }

    fn claims(&self) -> Claims {
        Claims::of_no_machine(&[self.vm])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        let mut changes = vmms.db.changes();
        let patience = vmms.options.patience.destination;
        loop {
            let arrival = vmms.db.get::<Arrival>(self.id)?;
            match arrival.state {
                ArrivalState::Mine => break,
                ArrivalState::Ended => {
                    let ended = || fault!(MoveEnded, self.name);
                    return Err(arrival.why.clone().unwrap_or_else(ended));
                }
                ArrivalState::Incoming => {}
            }
            if vmms.moves.heard.silent(self.id) > patience {
                let why = fault!(SourceSilent, arrival.from, self.name, patience.as_secs());
                arrive::end(vmms, self.id, why, true).await?;
                continue;
            }
            tokio::select! {
                changed = changes.changed() => {
                    changed.map_err(|_| fault!(ServiceEnding))?;
                }
                stop = ctx.stop_asked() => return Err(stop),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        vmms.moves.heard.forget(self.id);
        tracing::info!(vm = %guid(self.vm), "a machine has come from another host");
        ctx.output(|output| {
            if let Some(progress) = &mut output.migration {
                progress.phase = Phase::Done;
                progress.file_bytes = progress.file_total;
            }
        })
        .await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        let stopped = vmms.job(ctx.job()).ok().and_then(|job| job.stopped_by);
        let by = stopped.unwrap_or_else(|| "the service".to_owned());
        let why = fault!(MoveStopped, self.name, vmms.host, by);
        arrive::end(vmms, self.id, why, false).await?;
        vmms.moves.heard.forget(self.id);
        Ok(())
    }
}
