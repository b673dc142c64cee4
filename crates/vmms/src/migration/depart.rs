//! The source: a machine is sent, granted, and removed here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::cargo::{Cargo, CargoFile, gather};
use super::link::{ANSWER, Link, passes};
use super::permit::{Permit, PermitState};
use super::said::{Answer, Ask, Proposal, Standing};
use super::{Host, MigrationKind, Phase, Progress, Request, copy, hosts};
use crate::job::{JobClass, JobContext, Machines, Service, Traits};
use crate::machine::{Asked, Power, Vm, VmState, spec};
use crate::point::{Point, point_dir};
use crate::snapshot::Snapshot;
use crate::{Effect, Element, Fault, Kind, Result, Vmms, fault};

/// Between two tries to reach a host: at first, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(15));
/// How long making all headers right may take.
const SETTLE: Duration = Duration::from_secs(600);
/// How long a process that has handed over may take to end.
const QUIT: Duration = Duration::from_secs(20);
/// How long a host that is no longer needed is waited for.
const FAREWELL: Duration = Duration::from_secs(5);

/// Moves a machine to another host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Depart {
    /// What was asked for.
    pub request: Request,
}

/// Starts the job that moves a machine. Whatever speaks against it is told by the job.
///
/// # Errors
/// [`crate::Message::VmNotFound`], [`crate::Message::VmBusy`]; the store.
pub async fn migrate(vmms: &Arc<Vmms>, request: Request, asked: &Asked) -> Result<Uuid> {
    let vm = request.vm;
    vmms.db.get::<Vm>(vm)?;
    if request.kind == MigrationKind::StorageCheck {
        return super::check(vmms, request, asked).await;
    }
    crate::machine::define::end_merging(vmms, vm).await?;
    let mut submission = asked.submission(vec![(Element::Vm(vm), Effect::ExclusiveUse)]);
    submission.output.migration = Some(Box::new(progress(vmms, &request)));
    vmms.submit(Depart { request }, submission).await
}

/// What the job tells from the first moment.
pub(crate) fn progress(vmms: &Vmms, request: &Request) -> Progress {
    let name = vmms.db.get::<Vm>(request.vm);
    let name = name.map_or_else(|_| String::new(), |vm| vm.name.clone());
    Progress {
        source: vmms.host.clone(),
        destination: request.destination.clone(),
        shown: request.options.shown.clone(),
        ..Progress::new(request.kind, request.vm, &name)
    }
}

/// What is not served, with what to do instead.
pub(crate) fn served(vmms: &Vmms, request: &Request) -> Result<()> {
    let vm = vmms.db.get::<Vm>(request.vm)?;
    let options = &request.options;
    let refused =
        |why: &str| Err(fault!(MoveNotServed, vm.name, why).about(Element::Vm(request.vm)));
    if !vmms.migration_service().enabled {
        return Err(fault!(MigrationOff, vmms.host));
    }
    if vm.planned {
        return refused("it is planned only; realize it first");
    }
    if options.smb {
        return refused("moves go over links of kvmms, not over SMB; choose TCP (TransportType 5)");
    }
    if !options.unmanaged.is_empty() {
        return refused(
            "only what belongs to the machine moves with it; copy other files by other means",
        );
    }
    if options.planned.is_some() {
        return refused(
            "it cannot become a planned machine of the destination; move it without DestinationPlannedVirtualSystemId",
        );
    }
    match request.kind {
        MigrationKind::LiveAndStorage | MigrationKind::StorageCheck => {}
        MigrationKind::Live => {
            return refused(
                "memory alone is not moved; move memory and storage (32771), which needs nothing shared",
            );
        }
        MigrationKind::Storage => {
            return refused(
                "disks are not moved to another place of this host; stop the machine and move its images, or move it to another host and back",
            );
        }
        MigrationKind::Staged => {
            return refused(
                "no planned machine is made at the destination; move memory and storage (32771) at once",
            );
        }
    }
    if vmms.state_of(&vm) == VmState::PausedByFailure {
        return refused("a disk of it failed and its guest stands still; mend that first");
    }
    if let Some(changed) = &options.changed {
        crate::machine::validate(changed)?;
        if vm.power != Power::Off && hardware(changed) != hardware(&vm) {
            return refused(
                "it has memory that knows its hardware, which therefore cannot change; turn it off first",
            );
        }
    }
    Ok(())
}

fn hardware(vm: &Vm) -> (u64, u32, u8) {
    (vm.memory.quantity, vm.processor.count, vm.generation)
}

/// Whether it has a process.
pub(crate) fn runs(vm: &Vm) -> bool {
    matches!(vm.power, Power::Running | Power::Paused)
}

/// What is proposed to a destination.
pub(crate) fn proposal(request: &Request, id: Uuid, mut cargo: Cargo) -> Proposal {
    let options = &request.options;
    if let Some(changed) = &options.changed {
        // What a caller may change; disks, their layers and what the service itself keeps stay.
        let vm = &mut cargo.vm;
        vm.name.clone_from(&changed.name);
        vm.notes.clone_from(&changed.notes);
        vm.settings.clone_from(&changed.settings);
        vm.memory.clone_from(&changed.memory);
        vm.processor.clone_from(&changed.processor);
        for device in &mut vm.devices {
            let new = changed.device(&device.id);
            if let (crate::machine::DeviceKind::NicConnection { .. }, Some(new)) =
                (&device.kind, new)
            {
                device.kind.clone_from(&new.kind);
            }
        }
    }
    Proposal {
        id,
        kind: request.kind,
        live: runs(&cargo.vm),
        cargo,
        disk_root: options.disk_root.clone(),
        disk_locations: options.disk_locations.clone(),
        allow_overwrite: options.allow_overwrite,
    }
}

#[async_trait]
impl Work<Machines> for Depart {
    fn traits(&self) -> Traits {
        Traits::new(
            JobClass::Migration,
            Service::Migration,
            self.request.kind.job_type(),
            "Moving a virtual machine",
            Recovery::Resume,
        )
    }

    fn claims(&self) -> Claims {
        Claims::of_machine(self.request.vm, Access::Whole, Layers::Changed, &[])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        let name = vmms.db.get::<Vm>(self.request.vm);
        let name = name.map_or_else(|_| String::new(), |vm| vm.name.clone());
        self.go(vmms, ctx).await.map_err(|failure| {
            if failure.kind() == Kind::Cancelled {
                return failure;
            }
            fault!(MoveFailed, name, self.request.destination)
                .about(Element::Vm(self.request.vm))
                .caused_by(failure)
        })
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        let vm = self.request.vm;
        let Ok(permit) = vmms.db.get::<Permit>(vm) else {
            return Ok(());
        };
        if permit.state != PermitState::Here {
            return Err(fault!(
                MachineGranted,
                self.request.destination,
                permit.destination
            ));
        }
        super::live::go_on(vmms, vm).await?;
        // Where it cannot be told, it finds out: it hears nothing, and it is never granted anything.
        let told = self.abort(vmms, ctx, &permit);
        if !matches!(tokio::time::timeout(FAREWELL, told).await, Ok(Ok(()))) {
            tracing::info!(
                host = permit.destination,
                "a destination was not told that a move ended"
            );
        }
        vmms.db
            .change(|draft| {
                draft.delete::<Permit>(vm);
                Ok(())
            })
            .await
    }
}

impl Depart {
    async fn go(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        let vm = self.request.vm;
        let permit = vmms.db.get::<Permit>(vm).ok();
        if let Some(permit) = permit.filter(|p| p.state != PermitState::Here) {
            return self.hand_over(vmms, ctx, &permit).await;
        }
        // Removed by an earlier run of this job.
        if vmms.db.get::<Vm>(vm).is_err() {
            return Ok(());
        }
        phase(ctx, Phase::Checking).await?;
        let live = runs(&*vmms.db.get::<Vm>(vm)?);
        if vmms.db.get::<Permit>(vm).is_ok_and(|permit| permit.live) {
            // The channels ended with the service that had them; the guest goes on here, if its process is still there.
            let what = format!("the move of {}", self.request.vm);
            return Err(fault!(HostInterrupted, what));
        }
        served(vmms, &self.request)?;
        let host = hosts::named(vmms, &self.request.destination)?;
        let _paused = {
            let _lock = vmms.lock(vm).await;
            let paused = crate::merge::pause_merges(vmms, vm).await;
            crate::merge::reconcile(vmms, vm).await?;
            paused
        };
        let cargo = gather(vmms, vm)?;
        let leaves = leaves(vmms, &self.request, &cargo);
        let job = ctx.job();
        let permit = vmms
            .db
            .change(|draft| {
                let mut permit = Permit::new(&self.request, job, &host.name);
                permit.leaves = leaves;
                permit.live = live;
                draft.put(permit.clone());
                Ok(permit)
            })
            .await?;
        let proposal = proposal(&self.request, permit.moving, cargo);
        let total = proposal.cargo.bytes();
        tell(ctx, |progress| progress.file_total = total).await?;
        self.send(vmms, ctx, &host, &proposal).await?;
        if live {
            super::live::send(vmms, ctx, &host, &self.request, permit.moving).await?;
        }
        // From here on nobody stops it.
        ctx.no_return().await?;
        phase(ctx, Phase::Granted).await?;
        let permit = vmms
            .db
            .change(|draft| {
                let permit = draft.get_mut::<Permit>(vm)?;
                permit.state = PermitState::Granted;
                Ok(permit.clone())
            })
            .await?;
        self.hand_over(vmms, ctx, &permit).await
    }

    /// Everything is there when this returns. What breaks off goes on where it was, for a while.
    async fn send(
        &self,
        vmms: &Arc<Vmms>,
        ctx: &JobContext,
        host: &Arc<Host>,
        proposal: &Proposal,
    ) -> Result<()> {
        let patience = vmms.options.patience.source;
        let (mut since, mut wait) = (Instant::now(), AGAIN.0);
        loop {
            ctx.checkpoint().await?;
            let mut sent = 0;
            let Err(failure) = self.try_send(vmms, ctx, host, proposal, &mut sent).await else {
                return Ok(());
            };
            // Only in vain tries take patience.
            if sent > 0 {
                (since, wait) = (Instant::now(), AGAIN.0);
            }
            if !passes(&failure) || since.elapsed() > patience {
                return Err(failure);
            }
            tracing::info!(host = host.name, error = %failure, "a move is tried again");
            tokio::select! {
                stop = ctx.stop_asked() => return Err(stop),
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(AGAIN.1),
            }
        }
    }

    async fn try_send(
        &self,
        vmms: &Arc<Vmms>,
        ctx: &JobContext,
        host: &Arc<Host>,
        proposal: &Proposal,
        sent: &mut u64,
    ) -> Result<()> {
        // It may have moved itself meanwhile.
        let host = &hosts::named(vmms, &host.name)?;
        let mut link = Link::to(vmms, host, &self.request.options.addresses).await?;
        let standings = self.reserve(ctx, &mut link, proposal).await?;
        phase(ctx, Phase::CopyingFiles).await?;
        let total = proposal.cargo.bytes();
        let (mut done, mut skipped) = (0, 0);
        for file in &proposal.cargo.files {
            ctx.checkpoint().await?;
            let standing = standings.get(&file.name).unwrap_or(&Standing::Missing);
            let from = match self.already(&mut link, proposal.id, file, standing).await? {
                Some(from) => from,
                None => {
                    skipped += file.allocated;
                    done += file.allocated;
                    ctx.progress(done, total);
                    continue;
                }
            };
            let ask = |from| Ask::File {
                id: proposal.id,
                name: file.name.clone(),
                from,
            };
            let before = done;
            let mut count = |bytes| {
                *sent += bytes;
                done += bytes;
                ctx.progress(done.min(total), total);
            };
            let first = copy::send(&mut link, ctx, &ask(from), &file.path, from, &mut count).await;
            match first {
                // What was there of it was not what it should be: it goes anew.
                Err(failure) if failure.has(crate::Message::FileDiffers) && from > 0 => {
                    copy::send(&mut link, ctx, &ask(0), &file.path, 0, &mut count).await?;
                }
                sent => sent?,
            }
            done = before + file.allocated;
            let bytes = *sent;
            tell(ctx, |progress| {
                progress.file_bytes = bytes;
                progress.file_skipped = skipped;
            })
            .await?;
        }
        tell(ctx, |progress| progress.file_skipped = skipped).await?;
        link.ask(&Ask::Settle(proposal.id), SETTLE).await.map(drop)
    }

    /// The destination reserves everything, or says how far it is. Where it has too much to do, its turn is waited for.
    async fn reserve(
        &self,
        ctx: &JobContext,
        link: &mut Link,
        proposal: &Proposal,
    ) -> Result<BTreeMap<String, Standing>> {
        phase(ctx, Phase::Preparing).await?;
        let ask = Ask::Prepare(Box::new(proposal.clone()));
        loop {
            match link.ask(&ask, SETTLE).await? {
                Answer::Prepared(standings) => return Ok(standings.into_iter().collect()),
                Answer::Ended(why) => return Err(link.says(*why)),
                Answer::Wait => {
                    tokio::select! {
                        stop = ctx.stop_asked() => return Err(stop),
                        () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    }
                }
                other => return Err(fault!(Internal, format!("{other:?} to a reservation"))),
            }
        }
    }

    /// From which byte on a file has to be sent; `None`: it is there, proven by its hash.
    async fn already(
        &self,
        link: &mut Link,
        id: Uuid,
        file: &CargoFile,
        standing: &Standing,
    ) -> Result<Option<u64>> {
        let there = match standing {
            Standing::Missing => return Ok(Some(0)),
            Standing::Part(bytes) => return Ok(Some((*bytes).min(file.length))),
            Standing::Whole(there) => there,
        };
        let digest = copy::digest(&file.path).await?;
        if digest != *there {
            return Ok(Some(0));
        }
        let name = file.name.clone();
        link.ask(&Ask::Same { id, name, digest }, ANSWER).await?;
        Ok(None)
    }

    /// The machine was granted: the destination is asked until it says whose it is, or a person does.
    async fn hand_over(&self, vmms: &Arc<Vmms>, ctx: &JobContext, permit: &Permit) -> Result<()> {
        let vm = self.request.vm;
        let mine = ctx.job();
        vmms.db
            .change(|draft| {
                draft.get_mut::<Permit>(vm)?.job = mine;
                Ok(())
            })
            .await?;
        let mut wait = AGAIN.0;
        loop {
            match vmms.db.get::<Permit>(vm)?.state {
                PermitState::Granted => {}
                PermitState::Gone => return self.leave(vmms, ctx).await,
                PermitState::Here => {
                    return Err(fault!(
                        MoveStopped,
                        permit.destination,
                        vmms.host,
                        "a person"
                    ));
                }
            }
            let doubt = match self.grant(vmms, permit).await {
                Ok(Answer::Mine) => {
                    self.state(vmms, PermitState::Gone, None).await?;
                    continue;
                }
                Ok(Answer::Ended(why)) => {
                    // It never will be there: it is this host's again.
                    self.state(vmms, PermitState::Here, None).await?;
                    return Err(super::link::says(&permit.destination, *why));
                }
                Ok(other) => fault!(Internal, format!("{other:?} to a grant")),
                Err(failure) => failure,
            };
            tracing::warn!(host = permit.destination, error = %doubt, "nobody may run a machine that moves");
            let doubt = fault!(MoveInDoubt, permit.destination).caused_by(doubt);
            self.state(vmms, PermitState::Granted, Some(doubt)).await?;
            tell(ctx, |progress| progress.doubt = true).await?;
            let mut changes = vmms.db.changes();
            let decided = async {
                while changes.changed().await.is_ok() {
                    let state = vmms.db.get::<Permit>(vm).map(|p| p.state);
                    if state.is_ok_and(|state| state != PermitState::Granted) {
                        return;
                    }
                }
            };
            tokio::select! {
                // Parked: the next start asks again.
                stop = ctx.stop_asked() => return Err(stop),
                () = decided => {}
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(AGAIN.1),
            }
        }
    }

    async fn grant(&self, vmms: &Arc<Vmms>, permit: &Permit) -> Result<Answer> {
        let host = hosts::named(vmms, &permit.destination)?;
        let mut link = Link::to(vmms, &host, &self.request.options.addresses).await?;
        link.ask(&Ask::Grant(permit.moving), ANSWER).await
    }

    /// Whose the machine is, unless a person has decided.
    async fn state(&self, vmms: &Vmms, state: PermitState, doubt: Option<Fault>) -> Result<()> {
        let vm = self.request.vm;
        vmms.db
            .change(|draft| {
                let permit = draft.get_mut::<Permit>(vm)?;
                if permit.state == PermitState::Granted {
                    permit.state = state;
                    permit.doubt = doubt;
                }
                Ok(())
            })
            .await
    }

    async fn abort(&self, vmms: &Arc<Vmms>, ctx: &JobContext, permit: &Permit) -> Result<()> {
        let job = vmms.job(ctx.job())?;
        let host = hosts::named(vmms, &permit.destination)?;
        let mut link = Link::to(vmms, &host, &self.request.options.addresses).await?;
        let ask = Ask::Abort {
            id: permit.moving,
            // Who stops it does not want it.
            keep: job.stop.is_none(),
            why: None,
        };
        link.ask(&ask, ANSWER).await.map(drop)
    }

    /// The machine is the destination's: what is left of it here goes.
    async fn leave(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        phase(ctx, Phase::Cleaning).await?;
        let vm = self.request.vm;
        let _lock = vmms.lock(vm).await;
        let permit = vmms.db.get::<Permit>(vm)?;
        let runtime = vmms.runtime(vm);
        if let Some(machine) = runtime.machine() {
            machine.quit(QUIT).await?;
            runtime.clear_machine(&machine);
        }
        for path in &permit.leaves {
            remove(path)?;
        }
        vmms.db
            .change(|draft| {
                for point in draft.all::<Point>() {
                    if point.vm == vm {
                        draft.delete::<Point>(point.id);
                    }
                }
                for snapshot in draft.all::<Snapshot>() {
                    if snapshot.vm == vm {
                        draft.delete::<Snapshot>(snapshot.id);
                    }
                }
                draft.delete::<Permit>(vm);
                draft.delete::<Vm>(vm);
                Ok(())
            })
            .await?;
        vmms.drop_runtime(vm);
        tell(ctx, |progress| {
            progress.phase = Phase::Done;
            progress.doubt = false;
        })
        .await
    }
}

/// What goes when the machine is gone.
fn leaves(vmms: &Vmms, request: &Request, cargo: &Cargo) -> Vec<PathBuf> {
    let disks: Vec<_> = cargo.vm.disks().map(|(_, disk)| disk).collect();
    let mut out = Vec::new();
    if !request.options.retain_vhds {
        for disk in disks.iter().filter(|disk| !disk.read_only) {
            let files = disk.layers.nodes.values().filter_map(|n| n.file.as_ref());
            out.extend(files.filter(|f| !f.shared).map(|f| f.path.clone()));
            out.extend(disk.layers.leftovers.clone());
        }
    }
    out.extend(
        disks
            .iter()
            .map(|disk| vmms.dirs.state.join("maps").join(disk.uid.to_string())),
    );
    let instants = cargo.points.iter().map(|p| p.id);
    let instants = instants.chain(cargo.snapshots.iter().map(|s| s.id));
    out.extend(instants.map(|instant| point_dir(vmms, instant)));
    out.push(spec::state_dir(&vmms.dirs, cargo.vm.id));
    out.push(spec::run_dir(&vmms.dirs, cargo.vm.id));
    out
}

/// Removes a file, or a directory of the service's own with what is in it; one that is gone is fine.
fn remove(path: &Path) -> Result<()> {
    let removed = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Fault::io("remove", path, &e)),
        _ => Ok(()),
    }
}

/// Tells something of the move.
pub(crate) async fn tell(
    ctx: &JobContext,
    change: impl FnOnce(&mut Progress) + Send,
) -> Result<()> {
    ctx.output(|output| {
        if let Some(progress) = &mut output.migration {
            change(progress);
        }
    })
    .await
}

pub(crate) async fn phase(ctx: &JobContext, phase: Phase) -> Result<()> {
    tell(ctx, |progress| progress.phase = phase).await
}
