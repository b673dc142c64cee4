//! Taking a snapshot.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Snapshot, SnapshotKind, current};
use crate::db::Draft;
use crate::instant::freeze;
use crate::job::{JobContext, Machines, Output, Service, Traits, concrete};
use crate::machine::{Asked, Power, Vm};
use crate::merge;
use crate::point::create::{New, admit, begin, now_text, remove_files};
use crate::point::{self, Consistency, Point, PointType};
use crate::{Effect, Element, Fault, Kind, Result, Vmms, fault, names};

/// Takes a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateSnapshot {
    /// The machine.
    pub vm: Uuid,
    /// The new snapshot's id.
    pub snapshot: Uuid,
    /// Its kind.
    pub kind: SnapshotKind,
    /// What was asked for; `None`: application where it can be had, else crash.
    pub consistency: Option<Consistency>,
    /// Name for people.
    pub name: String,
}

#[async_trait]
impl Work<Machines> for CreateSnapshot {
    fn traits(&self) -> Traits {
        concrete(Service::Snapshot, 70, "Creating a snapshot", Recovery::Undo)
    }

    fn claims(&self) -> Claims {
        Claims::of_machine(self.vm, Access::Shared, Layers::Changed, &[self.snapshot])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        undo(vmms, ctx, self.vm, self.snapshot).await
    }
}

/// Starts a job that takes a snapshot; returns the snapshot's and the job's identifiers. `consistency` `None` means:
/// application consistent where that can be had, else crash consistent; a full snapshot has the memory and needs neither.
///
/// Refused at once: unknown and planned machines, machines without a writable disk, chains that are as long as they may be,
/// and an application consistent full snapshot.
pub async fn create(
    vmms: &Arc<Vmms>,
    vm: Uuid,
    kind: SnapshotKind,
    consistency: Option<Consistency>,
    name: &str,
    asked: &Asked,
) -> Result<(Uuid, Uuid)> {
    let record = vmms.db.get::<Vm>(vm)?;
    admit(vmms, &record)?;
    if kind == SnapshotKind::Full && consistency == Some(Consistency::Application) {
        let why = "a full snapshot keeps the memory instead; take one of the disks (3) or a recovery snapshot (32768)";
        return Err(fault!(InvalidValue, "ConsistencyLevel", 1, why).about(Element::Vm(vm)));
    }
    let snapshot = Uuid::new_v4();
    let name = match name.trim() {
        "" => format!("{} - ({})", record.name, now_text()),
        name => name.to_owned(),
    };
    names::check("ElementName", &name)?;
    let task = CreateSnapshot {
        vm,
        snapshot,
        kind,
        consistency,
        name,
    };
    let affected = vec![
        (Element::Vm(vm), Effect::Other),
        (Element::Snapshot(snapshot), Effect::Create),
    ];
    let mut submission = asked.submission(affected);
    submission.output = Output {
        created: Some(Element::Snapshot(snapshot)),
        ..Output::default()
    };
    let (task, job) = vmms.submit_once(task, submission).await?;
    Ok((task.snapshot, job))
}

/// Takes the snapshot.
pub(crate) async fn run(vmms: &Arc<Vmms>, ctx: &JobContext, work: &CreateSnapshot) -> Result<()> {
    let vm = work.vm;
    let record = vmms.db.get::<Vm>(vm)?;
    let new = NewSnapshot {
        id: work.snapshot,
        kind: work.kind,
        consistency: work.consistency,
        name: &work.name,
    };
    taken(vmms, ctx, vm, &new)
        .await
        .map_err(|cause| match cause.kind() {
            Kind::Cancelled => cause,
            _ => fault!(SnapshotFailed, work.name, record.name)
                .about(Element::Vm(vm))
                .caused_by(cause),
        })
}

async fn taken(vmms: &Arc<Vmms>, ctx: &JobContext, vm: Uuid, new: &NewSnapshot<'_>) -> Result<()> {
    let _lock = tokio::select! {
        lock = vmms.lock(vm) => lock,
        stop = ctx.stop_asked() => return Err(stop),
    };
    ctx.checkpoint().await?;
    // What it was before, where an earlier attempt has saved it already.
    let before = match ctx.notes::<Power>() {
        Some(before) => before,
        None => record_power(vmms, vm)?,
    };
    if new.kind != SnapshotKind::Full || !matches!(before, Power::Running | Power::Paused) {
        return take(vmms, ctx, vm, new).await;
    }
    // The state the machine has to come back to, whatever happens from here on.
    ctx.note(&before).await?;
    ctx.no_return().await?;
    if record_power(vmms, vm)? != Power::Saved {
        crate::machine::save(vmms, vm).await?;
    }
    let taken = take(vmms, ctx, vm, new).await;
    let back = go_on(vmms, vm, before).await;
    taken.and(back)
}

fn record_power(vmms: &Vmms, vm: Uuid) -> Result<Power> {
    Ok(vmms.db.get::<Vm>(vm)?.power)
}

/// Brings a machine that was saved for its memory, or was about to be, back into the state it had.
pub(crate) async fn go_on(vmms: &Arc<Vmms>, vm: Uuid, before: Power) -> Result<()> {
    match (before, record_power(vmms, vm)?) {
        (Power::Running, Power::Saved | Power::Paused) | (Power::Paused, Power::Saved) => {}
        _ => return Ok(()),
    }
    crate::machine::end_unknown(vmms, vm).await?;
    crate::machine::start(vmms, vm).await?;
    if before == Power::Paused
        && let Some(machine) = vmms.machine(vm)
    {
        machine.pause().await?;
        vmms.db
            .change(|draft| {
                draft.get_mut::<Vm>(vm)?.power = Power::Paused;
                Ok(())
            })
            .await?;
    }
    Ok(())
}

/// A snapshot to take.
pub(crate) struct NewSnapshot<'a> {
    pub(crate) id: Uuid,
    pub(crate) kind: SnapshotKind,
    pub(crate) consistency: Option<Consistency>,
    pub(crate) name: &'a str,
}

/// Freezes the layers and writes the snapshot down. The caller holds the machine's lock.
pub(crate) async fn take(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: Uuid,
    new: &NewSnapshot<'_>,
) -> Result<()> {
    let _paused = merge::pause_merges(vmms, vm).await;
    let point = New {
        point: new.id,
        kind: PointType::Rct,
        consistency: new.consistency,
        name: new.name,
    };
    let begun = begin(vmms, vm, &point).await?;
    let parent = current(vmms, &begun.vm)
        .filter(|s| s.kind != SnapshotKind::Recovery)
        .map(|s| s.id);
    let config = begun.point.config.clone();
    let memory = match &begun.vm.saved_state {
        Some(saved) if new.kind == SnapshotKind::Full && begun.vm.power == Power::Saved => {
            Some(keep_memory(saved, &config).await?)
        }
        _ => None,
    };
    let settings = (*begun.vm).clone();
    let snapshot =
        |point: &Point| Snapshot::of(point, new.kind, parent, settings.clone(), memory.clone());
    vmms.db
        .change(|draft| {
            freeze::announce(draft, vm, &begun.steps)?;
            draft.put(snapshot(&begun.point));
            Ok(())
        })
        .await?;
    // Milliseconds from here on; an answer that came after a cancel would leave nobody knowing which of the two won.
    ctx.no_return().await?;
    let asked = if new.kind == SnapshotKind::Full {
        Some(Consistency::Crash)
    } else {
        new.consistency
    };
    let reached = freeze::mark(vmms, &begun.vm, &begun.steps, asked).await?;
    let marked = begun.look(vmms, reached).await?;
    vmms.db
        .change(|draft| {
            marked.record_layers(draft)?;
            draft.put(snapshot(&marked.point));
            Ok(())
        })
        .await?;
    marked.maps
}

/// Keeps the saved memory beside the snapshot's configuration: as another name of the same file where that works, since
/// nobody ever writes into a saved state.
pub(crate) async fn keep_memory(saved: &Path, config: &Path) -> Result<PathBuf> {
    let (saved, target) = (saved.to_owned(), config.with_file_name("memory.vmstate"));
    crate::blocking(move || keep_as(&saved, target)).await
}

fn keep_as(saved: &Path, target: PathBuf) -> Result<PathBuf> {
    let failed = |e: std::io::Error| Fault::io("keep the memory in", &target, &e);
    if target.exists() {
        std::fs::remove_file(&target).map_err(failed)?;
    }
    if std::fs::hard_link(saved, &target).is_err() {
        std::fs::copy(saved, &target).map_err(failed)?;
    }
    point::sync(&target)?;
    Ok(target)
}

/// Takes a snapshot for the time of an export, unless it is there. Its name is nobody's to see.
pub(crate) async fn take_for_export(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: Uuid,
    id: Uuid,
    kind: SnapshotKind,
    consistency: Option<Consistency>,
) -> Result<()> {
    if vmms.db.get::<Snapshot>(id).is_ok_and(|s| s.complete) {
        let _lock = vmms.lock(vm).await;
        return come_back(vmms, ctx, vm).await;
    }
    // The snapshot is no end in itself: the export can be stopped before, while and after it is taken.
    let work = CreateSnapshot {
        vm,
        snapshot: id,
        kind,
        consistency,
        name: "export".to_owned(),
    };
    run(vmms, &ctx.part(), &work).await
}

/// Removes the snapshot of an export that failed; what it alone needed is merged by the next sweep. A machine that was saved for
/// its memory comes back.
pub(crate) async fn undo_for_export(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: Uuid,
    id: Uuid,
) -> Result<()> {
    if vmms.db.get::<Vm>(vm).is_err() {
        return Ok(());
    }
    let _lock = vmms.lock(vm).await;
    {
        let _paused = merge::pause_merges(vmms, vm).await;
        merge::reconcile(vmms, vm).await?;
        forget(vmms, id).await?;
    }
    come_back(vmms, ctx, vm).await
}

/// Brings a machine back into the state that was noted before it was saved, if it was. The caller holds the machine's lock.
async fn come_back(vmms: &Arc<Vmms>, ctx: &JobContext, vm: Uuid) -> Result<()> {
    match ctx.notes::<Power>() {
        Some(before) => go_on(vmms, vm, before).await,
        None => Ok(()),
    }
}

/// Takes back a snapshot that was not finished.
pub(crate) async fn undo(
    vmms: &Arc<Vmms>,
    ctx: &JobContext,
    vm: Uuid,
    snapshot: Uuid,
) -> Result<()> {
    if vmms.db.get::<Vm>(vm).is_err() {
        return Ok(());
    }
    let _lock = vmms.lock(vm).await;
    {
        let _paused = merge::pause_merges(vmms, vm).await;
        merge::reconcile(vmms, vm).await?;
        if !vmms.db.get::<Snapshot>(snapshot).is_ok_and(|s| s.complete) {
            forget(vmms, snapshot).await?;
        }
    }
    come_back(vmms, ctx, vm).await
}

/// Deletes the record of a snapshot and its directory; its children descend from its parent. Layers that it alone
/// needed are merged by the next sweep.
pub(crate) async fn forget(vmms: &Arc<Vmms>, snapshot: Uuid) -> Result<()> {
    vmms.db
        .change(|draft| {
            crate::collection::leave_snapshot(draft, snapshot);
            take_out(draft, snapshot);
            Ok(())
        })
        .await?;
    forget_files(vmms, snapshot)
}

/// Deletes the record of a snapshot; its children descend from its parent.
pub(crate) fn take_out(draft: &mut Draft<'_>, snapshot: Uuid) {
    let parent = draft
        .get_mut::<Snapshot>(snapshot)
        .ok()
        .and_then(|s| s.parent);
    for mut child in draft.all::<Snapshot>() {
        if child.parent == Some(snapshot) {
            child.parent = parent;
            draft.put(child);
        }
    }
    for mut vm in draft.all::<Vm>() {
        if vm.descends_from == Some(snapshot) {
            vm.descends_from = parent;
            draft.put(vm);
        }
    }
    draft.delete::<Snapshot>(snapshot);
}

/// Deletes the directory of a snapshot whose record is gone. A point that the snapshot became has the same directory.
pub(crate) fn forget_files(vmms: &Vmms, snapshot: Uuid) -> Result<()> {
    match vmms.db.get::<Point>(snapshot) {
        Ok(_) => Ok(()),
        Err(_) => remove_files(vmms, snapshot),
    }
}
