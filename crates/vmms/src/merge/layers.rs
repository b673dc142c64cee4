//! Merging layers that nobody needs, and dropping instants that nobody names: the background job.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use disk::ChangeMap;
use engine::{Access, Claims, Layers, Recovery, Work};
use hypervisor::{JobControl, LayerFile, Machine};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk_tree::{Pending, Prune};
use crate::instant::freeze::{self, Mode, mode};
use crate::job::{Activity, JobContext, Machines, Service, Traits, concrete};
use crate::machine::{Disk, Power, Vm, spec};
use crate::merge;
use crate::merge::due::{Chore, merged_name, pick};
use crate::merge::reconcile::{self, commit_spec, committed};
use crate::point::{files, maps};
use crate::{Element, Result, Vmms, fault, guid};

/// Merges layers nobody needs, in the background.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeLayers {
    /// The machine.
    pub vm: Uuid,
}

#[async_trait]
impl Work<Machines> for MergeLayers {
    fn traits(&self) -> Traits {
        concrete(
            Service::Management,
            50,
            "Merging disk layers",
            Recovery::Resume,
        )
        .shown_as(Activity::Merging)
    }

    fn claims(&self) -> Claims {
        Claims::of_machine(self.vm, Access::Background, Layers::Changed, &[])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self.vm).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        undo(vmms, ctx, self.vm).await
    }
}

/// A layer that is written on while it is folded may hold this much before the guest is stopped for the rest.
const SMALL: u64 = 16 << 20;
/// How often a layer of a busy guest is replaced by a fresh one before it is folded whatever its size.
const ROUNDS: u32 = 3;

/// Runs the chores of a machine as a job of their own.
pub(crate) async fn run(vmms: &Arc<Vmms>, ctx: &JobContext, vm: Uuid) -> Result<()> {
    if vmms.db.get::<Vm>(vm).is_err() {
        return Ok(());
    }
    let result = merge(vmms, ctx, vm).await;
    match &result {
        Err(_) => vmms.points.failed(vm),
        Ok(_) => vmms.points.succeeded(vm),
    }
    result.map(drop)
}

/// Takes back what a stopped merge left half done.
pub(crate) async fn undo(vmms: &Arc<Vmms>, _ctx: &JobContext, vm: Uuid) -> Result<()> {
    if vmms.db.get::<Vm>(vm).is_err() {
        return Ok(());
    }
    let _lock = vmms.lock(vm).await;
    let _paused = merge::pause_merges(vmms, vm).await;
    merge::reconcile(vmms, vm).await
}

/// How far the chores got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merged {
    /// Nothing is left to do.
    All,
    /// Something else needed the layers to stand still; a later sweep goes on.
    MadeWay,
}

/// Does all chores of a machine, the lock held only between copies.
pub(crate) async fn merge(vmms: &Arc<Vmms>, ctx: &JobContext, vm: Uuid) -> Result<Merged> {
    let merging = vmms.points.merging(vm);
    let mut rounds: BTreeMap<Uuid, u32> = BTreeMap::new();
    loop {
        ctx.checkpoint().await?;
        let lock = vmms.lock(vm).await;
        let Some(right) = merging.try_right() else {
            // Somebody else merges for us. Never waited for with the lock in hand: others need it meanwhile.
            drop(lock);
            tokio::select! {
                () = merging.until_free() => continue,
                stop = ctx.stop_asked() => return Err(stop),
            }
        };
        merge::reconcile(vmms, vm).await?;
        // A merge writes a new stamp: what something else did before must be on record by then.
        crate::point::distrust(vmms, vm).await?;
        let record = vmms.db.get::<Vm>(vm)?;
        let files_only = matches!(mode(vmms, &record)?, Mode::Files);
        let picked = vmms.db.change(|draft| pick(draft, vm, files_only)).await?;
        let Some((disk, chore)) = picked else {
            return Ok(Merged::All);
        };
        let record = vmms.db.get::<Vm>(vm)?;
        let found = record
            .disk(disk)
            .ok_or_else(|| fault!(DiskNotFound, guid(vm), disk))?;
        let node = match &chore {
            Chore::Commit(node) => *node,
            _ => found.layers.active,
        };
        let failed = |cause: crate::Fault| {
            if cause.kind() == crate::Kind::Cancelled {
                return cause;
            }
            fault!(CommitFailed, merged_name(vmms, &record, found, node))
                .about(Element::Vm(vm))
                .caused_by(cause)
        };
        match (chore, mode(vmms, &record)?) {
            (Chore::Drop(_), _) => merge::reconcile(vmms, vm).await?,
            (Chore::Prune(prune), _) => drop_node(vmms, vm, found, &prune).await?,
            (Chore::Fold, Mode::Running(machine)) => {
                let round = rounds.entry(disk).or_default();
                *round += 1;
                if *round <= ROUNDS && layer_bytes(found) > SMALL {
                    // A fresh layer takes what the guest writes; the one beneath becomes an ordinary merge.
                    fresh_layer(vmms, &record, found).await.map_err(failed)?;
                } else {
                    fold_running(vmms, &record, found, &machine)
                        .await
                        .map_err(failed)?;
                }
            }
            (Chore::Commit(_) | Chore::Fold, how) => {
                // From here on without the lock: others may read and plan, and stop us when they need the layers.
                drop(lock);
                let copied = copy(ctx, vmms, found, node, &how, &merging).await;
                drop(right);
                let _lock = vmms.lock(vm).await;
                let unchanged = vmms.db.get::<Vm>(vm).is_ok_and(|now| {
                    now.disk(disk)
                        .is_some_and(|d| d.layers.pending == found.layers.pending)
                });
                match copied {
                    Ok(Copied::MadeWay) => return Ok(Merged::MadeWay),
                    // Whoever stopped us has reconciled it already.
                    _ if !unchanged => return Ok(Merged::MadeWay),
                    Ok(Copied::Whole) => committed(vmms, vm, found, node).await?,
                    Err(error) => {
                        merge::reconcile(vmms, vm).await?;
                        return Err(failed(error));
                    }
                }
            }
        }
    }
}

enum Copied {
    Whole,
    MadeWay,
}

async fn copy(
    ctx: &JobContext,
    vmms: &Vmms,
    disk: &Disk,
    node: Uuid,
    how: &Mode,
    merging: &merge::memory::Merging,
) -> Result<Copied> {
    let (order, top, _) = commit_spec(disk, node)?;
    let control = JobControl::new();
    // Nobody has the layers of a branch that was left open.
    let in_use = disk.layers.is_ancestor(node, disk.layers.active);
    let work = async {
        match how {
            Mode::Running(machine) if in_use => machine.commit(&order, &control).await.map(drop),
            Mode::Running(_) | Mode::Files => {
                let chain: Vec<LayerFile> = disk
                    .layers
                    .chain_through(node)
                    .iter()
                    .map(spec::layer_file)
                    .collect();
                vmms.images
                    .fold(&chain, &order.base_node, &order.top_node, &control)
                    .await
            }
        }
    };
    let watch = async {
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let progress = control.progress();
            ctx.progress(progress.done, progress.total);
        }
    };
    let mut made_way = false;
    let result = {
        tokio::pin!(work);
        tokio::pin!(watch);
        tokio::select! {
            result = &mut work => result,
            () = &mut watch => Err(hypervisor::Error::Cancelled),
            () = merging.asked_to_stop() => {
                made_way = true;
                control.cancel();
                work.await
            }
            _ = ctx.stop_asked() => {
                control.cancel();
                work.await
            }
        }
    };
    match result {
        Ok(()) => Ok(Copied::Whole),
        Err(hypervisor::Error::Cancelled) if made_way => Ok(Copied::MadeWay),
        Err(hypervisor::Error::Cancelled) => Err(fault!(Cancelled, "terminated", "a client")),
        Err(error) => {
            tracing::warn!(layer = %top.path.display(), %error, "a layer could not be merged");
            Err(error.into())
        }
    }
}

/// What the active layer takes on the host, in bytes.
fn layer_bytes(disk: &Disk) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let top = disk.layers.active_chain().pop();
    let meta = top.and_then(|f| std::fs::metadata(f.path).ok());
    meta.map_or(0, |m| m.blocks() * 512)
}

/// Puts a fresh layer on a disk whose present one is too big to fold while the guest stands still.
async fn fresh_layer(vmms: &Arc<Vmms>, vm: &Vm, disk: &Disk) -> Result<()> {
    let steps = freeze::plan(vmms, vm, |d| d.uid == disk.uid)?;
    vmms.db
        .change(|draft| freeze::announce(draft, vm.id, &steps))
        .await?;
    freeze::mark(vmms, vm, &steps, Some(crate::point::Consistency::Crash)).await?;
    for step in &steps {
        crate::point::create::record_freeze(vmms, vm.id, step).await?;
    }
    Ok(())
}

/// Folds the active layer of a running machine. The guest stands still until the record says which file is the disk: a
/// crash of anything at any moment then leaves two files that show the same bytes, and either may be taken.
async fn fold_running(
    vmms: &Arc<Vmms>,
    vm: &Vm,
    disk: &Disk,
    machine: &Arc<dyn Machine>,
) -> Result<()> {
    let (order, _, _) = commit_spec(disk, disk.layers.active)?;
    let resume = vm.power == Power::Running;
    vmms.db
        .change(|draft| {
            if let Some(disk) = draft.get_mut::<Vm>(vm.id)?.disk_mut(disk.uid) {
                disk.layers.pending = Some(Pending::Fold { resume });
            }
            Ok(())
        })
        .await?;
    let quiesced = match machine.quiesce().await {
        Ok(quiesced) => quiesced,
        Err(error) => {
            // It may stand still nevertheless.
            merge::reconcile(vmms, vm.id).await?;
            return Err(error.into());
        }
    };
    let folded = machine.commit(&order, &JobControl::new()).await;
    let recorded = match folded {
        Ok(_) => reconcile::record_merged(vmms, vm.id, disk, disk.layers.active).await,
        Err(error) => Err(error.into()),
    };
    // Only a guest whose record is in order may write again; otherwise `reconcile` decides and lets it go on.
    if let Err(error) = recorded {
        merge::reconcile(vmms, vm.id).await?;
        return Err(error);
    }
    let mut released = machine.release(quiesced).await;
    for _ in 0..5 {
        if released.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        released = machine.release(quiesced).await;
    }
    released?;
    reconcile::clear(vmms, vm.id, disk.uid).await?;
    // Only now: taking a large file away takes its time.
    reconcile::delete_merged(vmms, vm.id, disk.uid).await
}

/// Drops an instant. What changed up to it is added to the map of its child first; doing that twice changes nothing.
async fn drop_node(vmms: &Arc<Vmms>, vm: Uuid, disk: &Disk, prune: &Prune) -> Result<()> {
    let tree = &disk.layers;
    let parent = tree.nodes.get(&prune.node).and_then(|n| n.parent);
    let joined = match (parent, prune.child) {
        (Some(_), Some(child)) if child != tree.active => {
            let joined = join(vmms, disk, prune.node, child);
            // Where a map is lost, so is the difference across it; the disk itself is not.
            match joined {
                Ok((map, size)) => maps::save(vmms, disk.uid, child, &map, size)?,
                Err(error) => {
                    tracing::error!(disk = %disk.path.display(), %error, "a change map is lost");
                    files::remove(&files::map_path(vmms, disk.uid, child))?;
                }
            }
            Some(files::map_path(vmms, disk.uid, child))
        }
        _ => None,
    };
    vmms.db
        .change(|draft| {
            if let Some(disk) = draft.get_mut::<Vm>(vm)?.disk_mut(disk.uid) {
                disk.layers.pruned(prune, joined.clone());
            }
            Ok(())
        })
        .await?;
    files::remove(&files::map_path(vmms, disk.uid, prune.node))?;
    match (joined, prune.child) {
        (None, Some(child)) => files::remove(&files::map_path(vmms, disk.uid, child)),
        _ => Ok(()),
    }
}

fn join(vmms: &Vmms, disk: &Disk, node: Uuid, child: Uuid) -> Result<(ChangeMap, u64)> {
    let (below, a) = maps::load(vmms, disk, node)?;
    let (above, b) = maps::load(vmms, disk, child)?;
    Ok((below.union(&above), a.max(b)))
}
