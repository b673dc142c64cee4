//! Bringing a machine from one state into another, and noticing when it changes by itself.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hypervisor::names::RunFiles;
use hypervisor::{Launch, Machine};
use uuid::Uuid;

use super::change::ChangeState;
use super::{Ended, Power, Vm, VmState, spec};
use crate::disk_tree::Pending;
use crate::job::Task;
use crate::job::{Job, JobContext, Submission};
use crate::machine::StateChange;
use crate::merge;
use crate::{Effect, Element, Fault, Message, Result, Vmms, fault, guid};

/// How long QEMU may take to flush its images when the power goes off.
const QUIT: Duration = Duration::from_secs(20);
/// How long a start waits for the images' locks of a process that was just killed.
const LOCKS: Duration = Duration::from_secs(3);
/// A process that did not answer when the service started is looked for again after this, then after twice as long, and so on.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// At the latest after this.
const LOOK_LATEST: Duration = Duration::from_secs(30);

/// Who asks for something, for the job's record.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The user.
    pub owner: String,
    /// The user's key for idempotent retries.
    pub request_key: Option<String>,
}

impl Asked {
    /// The submission of a job that affects these elements.
    pub fn submission(&self, affected: Vec<(Element, Effect)>) -> Submission {
        Submission {
            owner: self.owner.clone(),
            affected,
            request_key: self.request_key.clone(),
            output: crate::job::Output::default(),
        }
    }
}

/// Whether a machine in `state` can be asked for `to`; otherwise why not.
pub fn admit(vm: &Vm, state: VmState, to: StateChange) -> Result<()> {
    let name = &vm.name;
    let wrong = |needs: &str| {
        let what = format!("{to:?}").to_lowercase();
        Err(fault!(WrongVmState, name, state.word(), what, needs).about(Element::Vm(vm.id)))
    };
    if vm.planned {
        return Err(
            fault!(WrongVmState, name, "planned", "starting", "realized").about(Element::Vm(vm.id)),
        );
    }
    let already = || Err(fault!(AlreadyInState, name, state.word()).about(Element::Vm(vm.id)));
    match (to, state) {
        (
            StateChange::Start,
            VmState::Off | VmState::Saved | VmState::Paused | VmState::PausedByFailure,
        ) => Ok(()),
        (StateChange::Start, VmState::Running) => already(),
        (StateChange::Start, _) => wrong("off, saved or paused"),
        (StateChange::Stop, VmState::Off) => already(),
        (
            StateChange::Stop,
            VmState::Running
            | VmState::Paused
            | VmState::PausedByFailure
            | VmState::Saved
            | VmState::ShuttingDown,
        ) => Ok(()),
        (StateChange::Stop, _) => wrong("running, paused or saved"),
        (StateChange::Shutdown, VmState::Running) => Ok(()),
        (StateChange::Shutdown, VmState::Off) => already(),
        (StateChange::Pause, VmState::Running | VmState::PausedByFailure) => Ok(()),
        (StateChange::Pause, VmState::Paused) => already(),
        (StateChange::Save, VmState::Running | VmState::Paused | VmState::PausedByFailure) => {
            Ok(())
        }
        (StateChange::Save, VmState::Saved) => already(),
        (StateChange::Save, _) => wrong("running or paused"),
        (
            StateChange::Shutdown | StateChange::Pause | StateChange::Reboot | StateChange::Reset,
            _,
        ) => {
            if state == VmState::Running {
                Ok(())
            } else {
                wrong("running")
            }
        }
    }
}

/// Starts a job that brings a machine into another state.
pub async fn request_state(
    vmms: &Arc<Vmms>,
    vm: Uuid,
    to: StateChange,
    asked: &Asked,
) -> Result<Uuid> {
    let record = vmms.db.get::<Vm>(vm)?;
    admit(&record, vmms.runtime(vm).state(&record), to).map_err(|refused| {
        // What it stands still for tells more than its state.
        let why = super::health::stands_still(vmms, &record);
        why.into_iter().fold(refused, Fault::caused_by)
    })?;
    let affected = vec![(Element::Vm(vm), Effect::ExclusiveUse)];
    vmms.submit(ChangeState { vm, to }, asked.submission(affected))
        .await
}

/// Shows a transition for as long as it lives.
struct Transition<'a> {
    runtime: &'a super::Runtime,
}

impl<'a> Transition<'a> {
    fn show(runtime: &'a super::Runtime, state: VmState) -> Self {
        runtime.set_transition(Some(state));
        Transition { runtime }
    }
}

impl Drop for Transition<'_> {
    fn drop(&mut self) {
        self.runtime.set_transition(None);
    }
}

/// Runs a state change as a job.
pub(crate) async fn run(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: Uuid,
    to: StateChange,
) -> Result<()> {
    let runtime = vmms.runtime(vm);
    match to {
        StateChange::Start => {
            let _lock = vmms.lock(vm).await;
            start(vmms, vm).await
        }
        StateChange::Stop => {
            let _lock = vmms.lock(vm).await;
            stop(vmms, vm).await
        }
        StateChange::Pause => {
            let _lock = vmms.lock(vm).await;
            let _shown = Transition::show(&runtime, VmState::Pausing);
            running(vmms, vm)?.pause().await?;
            set_power(vmms, vm, Power::Paused).await
        }
        StateChange::Reset => {
            let _lock = vmms.lock(vm).await;
            Ok(running(vmms, vm)?.reset().await?)
        }
        StateChange::Save => {
            let _lock = vmms.lock(vm).await;
            save(vmms, vm).await
        }
        StateChange::Shutdown => shut_down(vmms, ctx, vm).await,
        StateChange::Reboot => {
            let stops = runtime.stops();
            shut_down(vmms, ctx, vm).await?;
            let _lock = vmms.lock(vm).await;
            // Whoever turned it off meanwhile, or waits for the lock to do so, has the last word.
            if runtime.stops() != stops || stop_waits(vmms, vm) {
                let name = vmms.db.get::<Vm>(vm)?.name.clone();
                return Err(fault!(Overtaken, "rebooting", name).about(Element::Vm(vm)));
            }
            start(vmms, vm).await
        }
    }
}

/// Whether a request to turn the machine off has not been carried out yet.
fn stop_waits(vmms: &Vmms, vm: Uuid) -> bool {
    let stop = Task::from(ChangeState {
        vm,
        to: StateChange::Stop,
    });
    let jobs = vmms.db.all::<Job>();
    jobs.iter().any(|j| !j.state.is_final() && j.task == stop)
}

fn running(vmms: &Vmms, vm: Uuid) -> Result<Arc<dyn Machine>> {
    vmms.machine(vm)
        .ok_or_else(|| fault!(ProcessEnded, guid(vm)).about(Element::Vm(vm)))
}

/// Changes the durable power state.
async fn set_power(vmms: &Vmms, vm: Uuid, power: Power) -> Result<()> {
    vmms.db
        .change(|draft| {
            let record = draft.get_mut::<Vm>(vm)?;
            if power == Power::Running {
                record.last_end = None;
            }
            if record.power != power {
                record.power = power;
                record.power_changed = SystemTime::now();
            }
            Ok(())
        })
        .await
}

/// Starts, restores or resumes. The caller holds the machine's lock.
pub(crate) async fn start(vmms: &Arc<Vmms>, vm: Uuid) -> Result<()> {
    crate::migration::may_run(vmms, vm)?;
    find(vmms, vm).await?;
    let runtime = vmms.runtime(vm);
    if let Some(machine) = runtime.machine() {
        let _shown = Transition::show(&runtime, VmState::Resuming);
        super::health::go_on(vmms, vm, &machine).await?;
        return set_power(vmms, vm, Power::Running).await;
    }
    // Nobody may write to the layers QEMU is about to open, and what a crash left half done is decided first.
    let _paused = merge::pause_merges(vmms, vm).await;
    merge::reconcile(vmms, vm).await?;
    let record = vmms.db.get::<Vm>(vm)?;
    let restore = record
        .saved_state
        .clone()
        .filter(|_| record.power == Power::Saved);
    let _shown = Transition::show(&runtime, VmState::Starting);
    let failed = |error: Fault| {
        let message = if restore.is_some() {
            Message::RestoreFailed
        } else {
            Message::StartFailed
        };
        Fault::new(message, [&record.name])
            .about(Element::Vm(vm))
            .caused_by(error)
    };
    let machine = launch(vmms, &record, restore.clone())
        .await
        .map_err(failed)?;
    watch_exit(vmms, vm, Arc::clone(&machine));
    runtime.set_machine(Some(Arc::clone(&machine)));
    // Durable before the guest runs: a service that dies now finds the process again.
    set_power(vmms, vm, Power::Running).await?;
    if let Err(error) = machine.resume().await {
        let _ = machine.quit(QUIT).await;
        return Err(failed(error.into()));
    }
    if let Some(file) = restore {
        vmms.db
            .change(|draft| {
                draft.get_mut::<Vm>(vm)?.saved_state = None;
                Ok(())
            })
            .await?;
        remove_file(&file);
    }
    Ok(())
}

async fn launch(
    vmms: &Arc<Vmms>,
    record: &Vm,
    restore: Option<std::path::PathBuf>,
) -> Result<Arc<dyn Machine>> {
    let dir = spec::state_dir(&vmms.dirs, record.id);
    crate::point::make_dir(&dir)?;
    let mut config = spec::machine_config(record, &vmms.dirs, &vmms.options)?;
    config.confinement.user = super::user_of(vmms, record.id).await?;
    for drive in &config.drives {
        let layers = drive.chain.iter().map(|l| (l.path.as_path(), l.format));
        crate::trusted::check_known(layers)?;
    }
    if config.machine_type.is_none() {
        let features = vmms
            .hypervisor
            .features()
            .await
            .map_err(|e| fault!(Hypervisor).caused_by(e))?;
        let picked = features.machine_type(&config)?;
        config.machine_type = Some(picked.clone());
        vmms.db
            .change(|draft| {
                draft.get_mut::<Vm>(record.id)?.machine_type = Some(picked);
                Ok(())
            })
            .await?;
    }
    crate::host::owner::mark_run_dir(&vmms.identity, &spec::run_dir(&vmms.dirs, record.id))?;
    let how = restore.map_or(Launch::Fresh, Launch::Restore);
    let begun = Instant::now();
    loop {
        match vmms.hypervisor.launch(&config, how.clone()).await {
            Err(error) if still_held(&error) && begun.elapsed() < LOCKS => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            launched => return Ok(launched?),
        }
    }
}

/// Whether the images are held by a process that is ending: one that was killed keeps its locks for a moment.
fn still_held(error: &hypervisor::Error) -> bool {
    use hypervisor::Error as E;
    match error {
        E::AlreadyRunning { .. } => true,
        E::StartFailed { log_tail, .. } | E::ProcessGone { log_tail } => {
            log_tail.contains("Failed to get") && log_tail.contains("lock")
        }
        _ => false,
    }
}

/// Switches off; from saved: discards the saved state. The caller holds the machine's lock.
pub(crate) async fn stop(vmms: &Arc<Vmms>, vm: Uuid) -> Result<()> {
    find(vmms, vm).await?;
    let runtime = vmms.runtime(vm);
    let _shown = Transition::show(&runtime, VmState::Stopping);
    runtime.stopped();
    if let Some(machine) = runtime.machine() {
        machine.quit(QUIT).await?;
        runtime.clear_machine(&machine);
    }
    let saved = vmms
        .db
        .change(|draft| {
            let vm = draft.get_mut::<Vm>(vm)?;
            vm.power = Power::Off;
            vm.power_changed = SystemTime::now();
            Ok(vm.saved_state.take())
        })
        .await?;
    if let Some(file) = &saved {
        remove_file(file);
    }
    Ok(())
}

fn remove_file(path: &std::path::Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a file that is no longer needed stays");
        }
        _ => {}
    }
}

/// Saves memory and ends the process. The caller holds the machine's lock.
pub(crate) async fn save(vmms: &Arc<Vmms>, vm: Uuid) -> Result<()> {
    let runtime = vmms.runtime(vm);
    // QEMU cannot hand over images that a job of its own works on.
    let _paused = merge::pause_merges(vmms, vm).await;
    merge::reconcile(vmms, vm).await?;
    let record = vmms.db.get::<Vm>(vm)?;
    let machine = running(vmms, vm)?;
    let _shown = Transition::show(&runtime, VmState::Saving);
    let path = spec::state_dir(&vmms.dirs, vm).join("saved.vmstate");
    let failed = |error: Fault| {
        fault!(SaveFailed, record.name)
            .about(Element::Vm(vm))
            .caused_by(error)
    };
    // What a crash left under this name may also be the memory of a snapshot: it is never written over.
    crate::point::remove(&path).map_err(failed)?;
    // The record names the file first: should the service die after QEMU has ended, the state is found.
    vmms.db
        .change(|draft| {
            draft.get_mut::<Vm>(vm)?.saved_state = Some(path.clone());
            Ok(())
        })
        .await?;
    if let Err(error) = machine.save_state(&path).await {
        if record.power == Power::Running
            && let Err(error) = machine.resume().await
        {
            tracing::warn!(vm = %guid(vm), %error, "the guest could not be continued after a failed save");
        }
        vmms.db
            .change(|draft| {
                draft.get_mut::<Vm>(vm)?.saved_state = None;
                Ok(())
            })
            .await?;
        return Err(failed(error.into()));
    }
    runtime.clear_machine(&machine);
    set_power(vmms, vm, Power::Saved).await
}

/// Asks the guest to shut down, by its agent or the power button, and waits until it did.
async fn shut_down(vmms: &Arc<Vmms>, ctx: &JobContext, vm: Uuid) -> Result<()> {
    let runtime = vmms.runtime(vm);
    let machine = running(vmms, vm)?;
    let _shown = Transition::show(&runtime, VmState::ShuttingDown);
    let deadline = vmms.options.shutdown_deadline;
    let end = tokio::time::Instant::now() + deadline;
    loop {
        if machine
            .guest_shutdown(Duration::from_secs(3))
            .await
            .is_err()
        {
            match machine.powerdown().await {
                Err(error) if error.kind() != hypervisor::ErrorKind::Gone => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        // A guest that still boots hears neither its agent nor the power button: it is asked again.
        let again = tokio::time::Instant::now() + vmms.options.shutdown_again;
        tokio::select! {
            _ = machine.exited() => break,
            stop = ctx.stop_asked() => return Err(stop),
            () = tokio::time::sleep_until(again.min(end)) => {}
        }
        if tokio::time::Instant::now() >= end {
            let record = vmms.db.get::<Vm>(vm)?;
            return Err(
                fault!(ShutdownTimeout, record.name, deadline.as_secs()).about(Element::Vm(vm))
            );
        }
    }
    let _lock = vmms.lock(vm).await;
    // Unless somebody else has written it down: the machine may run again by now.
    if runtime.clear_machine(&machine) {
        set_power(vmms, vm, Power::Off).await?;
    }
    Ok(())
}

/// Notices the end of a process that nobody asked for, and until then what QEMU tells of failures.
fn watch_exit(vmms: &Arc<Vmms>, vm: Uuid, machine: Arc<dyn Machine>) {
    let vmms = Arc::downgrade(vmms);
    // From here on nothing is missed.
    let (events, memory) = (machine.events(), hypervisor::host::OomCount::now());
    tokio::spawn(async move {
        let (exit, said) = super::health::until_ended(&vmms, vm, &machine, events).await;
        let Some(vmms) = vmms.upgrade() else { return };
        // Whoever ended it on purpose holds the lock and has cleared the machine before letting go.
        let runtime = vmms.runtime(vm);
        let _lock = runtime.lock().await;
        if runtime.clear_machine(&machine) {
            let end = Ended::of(&exit, said.as_deref(), memory.verdict(machine.pid()));
            match &end {
                Some(end) => tracing::warn!(vm = %guid(vm), "{}", end.text()),
                None => tracing::info!(vm = %guid(vm), "the guest has switched itself off"),
            }
            if let Err(error) = note_end(&vmms, vm, Power::Off, end).await {
                tracing::error!(vm = %guid(vm), %error, "the end of a machine could not be stored");
            }
        }
    });
}

/// Changes the durable power state of a machine whose process has ended by itself, with how.
async fn note_end(vmms: &Vmms, vm: Uuid, power: Power, end: Option<Ended>) -> Result<()> {
    vmms.db
        .change(|draft| {
            let record = draft.get_mut::<Vm>(vm)?;
            record.last_end = end;
            if record.power != power {
                record.power = power;
                record.power_changed = SystemTime::now();
            }
            Ok(())
        })
        .await
}

/// At the start of the service: finds the processes that still run, side by side. One that does not answer is looked for again in
/// the background; until it is found its machine's files are touched by nobody.
pub(crate) async fn reattach(vmms: &Arc<Vmms>) {
    let mut looking = tokio::task::JoinSet::new();
    for record in vmms.db.all::<Vm>() {
        if !has_process(&record) {
            continue;
        }
        let (vmms, vm) = (Arc::clone(vmms), record.id);
        looking.spawn(async move {
            let found = {
                let _lock = vmms.lock(vm).await;
                find(&vmms, vm).await
            };
            if let Err(error) = found {
                tracing::error!(vm = %guid(vm), %error, "a running machine could not be reattached; it is looked for again");
                tokio::spawn(look_again(Arc::downgrade(&vmms), vm));
            }
        });
    }
    while looking.join_next().await.is_some() {}
}

/// Looks for a process until it answers or is gone, then brings the machine's layers in order.
async fn look_again(vmms: std::sync::Weak<Vmms>, vm: Uuid) {
    let mut wait = LOOK_AGAIN;
    loop {
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LOOK_LATEST);
        let Some(vmms) = vmms.upgrade() else { return };
        let _lock = vmms.lock(vm).await;
        match find(&vmms, vm).await {
            Ok(()) => {
                tracing::info!(vm = %guid(vm), "a machine that was silent is found again");
                if let Err(error) = merge::recover_vm(&vmms, vm).await {
                    tracing::error!(vm = %guid(vm), %error, "the layers of a machine could not be brought in order");
                }
                return;
            }
            Err(error) => tracing::warn!(vm = %guid(vm), %error, "a machine is still silent"),
        }
    }
}

/// At the start of the service: machines that do not run any more may open nothing.
pub(crate) fn close_files(vmms: &Vmms) {
    for record in vmms.db.all::<Vm>() {
        let run = spec::run_dir(&vmms.dirs, record.id);
        let journal = spec::granted(&vmms.dirs, record.id);
        if let Err(error) = hypervisor::confine::settle(&run, &journal) {
            tracing::warn!(vm = %guid(record.id), %error, "what a machine was allowed to open is not all taken back");
        }
    }
}

fn has_process(record: &Vm) -> bool {
    matches!(record.power, Power::Running | Power::Paused)
}

/// Finds the process of a machine that has one and is not attached to it, and takes it over. Fails where there is one that does not answer. The
/// caller holds the machine's lock.
async fn find(vmms: &Arc<Vmms>, vm: Uuid) -> Result<()> {
    let Ok(record) = vmms.db.get::<Vm>(vm) else {
        return Ok(());
    };
    if !has_process(&record) || vmms.machine(vm).is_some() {
        return Ok(());
    }
    let silent = |error: Fault| {
        fault!(MachineSilent, record.name)
            .about(Element::Vm(vm))
            .caused_by(error)
    };
    let config = spec::machine_config(&record, &vmms.dirs, &vmms.options)?;
    let found = vmms.hypervisor.reattach(&config).await;
    match found.map_err(|e| silent(e.into()))? {
        Some(machine) => adopt(vmms, &record, machine).await.map_err(silent),
        None => match without_process(&record) {
            Power::Off => {
                let log = RunFiles::new(spec::run_dir(&vmms.dirs, vm)).log();
                let end = Ended::unseen(vmms.starts.first_of_boot(), &log);
                tracing::warn!(vm = %guid(vm), "{}", end.text());
                note_end(vmms, vm, Power::Off, Some(end)).await
            }
            power => set_power(vmms, vm, power).await,
        },
    }
}

/// What a machine without process is: saved where its state was written whole, else off.
fn without_process(record: &Vm) -> Power {
    let saved = record.saved_state.as_ref().is_some_and(|f| f.exists());
    if saved { Power::Saved } else { Power::Off }
}

/// Which end of a move a process is that has a machine's guest whole.
async fn moving(
    machine: &Arc<dyn Machine>,
    record: &Vm,
) -> Result<Option<hypervisor::migration::Side>> {
    use hypervisor::MovePhase as Phase;
    let phase = machine.moving().await?.phase;
    Ok(match phase.side() {
        // One that only waits for a machine has none; what becomes of it is told by its status.
        Some(hypervisor::migration::Side::Destination) if phase != Phase::Arrived => None,
        side => {
            if side.is_some() {
                tracing::info!(vm = %guid(record.id), ?phase, "a process was found in a move");
            }
            side
        }
    })
}

/// A process has this machine's guest from now on.
pub(crate) fn take_in(vmms: &Arc<Vmms>, vm: Uuid, machine: Arc<dyn Machine>) {
    watch_exit(vmms, vm, Arc::clone(&machine));
    vmms.runtime(vm).set_machine(Some(machine));
}

/// Takes over a process that runs; what is on record decides what becomes of its guest. One that the service left in the middle of
/// restoring is ended: the state file is untouched. So is one whose memory is in a whole state file. Any other that stands still although
/// its record says that it runs goes on: a save, an instant or a start was interrupted, and the process alone has the guest. Only a
/// guest that stands still for a fold waits until it is decided which file is its disk.
async fn adopt(vmms: &Arc<Vmms>, record: &Vm, machine: Arc<dyn Machine>) -> Result<()> {
    use hypervisor::MachineStatus as Status;
    let status = machine.status().await?;
    match moving(&machine, record).await? {
        // It came from another host, and the service ended before it could let it go on.
        Some(hypervisor::migration::Side::Destination) => {
            machine.take_over(record.power == Power::Running).await?;
            take_in(vmms, record.id, machine);
            return Ok(());
        }
        // Whether it may go on here the job of the move says, or whoever takes the move back.
        Some(hypervisor::migration::Side::Source) => {
            take_in(vmms, record.id, machine);
            return Ok(());
        }
        None => {}
    }
    let whole = without_process(record) == Power::Saved;
    if status == Status::Incoming || (status == Status::Saved && whole) {
        machine.kill().await?;
        return set_power(vmms, record.id, without_process(record)).await;
    }
    let folds = record.disks().any(|(_, d)| {
        matches!(
            d.layers.pending,
            Some(Pending::Fold { .. } | Pending::Resume)
        )
    });
    let stands = matches!(
        status,
        Status::Saved | Status::Saving | Status::Paused | Status::Prelaunch
    );
    let power = match record.power {
        Power::Running if stands && !folds => match machine.resume().await {
            Ok(()) => Power::Running,
            Err(error) => {
                tracing::error!(vm = %guid(record.id), %error, "the guest could not be continued after an interruption");
                Power::Paused
            }
        },
        _ if stands => Power::Paused,
        // It stands still for a failure; whether it is meant to run the record says.
        recorded if status == Status::IoError => recorded,
        _ => Power::Running,
    };
    watch_exit(vmms, record.id, Arc::clone(&machine));
    vmms.runtime(record.id).set_machine(Some(machine));
    set_power(vmms, record.id, power).await?;
    // The guest is in its process: what a save or a restore has in a file is old from now on.
    let old = vmms
        .db
        .change(|draft| Ok(draft.get_mut::<Vm>(record.id)?.saved_state.take()))
        .await?;
    if let Some(file) = old {
        remove_file(&file);
    }
    Ok(())
}

/// Ends a process that was started for a machine without process and could not be written down any more: its guest has not
/// run yet. The caller holds the machine's lock.
pub(crate) async fn end_unknown(vmms: &Arc<Vmms>, vm: Uuid) -> Result<()> {
    if vmms.machine(vm).is_some() {
        return Ok(());
    }
    let record = vmms.db.get::<Vm>(vm)?;
    let config = spec::machine_config(&record, &vmms.dirs, &vmms.options)?;
    match vmms.hypervisor.reattach(&config).await? {
        Some(machine) => Ok(machine.kill().await?),
        None => Ok(()),
    }
}

/// Undoes a state change that did not end: nothing is left half done but a process nobody knows.
pub(crate) async fn undo(vmms: &Arc<Vmms>, vm: Uuid) -> Result<()> {
    let _lock = vmms.lock(vm).await;
    let Ok(record) = vmms.db.get::<Vm>(vm) else {
        return Ok(());
    };
    if vmms.machine(vm).is_some() {
        return Ok(());
    }
    let config = spec::machine_config(&record, &vmms.dirs, &vmms.options)?;
    if let Some(machine) = vmms.hypervisor.reattach(&config).await? {
        machine.quit(QUIT).await?;
    }
    if matches!(record.power, Power::Running | Power::Paused) {
        set_power(vmms, vm, Power::Off).await?;
    }
    Ok(())
}
