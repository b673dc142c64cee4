//! One instant over several machines.
//!
//! ```text
//!  new layers ready   guests frozen   all stand still   disks marked   all go on   guests thawed
//!  ─── in parallel ─┬─ in parallel ─┬── in parallel ──┬─ in parallel ─┬───────────┬──────────────
//!                   a failure of any member ends it here: who was stopped goes on, who was frozen is thawed
//! ```
//! No member goes on before all are marked, so that nothing one guest heard of another is missing on the other's disks. Disks of
//! machines without a process do not change; they are marked while the others get ready.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use hypervisor::{Machine, MachineStatus, PreparedLayers, Quiesced};
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;
use uuid::Uuid;

use crate::instant::freeze::{self, FrozenGuest, Mode, Reached};
use crate::machine::{Power, Vm};
use crate::merge::PausedMerges;
use crate::point::create::Begun;
use crate::point::{Consistency, Decision};
use crate::{Element, Fault, Result, Vmms, fault, guid};

/// How often a guest that must go on is told so before it is left to the next start of the service.
const TRIES: u32 = 10;

/// A machine's lock, shared with what may have to outlive the job.
pub(super) type Lock = Arc<OwnedMutexGuard<()>>;

/// A member that takes part.
pub(super) struct Member {
    pub(super) begun: Begun,
    pub(super) lock: Lock,
    pub(super) _paused: PausedMerges,
}

/// What was reached, member by member in the order given.
pub(super) struct Together {
    pub(super) members: Vec<Part>,
    pub(super) instant: SystemTime,
    pub(super) skew: Duration,
    pub(super) skew_limit: Duration,
}

/// What one member reached.
pub(super) struct Part {
    pub(super) reached: Reached,
    pub(super) running: bool,
}

/// Which members failed, by their place, and why.
pub(super) type Failures = Vec<(usize, Fault)>;

/// Something a member does while the others do the same.
pub(super) type Doing<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Lets futures run side by side in this task; the answers are in their order.
pub(super) async fn side_by_side<T>(doing: Vec<Doing<'_, T>>) -> Vec<T> {
    let mut answers: Vec<Option<T>> = doing.iter().map(|_| None).collect();
    let mut waiting: Vec<Option<Doing<'_, T>>> = doing.into_iter().map(Some).collect();
    poll_fn(|cx| {
        for (slot, answer) in waiting.iter_mut().zip(&mut answers) {
            if let Some(future) = slot
                && let Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *answer = Some(value);
                *slot = None;
            }
        }
        if waiting.iter().all(Option::is_none) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    answers.into_iter().flatten().collect()
}

/// A member whose new layers are ready.
enum Ready {
    /// Through its process; whether its guest runs.
    Process {
        machine: Arc<dyn Machine>,
        prepared: PreparedLayers,
        runs: bool,
    },
    /// Its files are marked already.
    Files(Reached),
}

/// Marks the announced layers of all members at one instant. When this fails everybody goes on as before; the layers that
/// were put on top nevertheless are for `merge::reconcile` to find.
pub(super) async fn mark(
    vmms: &Vmms,
    members: &[Member],
    asked: Option<Consistency>,
) -> Result<Together, Failures> {
    let mut doing: Vec<Doing<'_, Result<Ready>>> = Vec::new();
    for member in members {
        doing.push(Box::pin(get_ready(vmms, member, asked)));
    }
    let ready = all(side_by_side(doing).await)?;

    let mut decisions: Vec<Vec<Decision>> = members.iter().map(|_| Vec::new()).collect();
    let mut doing: Vec<Doing<'_, Result<Option<FrozenGuest>>>> = Vec::new();
    for ((member, ready), decisions) in members.iter().zip(&ready).zip(&mut decisions) {
        doing.push(Box::pin(async move {
            match ready.running() {
                Some(machine) => {
                    freeze::freeze_guest(vmms, &member.begun.vm, machine, asked, decisions).await
                }
                None => Ok(None),
            }
        }));
    }
    let frozen = all_or_thaw(side_by_side(doing).await).await?;

    let deadline = vmms.options.stop_deadline;
    let first_request = Instant::now();
    let mut doing: Vec<Doing<'_, Result<Option<Still>>>> = Vec::new();
    for (member, ready) in members.iter().zip(&ready) {
        doing.push(Box::pin(async move {
            match ready.running() {
                Some(machine) => {
                    let (vm, lock) = (&member.begun.vm, &member.lock);
                    Still::stop(vm, lock, machine, deadline).await.map(Some)
                }
                None => Ok(None),
            }
        }));
    }
    let (still, mut failures) = apart(side_by_side(doing).await);
    let instant = SystemTime::now();
    let stood: Vec<Instant> = still.iter().flatten().flatten().map(|s| s.stood).collect();

    // From here on nothing returns before everybody goes on.
    let mut marks: Vec<Result<()>> = Vec::new();
    if failures.is_empty() {
        let mut doing: Vec<Doing<'_, Result<()>>> = Vec::new();
        for (member, ready) in members.iter().zip(&ready) {
            doing.push(Box::pin(mark_one(&member.begun.vm, ready, deadline)));
        }
        marks = side_by_side(doing).await;
    }
    let mut doing: Vec<Doing<'_, Result<Duration>>> = Vec::new();
    for still in still {
        doing.push(Box::pin(async move {
            match still.flatten() {
                Some(still) => still.go_on(deadline).await,
                None => Ok(Duration::ZERO),
            }
        }));
    }
    let released = side_by_side(doing).await;
    let mut doing: Vec<Doing<'_, Result<Consistency>>> = Vec::new();
    for (frozen, decisions) in frozen.into_iter().zip(&mut decisions) {
        doing.push(Box::pin(freeze::thaw_guest(frozen, asked, decisions)));
    }
    let thawed = side_by_side(doing).await;

    failures.extend(apart(marks).1);
    let (pauses, more) = apart(released);
    failures.extend(more);
    let (levels, more) = apart(thawed);
    // A guest that was not asked to stop in the end has nothing to complain about.
    if failures.is_empty() {
        failures.extend(more);
    }
    if !failures.is_empty() {
        failures.sort_by_key(|(place, _)| *place);
        failures.dedup_by_key(|(place, _)| *place);
        return Err(failures);
    }

    let mut parts = Vec::new();
    let told = pauses.into_iter().zip(levels).zip(decisions);
    for (ready, ((pause, level), decisions)) in ready.into_iter().zip(told) {
        let running = ready.running().is_some();
        let mut reached = match ready {
            Ready::Files(reached) => reached,
            Ready::Process { .. } => Reached {
                consistency: level.unwrap_or(Consistency::Crash),
                instant,
                pause: pause.unwrap_or_default(),
                decisions: Vec::new(),
            },
        };
        reached.instant = instant;
        reached.decisions.extend(decisions);
        parts.push(Part { reached, running });
    }
    let (first, last) = (stood.iter().min().copied(), stood.iter().max().copied());
    let last = last.unwrap_or(first_request);
    Ok(Together {
        members: parts,
        instant,
        skew: first.map_or(Duration::ZERO, |first| last.duration_since(first)),
        skew_limit: last.duration_since(first_request),
    })
}

impl Ready {
    /// The process of a guest that runs.
    fn running(&self) -> Option<&Arc<dyn Machine>> {
        match self {
            Ready::Process {
                machine,
                runs: true,
                ..
            } => Some(machine),
            _ => None,
        }
    }
}

async fn get_ready(vmms: &Vmms, member: &Member, asked: Option<Consistency>) -> Result<Ready> {
    let Begun { vm, steps, .. } = &member.begun;
    let unfrozen = || {
        fault!(AgentAbsent, vm.name)
            .about(Element::Vm(vm.id))
            .caused_by(fault!(
                Driver,
                "its guest does not run, so that its file systems cannot be frozen"
            ))
    };
    match freeze::mode(vmms, vm)? {
        Mode::Files => {
            let demanded = asked == Some(Consistency::Application);
            if demanded && vm.power != Power::Off {
                return Err(unfrozen());
            }
            let mut reached = freeze::mark_files(vmms, vm, steps, Some(Consistency::Crash)).await?;
            if demanded {
                reached.decisions.push(Decision {
                    what: "no file system of this machine was frozen".to_owned(),
                    reason: "the machine was off".to_owned(),
                });
            }
            Ok(Ready::Files(reached))
        }
        Mode::Running(machine) => {
            let runs = machine.status().await? == MachineStatus::Running;
            if !runs && asked == Some(Consistency::Application) {
                return Err(unfrozen());
            }
            let prepared = freeze::prepare(&machine, steps).await?;
            Ok(Ready::Process {
                machine,
                prepared,
                runs,
            })
        }
    }
}

async fn mark_one(vm: &Vm, ready: &Ready, deadline: Duration) -> Result<()> {
    let Ready::Process {
        machine, prepared, ..
    } = ready
    else {
        return Ok(());
    };
    let marked = timeout(deadline, machine.mark(prepared)).await;
    let what = format!("marking the disks of {}", vm.name);
    let marked = marked.map_err(|_| fault!(Deadline, what, format!("{deadline:?}")))?;
    Ok(marked.map(drop)?)
}

/// A guest that was asked to stand still. However this goes away, the guest is told to go on, and nobody else has the machine's
/// lock before it was.
struct Still {
    machine: Arc<dyn Machine>,
    vm: Uuid,
    lock: Lock,
    asked: Instant,
    stood: Instant,
    armed: bool,
}

impl Still {
    async fn stop(
        vm: &Vm,
        lock: &Lock,
        machine: &Arc<dyn Machine>,
        deadline: Duration,
    ) -> Result<Self> {
        let asked = Instant::now();
        let mut still = Still {
            machine: Arc::clone(machine),
            vm: vm.id,
            lock: Arc::clone(lock),
            asked,
            stood: asked,
            // Armed before: a request whose answer is late or lost may still be followed.
            armed: true,
        };
        let late = |_| fault!(MemberTooSlow, vm.name, deadline.as_millis());
        timeout(deadline, machine.quiesce()).await.map_err(late)??;
        still.stood = Instant::now();
        Ok(still)
    }

    /// Lets the guest go on; answers how long it stood still.
    async fn go_on(mut self, deadline: Duration) -> Result<Duration> {
        let released = timeout(deadline, self.machine.release(ran())).await;
        let late = |_| fault!(Deadline, "letting the guest go on", format!("{deadline:?}"));
        released.map_err(late)??;
        self.armed = false;
        Ok(self.asked.elapsed())
    }
}

/// All running guests of a collection, standing still to be saved. However this goes away, those that were not saved go on.
pub(super) struct Standing {
    still: Vec<Option<Still>>,
    pub(super) instant: SystemTime,
    pub(super) skew: Duration,
    pub(super) skew_limit: Duration,
}

/// Stops all running guests, side by side. When one does not stand still in time, all go on.
pub(super) async fn stand_still(
    vmms: &Vmms,
    members: &[(Arc<Vm>, Lock)],
) -> Result<Standing, Failures> {
    let deadline = vmms.options.stop_deadline;
    let first_request = Instant::now();
    let mut doing: Vec<Doing<'_, Result<Option<Still>>>> = Vec::new();
    for (vm, lock) in members {
        doing.push(Box::pin(async move {
            let Some(machine) = vmms.machine(vm.id) else {
                return Ok(None);
            };
            if machine.status().await? != MachineStatus::Running {
                return Ok(None);
            }
            Still::stop(vm, lock, &machine, deadline).await.map(Some)
        }));
    }
    let still = all(side_by_side(doing).await)?;
    let stood: Vec<Instant> = still.iter().flatten().map(|s| s.stood).collect();
    let (first, last) = (stood.iter().min().copied(), stood.iter().max().copied());
    let last = last.unwrap_or(first_request);
    Ok(Standing {
        still,
        instant: SystemTime::now(),
        skew: first.map_or(Duration::ZERO, |first| last.duration_since(first)),
        skew_limit: last.duration_since(first_request),
    })
}

impl Standing {
    /// The guest in that place was saved: its process, which could go on, is gone.
    pub(super) fn saved(&mut self, place: usize) {
        if let Some(Some(still)) = self.still.get_mut(place) {
            still.armed = false;
        }
    }

    /// Whether the guest in that place ran.
    pub(super) fn ran(&self, place: usize) -> bool {
        self.still.get(place).is_some_and(Option::is_some)
    }

    /// Since when the guest in that place has been standing still; zero for one that did not run.
    pub(super) fn pause(&self, place: usize) -> Duration {
        let still = self.still.get(place).and_then(Option::as_ref);
        still.map_or(Duration::ZERO, |s| s.asked.elapsed())
    }
}

fn ran() -> Quiesced {
    Quiesced {
        was_running: true,
        at: SystemTime::now(),
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (machine, vm, lock) = (Arc::clone(&self.machine), self.vm, Arc::clone(&self.lock));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                insist(&machine, vm).await;
                drop(lock);
            });
        }
    }
}

/// Tells a guest to go on until it was heard.
pub(super) async fn insist(machine: &Arc<dyn Machine>, vm: Uuid) {
    for _ in 0..TRIES {
        match timeout(Duration::from_secs(5), machine.release(ran())).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::warn!(vm = %guid(vm), %error, "a guest could not be told to go on")
            }
            Err(_) => tracing::warn!(vm = %guid(vm), "a guest does not answer that it goes on"),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    tracing::error!(vm = %guid(vm), "a guest may stand still");
}

/// Values and failures, each with its place.
fn apart<T>(results: Vec<Result<T>>) -> (Vec<Option<T>>, Failures) {
    let (mut values, mut failures) = (Vec::new(), Vec::new());
    for (place, result) in results.into_iter().enumerate() {
        match result {
            Ok(value) => values.push(Some(value)),
            Err(failure) => {
                values.push(None);
                failures.push((place, failure));
            }
        }
    }
    (values, failures)
}

fn all<T>(results: Vec<Result<T>>) -> Result<Vec<T>, Failures> {
    let (values, failures) = apart(results);
    if failures.is_empty() {
        Ok(values.into_iter().flatten().collect())
    } else {
        Err(failures)
    }
}

/// All frozen guests; if one could not be frozen, the others are thawed before that is told.
async fn all_or_thaw(
    results: Vec<Result<Option<FrozenGuest>>>,
) -> Result<Vec<Option<FrozenGuest>>, Failures> {
    let (values, failures) = apart(results);
    if failures.is_empty() {
        return Ok(values.into_iter().map(Option::flatten).collect());
    }
    let mut doing: Vec<Doing<'_, Result<()>>> = Vec::new();
    for guest in values.into_iter().filter_map(Option::flatten) {
        doing.push(Box::pin(guest.thaw()));
    }
    // A guest that could not be thawed is told again in the background.
    side_by_side(doing).await;
    Err(failures)
}
