//! The host goes down: every machine that runs is ended as its settings say, within one deadline.
//!
//! One way, whoever asks: `kvmms host shutdown-guests`, or the service itself when it is told to end while the host goes
//! down. Which machines run is noted first, so that the next boot knows. Machines go in the reverse order of their starts, those of one
//! place side by side. What does not end as it should in its share of the time is saved or switched off in the rest of it:
//! the host would cut it off otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use engine::{Claims, Recovery, Work};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::change::StateChange;
use super::{Asked, Power, Vm, VmState, autostart, request_state};
use crate::job::{JobContext, JobState, Machines, Service, Traits, concrete};
use crate::{Effect, Element, Fault, Kind, Result, Vmms, fault, guid};

/// Ends all machines because the host goes down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShutDownGuests {
    /// Within how many seconds.
    pub seconds: u64,
}

#[async_trait]
impl Work<Machines> for ShutDownGuests {
    fn traits(&self) -> Traits {
        concrete(
            Service::Management,
            0,
            "Ending machines because the host goes down",
            Recovery::Undo,
        )
    }

    fn claims(&self) -> Claims {
        // Each machine is ended by a job of its own.
        Claims::of_no_machine(&[])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self.seconds).await
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        // What has ended has ended; what has not goes on.
        Ok(())
    }
}

/// Between two attempts on a machine that something else works on.
const PAUSE: Duration = Duration::from_millis(300);
/// What is left of a share for switching off, at most.
const RESERVE: Duration = Duration::from_secs(20);

/// AutomaticShutdownAction.
const TURN_OFF: u16 = 2;
const SAVE: u16 = 3;

/// Starts the job that ends all machines because the host goes down; `within` `None`: in the configured time.
pub async fn shut_down_guests(
    vmms: &Arc<Vmms>,
    within: Option<Duration>,
    asked: &Asked,
) -> Result<Uuid> {
    let within = within.unwrap_or(vmms.options.host_shutdown_deadline);
    if !(1..=24 * 3600).contains(&within.as_secs()) {
        let why = "it goes from a second to a day";
        return Err(fault!(InvalidValue, "the deadline", within.as_secs(), why));
    }
    let task = ShutDownGuests {
        seconds: within.as_secs(),
    };
    let affected = vec![(Element::Host, Effect::Other)];
    vmms.submit(task, asked.submission(affected)).await
}

/// No machine starts by itself while the host goes down.
struct Ending<'a>(&'a Vmms);

impl<'a> Ending<'a> {
    fn begin(vmms: &'a Vmms) -> Self {
        vmms.starts.ending.store(true, Ordering::Release);
        Ending(vmms)
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.starts.ending.store(false, Ordering::Release);
    }
}

/// How a machine ended.
struct Done {
    name: String,
    line: String,
    failure: Option<Fault>,
}

/// Ends all machines.
pub(crate) async fn run(vmms: &Arc<Vmms>, ctx: &JobContext, seconds: u64) -> Result<()> {
    ctx.checkpoint().await?;
    let _ending = Ending::begin(vmms);
    let deadline = Instant::now() + Duration::from_secs(seconds);
    // Those that are being started are waited for below.
    let all = vmms.db.all::<Vm>().into_iter();
    let all = all.filter(|vm| vmms.state_of(vm) != VmState::Off && vm.power != Power::Saved);
    let machines: Vec<Arc<Vm>> = all.collect();
    let ids: Vec<Uuid> = machines.iter().map(|vm| vm.id).collect();
    autostart::note_active(vmms, &ids).await?;
    tracing::info!(
        machines = ids.len(),
        seconds,
        "the host goes down: machines are ended"
    );
    // Those without a place go with the first.
    let mut collections: BTreeMap<u16, Vec<Arc<Vm>>> = BTreeMap::new();
    for vm in machines {
        let place = match vm.settings.automatic_startup_sequence {
            0 => u16::MAX,
            place => place,
        };
        collections.entry(place).or_default().push(vm);
    }
    let (total, mut ended, mut failures) = (ids.len() as u64, 0, Vec::new());
    let mut left = u32::try_from(collections.len()).unwrap_or(u32::MAX);
    for (_, collection) in collections.into_iter().rev() {
        ctx.checkpoint().await?;
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / left.max(1);
        left = left.saturating_sub(1);
        let mut doing = JoinSet::new();
        for vm in collection {
            let vmms = Arc::clone(vmms);
            doing.spawn(async move { end(&vmms, &vm, now + share).await });
        }
        while let Some(done) = tokio::select! {
            done = doing.join_next() => done,
            stop = ctx.stop_asked() => return Err(stop),
        } {
            let done = done.map_err(|e| fault!(Internal, e))?;
            match &done.failure {
                None => tracing::info!(machine = %done.name, "{}", done.line),
                Some(error) => tracing::error!(machine = %done.name, %error, "{}", done.line),
            }
            let line = format!("{}: {}", done.name, done.line);
            ctx.output(|output| output.report.push(line)).await?;
            failures.extend(done.failure);
            ended += 1;
            ctx.progress(ended, total);
        }
    }
    autostart::begin_starts(vmms).await?;
    if failures.is_empty() {
        tracing::info!(machines = total, "all machines are ended");
        return Ok(());
    }
    let mut failed = fault!(GuestsStillRun, failures.len(), total, seconds);
    failed.causes = failures;
    tracing::error!(error = %failed, "machines still run while the host goes down");
    Err(failed)
}

/// Ends one machine by `end`.
async fn end(vmms: &Arc<Vmms>, vm: &Arc<Vm>, end: Instant) -> Done {
    let began = Instant::now();
    let share = end.saturating_duration_since(began);
    let softly = end - RESERVE.min(share / 3);
    let mut said: Vec<String> = Vec::new();
    let mut failure = None;
    for to in ways(vmms, vm) {
        let until = if to == StateChange::Stop { end } else { softly };
        if to != StateChange::Stop && Instant::now() >= until {
            continue;
        }
        match change(vmms, vm.id, to, until).await {
            Ok(()) => {
                let word = match to {
                    StateChange::Save => "saved",
                    StateChange::Shutdown => "shut down",
                    _ => "switched off",
                };
                let time = began.elapsed().as_secs_f32();
                said.push(format!("{word} after {time:.1} s"));
                failure = None;
                break;
            }
            Err(error) => {
                said.push(error.text());
                failure = Some(error.about(Element::Vm(vm.id)));
            }
        }
    }
    Done {
        name: vm.name.clone(),
        line: said.join("; "),
        failure: failure.map(|cause| {
            fault!(MachineStillRuns, vm.name)
                .about(Element::Vm(vm.id))
                .caused_by(cause)
        }),
    }
}

/// What is tried, in order. A guest that stands still hears no request to shut down: its memory is kept instead.
fn ways(vmms: &Vmms, vm: &Vm) -> Vec<StateChange> {
    use StateChange::{Save, Shutdown, Stop};
    let hears = vm.power == Power::Running && vmms.runtime(vm.id).stopped_by().is_none();
    match (vm.settings.automatic_shutdown_action, hears) {
        (TURN_OFF, _) => vec![Stop],
        (SAVE, true) => vec![Save, Shutdown, Stop],
        (_, true) => vec![Shutdown, Stop],
        (_, false) => vec![Save, Stop],
    }
}

/// Brings a machine into another state by a job, and waits for it.
async fn change(vmms: &Arc<Vmms>, vm: Uuid, to: StateChange, until: Instant) -> Result<()> {
    let late = || {
        fault!(
            Deadline,
            format!("{to:?}").to_lowercase(),
            "the host's deadline"
        )
    };
    let asked = Asked {
        owner: "host shutdown".to_owned(),
        request_key: None,
    };
    loop {
        let record = vmms.db.get::<Vm>(vm)?;
        if matches!(record.power, Power::Off | Power::Saved)
            && matches!(vmms.state_of(&record), VmState::Off | VmState::Saved)
        {
            return Ok(());
        }
        let job = match request_state(vmms, vm, to, &asked).await {
            Ok(job) => job,
            // A start, a save, a point: it ends, and then it is this one's turn.
            Err(error)
                if matches!(error.kind(), Kind::InUse | Kind::InvalidState)
                    && Instant::now() + PAUSE < until =>
            {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let ended = tokio::time::timeout_at(until, vmms.wait(job)).await;
        let job = ended.map_err(|_| late())??;
        if job.state == JobState::Completed {
            return Ok(());
        }
        tracing::warn!(vm = %guid(vm), ?to, "a machine did not end as its settings say");
        return Err(job.faults.into_iter().next().unwrap_or_else(late));
    }
}
