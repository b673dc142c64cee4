//! Taking a reference point.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::collection::{Collection, CollectionPoint};
use crate::db::Draft;
use crate::disk_tree::Frozen;
use crate::instant::freeze::{self, Reached, Step};
use crate::job::Task;
use crate::job::{Activity, Job, JobContext, Machines, Output, Service, Traits, concrete};
use crate::machine::{Asked, Disk, Vm};
use crate::merge;
use crate::merge::{next_sequence, points_of};
use crate::point::{Consistency, Hold, Instant, Point, PointDisk, PointType, files};
use crate::{Effect, Element, Fault, Result, Vmms, fault, names};

/// Takes a reference point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreatePoint {
    /// The machine.
    pub vm: Uuid,
    /// The new point's id.
    pub point: Uuid,
    /// Its kind.
    pub kind: PointType,
    /// What was asked for; `None`: application where it can be had, else crash.
    pub consistency: Option<Consistency>,
    /// Name for people.
    pub name: String,
}

#[async_trait]
impl Work<Machines> for CreatePoint {
    fn traits(&self) -> Traits {
        concrete(
            Service::ReferencePoint,
            201,
            "Creating a reference point",
            Recovery::Undo,
        )
        .shown_as(Activity::CreatingPoint)
    }

    fn claims(&self) -> Claims {
        Claims::of_machine(self.vm, Access::Shared, Layers::Changed, &[self.point])
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self).await
    }

    async fn undo(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        undo(vmms, ctx, self.vm, self.point).await
    }
}

/// Starts a job that takes a reference point; returns the point's and the job's identifiers. `consistency` `None` means:
/// application consistent where that can be had, else crash consistent, and the point tells which and why.
///
/// Refused at once: unknown or planned machines, machines without a writable disk, chains that are as long as they may be.
pub async fn create_point(
    vmms: &Arc<Vmms>,
    vm: Uuid,
    kind: PointType,
    consistency: Option<Consistency>,
    name: &str,
    asked: &Asked,
) -> Result<(Uuid, Uuid)> {
    let record = vmms.db.get::<Vm>(vm)?;
    admit(vmms, &record)?;
    let point = Uuid::new_v4();
    let name = name.trim();
    let name = if name.is_empty() {
        default_name(vmms, &record.name)
    } else {
        name.to_owned()
    };
    names::check("ElementName", &name)?;
    let task = CreatePoint {
        vm,
        point,
        kind,
        consistency,
        name,
    };
    let affected = vec![
        (Element::Vm(vm), Effect::Other),
        (Element::Point(point), Effect::Create),
    ];
    let mut submission = asked.submission(affected);
    submission.output = Output {
        created: Some(Element::Point(point)),
        ..Output::default()
    };
    let (task, job) = vmms.submit_once(task, submission).await?;
    Ok((task.point, job))
}

pub(crate) fn now_text() -> String {
    jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The name of a point that was given none: it is nobody else's, so that whoever names this point means no machine, collection or
/// other point.
pub(crate) fn default_name(vmms: &Vmms, of: &str) -> String {
    let mut taken: BTreeSet<String> = BTreeSet::new();
    taken.extend(vmms.db.all::<Vm>().iter().map(|r| r.name.clone()));
    taken.extend(vmms.db.all::<Collection>().iter().map(|r| r.name.clone()));
    taken.extend(vmms.db.all::<Point>().iter().map(|r| r.name.clone()));
    taken.extend(
        vmms.db
            .all::<CollectionPoint>()
            .iter()
            .map(|r| r.name.clone()),
    );
    // Points that are still being taken have no record yet.
    taken.extend(
        vmms.db
            .all::<Job>()
            .iter()
            .filter_map(|job| match &job.task {
                Task::CreatePoint(task) => Some(task.name.clone()),
                Task::CreateCollectionPoint(task) => Some(task.name.clone()),
                _ => None,
            }),
    );
    let name = format!("{of} {}", now_text());
    let more = (2..).map(|n| format!("{name} ({n})"));
    std::iter::once(name.clone())
        .chain(more)
        .find(|name| !taken.contains(name))
        .unwrap_or(name)
}

/// Whether a point of the machine can be taken.
pub(crate) fn admit(vmms: &Vmms, vm: &Vm) -> Result<()> {
    let about = |fault: Fault| Err(fault.about(Element::Vm(vm.id)));
    if vm.planned {
        return about(fault!(
            WrongVmState,
            vm.name,
            "planned",
            "a reference point",
            "realized"
        ));
    }
    let mut disks = vm.disks().filter(|(_, d)| !d.read_only).peekable();
    if disks.peek().is_none() {
        return about(fault!(NoDisks, vm.name));
    }
    for (_, disk) in disks {
        has_room(vmms, vm, disk).or_else(about)?;
    }
    Ok(())
}

/// Whether a further layer may go on a disk. One that nobody needs any more, beneath the one that is written to, does not count: it can
/// only be merged once that is frozen, which a new layer does.
pub(crate) fn has_room(vmms: &Vmms, vm: &Vm, disk: &Disk) -> Result<()> {
    let tree = &disk.layers;
    let depth = tree.active_chain().len();
    let limit = vmms.options.max_layers;
    let goes = depth == limit && merge::goes_next(vmms, vm, tree);
    match depth < limit || goes {
        true => Ok(()),
        false => Err(fault!(ChainTooLong, disk.path.display(), depth, limit)),
    }
}

/// Takes the point.
pub(crate) async fn run(vmms: &Arc<Vmms>, ctx: &JobContext, work: &CreatePoint) -> Result<()> {
    let CreatePoint {
        vm,
        point,
        kind,
        consistency,
        ref name,
    } = *work;
    let record = vmms.db.get::<Vm>(vm)?;
    let _lock = tokio::select! {
        lock = vmms.lock(vm) => lock,
        stop = ctx.stop_asked() => return Err(stop),
    };
    let _paused = merge::pause_merges(vmms, vm).await;
    let new = New {
        point,
        kind,
        consistency,
        name,
    };
    take(vmms, ctx, vm, &new).await.map_err(|cause| {
        if cause.kind() == crate::Kind::Cancelled {
            return cause;
        }
        fault!(PointFailed, name, record.name)
            .about(Element::Vm(vm))
            .caused_by(cause)
    })
}

/// A point to take.
pub(crate) struct New<'a> {
    pub(crate) point: Uuid,
    pub(crate) kind: PointType,
    pub(crate) consistency: Option<Consistency>,
    pub(crate) name: &'a str,
}

/// A point that is about to be taken: what is to be put on which disks.
pub(crate) struct Begun {
    pub(crate) vm: Arc<Vm>,
    pub(crate) steps: Vec<Step>,
    pub(crate) point: Point,
}

/// Looks whether the point can be taken and plans it. Nothing has changed yet but that the machine's layers are reconciled. The
/// caller holds the machine's lock, and nobody copies between its layers.
pub(crate) async fn begin(vmms: &Arc<Vmms>, vm: Uuid, new: &New<'_>) -> Result<Begun> {
    merge::reconcile(vmms, vm).await?;
    let decisions = crate::point::distrust(vmms, vm).await?;
    let record = vmms.db.get::<Vm>(vm)?;
    // Layers that were cut or exchanged fail here, before anything is begun.
    for (device, disk) in record.disks().filter(|(_, d)| !d.read_only) {
        files::check_chain(device, &disk.layers, disk.layers.active)?;
    }
    admit(vmms, &record)?;
    let steps = freeze::plan(vmms, &record, |disk| !disk.read_only)?;
    let config = files::save_config(vmms, &record, new.point)?;
    let sequence = next_sequence(vmms, vm);
    let disks = record.disks().filter(|(_, d)| !d.read_only);
    let point = Point {
        at: Instant {
            id: new.point,
            vm,
            name: new.name.to_owned(),
            consistency: Consistency::Crash,
            instant: SystemTime::now(),
            pause_us: 0,
            sequence,
            complete: false,
            disks: disks
                .map(|(device, disk)| PointDisk {
                    uid: disk.uid,
                    device: device.to_owned(),
                    path: disk.path.clone(),
                    node: disk.layers.active,
                    size: disk
                        .layers
                        .nodes
                        .get(&disk.layers.active)
                        .map_or(0, |n| n.size),
                    blocks: None,
                })
                .collect(),
            memory: None,
            config,
            decisions,
            exports: Vec::new(),
            export_decisions: Vec::new(),
        },
        kind: new.kind,
        has_data: new.kind == PointType::Log,
        hold: None,
        collection_point: None,
        audit: None,
    };
    Ok(Begun {
        vm: record,
        steps,
        point,
    })
}

impl Begun {
    /// Writes down what is about to happen.
    pub(crate) fn announce(&self, draft: &mut Draft<'_>) -> Result<()> {
        freeze::announce(draft, self.vm.id, &self.steps)?;
        draft.put(self.point.clone());
        Ok(())
    }

    /// What the marked disks are now, and their change maps as files. The point is complete only if all maps could be kept.
    pub(crate) async fn look(mut self, vmms: &Arc<Vmms>, reached: Reached) -> Result<Marked> {
        let mut frozen = Vec::new();
        for step in self.steps {
            let facts = freeze::frozen(vmms, &step.disk).await?;
            frozen.push((step, facts));
        }
        let disks: Vec<Disk> = frozen.iter().map(|(s, _)| s.disk.clone()).collect();
        let maps = freeze::keep_maps(vmms, disks).await;
        let point = &mut self.point;
        for disk in &mut point.disks {
            if let Some((_, frozen)) = frozen.iter().find(|(s, _)| s.disk.uid == disk.uid) {
                disk.size = frozen.size;
            }
        }
        point.complete = maps.is_ok();
        point.consistency = reached.consistency;
        point.instant = reached.instant;
        point.pause_us = u64::try_from(reached.pause.as_micros()).unwrap_or(u64::MAX);
        point.decisions.extend(reached.decisions);
        if point.kind == PointType::Rct {
            point.hold = hold(
                vmms.options.hold_time,
                vmms.options.hold_bytes,
                reached.instant,
            );
        }
        Ok(Marked {
            frozen,
            point: self.point,
            maps,
        })
    }
}

/// A point whose disks are marked, before that is written down.
pub(crate) struct Marked {
    frozen: Vec<(Step, Frozen)>,
    pub(crate) point: Point,
    /// A point without its maps is taken back; its layers are there nevertheless.
    pub(crate) maps: Result<()>,
}

impl Marked {
    /// Writes the new layers into the trees of the machine.
    pub(crate) fn record_layers(&self, draft: &mut Draft<'_>) -> Result<()> {
        let vm = draft.get_mut::<Vm>(self.point.vm)?;
        for (step, frozen) in &self.frozen {
            if let Some(disk) = vm.disk_mut(step.disk.uid) {
                disk.layers
                    .freeze(step.node, step.file.clone(), frozen.clone());
            }
        }
        Ok(())
    }
}

async fn take(vmms: &Arc<Vmms>, ctx: &JobContext, vm: Uuid, new: &New<'_>) -> Result<()> {
    ctx.checkpoint().await?;
    let mut begun = begin(vmms, vm, new).await?;
    begun.keep_saved_memory().await?;
    vmms.db.change(|draft| begun.announce(draft)).await?;
    // Milliseconds from here on; an answer that came after a cancel would leave nobody knowing which of the two won.
    ctx.no_return().await?;
    let reached = freeze::mark(vmms, &begun.vm, &begun.steps, new.consistency).await?;
    let marked = begun.look(vmms, reached).await?;
    vmms.db
        .change(|draft| {
            marked.record_layers(draft)?;
            draft.put(marked.point.clone());
            Ok(())
        })
        .await?;
    marked.maps
}

/// How long an RCT point of that instant keeps its content.
pub(crate) fn hold(time: Duration, bytes: u64, from: SystemTime) -> Option<Hold> {
    if time.is_zero() || bytes == 0 {
        return None;
    }
    Some(Hold {
        until: from.checked_add(time)?,
        bytes,
    })
}

/// Takes back a point that was not finished.
pub(crate) async fn undo(vmms: &Arc<Vmms>, _ctx: &JobContext, vm: Uuid, point: Uuid) -> Result<()> {
    settle_or_wait(vmms, vm).await?;
    forget_unfinished(vmms, vm, |p| p.id == point).await?;
    // One that failed before it was written down has only a directory.
    match vmms.db.get::<Point>(point) {
        Ok(_) => Ok(()),
        Err(_) => forget(vmms, point).await,
    }
}

/// Settles the layers of a machine. Where its process has just died, whoever watches it is given time to notice: only then
/// do the files tell what happened.
async fn settle_or_wait(vmms: &Arc<Vmms>, vm: Uuid) -> Result<()> {
    for tries in 0.. {
        if vmms.db.get::<Vm>(vm).is_err() {
            return Ok(());
        }
        let lock = vmms.lock(vm).await;
        let paused = merge::pause_merges(vmms, vm).await;
        match merge::reconcile(vmms, vm).await {
            Err(gone) if gone.has(crate::Message::QemuGone) && tries < 100 => {}
            other => return other,
        }
        drop((paused, lock));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Takes back the points of a machine that were not finished and of which no job is left; `which` chooses among them.
pub(crate) async fn forget_unfinished(
    vmms: &Arc<Vmms>,
    vm: Uuid,
    which: impl Fn(&Point) -> bool,
) -> Result<()> {
    if vmms.db.get::<Vm>(vm).is_err() {
        return Ok(());
    }
    let _lock = vmms.lock(vm).await;
    let _paused = merge::pause_merges(vmms, vm).await;
    merge::reconcile(vmms, vm).await?;
    for point in points_of(vmms, vm) {
        if !point.complete && which(&point) {
            forget(vmms, point.id).await?;
        }
    }
    Ok(())
}

/// Deletes the record of a point and its directory. Layers that it alone needed are merged by the next sweep.
pub(crate) async fn forget(vmms: &Arc<Vmms>, point: Uuid) -> Result<()> {
    vmms.db
        .change(|draft| {
            crate::collection::leave(draft, point);
            draft.delete::<Point>(point);
            Ok(())
        })
        .await?;
    remove_files(vmms, point)
}

/// Removes the directory of a point whose record is gone.
pub(crate) fn remove_files(vmms: &Vmms, point: Uuid) -> Result<()> {
    let dir = files::point_dir(vmms, point);
    match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Fault::io("remove", &dir, &e)),
        _ => Ok(()),
    }
}

/// What was frozen without being asked for by a point: nothing but the layer.
pub(crate) async fn record_freeze(vmms: &Arc<Vmms>, vm: Uuid, step: &Step) -> Result<()> {
    let frozen: Frozen = freeze::frozen(vmms, &step.disk).await?;
    let maps = freeze::keep_maps(vmms, vec![step.disk.clone()]).await;
    vmms.db
        .change(|draft| {
            if let Some(disk) = draft.get_mut::<Vm>(vm)?.disk_mut(step.disk.uid) {
                disk.layers.freeze(step.node, step.file.clone(), frozen);
            }
            Ok(())
        })
        .await?;
    maps
}
