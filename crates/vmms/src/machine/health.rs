//! What stops a guest though nobody asked for it, and when it goes on.
//!
//! QEMU stops a guest whose write fails and keeps the request. What QEMU says is the truth, also after a restart of the service:
//! here it is only remembered, to be shown. A guest that lacks room goes on by itself when there is some: only one that
//! QEMU stopped (`io-error`) and that is meant to run, never one a user paused, and never while something else holds the
//! machine's lock.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use hypervisor::host::Room;
use hypervisor::{Exit, Machine, MachineEvent, MachineStatus};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Power, Runtime, Vm, spec};
use crate::{Element, Fault, Result, Vmms, fault, guid};

/// How long a guest that goes on is watched for the same error.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the last events may take once the process is gone.
const LAST_EVENTS: Duration = Duration::from_secs(3);
/// The first pause between two attempts to go on, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// How long errors the guest was told of are shown.
const SHOWN: Duration = Duration::from_secs(3600);

/// A request of a guest that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFailure {
    /// Whether there was no room.
    pub no_space: bool,
    /// Whether it was a write.
    pub write: bool,
    /// The image the guest writes to, where it is known.
    pub image: Option<PathBuf>,
    /// What the operating system said.
    pub reason: String,
    /// When.
    pub at: SystemTime,
}

impl DiskFailure {
    fn place(&self) -> String {
        let shown = |path: &PathBuf| path.display().to_string();
        self.image
            .as_ref()
            .map_or_else(|| "a disk".to_owned(), shown)
    }

    fn request(&self) -> &'static str {
        if self.write {
            "a write to"
        } else {
            "a read of"
        }
    }
}

/// What is known of a machine's failures while its process lives.
#[derive(Default)]
pub(super) struct Failures {
    stopped: Option<DiskFailure>,
    told: Option<DiskFailure>,
    /// How often it went on by itself without staying up, and when it may be tried again.
    tries: u32,
    next_try: Option<Instant>,
    last_try: Option<Instant>,
}

impl Runtime {
    /// The failure that stopped the guest.
    pub fn stopped_by(&self) -> Option<DiskFailure> {
        self.failures().stopped.clone()
    }

    fn note_stop(&self, failure: DiskFailure) -> bool {
        let mut failures = self.failures();
        let first = failures.stopped.is_none();
        // One that stays up for a while begins anew.
        if failures
            .last_try
            .is_some_and(|at| at.elapsed() > PAUSES.1.saturating_mul(2))
        {
            failures.tries = 0;
        }
        let pause = PAUSES.0.saturating_mul(1 << failures.tries.min(8));
        failures.next_try = Some(Instant::now() + pause.min(PAUSES.1));
        failures.stopped = Some(failure);
        first
    }
}

/// How a machine is, for clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether the guest stands still because of a failure.
    pub critical: bool,
    /// Whether it will, unless something is done.
    pub threatened: bool,
    /// What there is to say, in sentences; empty where all is well.
    pub lines: Vec<String>,
}

impl Vmms {
    /// How a machine is: what stopped its guest, what threatens it, how its process ended.
    pub fn health_of(&self, vm: &Vm) -> Health {
        let runtime = self.runtime(vm.id);
        let mut health = Health::default();
        let failures = runtime.failures();
        let told = failures.told.clone();
        let stopped = failures.stopped.clone();
        drop(failures);
        if let Some(failure) = stopped {
            health.critical = true;
            let (request, place) = (failure.request(), failure.place());
            health.lines.push(match (failure.no_space, vm.power) {
                (true, Power::Running) => format!(
                    "The guest stands still: there is no room for {request} {place}. Make room there: the guest goes on by itself"
                ),
                (true, _) => format!(
                    "There is no room for {request} {place}. Make room there, then resume the machine"
                ),
                (false, _) => format!(
                    "The guest stands still: {request} {place} failed ({}). Mend the storage, then resume the machine: the request is repeated",
                    failure.reason
                ),
            });
        }
        if let Some(failure) = told.filter(|f| f.at.elapsed().is_ok_and(|age| age < SHOWN)) {
            health.threatened = true;
            health.lines.push(format!(
                "{} {} failed and the guest was told so ({}); look at the storage",
                if failure.write {
                    "A write to"
                } else {
                    "A read of"
                },
                failure.place(),
                failure.reason
            ));
        }
        if let Some(warning) = self.rooms.warning(vm.id).filter(|_| !health.critical) {
            health.threatened = true;
            health.lines.push(warning);
        }
        health.lines.extend(vm.last_end.as_ref().map(|e| e.text()));
        health
    }
}

/// Watches a process to its end: what QEMU tells of failures is noted meanwhile. Answers how it ended and what QEMU said of that
/// before.
pub(super) async fn until_ended(
    vmms: &Weak<Vmms>,
    vm: Uuid,
    machine: &Arc<dyn Machine>,
    mut events: Receiver<MachineEvent>,
) -> (Exit, Option<String>) {
    ask(vmms, vm, machine).await;
    let mut said = None;
    let mut told = None;
    loop {
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            _ = machine.exited() => match tokio::time::timeout(LAST_EVENTS, events.recv()).await {
                Ok(event) => event,
                Err(_) => return (machine.exited().await, said),
            },
        };
        match event {
            Ok(MachineEvent::Exited(exit)) => return (exit, said),
            Err(RecvError::Closed) => return (machine.exited().await, said),
            Ok(MachineEvent::Shutdown { reason, .. }) => said = Some(reason),
            Ok(MachineEvent::Resumed) => {
                if let Some(vmms) = vmms.upgrade() {
                    vmms.runtime(vm).failures().stopped = None;
                    vmms.rooms.look_soon();
                }
            }
            Ok(MachineEvent::BlockIoError {
                drive,
                write,
                action,
                no_space,
                reason,
                ..
            }) => {
                let Some(vmms) = vmms.upgrade() else { continue };
                let failure = DiskFailure {
                    no_space,
                    write,
                    image: drive.as_deref().and_then(|d| image_of(&vmms, vm, d)),
                    reason,
                    at: SystemTime::now(),
                };
                if action == "stop" {
                    stopped(&vmms, vm, failure);
                } else {
                    // A guest may repeat a read of a bad sector without end.
                    let now = Instant::now();
                    if told.is_none_or(|at: Instant| now.duration_since(at) > PAUSES.1) {
                        told = Some(now);
                        tracing::warn!(vm = %guid(vm), disk = %failure.place(), reason = %failure.reason, "a request of the guest failed, and the guest was told so");
                    }
                    vmms.runtime(vm).failures().told = Some(failure);
                }
            }
            Err(RecvError::Lagged(_)) => ask(vmms, vm, machine).await,
            Ok(_) => {}
        }
    }
}

fn stopped(vmms: &Vmms, vm: Uuid, failure: DiskFailure) {
    let (place, reason, write) = (failure.place(), failure.reason.clone(), failure.write);
    let no_space = failure.no_space;
    if vmms.runtime(vm).note_stop(failure) {
        tracing::error!(vm = %guid(vm), disk = %place, write, no_space, %reason, "a request of the guest failed: the guest stands still");
    }
}

/// Asks QEMU whether the guest stands still because of a failure: after a restart of the service, and when events were lost.
async fn ask(vmms: &Weak<Vmms>, vm: Uuid, machine: &Arc<dyn Machine>) {
    let status = machine.status().await;
    let Some(vmms) = vmms.upgrade() else { return };
    let runtime = vmms.runtime(vm);
    match status {
        Ok(MachineStatus::IoError) => {}
        Ok(_) => {
            runtime.failures().stopped = None;
            return;
        }
        // What cannot be asked is about to end, or will be asked again.
        Err(_) => return,
    }
    let failed = machine.failed_drives().await.unwrap_or_default();
    // Where several wait, the one for lack of room says what to do.
    let first = failed
        .iter()
        .find(|f| f.no_space)
        .or_else(|| failed.first());
    let no_space = first.is_some_and(|f| f.no_space);
    let failure = DiskFailure {
        no_space,
        write: true,
        image: first.and_then(|f| image_of(&vmms, vm, &f.drive)),
        reason: if no_space {
            "No space left on device"
        } else {
            "an error QEMU met before the service was there"
        }
        .to_owned(),
        at: SystemTime::now(),
    };
    stopped(&vmms, vm, failure);
}

/// The file behind a drive that the guest writes to.
fn image_of(vmms: &Vmms, vm: Uuid, drive: &str) -> Option<PathBuf> {
    let record = vmms.db.get::<Vm>(vm).ok()?;
    let disk = record.disks().find(|(_, d)| spec::drive_id(d) == drive)?.1;
    Some(disk.layers.active_chain().last()?.path.clone())
}

/// Where the guest lacks room: the directory of its image. `None` where room cannot be told (a device, an image that is not known).
fn lacking(vmms: &Vmms, failure: &DiskFailure) -> Option<(PathBuf, Room)> {
    let image = failure.image.as_deref()?;
    let room = room_of(vmms, image)?;
    Some((image.to_owned(), room))
}

/// The room an image can grow into.
pub(super) fn room_of(vmms: &Vmms, image: &Path) -> Option<Room> {
    (vmms.options.room.look)(image)
}

/// Lets a guest go on. The caller holds the machine's lock. One that a failure has stopped is watched for a moment: going on
/// that ends at the same failure is none.
pub(super) async fn go_on(vmms: &Vmms, vm: Uuid, machine: &Arc<dyn Machine>) -> Result<()> {
    if machine.status().await? != MachineStatus::IoError {
        return Ok(machine.resume().await?);
    }
    let runtime = vmms.runtime(vm);
    let name = vmms.db.get::<Vm>(vm)?.name.clone();
    let failure = runtime.stopped_by();
    if let Some(failure) = failure.as_ref().filter(|f| f.no_space)
        && let Some((image, room)) = lacking(vmms, failure)
        && room.free < MIB.min(room.size / 100)
    {
        return Err(fault!(GuestLacksRoom, name, image.display())
            .about(Element::Vm(vm))
            .caused_by(fault!(NoSpace, image.display())));
    }
    let mut events = machine.events();
    machine.resume().await?;
    let failed_again = async {
        loop {
            match events.recv().await {
                Ok(MachineEvent::BlockIoError {
                    action,
                    no_space,
                    reason,
                    ..
                }) if action == "stop" => return (no_space, reason),
                Err(RecvError::Closed) => std::future::pending().await,
                _ => {}
            }
        }
    };
    match tokio::time::timeout(AGAIN, failed_again).await {
        Err(_) => Ok(()),
        Ok((no_space, reason)) => {
            let place = failure.map_or_else(|| "a disk".to_owned(), |f| f.place());
            let again = if no_space {
                fault!(GuestLacksRoom, name, place)
            } else {
                fault!(GuestDiskFails, name, place)
            };
            let cause = fault!(Driver, reason);
            Err(again.about(Element::Vm(vm)).caused_by(cause))
        }
    }
}

const MIB: u64 = 1 << 20;

/// Whether a guest that stood still for lack of room should find enough to get somewhere.
fn enough(room: Room) -> bool {
    room.free >= (64 * MIB).min(room.size / 20)
}

/// Guests that lacked room and are meant to run go on where there is some.
pub(super) fn look_again(vmms: &Arc<Vmms>) {
    for record in vmms.db.all::<Vm>() {
        if record.power != Power::Running {
            continue;
        }
        let runtime = vmms.runtime(record.id);
        let failures = runtime.failures();
        let due = failures.next_try.is_none_or(|at| at <= Instant::now());
        let failure = failures.stopped.clone().filter(|f| f.no_space && due);
        drop(failures);
        let Some(failure) = failure else { continue };
        // Without knowing the room, trying tells.
        if lacking(vmms, &failure).is_some_and(|(_, room)| !enough(room)) {
            continue;
        }
        let (vmms, vm) = (Arc::clone(vmms), record.id);
        tokio::spawn(async move {
            if let Err(error) = go_on_by_itself(&vmms, vm).await {
                tracing::warn!(vm = %guid(vm), %error, "a guest that stood still could not go on; it is tried again");
            }
        });
    }
}

async fn go_on_by_itself(vmms: &Arc<Vmms>, vm: Uuid) -> Result<()> {
    let runtime = vmms.runtime(vm);
    // Whoever holds the lock decides about the guest; it comes round again.
    let Some(_lock) = runtime.try_lock() else {
        return Ok(());
    };
    let Some(machine) = runtime.machine() else {
        return Ok(());
    };
    if vmms.db.get::<Vm>(vm)?.power != Power::Running
        || machine.status().await? != MachineStatus::IoError
    {
        return Ok(());
    }
    {
        let mut failures = runtime.failures();
        let now = Instant::now();
        failures.tries = failures.tries.saturating_add(1);
        failures.last_try = Some(now);
        let pause = PAUSES.0.saturating_mul(1 << failures.tries.min(8));
        failures.next_try = Some(now + pause.min(PAUSES.1));
    }
    tracing::info!(vm = %guid(vm), "there is room again: the guest goes on");
    go_on(vmms, vm, &machine).await
}

/// A fault for what needs the guest to run while it stands still.
pub(super) fn stands_still(vmms: &Vmms, vm: &Vm) -> Option<Fault> {
    let failure = vmms.runtime(vm.id).stopped_by()?;
    let place = failure.place();
    let fault = match failure.no_space {
        true => fault!(GuestLacksRoom, vm.name, place),
        false => fault!(GuestDiskFails, vm.name, place).caused_by(fault!(Driver, failure.reason)),
    };
    Some(fault.about(Element::Vm(vm.id)))
}
