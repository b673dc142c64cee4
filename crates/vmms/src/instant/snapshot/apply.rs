//! Bringing a machine back to a snapshot, and dropping a snapshot's memory.
//!
//! No process has the files open, so which layer is the active one is decided by the record alone: the new layers are
//! made first, one transaction puts them into place, and until then the machine is what it was.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use hypervisor::NewImage;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Snapshot, SnapshotKind, refuse_busy};
use crate::db::Draft;
use crate::disk_tree::{LayerRef, Pending};
use crate::host::owner::Owner;
use crate::instant::freeze;
use crate::job::{JobContext, Machines, Service, Traits, concrete};
use crate::machine::{Asked, Power, Vm, VmState, spec};
use crate::merge;
use crate::point::{self, Point};
use crate::{Effect, Element, Fault, Kind, Result, Vmms, fault, guid};

/// Brings a machine back to a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApplySnapshot {
    /// The machine.
    pub vm: Uuid,
    /// The snapshot.
    pub snapshot: Uuid,
}

#[async_trait]
impl Work<Machines> for ApplySnapshot {
    fn traits(&self) -> Traits {
        concrete(Service::Snapshot, 71, "Applying a snapshot", Recovery::Undo).to_the_end()
    }

    fn claims(&self) -> Claims {
        Claims::of_machine(self.vm, Access::Replaces, Layers::Changed, &[self.snapshot])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self.vm, self.snapshot).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        undo(vmms, self.vm).await
    }
}

/// Drops the memory of a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClearSnapshot {
    /// The machine.
    pub vm: Uuid,
    /// The snapshot.
    pub snapshot: Uuid,
}

#[async_trait]
impl Work<Machines> for ClearSnapshot {
    fn traits(&self) -> Traits {
        concrete(
            Service::Snapshot,
            73,
            "Dropping the memory of a snapshot",
            Recovery::Resume,
        )
        .to_the_end()
    }

    fn claims(&self) -> Claims {
        Claims {
            drops_data: vec![self.snapshot],
            ..Claims::of_machine(self.vm, Access::Shared, Layers::Kept, &[])
        }
    }

    async fn run(&self, vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        run_clear(vmms, self.vm, self.snapshot).await
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        // One transaction: whole or not at all.
        Ok(())
    }
}

/// Starts a job that brings a machine back to one of its snapshots; returns the job. What the machine is now is given up,
/// except for what other snapshots and points keep.
///
/// Refused at once: machines that are not off or saved, snapshots of other machines or that were not completed, recovery snapshots, and disks
/// that are not part of the snapshot but carry points.
pub async fn apply(vmms: &Arc<Vmms>, snapshot: Uuid, asked: &Asked) -> Result<Uuid> {
    let record = vmms.db.get::<Snapshot>(snapshot)?;
    admit(vmms, &record)?;
    let affected = vec![
        (Element::Vm(record.vm), Effect::ExclusiveUse),
        (Element::Snapshot(snapshot), Effect::Other),
    ];
    vmms.submit(
        ApplySnapshot {
            vm: record.vm,
            snapshot,
        },
        asked.submission(affected),
    )
    .await
}

pub(crate) fn admit(vmms: &Vmms, snapshot: &Snapshot) -> Result<()> {
    let about = |fault: Fault| Err(fault.about(Element::Snapshot(snapshot.id)));
    if !snapshot.complete {
        return about(fault!(SnapshotIncomplete, guid(snapshot.id)));
    }
    if snapshot.kind == SnapshotKind::Recovery {
        return about(fault!(SnapshotIsRecovery, guid(snapshot.id), "applied"));
    }
    let vm = vmms.db.get::<Vm>(snapshot.vm)?;
    let state = vmms.state_of(&vm);
    if !matches!(state, VmState::Off | VmState::Saved) {
        let fault = fault!(
            WrongVmState,
            vm.name,
            state.word(),
            "applying a snapshot",
            "off or saved"
        );
        return Err(fault.about(Element::Vm(vm.id)));
    }
    let points = vmms.db.all::<Point>();
    let snapshots = vmms.db.all::<Snapshot>();
    for (_, disk) in vm.disks() {
        let kept = snapshot.settings.disk(disk.uid).is_some();
        let named = points
            .iter()
            .flat_map(|p| &p.disks)
            .any(|d| d.uid == disk.uid)
            || snapshots
                .iter()
                .flat_map(|s| &s.disks)
                .any(|d| d.uid == disk.uid);
        if !kept
            && (named
                || disk
                    .layers
                    .active_chain()
                    .iter()
                    .filter(|f| !f.shared)
                    .count()
                    > 1)
        {
            return about(fault!(
                LayersWouldBeLost,
                disk.path.display(),
                guid(snapshot.id)
            ));
        }
    }
    for disk in &snapshot.disks {
        if vm.disk(disk.uid).is_none() {
            return about(fault!(DiskNotFound, guid(vm.id), disk.device));
        }
    }
    Ok(())
}

/// A new active layer of one disk.
struct Branch {
    disk: Uuid,
    on: Uuid,
    node: Uuid,
    file: LayerRef,
}

/// Applies the snapshot.
pub(crate) async fn run(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: Uuid,
    snapshot: Uuid,
) -> Result<()> {
    let _lock = vmms.lock(vm).await;
    let _paused = merge::pause_merges(vmms, vm).await;
    let name = vmms.db.get::<Vm>(vm)?.name.clone();
    bring_back(vmms, ctx, vm, snapshot)
        .await
        .map_err(|cause| match cause.kind() {
            Kind::Cancelled => cause,
            _ => fault!(ApplyFailed, guid(snapshot), name)
                .about(Element::Vm(vm))
                .caused_by(cause),
        })
}

async fn bring_back(vmms: &Arc<Vmms>, ctx: &JobContext, vm: Uuid, id: Uuid) -> Result<()> {
    ctx.checkpoint().await?;
    let back = Back::plan(vmms, vm, id).await?;
    vmms.db.change(|draft| back.announce(draft)).await?;
    let memory = match back.make(vmms).await {
        Ok(memory) => memory,
        Err(error) => {
            merge::reconcile(vmms, vm).await?;
            return Err(error);
        }
    };
    vmms.db
        .change(|draft| back.swap(draft, memory.clone()))
        .await?;
    back.clean(vmms, memory.as_ref()).await
}

/// A machine that is about to be brought back. The caller holds its lock, and nobody copies between its layers.
pub(crate) struct Back {
    vm: Arc<Vm>,
    snapshot: Arc<Snapshot>,
    branches: Vec<Branch>,
}

impl Back {
    /// Looks whether it can be done. Nothing has changed yet but that the machine's layers are reconciled.
    pub(crate) async fn plan(vmms: &Arc<Vmms>, vm: Uuid, id: Uuid) -> Result<Self> {
        merge::reconcile(vmms, vm).await?;
        let snapshot = vmms.db.get::<Snapshot>(id)?;
        admit(vmms, &snapshot)?;
        let record = vmms.db.get::<Vm>(vm)?;
        let mut branches = Vec::new();
        for part in &snapshot.disks {
            let disk = record
                .disk(part.uid)
                .ok_or_else(|| fault!(DiskNotFound, guid(vm), part.device))?;
            point::check_chain(&part.device, &disk.layers, part.node)?;
            let layer = Uuid::new_v4();
            let path = point::layer_path(vmms, disk, layer)?;
            let format = hypervisor::ImageFormat::Qcow2;
            let file = LayerRef {
                layer,
                path,
                format,
                shared: false,
            };
            branches.push(Branch {
                disk: part.uid,
                on: part.node,
                node: Uuid::new_v4(),
                file,
            });
        }
        Ok(Back {
            vm: record,
            snapshot,
            branches,
        })
    }

    /// Writes down which layers are about to be made.
    pub(crate) fn announce(&self, draft: &mut Draft<'_>) -> Result<()> {
        let record = draft.get_mut::<Vm>(self.vm.id)?;
        for branch in &self.branches {
            if let Some(disk) = record.disk_mut(branch.disk) {
                disk.layers.pending = Some(Pending::Branch {
                    file: branch.file.clone(),
                });
            }
        }
        Ok(())
    }

    /// Makes them; returns where the memory is that the next start uses up.
    pub(crate) async fn make(&self, vmms: &Arc<Vmms>) -> Result<Option<PathBuf>> {
        make(vmms, &self.vm, &self.snapshot, &self.branches).await
    }

    /// The machine is what it was: it comes true with the transaction of this draft.
    pub(crate) fn swap(&self, draft: &mut Draft<'_>, memory: Option<PathBuf>) -> Result<()> {
        let now = draft.get_mut::<Vm>(self.vm.id)?;
        let mut back = (*self.snapshot.settings).clone();
        for (_, disk) in back.disks_mut() {
            if let Some(present) = now.disk(disk.uid) {
                disk.layers = present.layers.clone();
            }
        }
        for branch in &self.branches {
            if let Some(disk) = back.disk_mut(branch.disk) {
                disk.layers
                    .branch(branch.on, branch.node, branch.file.clone());
            }
        }
        back.name.clone_from(&now.name);
        back.owner.clone_from(&now.owner);
        back.created = now.created;
        back.planned = now.planned;
        back.changed = SystemTime::now();
        back.power_changed = SystemTime::now();
        back.power = if memory.is_some() {
            Power::Saved
        } else {
            Power::Off
        };
        back.saved_state = memory;
        back.last_applied = Some(self.snapshot.id);
        crate::machine::check_images(&draft.all::<Vm>(), &back)?;
        draft.put(back);
        Ok(())
    }

    /// Deletes what was given up: its files are on record.
    pub(crate) async fn clean(&self, vmms: &Arc<Vmms>, memory: Option<&PathBuf>) -> Result<()> {
        if let Some(old) = self.vm.saved_state.as_ref().filter(|o| Some(*o) != memory) {
            point::remove(old)?;
        }
        merge::reconcile(vmms, self.vm.id).await
    }
}

/// Makes the new layers, and a copy of the memory that the next start may use up; returns where that is.
async fn make(
    vmms: &Arc<Vmms>,
    vm: &Vm,
    snapshot: &Snapshot,
    branches: &[Branch],
) -> Result<Option<PathBuf>> {
    for branch in branches {
        let disk = vm
            .disk(branch.disk)
            .ok_or_else(|| fault!(DiskNotFound, guid(vm.id), branch.disk))?;
        let chain = disk.layers.chain(branch.on).unwrap_or_default();
        let below = chain
            .last()
            .ok_or_else(|| fault!(TrackingLost, disk.path.display(), guid(branch.on)))?;
        let size = disk.layers.nodes.get(&branch.on).map_or(0, |n| n.size);
        let name = freeze::backing_name(&branch.file, below)?;
        let owner = Owner::new(vmms, vm.id, disk.uid, branch.file.layer);
        let image = NewImage {
            owner: Some(owner.to_string()),
            ..NewImage::overlay(&branch.file.path, name, below.format, size)
        };
        vmms.images.create_or_reuse_overlay(&image).await?;
        point::sync(&branch.file.path)?;
    }
    let dir = spec::state_dir(&vmms.dirs, vm.id);
    point::make_dir(&dir)?;
    let vars = snapshot.config.with_file_name(point::FIRMWARE_VARS);
    if vars.exists() {
        let bytes = std::fs::read(&vars).map_err(|e| Fault::io("read", &vars, &e))?;
        disk::atomic::AtomicFile::replace(&dir.join("firmware-vars.fd"), &bytes)?;
    }
    let Some(memory) = &snapshot.memory else {
        return Ok(None);
    };
    let target = dir.join(format!("applied-{}.vmstate", snapshot.id));
    point::remove(&target)?;
    if std::fs::hard_link(memory, &target).is_err() {
        std::fs::copy(memory, &target).map_err(|e| Fault::io("copy the memory to", &target, &e))?;
    }
    point::sync(&target)?;
    Ok(Some(target))
}

/// Takes back what was begun: layers that no record names as active.
pub(crate) async fn undo(vmms: &Arc<Vmms>, vm: Uuid) -> Result<()> {
    if vmms.db.get::<Vm>(vm).is_err() {
        return Ok(());
    }
    let _lock = vmms.lock(vm).await;
    let _paused = merge::pause_merges(vmms, vm).await;
    merge::reconcile(vmms, vm).await
}

/// Starts a job that drops the memory of a full snapshot: applied later, it is a machine that is off. Refused for
/// recovery snapshots and while an export reads it.
pub async fn clear(vmms: &Arc<Vmms>, snapshot: Uuid, asked: &Asked) -> Result<Uuid> {
    let record = vmms.db.get::<Snapshot>(snapshot)?;
    if record.kind == SnapshotKind::Recovery {
        return Err(fault!(SnapshotIsRecovery, guid(snapshot), "cleared")
            .about(Element::Snapshot(snapshot)));
    }
    refuse_busy(vmms, snapshot)?;
    let affected = vec![
        (Element::Vm(record.vm), Effect::Other),
        (Element::Snapshot(snapshot), Effect::ExclusiveUse),
    ];
    vmms.submit(
        ClearSnapshot {
            vm: record.vm,
            snapshot,
        },
        asked.submission(affected),
    )
    .await
}

/// Drops the memory. The record forgets the file before it goes.
async fn run_clear(vmms: &Arc<Vmms>, vm: Uuid, snapshot: Uuid) -> Result<()> {
    let _lock = vmms.lock(vm).await;
    let record = vmms.db.get::<Snapshot>(snapshot)?;
    refuse_busy(vmms, snapshot)?;
    vmms.db
        .change(|draft| {
            let snapshot = draft.get_mut::<Snapshot>(snapshot)?;
            snapshot.memory = None;
            snapshot.settings.power = Power::Off;
            snapshot.settings.saved_state = None;
            Ok(())
        })
        .await?;
    point::remove(&record.config.with_file_name("memory.vmstate"))
}
