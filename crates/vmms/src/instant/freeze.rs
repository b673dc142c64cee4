//! Putting new layers on top of disks at one instant.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hypervisor::thaw::{self, Watchdog};
use hypervisor::{Machine, NewImage, NewOverlay, names};
use uuid::Uuid;

use crate::db::Draft;
use crate::disk_tree::{Frozen, LayerRef, Pending};
use crate::host::owner::Owner;
use crate::machine::{Disk, Power, Vm, spec};
use crate::point::{Consistency, Decision, files, maps};
use crate::{Element, Fault, Result, Vmms, fault, guid};

/// How the files of a machine may be touched.
pub(crate) enum Mode {
    /// Through its process.
    Running(Arc<dyn Machine>),
    /// Directly: nobody has them open.
    Files,
}

/// See [`Mode`]. Refused where a process may be there that cannot be reached.
pub(crate) fn mode(vmms: &Vmms, vm: &Vm) -> Result<Mode> {
    match (vmms.machine(vm.id), vm.power) {
        (Some(machine), _) => Ok(Mode::Running(machine)),
        (None, Power::Off | Power::Saved) => Ok(Mode::Files),
        (None, Power::Running | Power::Paused) => Err(fault!(
            QemuGone,
            format!("machine {} cannot be reached", vm.name)
        )
        .about(Element::Vm(vm.id))),
    }
}

/// A new layer for one disk.
pub(crate) struct Step {
    pub(crate) disk: Disk,
    pub(crate) node: Uuid,
    pub(crate) file: LayerRef,
    /// Whose the layer is, for its header.
    pub(crate) owner: Owner,
}

impl Step {
    fn overlay(&self) -> NewOverlay {
        NewOverlay {
            owner: Some(self.owner.to_string()),
            ..overlay(&self.disk, &self.file)
        }
    }
}

/// A layer as the hypervisor takes it.
pub(crate) fn overlay(disk: &Disk, file: &LayerRef) -> NewOverlay {
    NewOverlay {
        drive_id: spec::drive_id(disk),
        overlay_path: file.path.clone(),
        overlay_node: names::layer_node(file.layer),
        size: None,
        backing_name: None,
        owner: None,
    }
}

/// What a layer records as lying beneath it.
pub(crate) fn backing_name(above: &LayerRef, below: &LayerRef) -> Result<String> {
    Ok(hypervisor::relative_name(&above.path, &below.path)?)
}

/// Plans a new layer for each of the disks. Refused where a chain is as long as it may be.
pub(crate) fn plan(vmms: &Vmms, vm: &Vm, disks: impl Fn(&Disk) -> bool) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for (device, disk) in vm.disks().filter(|(_, disk)| disks(disk)) {
        let about = Element::Resource {
            vm: vm.id,
            id: device.to_owned(),
        };
        crate::point::create::has_room(vmms, vm, disk).map_err(|fault| fault.about(about))?;
        let layer = Uuid::new_v4();
        let file = LayerRef {
            layer,
            path: files::layer_path(vmms, disk, layer)?,
            format: hypervisor::ImageFormat::Qcow2,
            shared: false,
        };
        steps.push(Step {
            owner: Owner::new(vmms, vm.id, disk.uid, layer),
            disk: disk.clone(),
            node: Uuid::new_v4(),
            file,
        });
    }
    Ok(steps)
}

/// Announces the new layers in the trees.
pub(crate) fn announce(draft: &mut Draft<'_>, vm: Uuid, steps: &[Step]) -> Result<()> {
    let record = draft.get_mut::<Vm>(vm)?;
    for step in steps {
        let disk = record
            .disk_mut(step.disk.uid)
            .ok_or_else(|| fault!(DiskNotFound, guid(vm), step.disk.path.display()))?;
        if disk.layers.pending.is_some() || disk.layers.active != step.disk.layers.active {
            return Err(fault!(
                Internal,
                "the layers of a disk changed under the lock"
            ));
        }
        disk.layers.pending = Some(Pending::Freeze {
            node: step.node,
            file: step.file.clone(),
        });
    }
    Ok(())
}

/// What a mark reached.
pub(crate) struct Reached {
    pub(crate) consistency: Consistency,
    pub(crate) instant: SystemTime,
    pub(crate) pause: Duration,
    pub(crate) decisions: Vec<Decision>,
}

/// Puts the announced layers on top.
pub(crate) async fn mark(
    vmms: &Vmms,
    vm: &Vm,
    steps: &[Step],
    asked: Option<Consistency>,
) -> Result<Reached> {
    match mode(vmms, vm)? {
        Mode::Running(machine) => mark_running(vmms, vm, &machine, steps, asked).await,
        Mode::Files => mark_files(vmms, vm, steps, asked).await,
    }
}

/// Makes the new layers as files beside those nobody has open.
pub(crate) async fn mark_files(
    vmms: &Vmms,
    vm: &Vm,
    steps: &[Step],
    asked: Option<Consistency>,
) -> Result<Reached> {
    if asked == Some(Consistency::Application) {
        return Err(fault!(AgentAbsent, vm.name).about(Element::Vm(vm.id)));
    }
    for step in steps {
        let chain = step.disk.layers.active_chain();
        let below = chain
            .last()
            .ok_or_else(|| fault!(Internal, "a disk without layers"))?;
        let size = files::size_of(vmms, below).await?;
        let name = backing_name(&step.file, below)?;
        let image = NewImage {
            owner: Some(step.owner.to_string()),
            ..NewImage::overlay(&step.file.path, name, below.format, size)
        };
        vmms.images.create_or_reuse_overlay(&image).await?;
        files::sync(&step.file.path)?;
    }
    Ok(Reached {
        consistency: Consistency::Crash,
        instant: SystemTime::now(),
        pause: Duration::ZERO,
        decisions: Vec::new(),
    })
}

async fn mark_running(
    vmms: &Vmms,
    vm: &Vm,
    machine: &Arc<dyn Machine>,
    steps: &[Step],
    asked: Option<Consistency>,
) -> Result<Reached> {
    let prepared = prepare(machine, steps).await?;
    let mut decisions = Vec::new();
    let frozen = freeze_guest(vmms, vm, machine, asked, &mut decisions).await?;
    let marked = machine.mark(&prepared).await;
    let consistency = thaw_guest(frozen, asked, &mut decisions).await?;
    let report = marked?;
    Ok(Reached {
        consistency,
        instant: report.instant,
        pause: report.paused_for,
        decisions,
    })
}

/// Gets the new layers ready in a machine's process; nothing shows yet.
pub(crate) async fn prepare(
    machine: &Arc<dyn Machine>,
    steps: &[Step],
) -> Result<hypervisor::PreparedLayers> {
    let overlays: Vec<NewOverlay> = steps.iter().map(Step::overlay).collect();
    Ok(machine.prepare_layers(&overlays).await?)
}

/// Freezes the file systems of a running guest as far as that was asked for. `None`: they are not frozen, which is only
/// fine where it was not demanded, and then a decision says so.
pub(crate) async fn freeze_guest(
    vmms: &Vmms,
    vm: &Vm,
    machine: &Arc<dyn Machine>,
    asked: Option<Consistency>,
    decisions: &mut Vec<Decision>,
) -> Result<Option<FrozenGuest>> {
    let deadline = vmms.options.agent_deadline;
    match asked {
        Some(Consistency::Crash) => Ok(None),
        Some(Consistency::Application) => Ok(Some(
            FrozenGuest::freeze(vmms, vm, machine, deadline).await?,
        )),
        None => {
            let patience = deadline.min(Duration::from_secs(1));
            match FrozenGuest::freeze(vmms, vm, machine, patience).await {
                Ok(frozen) => Ok(Some(frozen)),
                Err(error) => {
                    decisions.push(only_crash(&error));
                    Ok(None)
                }
            }
        }
    }
}

/// Thaws a guest; answers how consistent its disks were in between.
pub(crate) async fn thaw_guest(
    frozen: Option<FrozenGuest>,
    asked: Option<Consistency>,
    decisions: &mut Vec<Decision>,
) -> Result<Consistency> {
    let Some(frozen) = frozen else {
        return Ok(Consistency::Crash);
    };
    match (frozen.thaw().await, asked) {
        (Ok(()), _) => Ok(Consistency::Application),
        (Err(error), Some(_)) => Err(error),
        (Err(error), None) => {
            decisions.push(only_crash(&error));
            Ok(Consistency::Crash)
        }
    }
}

fn only_crash(why: &Fault) -> Decision {
    Decision {
        what: "the point is crash consistent".to_owned(),
        reason: why.to_string(),
    }
}

/// A guest with frozen file systems. However this goes away, a thaw is sent; if the service goes away, its watchdog or the next
/// start sends it.
pub(crate) struct FrozenGuest {
    name: String,
    vm: Uuid,
    machine: Arc<dyn Machine>,
    deadline: Duration,
    armed: bool,
    guard: Option<Guard>,
}

/// What outlives the service: the mark of the freeze, and the watchdog.
struct Guard {
    run_dir: PathBuf,
    mark: Uuid,
    watchdog: Option<Watchdog>,
}

impl Guard {
    fn stand(vmms: &Vmms, vm: Uuid) -> Result<Self> {
        let options = &vmms.options;
        let run_dir = spec::run_dir(&vmms.dirs, vm);
        let mark = thaw::mark(&run_dir)?;
        // Longer than all that is done to a frozen guest may take.
        let within = options.agent_deadline * 4 + options.stop_deadline * 4;
        let mut guard = Guard {
            run_dir,
            mark,
            watchdog: None,
        };
        if let Some(program) = &options.thaw_watchdog {
            match Watchdog::start(program, &guard.run_dir, mark, within) {
                Ok(watchdog) => guard.watchdog = Some(watchdog),
                Err(error) => {
                    guard.relieve();
                    return Err(error.into());
                }
            }
        }
        Ok(guard)
    }

    /// The guest is thawed.
    fn relieve(self) {
        thaw::unmark(&self.run_dir, self.mark);
        if let Some(watchdog) = self.watchdog {
            watchdog.dismiss();
        }
    }
}

impl FrozenGuest {
    async fn freeze(
        vmms: &Vmms,
        vm: &Vm,
        machine: &Arc<dyn Machine>,
        patience: Duration,
    ) -> Result<Self> {
        let deadline = vmms.options.agent_deadline;
        let about = |fault: Fault| fault.about(Element::Vm(vm.id));
        if let Err(error) = machine.guest_ping(patience).await {
            return Err(about(fault!(AgentAbsent, vm.name).caused_by(error)));
        }
        // A guest that nobody might thaw is not frozen.
        let guard = Guard::stand(vmms, vm.id)
            .map_err(|error| about(fault!(FreezeFailed, vm.name).caused_by(error)))?;
        let guest = FrozenGuest {
            guard: Some(guard),
            name: vm.name.clone(),
            vm: vm.id,
            machine: Arc::clone(machine),
            deadline,
            // Armed before: a freeze whose answer is lost may have happened.
            armed: true,
        };
        match machine.guest_freeze(deadline).await {
            Ok(0) => {
                let cause = fault!(
                    AgentRefused,
                    "guest-fsfreeze-freeze",
                    "no file system was frozen"
                );
                Err(about(fault!(FreezeFailed, vm.name).caused_by(cause)))
            }
            Ok(_) => Ok(guest),
            Err(error) => Err(about(fault!(FreezeFailed, vm.name).caused_by(error))),
        }
    }

    /// Thaws. An error means that the guest may not have been frozen at the instant.
    pub(crate) async fn thaw(mut self) -> Result<()> {
        let failed = |cause: Fault| {
            fault!(FreezeFailed, self.name)
                .about(Element::Vm(self.vm))
                .caused_by(cause)
        };
        // A guest that thawed by itself (Windows does after ten seconds) was not frozen at the mark for sure.
        let still = self.machine.guest_frozen(self.deadline).await;
        let thawed = self.machine.guest_thaw(self.deadline).await;
        let result = match (&still, &thawed) {
            (Ok(true), _) => Ok(()),
            (Ok(false), _) => {
                let what = "the guest had thawed its file systems before the instant";
                Err(failed(fault!(AgentRefused, "guest-fsfreeze-status", what)))
            }
            (Err(error), _) => Err(failed(fault!(Driver, error))),
        };
        self.armed = thawed.is_err();
        if !self.armed
            && let Some(guard) = self.guard.take()
        {
            guard.relieve();
        }
        result
    }
}

impl Drop for FrozenGuest {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (machine, deadline, vm) = (Arc::clone(&self.machine), self.deadline, self.vm);
        let guard = self.guard.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let thawed = insist_on_thaw(&*machine, deadline, vm).await;
                // A guard that just goes leaves its mark and wakes its watchdog.
                if let Some(guard) = guard.filter(|_| thawed) {
                    guard.relieve();
                }
            });
        }
    }
}

/// Thaws a guest, several times if need be; whether it was.
pub(crate) async fn insist_on_thaw(machine: &dyn Machine, deadline: Duration, vm: Uuid) -> bool {
    for _ in 0..5 {
        match machine.guest_thaw(deadline).await {
            Ok(_) => return true,
            Err(error) => tracing::warn!(vm = %guid(vm), %error, "the guest could not be thawed"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    tracing::error!(vm = %guid(vm), "the file systems of a guest may be frozen");
    false
}

/// At the start of the service: guests that it left frozen are thawed, while it goes on with its start.
pub(crate) fn thaw_left(vmms: &Arc<Vmms>) {
    for vm in vmms.db.all::<Vm>() {
        let run_dir = spec::run_dir(&vmms.dirs, vm.id);
        let Some(mark) = thaw::marked(&run_dir) else {
            continue;
        };
        let Some(machine) = vmms.machine(vm.id) else {
            thaw::unmark(&run_dir, mark);
            continue;
        };
        let (vmms, id) = (Arc::clone(vmms), vm.id);
        tokio::spawn(async move {
            // Nobody freezes it anew meanwhile.
            let _lock = vmms.lock(id).await;
            if thaw::marked(&run_dir) != Some(mark) {
                return;
            }
            tracing::info!(vm = %guid(id), "a guest was left frozen and is thawed");
            if insist_on_thaw(&*machine, vmms.options.agent_deadline, id).await {
                thaw::unmark(&run_dir, mark);
            }
        });
    }
}

/// What is known of the layer that a step froze: its map is kept as a file, its size and stamp are read.
pub(crate) async fn frozen(vmms: &Vmms, disk: &Disk) -> Result<Frozen> {
    let tree = &disk.layers;
    let node = tree.active;
    let file = tree.nodes.get(&node).and_then(|n| n.file.clone());
    let file = file.ok_or_else(|| fault!(Internal, "a disk without layers"))?;
    let size = files::size_of(vmms, &file).await?;
    let stamp = files::stamp_written(&file.path)?;
    let has_map = tree.nodes.get(&node).is_some_and(|n| n.parent.is_some());
    let map = has_map.then(|| files::map_path(vmms, disk.uid, node));
    Ok(Frozen { map, size, stamp })
}

/// Keeps the maps of the layers that have just been frozen, on a thread for blocking work.
pub(crate) async fn keep_maps(vmms: &Arc<Vmms>, disks: Vec<Disk>) -> Result<()> {
    let vmms = Arc::clone(vmms);
    crate::blocking(move || {
        disks
            .iter()
            .try_for_each(|d| maps::keep(&vmms, d, d.layers.active))
    })
    .await
}
