//! Whether a machine could move: looked at on both sides, with nothing changed.

use std::sync::Arc;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::cargo::gather;
use super::depart::{progress, proposal, served};
use super::link::{ANSWER, Link};
use super::said::{Answer, Ask};
use super::{Request, hosts};
use crate::job::{JobClass, JobContext, Machines, Service, Traits};
use crate::machine::{Asked, Power, Vm};
use crate::{Effect, Element, Result, Vmms, fault};

/// Looks whether a machine could move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// What would be asked for.
    pub request: Request,
}

/// What would move.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlanReport {
    /// The host.
    pub destination: String,
    /// Files.
    pub files: u64,
    /// Bytes that they take.
    pub file_bytes: u64,
    /// Bytes of them that are not there yet.
    pub missing_bytes: u64,
    /// Bytes of memory of a guest that runs.
    pub memory_bytes: u64,
    /// Reference points.
    pub points: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// What happens, in sentences.
    pub lines: Vec<String>,
    /// What may go wrong, in sentences.
    pub risks: Vec<String>,
}

#[async_trait]
impl Work<Machines> for Look {
    fn traits(&self) -> Traits {
        Traits::new(
            JobClass::Migration,
            Service::Migration,
            self.request.kind.look_job_type(),
            "Checking whether a virtual machine can be moved",
            Recovery::Undo,
        )
    }

    fn claims(&self) -> Claims {
        Claims::of_machine(self.request.vm, Access::Shared, Layers::Kept, &[])
    }

    async fn run(&self, vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        check_now(vmms, &self.request).await
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        Ok(())
    }
}

/// Starts a job that looks whether a machine could move; it fails with every reason against it.
///
/// # Errors
/// [`crate::Message::VmNotFound`], [`crate::Message::VmBusy`]; the store.
pub async fn check(vmms: &Arc<Vmms>, request: Request, asked: &Asked) -> Result<Uuid> {
    let vm = request.vm;
    vmms.db.get::<Vm>(vm)?;
    let mut submission = asked.submission(vec![(Element::Vm(vm), Effect::Other)]);
    submission.output.migration = Some(Box::new(progress(vmms, &request)));
    vmms.submit(Look { request }, submission).await
}

/// The same at once.
///
/// # Errors
/// Everything that speaks against it.
pub async fn check_now(vmms: &Arc<Vmms>, request: &Request) -> Result<()> {
    plan(vmms, request).await.map(drop)
}

/// What would move, and how much of it.
///
/// # Errors
/// Everything that speaks against it.
pub async fn plan(vmms: &Arc<Vmms>, request: &Request) -> Result<PlanReport> {
    let vm = vmms.db.get::<Vm>(request.vm)?;
    let asked = async {
        served(vmms, request)?;
        let host = hosts::named(vmms, &request.destination)?;
        let cargo = gather(vmms, request.vm)?;
        let mut report = PlanReport {
            destination: host.name.clone(),
            files: cargo.files.len() as u64,
            file_bytes: cargo.bytes(),
            memory_bytes: match vm.power {
                Power::Running | Power::Paused => vm.memory.quantity << 20,
                Power::Off | Power::Saved => 0,
            },
            points: cargo.points.len() as u64,
            snapshots: cargo.snapshots.len() as u64,
            ..PlanReport::default()
        };
        for file in &cargo.files {
            let (path, bytes) = (file.path.display(), file.allocated);
            report
                .lines
                .push(format!("{path}: {bytes} bytes are copied"));
        }
        let proposal = Box::new(proposal(request, Uuid::nil(), cargo));
        let mut link = Link::to(vmms, &host, &request.options.addresses).await?;
        match link.ask(&Ask::Look(proposal), ANSWER).await? {
            Answer::Fits { risks, bytes } => {
                report.risks = risks;
                report.missing_bytes = bytes;
                Ok(report)
            }
            other => Err(fault!(Internal, format!("{other:?} to a look"))),
        }
    };
    asked.await.map_err(|failure| {
        fault!(MoveFailed, vm.name, request.destination)
            .about(Element::Vm(request.vm))
            .caused_by(failure)
    })
}
