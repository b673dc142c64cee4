//! Asking for another state of a machine.

use std::sync::Arc;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::job::{JobContext, Machines, Service, Traits, concrete};
use crate::{Result, Vmms};

/// A state a machine can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StateChange {
    /// Start it; from saved: restore it; from paused: go on.
    Start,
    /// Switch it off hard.
    Stop,
    /// Ask the guest to shut down.
    Shutdown,
    /// Pause the guest.
    Pause,
    /// Save memory to a file and end the process.
    Save,
    /// Ask the guest to reboot.
    Reboot,
    /// Reset it hard.
    Reset,
}

impl StateChange {
    /// How it takes the machine: turning it off overtakes what waits for the guest.
    pub(crate) fn access(self) -> Access {
        Access::State {
            last_word: self == StateChange::Stop,
            waits: matches!(self, StateChange::Shutdown | StateChange::Reboot),
        }
    }
}

/// Brings a machine into another state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangeState {
    /// The machine.
    pub vm: Uuid,
    /// The state.
    pub to: StateChange,
}

#[async_trait]
impl Work<Machines> for ChangeState {
    fn traits(&self) -> Traits {
        let (job_type, title) = match self.to {
            StateChange::Start => (12, "Starting the virtual machine"),
            StateChange::Stop => (13, "Turning the virtual machine off"),
            StateChange::Save => (14, "Saving the virtual machine"),
            StateChange::Shutdown => (16, "Shutting the guest down"),
            StateChange::Pause => (26, "Pausing the virtual machine"),
            StateChange::Reset => (28, "Resetting the virtual machine"),
            StateChange::Reboot => (29, "Rebooting the guest"),
        };
        let traits = concrete(Service::Management, job_type, title, Recovery::Undo);
        match self.to {
            StateChange::Shutdown => traits,
            _ => traits.to_the_end(),
        }
    }

    fn claims(&self) -> Claims {
        Claims::of_machine(self.vm, self.to.access(), Layers::Kept, &[])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        super::run_state_change(vmms, ctx, self.vm, self.to).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        super::undo_state_change(vmms, self.vm).await
    }
}
