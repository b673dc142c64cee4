//! Starting machines when the host has booted: once for each boot, whatever becomes of the service meanwhile.
//!
//! The first service of a boot makes the plan: what is to be started, and when. Plan and boot are one record, durable before
//! anything of it is done; each machine leaves the plan when its start has ended. A service that is restarted goes on with what
//! is left; where there is no plan left, a restart starts nothing.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Asked, Power, Vm, request_state};
use crate::job::Job;
use crate::machine::StateChange;
use crate::{Result, Vmms, guid};

/// The one record of its kind.
const ONE: Uuid = Uuid::nil();
/// AutomaticStartupAction.
const IF_ACTIVE: u16 = 3;
const ALWAYS: u16 = 4;

/// What is stored of the host's boot under `host-boot/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostBoot {
    /// Always the same.
    pub id: Uuid,
    /// The kernel's name of the boot the service was last started in.
    pub boot: String,
    /// Machines that are still to be started in this boot.
    #[serde(default)]
    pub waiting: Vec<Waiting>,
    /// Machines that were ended because the host goes down.
    #[serde(default)]
    pub active: Vec<Active>,
}

/// A machine that is to be started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// The machine.
    pub vm: Uuid,
    /// From when on, as time since the host booted.
    pub due: Duration,
    /// Its place: lower numbers first, 0 has none.
    pub sequence: u16,
    /// When its power state had changed last: whoever changed it since has decided. `None` before that is known.
    pub changed: Option<SystemTime>,
}

/// A machine that ran when the host went down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Active {
    /// The machine.
    pub vm: Uuid,
    /// When it was off or saved then: whoever changed it since has decided. `None` while it is being ended.
    pub changed: Option<SystemTime>,
}

impl store::Versioned for HostBoot {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}

/// What tells boots apart: the host, or a test.
#[derive(Clone)]
pub struct BootOptions {
    /// The kernel's name of this boot; empty where there is none, and then nothing is started by itself.
    pub id: Arc<dyn Fn() -> String + Send + Sync>,
    /// How long ago that was.
    pub uptime: Arc<dyn Fn() -> Duration + Send + Sync>,
}

impl Default for BootOptions {
    fn default() -> Self {
        BootOptions {
            id: Arc::new(hypervisor::host::boot_id),
            uptime: Arc::new(hypervisor::host::uptime),
        }
    }
}

impl fmt::Debug for BootOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BootOptions")
    }
}

/// What the service remembers of starts that it asked for.
#[derive(Default)]
pub(crate) struct Starts {
    first_of_boot: AtomicBool,
    busy: AtomicBool,
    /// Set while the host goes down.
    pub(super) ending: AtomicBool,
    jobs: Mutex<HashMap<Uuid, Uuid>>,
}

impl Starts {
    /// Whether the host has booted since the service ran last.
    pub(super) fn first_of_boot(&self) -> bool {
        self.first_of_boot.load(Ordering::Acquire)
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<Uuid, Uuid>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vmms {
    /// Whether a machine is still to be started because the host has booted.
    pub fn waits_to_start(&self, vm: Uuid) -> bool {
        let host = self.db.get::<HostBoot>(ONE);
        host.is_ok_and(|host| host.waiting.iter().any(|w| w.vm == vm))
    }
}

/// Makes the plan of a new boot. Before the machines are looked for: their records still say what ran.
pub(super) async fn plan(vmms: &Vmms) -> Result<()> {
    let boot = (vmms.options.boot.id)();
    let uptime = (vmms.options.boot.uptime)();
    let known = vmms.db.get::<HostBoot>(ONE).ok();
    let first = match &known {
        _ if boot.is_empty() => false,
        Some(known) => known.boot != boot,
        // Records of a version that kept none: this boot is new where nothing has happened in it.
        None => nothing_since(vmms, SystemTime::now() - uptime),
    };
    if known.is_some() && !first {
        return Ok(());
    }
    vmms.starts.first_of_boot.store(first, Ordering::Release);
    let active = known.map_or_else(Vec::new, |k| k.active.clone());
    let mut waiting = Vec::new();
    for vm in vmms.db.all::<Vm>() {
        let ran = matches!(vm.power, Power::Running | Power::Paused);
        let was_ended = active
            .iter()
            .any(|a| a.vm == vm.id && a.changed.is_none_or(|at| at == vm.power_changed));
        let wanted = match vm.settings.automatic_startup_action {
            ALWAYS => true,
            IF_ACTIVE => ran || was_ended,
            _ => false,
        };
        if first && wanted && !vm.planned {
            waiting.push(Waiting {
                vm: vm.id,
                due: uptime + Duration::from_secs(vm.settings.automatic_startup_delay),
                sequence: vm.settings.automatic_startup_sequence,
                changed: None,
            });
        }
    }
    if !waiting.is_empty() {
        tracing::info!(
            machines = waiting.len(),
            "the host has booted: machines will be started"
        );
    }
    let host = HostBoot {
        id: ONE,
        boot,
        waiting,
        active: Vec::new(),
    };
    vmms.db
        .change(|draft| {
            draft.put(host);
            Ok(())
        })
        .await
}

/// Whether no machine was changed or switched since `boot`.
fn nothing_since(vmms: &Vmms, boot: SystemTime) -> bool {
    let all = vmms.db.all::<Vm>();
    let mut times = all
        .iter()
        .flat_map(|vm| [vm.created, vm.changed, vm.power_changed]);
    times.all(|at| at < boot)
}

/// Notes how the machines are once they were looked for. What happens to one from here on, somebody has decided.
pub(super) async fn begin_starts(vmms: &Vmms) -> Result<()> {
    let Ok(host) = vmms.db.get::<HostBoot>(ONE) else {
        return Ok(());
    };
    let open = host.waiting.iter().any(|w| w.changed.is_none())
        || host.active.iter().any(|a| a.changed.is_none());
    if !open {
        return Ok(());
    }
    vmms.db
        .change(|draft| {
            let machines = draft.all::<Vm>();
            let changed = |vm| {
                machines
                    .iter()
                    .find(|m| m.id == vm)
                    .map(|m| m.power_changed)
            };
            let host = draft.get_mut::<HostBoot>(ONE)?;
            for waiting in &mut host.waiting {
                waiting.changed = waiting.changed.or_else(|| changed(waiting.vm));
            }
            for active in &mut host.active {
                active.changed = active.changed.or_else(|| changed(active.vm));
            }
            Ok(())
        })
        .await
}

/// Notes that these machines run now and are about to be ended because the host goes down. Those that were ended for it before and
/// were left alone since stay noted, and those that still wait for their start wait for the next boot.
pub(super) async fn note_active(vmms: &Vmms, machines: &[Uuid]) -> Result<()> {
    vmms.db
        .change(|draft| {
            let all = draft.all::<Vm>();
            let Ok(host) = draft.get_mut::<HostBoot>(ONE) else {
                return Ok(());
            };
            let waiting = std::mem::take(&mut host.waiting).into_iter();
            host.active.extend(waiting.map(|w| Active {
                vm: w.vm,
                changed: w.changed,
            }));
            host.active.retain(|a| {
                let vm = all.iter().find(|vm| vm.id == a.vm);
                vm.is_some_and(|vm| a.changed == Some(vm.power_changed))
                    && !machines.contains(&a.vm)
            });
            host.active.extend(machines.iter().map(|vm| Active {
                vm: *vm,
                changed: None,
            }));
            Ok(())
        })
        .await
}

/// Comes round: starts what is due.
pub(super) fn look(vmms: &Arc<Vmms>) {
    let waiting = vmms.db.get::<HostBoot>(ONE);
    if !waiting.is_ok_and(|host| !host.waiting.is_empty())
        || vmms.starts.ending.load(Ordering::Acquire)
        || vmms.starts.busy.swap(true, Ordering::AcqRel)
    {
        return;
    }
    let vmms = Arc::clone(vmms);
    tokio::spawn(async move {
        if let Err(error) = start_due(&vmms).await {
            tracing::error!(%error, "machines could not be started by themselves; it is tried again");
        }
        vmms.starts.busy.store(false, Ordering::Release);
    });
}

async fn start_due(vmms: &Arc<Vmms>) -> Result<()> {
    let host = vmms.db.get::<HostBoot>(ONE)?;
    let uptime = (vmms.options.boot.uptime)();
    let mut done: Vec<Uuid> = Vec::new();
    let mut ahead: Vec<&Waiting> = Vec::new();
    let mut order: Vec<&Waiting> = host.waiting.iter().collect();
    order.sort_by_key(|w| (w.sequence, w.due));
    for waiting in order {
        let asked = vmms.starts.jobs().get(&waiting.vm).copied();
        if let Some(job) = asked {
            match vmms.db.get::<Job>(job) {
                Ok(job) if !job.state.is_final() => ahead.push(waiting),
                _ => done.push(waiting.vm),
            }
            continue;
        }
        if !is_wanted(vmms, waiting) {
            done.push(waiting.vm);
            continue;
        }
        // Whatever has a lower number and is due has been started before.
        let waits = waiting.sequence != 0
            && ahead
                .iter()
                .any(|a| a.sequence != 0 && a.sequence < waiting.sequence);
        if waiting.due > uptime {
            continue;
        }
        ahead.push(waiting);
        if waits {
            continue;
        }
        let asked = Asked {
            owner: "automatic start".to_owned(),
            request_key: None,
        };
        match request_state(vmms, waiting.vm, StateChange::Start, &asked).await {
            Ok(job) => {
                tracing::info!(vm = %guid(waiting.vm), job = %guid(job), "started by itself: the host has booted");
                vmms.starts.jobs().insert(waiting.vm, job);
            }
            // Something else works on it: it comes round again.
            Err(error) if error.kind() == crate::Kind::InUse => {}
            Err(error) => {
                tracing::error!(vm = %guid(waiting.vm), %error, "automatic start failed");
                done.push(waiting.vm);
            }
        }
    }
    if done.is_empty() {
        return Ok(());
    }
    vmms.db
        .change(|draft| {
            let host = draft.get_mut::<HostBoot>(ONE)?;
            host.waiting.retain(|w| !done.contains(&w.vm));
            Ok(())
        })
        .await?;
    let mut jobs = vmms.starts.jobs();
    jobs.retain(|vm, _| !done.contains(vm));
    Ok(())
}

/// Whether nobody has decided otherwise since the plan was made.
fn is_wanted(vmms: &Vmms, waiting: &Waiting) -> bool {
    let Ok(vm) = vmms.db.get::<Vm>(waiting.vm) else {
        return false;
    };
    matches!(vm.power, Power::Off | Power::Saved)
        && !vm.planned
        && matches!(vm.settings.automatic_startup_action, IF_ACTIVE | ALWAYS)
        && waiting.changed == Some(vm.power_changed)
}
