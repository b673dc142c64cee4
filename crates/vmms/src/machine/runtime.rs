//! What is known of a machine's process while the service runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use hypervisor::Machine;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::health::Failures;
use super::{Power, Vm};

/// The state of a machine as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VmState {
    /// No process.
    Off,
    /// The process is being started.
    Starting,
    /// The guest runs.
    Running,
    /// The guest is being paused.
    Pausing,
    /// The guest is paused.
    Paused,
    /// The guest stands still because a request to a disk failed.
    PausedByFailure,
    /// The guest is being resumed.
    Resuming,
    /// Memory is being written to a file.
    Saving,
    /// No process; memory is in a file.
    Saved,
    /// The guest is shutting down.
    ShuttingDown,
    /// The process is being ended.
    Stopping,
}

impl VmState {
    /// A word for people.
    pub fn word(self) -> &'static str {
        match self {
            VmState::Off => "off",
            VmState::Starting => "starting",
            VmState::Running => "running",
            VmState::Pausing => "pausing",
            VmState::Paused => "paused",
            VmState::PausedByFailure => "paused by a failure",
            VmState::Resuming => "resuming",
            VmState::Saving => "saving",
            VmState::Saved => "saved",
            VmState::ShuttingDown => "shutting down",
            VmState::Stopping => "stopping",
        }
    }
}

impl From<Power> for VmState {
    fn from(power: Power) -> Self {
        match power {
            Power::Off => VmState::Off,
            Power::Running => VmState::Running,
            Power::Paused => VmState::Paused,
            Power::Saved => VmState::Saved,
        }
    }
}

/// The volatile side of a machine.
#[derive(Default)]
pub struct Runtime {
    lock: Arc<AsyncMutex<()>>,
    inner: Mutex<Inner>,
    failures: Mutex<Failures>,
}

#[derive(Default)]
struct Inner {
    machine: Option<Arc<dyn Machine>>,
    transition: Option<VmState>,
    up_since: Option<SystemTime>,
    stops: u64,
}

impl Runtime {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn failures(&self) -> std::sync::MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, if nobody holds it.
    pub(super) fn try_lock(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.lock).try_lock_owned().ok()
    }

    pub(crate) async fn lock(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.lock).lock_owned().await
    }

    pub(crate) fn machine(&self) -> Option<Arc<dyn Machine>> {
        self.inner().machine.clone()
    }

    pub(crate) fn set_machine(&self, machine: Option<Arc<dyn Machine>>) {
        let mut inner = self.inner();
        inner.up_since = machine.is_some().then(SystemTime::now);
        inner.machine = machine;
    }

    /// Forgets `machine` if it is still the one known: a restarted machine must not lose its new process.
    pub(crate) fn clear_machine(&self, machine: &Arc<dyn Machine>) -> bool {
        let mut inner = self.inner();
        let same = inner
            .machine
            .as_ref()
            .is_some_and(|m| Arc::ptr_eq(m, machine));
        if same {
            inner.machine = None;
            inner.up_since = None;
            *self.failures() = Failures::default();
        }
        same
    }

    pub(crate) fn set_transition(&self, transition: Option<VmState>) {
        self.inner().transition = transition;
    }

    /// The machine is turned off on request.
    pub(crate) fn stopped(&self) {
        self.inner().stops += 1;
    }

    /// How often it was turned off on request.
    pub(crate) fn stops(&self) -> u64 {
        self.inner().stops
    }

    /// When the process was started or found.
    pub fn up_since(&self) -> Option<SystemTime> {
        self.inner().up_since
    }

    /// The state to show: a transition in progress, else what is stored.
    pub fn state(&self, vm: &Vm) -> VmState {
        match (self.inner().transition, vm.power) {
            (Some(transition), _) => transition,
            (None, Power::Running) if self.stopped_by().is_some() => VmState::PausedByFailure,
            (None, power) => power.into(),
        }
    }
}
