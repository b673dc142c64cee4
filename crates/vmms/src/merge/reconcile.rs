//! After trouble: what was announced in a tree, and did or did not happen, is decided by what QEMU or the files say.
//!
//! | announced | QEMU runs | files only |
//! |---|---|---|
//! | freeze | the new layer is in the drive's chain: it happened | the new file holds anything: it happened |
//! | commit | the layer has left the chain, and its base is flushed without error: it happened | it did not, whatever the headers say |
//! | fold | the layer beneath is active: it happened | it did not: the layer on top shows the same bytes, since the guest stood still |
//! | resume | the guest is told to go on | there is no guest |
//!
//! What did not happen is taken back, and may be begun anew. Files alone never prove a merge: the header of the layer above is written
//! before the data beneath it is safe, and the tip of a branch has no layer above. But the file that was to go is there until the
//! record says otherwise, and nothing of it is changed: put back beneath the layer above, the disk reads as before.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use disk::Qcow2Layer;
use hypervisor::{
    CommitSpec, ImageFormat, JobControl, Machine, MachineStatus, PreparedLayers, names,
};
use uuid::Uuid;

use crate::disk_tree::{LayerRef, Pending, Stamp};
use crate::instant::freeze::{self, Mode, mode};
use crate::machine::{Disk, Power, Vm, spec};
use crate::point::{Point, files, maps};
use crate::snapshot::Snapshot;
use crate::{Element, Fault, Result, Vmms, fault, guid};

/// A tool that was told to end is gone by then.
const TOOL_ENDS: Duration = Duration::from_secs(30);

/// What a pending change turned out to be.
enum Verdict {
    Happened,
    DidNot,
}

/// Resolves what is announced in the trees of a machine. The caller holds the machine's lock, and nobody copies
/// between its layers. Cheap when nothing is announced.
pub(crate) async fn reconcile(vmms: &Arc<Vmms>, vm: Uuid) -> Result<()> {
    let record = vmms.db.get::<Vm>(vm)?;
    for (_, disk) in record.disks() {
        if !disk.layers.leftovers.is_empty() {
            delete_merged(vmms, vm, disk.uid).await?;
        }
        let Some(pending) = disk.layers.pending.clone() else {
            continue;
        };
        let mode = mode(vmms, &record)?;
        tracing::info!(vm = %guid(vm), disk = %disk.path.display(), ?pending, "reconciling a change of layers");
        match pending {
            Pending::Freeze { node, file } => {
                reconcile_freeze(vmms, &record, disk, &mode, node, &file).await?
            }
            Pending::Commit { node } => reconcile_commit(vmms, &record, disk, &mode, node).await?,
            Pending::Branch { file } => {
                files::remove(&file.path)?;
                clear(vmms, vm, disk.uid).await?;
            }
            Pending::Fold { resume } => reconcile_fold(vmms, &record, disk, &mode, resume).await?,
            Pending::Resume => go_on(vmms, &record, disk, &mode).await?,
        }
    }
    Ok(())
}

pub(crate) async fn clear(vmms: &Vmms, vm: Uuid, disk: Uuid) -> Result<()> {
    vmms.db
        .change(|draft| {
            if let Some(disk) = draft.get_mut::<Vm>(vm)?.disk_mut(disk) {
                disk.layers.pending = None;
            }
            Ok(())
        })
        .await
}

async fn reconcile_freeze(
    vmms: &Arc<Vmms>,
    vm: &Vm,
    disk: &Disk,
    mode: &Mode,
    node: Uuid,
    file: &LayerRef,
) -> Result<()> {
    let verdict = match mode {
        Mode::Running(machine) => freeze_in_qemu(&**machine, disk, file).await?,
        Mode::Files => freeze_in_files(file)?,
    };
    match verdict {
        Verdict::DidNot => {
            files::remove(&file.path)?;
            clear(vmms, vm.id, disk.uid).await
        }
        Verdict::Happened => {
            let frozen = freeze::frozen(vmms, disk).await?;
            // A map that cannot be read now is read again when it is needed.
            if let Err(error) = freeze::keep_maps(vmms, vec![disk.clone()]).await {
                tracing::warn!(disk = %disk.path.display(), %error, "the map of a layer could not be kept");
            }
            vmms.db
                .change(|draft| {
                    if let Some(disk) = draft.get_mut::<Vm>(vm.id)?.disk_mut(disk.uid) {
                        disk.layers.freeze(node, file.clone(), frozen);
                    }
                    Ok(())
                })
                .await
        }
    }
}

async fn freeze_in_qemu(machine: &dyn Machine, disk: &Disk, file: &LayerRef) -> Result<Verdict> {
    let state = machine.reconcile().await?;
    let name = names::layer_node(file.layer);
    let drive = state.drive(&spec::drive_id(disk));
    if drive.is_some_and(|d| d.chain.iter().any(|n| n.node_name == name)) {
        return Ok(Verdict::Happened);
    }
    let active = disk
        .layers
        .active_chain()
        .last()
        .map(|f| names::layer_node(f.layer));
    let prepared = PreparedLayers {
        overlays: vec![freeze::overlay(disk, file)],
        frozen: active.into_iter().collect(),
        already_marked: false,
    };
    machine.discard_layers(&prepared).await?;
    Ok(Verdict::DidNot)
}

fn freeze_in_files(file: &LayerRef) -> Result<Verdict> {
    let mut magic = [0_u8; 4];
    match std::fs::File::open(&file.path).and_then(|mut f| f.read_exact(&mut magic)) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::NotFound || e.kind() == ErrorKind::UnexpectedEof => {
            return Ok(Verdict::DidNot);
        }
        Err(e) => return Err(Fault::io("read", &file.path, &e)),
    }
    // The tool that makes layers writes the header last: it was stopped before, and nobody ever used the file.
    if magic == [0; 4] {
        return Ok(Verdict::DidNot);
    }
    let empty = Qcow2Layer::open(&file.path)?.allocation()?.is_empty();
    Ok(if empty {
        Verdict::DidNot
    } else {
        Verdict::Happened
    })
}

/// The order to merge the file of `node` into the one beneath.
pub(crate) fn commit_spec(disk: &Disk, node: Uuid) -> Result<(CommitSpec, LayerRef, LayerRef)> {
    let tree = &disk.layers;
    let broken = || {
        fault!(
            Internal,
            format!("layer {node} of {} cannot be merged", disk.path.display())
        )
    };
    let file = |id: Uuid| tree.nodes.get(&id).and_then(|n| n.file.clone());
    let top = file(node).ok_or_else(broken)?;
    let base = tree.beneath(node).and_then(file).ok_or_else(broken)?;
    let above = tree.above(node).first().copied().and_then(file);
    let named = |above: LayerRef| freeze::backing_name(&above, &base);
    let spec = CommitSpec {
        drive_id: spec::drive_id(disk),
        top_node: names::layer_node(top.layer),
        base_node: names::layer_node(base.layer),
        backing_name: above.map(named).transpose()?,
    };
    Ok((spec, top, base))
}

async fn reconcile_commit(
    vmms: &Arc<Vmms>,
    vm: &Vm,
    disk: &Disk,
    mode: &Mode,
    node: Uuid,
) -> Result<()> {
    let (spec, top, base) = commit_spec(disk, node)?;
    match mode {
        Mode::Running(machine) if disk.layers.is_ancestor(node, disk.layers.active) => {
            match commit_in_qemu(&**machine, &spec).await? {
                Verdict::Happened => return committed(vmms, vm.id, disk, node).await,
                Verdict::DidNot => {}
            }
        }
        // Nobody has the layers of a branch that was left open.
        Mode::Running(_) | Mode::Files => step_back(vmms, disk, node, &top, &base).await?,
    }
    restamp(vmms, vm.id, disk, node, &base).await?;
    clear(vmms, vm.id, disk.uid).await
}

/// Puts the layer that was being merged back beneath the one above it.
async fn step_back(
    vmms: &Vmms,
    disk: &Disk,
    node: Uuid,
    top: &LayerRef,
    base: &LayerRef,
) -> Result<()> {
    // A tool of the service's last life may be on its way out: nothing is looked at or written before it is gone.
    until_free(base).await?;
    if let Err(e) = std::fs::metadata(&top.path) {
        let cause = Fault::io("look at", &top.path, &e);
        return Err(if e.kind() == ErrorKind::NotFound {
            fault!(LayerMissing, top.path.display(), disk.path.display()).caused_by(cause)
        } else {
            cause
        });
    }
    for id in disk.layers.above(node) {
        let file = disk.layers.nodes.get(&id).and_then(|n| n.file.as_ref());
        let Some(file) = file else {
            continue;
        };
        // A header torn by a power cut cannot be read: it is written anew from the record.
        let names_top = Qcow2Layer::open(&file.path).is_ok_and(|layer| {
            layer
                .backing()
                .is_some_and(|name| files::names_backing(&file.path, name, &top.path))
        });
        if !names_top {
            tracing::info!(layer = %file.path.display(), on = %top.path.display(), "a layer is put back on the one whose merge did not end");
            let name = freeze::backing_name(file, top)?;
            vmms.images
                .rebase_unsafe(&file.path, Some((&name, top.format)))
                .await?;
        }
        files::sync(&file.path)?;
    }
    // What a tool that was killed had taken and not linked yet; bytes that are read are not touched.
    if base.format == ImageFormat::Qcow2 {
        vmms.images.reclaim_leaks(&base.path).await?;
    }
    files::sync(&base.path)
}

/// Waits until no tool has the file any more.
async fn until_free(file: &LayerRef) -> Result<()> {
    if hypervisor::image::free_within(&file.path, TOOL_ENDS).await? {
        return Ok(());
    }
    let what = format!(
        "{} to be closed by the program that has it open",
        file.path.display()
    );
    Err(fault!(Deadline, what, format!("{} s", TOOL_ENDS.as_secs())))
}

/// Stamps anew what a merge wrote to that ended before its time: the file beneath, and the header of a frozen layer above.
async fn restamp(vmms: &Vmms, vm: Uuid, disk: &Disk, node: Uuid, base: &LayerRef) -> Result<()> {
    let mut stamps = Vec::new();
    if let Some(beneath) = disk.layers.beneath(node) {
        stamps.push((beneath, files::stamp_written(&base.path)?));
    }
    stamps.extend(stamps_above(disk, node)?);
    vmms.db
        .change(|draft| {
            if let Some(disk) = draft.get_mut::<Vm>(vm)?.disk_mut(disk.uid) {
                for (id, stamp) in stamps {
                    if let Some(node) = disk.layers.nodes.get_mut(&id) {
                        node.stamp = stamp;
                    }
                }
            }
            Ok(())
        })
        .await
}

/// The stamps of the frozen layers that lie directly on the file of `node`.
fn stamps_above(disk: &Disk, node: Uuid) -> Result<Vec<(Uuid, Option<Stamp>)>> {
    let mut stamps = Vec::new();
    for id in disk.layers.above(node) {
        if let Some(file) = disk.layers.nodes.get(&id).and_then(|n| n.file.as_ref())
            && id != disk.layers.active
        {
            stamps.push((id, files::stamp_written(&file.path)?));
        }
    }
    Ok(stamps)
}

async fn commit_in_qemu(machine: &dyn Machine, spec: &CommitSpec) -> Result<Verdict> {
    let state = machine.reconcile().await?;
    let drive = state.drive(&spec.drive_id);
    let there = drive.is_some_and(|d| d.chain.iter().any(|n| n.node_name == spec.top_node));
    let control = JobControl::new();
    if there {
        if !state
            .jobs
            .iter()
            .any(|j| j.id == names::commit_job(&spec.top_node))
        {
            return Ok(Verdict::DidNot);
        }
        // The call below takes over the job that still runs and stops it.
        control.cancel();
    }
    match machine.commit(spec, &control).await {
        Ok(_) => Ok(Verdict::Happened),
        Err(hypervisor::Error::Cancelled | hypervisor::Error::Job { .. }) => Ok(Verdict::DidNot),
        Err(error) => Err(error.into()),
    }
}

/// Records that the file of `node` was merged into the one beneath, then deletes it.
pub(crate) async fn committed(vmms: &Arc<Vmms>, vm: Uuid, disk: &Disk, node: Uuid) -> Result<()> {
    record_merged(vmms, vm, disk, node).await?;
    delete_merged(vmms, vm, disk.uid).await
}

/// Records that the file of `node` was merged into the one beneath. All of that is durable by now.
pub(crate) async fn record_merged(vmms: &Vmms, vm: Uuid, disk: &Disk, node: Uuid) -> Result<()> {
    let (_, _, base) = commit_spec(disk, node)?;
    let stamp = (node != disk.layers.active)
        .then(|| files::stamp_written(&base.path))
        .transpose()?;
    // The header of a frozen layer above was rewritten: it names another file now.
    let above = stamps_above(disk, node)?;
    vmms.db
        .change(|draft| {
            let Some(disk) = draft.get_mut::<Vm>(vm)?.disk_mut(disk.uid) else {
                return Ok(());
            };
            disk.layers.committed(node);
            let stamps = stamp
                .map(|s| (node, s))
                .into_iter()
                .chain(above.iter().copied());
            for (id, stamp) in stamps {
                if let Some(node) = disk.layers.nodes.get_mut(&id) {
                    node.stamp = stamp;
                }
            }
            Ok(())
        })
        .await
}

/// Deletes the files that were merged into others. Which those are is on record: a file that merely looks like one of
/// ours is never deleted.
pub(crate) async fn delete_merged(vmms: &Vmms, vm: Uuid, disk: Uuid) -> Result<()> {
    let record = vmms.db.get::<Vm>(vm)?;
    let Some(tree) = record.disk(disk).map(|d| &d.layers) else {
        return Ok(());
    };
    let in_use = |path: &Path| {
        let mut files = tree.nodes.values().filter_map(|n| n.file.as_ref());
        files.any(|f| f.path == path)
    };
    let gone: Vec<PathBuf> = tree
        .leftovers
        .iter()
        .filter(|path| !in_use(path))
        .cloned()
        .collect();
    if let Some(machine) = vmms.machine(vm) {
        match machine.drop_merged(&gone).await {
            // Without process there is nobody who has them open.
            Err(error) if error.kind() == hypervisor::ErrorKind::Gone => {}
            dropped => dropped?,
        }
    }
    for path in &gone {
        files::remove(path)?;
    }
    let dirs: BTreeSet<&Path> = gone.iter().filter_map(|path| path.parent()).collect();
    for dir in dirs {
        // Or a power cut brings back files that no record names.
        files::sync_dir(dir)?;
    }
    vmms.db
        .change(|draft| {
            if let Some(disk) = draft.get_mut::<Vm>(vm)?.disk_mut(disk) {
                disk.layers.leftovers.clear();
            }
            Ok(())
        })
        .await
}

async fn reconcile_fold(
    vmms: &Arc<Vmms>,
    vm: &Vm,
    disk: &Disk,
    mode: &Mode,
    resume: bool,
) -> Result<()> {
    let node = disk.layers.active;
    let (spec, _, base) = commit_spec(disk, node)?;
    let Mode::Running(machine) = mode else {
        until_free(&base).await?;
        restamp(vmms, vm.id, disk, node, &base).await?;
        return clear(vmms, vm.id, disk.uid).await;
    };
    let happened = matches!(commit_in_qemu(&**machine, &spec).await?, Verdict::Happened);
    if happened {
        record_merged(vmms, vm.id, disk, node).await?;
    } else {
        restamp(vmms, vm.id, disk, node, &base).await?;
    }
    if resume {
        go_on(vmms, vm, disk, mode).await?;
    } else {
        clear(vmms, vm.id, disk.uid).await?;
    }
    if happened {
        delete_merged(vmms, vm.id, disk.uid).await?;
    }
    Ok(())
}

/// Lets a guest go on that stood still for a fold. That it must stays on record until it does.
async fn go_on(vmms: &Vmms, vm: &Vm, disk: &Disk, mode: &Mode) -> Result<()> {
    let mut goes_on = false;
    if let Mode::Running(machine) = mode
        && machine.status().await? == MachineStatus::Paused
    {
        machine.resume().await?;
        goes_on = true;
    }
    vmms.db
        .change(|draft| {
            let vm = draft.get_mut::<Vm>(vm.id)?;
            if goes_on {
                vm.power = Power::Running;
            }
            if let Some(disk) = vm.disk_mut(disk.uid) {
                disk.layers.pending = None;
            }
            Ok(())
        })
        .await
}

/// At the start of the service, before jobs go on: reconciles every machine, takes back points that were not finished,
/// reads missing maps again, and removes what nobody names. A machine whose layers cannot be reconciled is
/// reported and left alone; its operations are refused until it can.
pub(crate) async fn recover(vmms: &Arc<Vmms>) -> Result<()> {
    for vm in vmms.db.all::<Vm>() {
        let _lock = vmms.lock(vm.id).await;
        if let Err(error) = recover_vm(vmms, vm.id).await {
            tracing::error!(vm = %guid(vm.id), %error, "the layers of a machine could not be brought in order");
        }
    }
    remove_leftovers(vmms)
}

/// Brings the layers and points of one machine in order. The caller holds its lock.
pub(crate) async fn recover_vm(vmms: &Arc<Vmms>, vm: Uuid) -> Result<()> {
    let unfinished: Vec<Arc<Point>> = points_of(vmms, vm)
        .into_iter()
        .filter(|p| !p.complete)
        .collect();
    let snapshots = vmms.db.all::<Snapshot>();
    let snapshot = snapshots.iter().any(|s| s.vm == vm && !s.complete);
    if (snapshot || !unfinished.is_empty())
        && let Some(machine) = vmms.machine(vm)
    {
        // The service may have ended between freeze and thaw. Not waited for: there may be no agent.
        let deadline = vmms.options.agent_deadline;
        tokio::spawn(async move {
            if machine
                .guest_ping(Duration::from_secs(2).min(deadline))
                .await
                .is_ok()
                && machine
                    .guest_frozen(deadline)
                    .await
                    .is_ok_and(|frozen| frozen)
            {
                freeze::insist_on_thaw(&*machine, deadline, vm).await;
            }
        });
    }
    reconcile(vmms, vm).await?;
    mend_names(vmms, vm).await?;
    crate::point::distrust(vmms, vm).await?;
    for point in unfinished {
        crate::point::create::forget(vmms, point.id).await?;
    }
    let record = vmms.db.get::<Vm>(vm)?;
    for (device, disk) in record.disks() {
        for (id, node) in &disk.layers.nodes {
            if node.map.is_some()
                && let Err(error) = maps::load(vmms, disk, *id)
            {
                let about = Element::Resource {
                    vm,
                    id: device.to_owned(),
                };
                tracing::error!(error = %error.about(about), "a change map is lost");
            }
        }
    }
    Ok(())
}

/// Mends layers of a machine that does not run whose header names a file that was merged and deleted: a power cut can have taken the
/// new header away where nobody synced it. Frozen files must be as they were stamped otherwise; those are never blessed.
async fn mend_names(vmms: &Vmms, vm: Uuid) -> Result<()> {
    let record = vmms.db.get::<Vm>(vm)?;
    if !matches!(mode(vmms, &record), Ok(Mode::Files)) {
        return Ok(());
    }
    for (_, disk) in record.disks() {
        let tree = &disk.layers;
        for (id, node) in &tree.nodes {
            let below = tree.beneath(*id).and_then(|b| tree.nodes.get(&b));
            let (Some(file), Some(below)) = (&node.file, below.and_then(|n| n.file.as_ref()))
            else {
                continue;
            };
            let Ok(layer) = Qcow2Layer::open(&file.path) else {
                continue;
            };
            let Some(name) = layer.backing() else {
                continue;
            };
            let named = file.path.parent().unwrap_or(Path::new("/")).join(name);
            let was_ours = named.parent() == below.path.parent()
                && files::is_layer_name(&named)
                && matches!(std::fs::symlink_metadata(&named), Err(e) if e.kind() == ErrorKind::NotFound);
            let untouched = node
                .stamp
                .is_none_or(|was| files::stamp(&file.path).is_ok_and(|now| now == Some(was)));
            if !was_ours || !untouched {
                continue;
            }
            tracing::warn!(layer = %file.path.display(), named = %named.display(), on = %below.path.display(), "a layer names one that was merged, and is put on what lies beneath it");
            let name = freeze::backing_name(file, below)?;
            vmms.images
                .rebase_unsafe(&file.path, Some((&name, below.format)))
                .await?;
            files::sync(&file.path)?;
            if *id == tree.active {
                continue;
            }
            let stamp = files::stamp_written(&file.path)?;
            vmms.db
                .change(|draft| {
                    let disk = draft.get_mut::<Vm>(vm)?.disk_mut(disk.uid);
                    if let Some(node) = disk.and_then(|d| d.layers.nodes.get_mut(id)) {
                        node.stamp = stamp;
                    }
                    Ok(())
                })
                .await?;
        }
    }
    Ok(())
}

/// The points of a machine, the oldest first.
pub(crate) fn points_of(vmms: &Vmms, vm: Uuid) -> Vec<Arc<Point>> {
    let mut points: Vec<Arc<Point>> = vmms
        .db
        .all::<Point>()
        .into_iter()
        .filter(|p| p.vm == vm)
        .collect();
    points.sort_by_key(|p| p.sequence);
    points
}

/// The number of the next point or snapshot of a machine: both count together, so that older and newer are known.
pub(crate) fn next_sequence(vmms: &Vmms, vm: Uuid) -> u64 {
    let points = points_of(vmms, vm).last().map_or(0, |p| p.sequence);
    let snapshots = vmms.db.all::<Snapshot>();
    let last = snapshots
        .iter()
        .filter(|s| s.vm == vm)
        .map(|s| s.sequence)
        .max();
    points.max(last.unwrap_or(0)) + 1
}

/// Removes map files and the directories of points and snapshots that no record names.
fn remove_leftovers(vmms: &Vmms) -> Result<()> {
    let vms = vmms.db.all::<Vm>();
    let named = |disk: &str, node: &str| {
        let (Ok(disk), Ok(node)) = (disk.parse::<Uuid>(), node.parse::<Uuid>()) else {
            return true;
        };
        vms.iter().any(|vm| {
            vm.disk(disk)
                .is_some_and(|d| d.layers.nodes.contains_key(&node))
        })
    };
    // What came of a machine that is on its way here: no record names it before the machine is this host's.
    let arrivals = crate::migration::arrivals(vmms);
    let coming: BTreeSet<PathBuf> = arrivals.iter().flat_map(|a| a.reserves()).collect();
    for disk in entries(&vmms.dirs.state.join("maps"))? {
        for map in entries(&disk)? {
            let (Some(uid), Some(node)) = (disk.file_name(), map.file_stem()) else {
                continue;
            };
            if !coming.contains(&map) && !named(&uid.to_string_lossy(), &node.to_string_lossy()) {
                files::remove(&map)?;
            }
        }
        // Fails where something is left in it, as it should.
        let _ = std::fs::remove_dir(&disk);
    }
    for dir in entries(&vmms.dirs.state.join("points"))? {
        let id = dir
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.parse::<Uuid>().ok());
        let named = |id| vmms.db.get::<Point>(id).is_ok() || vmms.db.get::<Snapshot>(id).is_ok();
        let comes = || coming.iter().any(|file| file.starts_with(&dir));
        if id.is_some_and(|id| !named(id)) && !comes() {
            std::fs::remove_dir_all(&dir).map_err(|e| Fault::io("remove", &dir, &e))?;
        }
    }
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = match std::fs::read_dir(dir) {
        Ok(list) => list,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Fault::io("list", dir, &e)),
    };
    list.map(|entry| {
        entry
            .map(|e| e.path())
            .map_err(|e| Fault::io("list", dir, &e))
    })
    .collect()
}
