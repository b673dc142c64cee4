//! Telling a refusal.

use std::sync::Arc;

use async_trait::async_trait;
use engine::{Claims, Recovery, Work};
use serde::{Deserialize, Serialize};

use super::{JobClass, JobContext, Machines, Service, Traits};
use crate::{Fault, Result, Vmms};

/// Tells why something that was asked for cannot be done: what was looked at when it was asked for did not allow it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refuse {
    /// The class the job has.
    pub class: JobClass,
    /// The service it belongs to.
    pub service: Service,
    /// Its JobType.
    pub job_type: u16,
    /// Why.
    pub fault: Fault,
}

#[async_trait]
impl Work<Machines> for Refuse {
    fn traits(&self) -> Traits {
        let title = "Checking what was asked for";
        let of = (self.class, self.service, self.job_type);
        Traits::new(of.0, of.1, of.2, title, Recovery::Resume).to_the_end()
    }

    fn claims(&self) -> Claims {
        Claims::of_no_machine(&[])
    }

    async fn run(&self, _vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        Err(self.fault.clone())
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        Ok(())
    }
}
