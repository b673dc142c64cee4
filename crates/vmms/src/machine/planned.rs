//! Planned machines: imported, not yet running ones, which a client may still change, check, and then make real.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Asked, Power, Vm, check_images, spec, validate};
use crate::job::{JobContext, Machines, Service, Traits, concrete};
use crate::{Effect, Element, Fault, Result, Vmms, fault};

/// Checks whether a planned machine could be made real.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidatePlanned {
    /// The machine.
    pub vm: Uuid,
}

#[async_trait]
impl Work<Machines> for ValidatePlanned {
    fn traits(&self) -> Traits {
        concrete(
            Service::Management,
            140,
            "Validating a planned virtual machine",
            Recovery::Undo,
        )
    }

    fn claims(&self) -> Claims {
        Claims::of_machine(self.vm, Access::Shared, Layers::Kept, &[])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run_validate(vmms, ctx, self.vm).await
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        Ok(())
    }
}

/// Makes a planned machine real.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Realize {
    /// The machine.
    pub vm: Uuid,
}

#[async_trait]
impl Work<Machines> for Realize {
    fn traits(&self) -> Traits {
        concrete(
            Service::Management,
            141,
            "Realizing a planned virtual machine",
            Recovery::Resume,
        )
        .to_the_end()
    }

    fn claims(&self) -> Claims {
        Claims::of_machine(self.vm, Access::Alone, Layers::Kept, &[])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run_realize(vmms, ctx, self.vm).await
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        // One transaction: whole or not at all.
        Ok(())
    }
}

fn planned(vmms: &Vmms, id: Uuid, what: &str) -> Result<Arc<Vm>> {
    let record = vmms.db.get::<Vm>(id)?;
    if record.planned {
        return Ok(record);
    }
    Err(fault!(WrongVmState, record.name, "realized", what, "planned").about(Element::Vm(id)))
}

/// Starts a job that looks whether a planned machine could be made real and started here; returns the job. It fails with
/// every reason against it.
pub async fn validate_planned(vmms: &Arc<Vmms>, id: Uuid, asked: &Asked) -> Result<Uuid> {
    planned(vmms, id, "validating")?;
    let affected = vec![(Element::Vm(id), Effect::Other)];
    vmms.submit(ValidatePlanned { vm: id }, asked.submission(affected))
        .await
}

/// Starts a job that makes a planned machine real, under the same GUID; returns the job.
pub async fn realize(vmms: &Arc<Vmms>, id: Uuid, asked: &Asked) -> Result<Uuid> {
    planned(vmms, id, "realizing")?;
    let affected = vec![(Element::Vm(id), Effect::ExclusiveUse)];
    vmms.submit(Realize { vm: id }, asked.submission(affected))
        .await
}

/// Everything that speaks against a machine on this host.
async fn objections(vmms: &Arc<Vmms>, vm: &Vm) -> Vec<Fault> {
    let mut found = Vec::new();
    found.extend(validate(vm).err());
    let all: Vec<Vm> = vmms.db.all::<Vm>().iter().map(|v| (**v).clone()).collect();
    found.extend(check_images(&all, vm).err());
    match spec::machine_config(vm, &vmms.dirs, &vmms.options) {
        Err(error) => found.push(error),
        Ok(config) => {
            for layer in config.drives.iter().flat_map(|d| &d.chain) {
                let there = std::fs::metadata(&layer.path);
                found.extend(there.err().map(|e| Fault::io("open", &layer.path, &e)));
            }
            match vmms.hypervisor.features().await {
                Err(error) => found.push(fault!(Hypervisor).caused_by(error)),
                Ok(features) => found.extend(features.machine_type(&config).err().map(Fault::from)),
            }
        }
    }
    found
}

/// Checks.
pub(crate) async fn run_validate(vmms: &Arc<Vmms>, ctx: &JobContext, id: Uuid) -> Result<()> {
    ctx.checkpoint().await?;
    let record = planned(vmms, id, "validating")?;
    refuse(&record, objections(vmms, &record).await)
}

fn refuse(record: &Vm, found: Vec<Fault>) -> Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    let mut failed = fault!(PlannedUnfit, record.name, found.len()).about(Element::Vm(record.id));
    failed.causes = found;
    Err(failed)
}

/// Makes it real. What speaks against it is told first.
pub(crate) async fn run_realize(vmms: &Arc<Vmms>, ctx: &JobContext, id: Uuid) -> Result<()> {
    ctx.checkpoint().await?;
    let _lock = vmms.lock(id).await;
    let record = vmms.db.get::<Vm>(id)?;
    // Run again after a restart.
    if !record.planned {
        return Ok(());
    }
    refuse(&record, objections(vmms, &record).await)?;
    vmms.db
        .change(|draft| {
            let all = draft.all::<Vm>();
            let vm = draft.get_mut::<Vm>(id)?;
            check_images(&all, vm)?;
            vm.planned = false;
            vm.changed = SystemTime::now();
            if vm.saved_state.is_none() {
                vm.power = Power::Off;
            }
            Ok(())
        })
        .await
}
