//! Proving on demand that a difference missed nothing: both instants are read, and whatever differs must be in the map.
//!
//! The newer instant is read from its layers. The older one is read from its layers too while they are held; otherwise the
//! block hashes of one of its exports stand for it. The result stays on the point.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use disk::export::{changed_blocks, differing_bytes};
use disk::{BLOCK_SIZE, CancelFlag, Chain, ChangeMap, Source};
use engine::{Access, Claims, Layers, Recovery, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::blocking;
use crate::export::{kept_list, proven_lists};
use crate::job::{JobContext, Machines, Service, Traits, concrete};
use crate::machine::{Asked, Vm};
use crate::merge;
use crate::merge::points_of;
use crate::point::{
    Point, PointDisk, check_chain, check_formats, disk_id_text, distrust, maps, open_chain,
};
use crate::{Effect, Element, Fault, Result, Vmms, fault, guid};

/// Proves that the change map between two points missed nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditPoint {
    /// The newer point.
    pub point: Uuid,
    /// The older one.
    pub base: Uuid,
    /// What stands for the content of the older one.
    pub proof: Proof,
}

#[async_trait]
impl Work<Machines> for AuditPoint {
    fn traits(&self) -> Traits {
        concrete(
            Service::ReferencePoint,
            0,
            "Auditing the change map of a reference point",
            Recovery::Resume,
        )
        .suspendable()
    }

    fn claims(&self) -> Claims {
        Claims {
            reads: match self.proof {
                Proof::Layers => vec![self.point, self.base],
                Proof::Hashes => vec![self.point],
            },
            builds_on: vec![self.base],
            ..Claims::of_point(self.point, Access::Frozen, Layers::Kept)
        }
    }

    async fn run(&self, vmms: &Arc<Vmms>, ctx: &JobContext) -> Result<()> {
        run(vmms, ctx, self).await
    }

    async fn undo(&self, _vmms: &Arc<Vmms>, _ctx: &JobContext) -> Result<()> {
        // Only its result, which is one change.
        Ok(())
    }
}

/// Most missed ranges of a disk that are kept.
const KEPT_RANGES: usize = 1024;
/// Most missed ranges that a failure names.
const TOLD_RANGES: usize = 16;

/// What an audit found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// When it ended.
    pub at: SystemTime,
    /// The older point of the difference.
    pub base: Uuid,
    /// What stood for the older point.
    pub proof: Proof,
    /// The disks both points have, in the order of the point's disks.
    pub disks: Vec<DiskAudit>,
}

/// What stands for the content of the older point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Proof {
    /// Its layers: compared byte by byte, told in sectors of 512 bytes.
    Layers,
    /// The block hashes of an export of it: compared in blocks of 64 KiB.
    Hashes,
}

/// What an audit found on one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskAudit {
    /// The disk's uid.
    pub uid: Uuid,
    /// The resource id within the machine.
    pub device: String,
    /// Bytes compared: the whole disk.
    pub compared: u64,
    /// Bytes in sectors, or blocks, that differ.
    pub different: u64,
    /// Bytes the change map has.
    pub mapped: u64,
    /// Bytes that differ and are not in the map.
    pub missed_bytes: u64,
    /// Where they are: offset and length; the first of them where there are very many.
    pub missed: Vec<(u64, u64)>,
    /// How many ranges there are, also those that `missed` leaves out.
    #[serde(default)]
    pub missed_ranges: u64,
}

impl Audit {
    /// Whether the map has everything that differs.
    pub fn passed(&self) -> bool {
        self.disks.iter().all(|d| d.missed_bytes == 0)
    }
}

impl Proof {
    /// In words.
    pub fn word(self) -> &'static str {
        match self {
            Proof::Layers => "layers",
            Proof::Hashes => "hashes",
        }
    }
}

/// Starts a job that proves the change map between `base` and the point; without `base` that of the newest older point
/// whose content is still known. Refused at once where the content of either is gone.
pub async fn audit_point(
    vmms: &Arc<Vmms>,
    point: Uuid,
    base: Option<Uuid>,
    asked: &Asked,
) -> Result<Uuid> {
    let record = vmms.db.get::<Point>(point)?;
    let given = base.map(|b| vmms.db.get::<Point>(b)).transpose()?;
    let shared = Arc::clone(vmms);
    let (base, proof) = blocking(move || choose(&shared, &record, given.as_deref()))
        .await
        .map_err(|fault| fault.about(Element::Point(point)))?;
    let vm = vmms.db.get::<Point>(point)?.vm;
    let affected = vec![
        (Element::Point(point), Effect::Other),
        (Element::Vm(vm), Effect::Performance),
    ];
    let task = AuditPoint { point, base, proof };
    vmms.submit(task, asked.submission(affected)).await
}

/// The base, and what stands for it.
fn choose(vmms: &Vmms, point: &Point, base: Option<&Point>) -> Result<(Uuid, Proof)> {
    if !point.complete {
        return Err(fault!(PointIncomplete, guid(point.id)));
    }
    let vm = vmms.db.get::<Vm>(point.vm)?;
    readable(&vm, point, &point.disks).map_err(|cause| {
        let which = base.map_or_else(|| "older points".to_owned(), |b| guid(b.id));
        impossible(point, &which, "its own content cannot be read any more").caused_by(cause)
    })?;
    if let Some(base) = base {
        return Ok((base.id, proof_of(&vm, point, base)?));
    }
    let mut older = points_of(vmms, point.vm);
    older.retain(|p| p.complete && p.sequence < point.sequence);
    let mut none = impossible(
        point,
        "older points",
        "the content of none of them is known any more",
    );
    for base in older.iter().rev() {
        match proof_of(&vm, point, base) {
            Ok(proof) => return Ok((base.id, proof)),
            Err(cause) => none.causes.push(cause),
        }
    }
    Err(none)
}

fn impossible(point: &Point, base: &str, why: &str) -> Fault {
    fault!(AuditImpossible, guid(point.id), base, why)
}

/// What can stand for the content of `base`.
fn proof_of(vm: &Vm, point: &Point, base: &Point) -> Result<Proof> {
    if base.vm != point.vm {
        let (base, own) = (guid(base.id), guid(point.vm));
        return Err(fault!(BaseOfOtherVm, base, guid(vm.id), own));
    }
    if !base.complete {
        return Err(fault!(PointIncomplete, guid(base.id)));
    }
    if base.sequence >= point.sequence {
        return Err(fault!(BaseNotOlder, guid(base.id), guid(point.id)));
    }
    let common: Vec<PointDisk> = common(point, base).map(|(_, old)| old.clone()).collect();
    if common.is_empty() {
        return Err(impossible(
            point,
            &guid(base.id),
            "they have no disk in common",
        ));
    }
    let Err(unreadable) = readable(vm, base, &common) else {
        return Ok(Proof::Layers);
    };
    match common.iter().try_for_each(|d| hashes(base, d).map(drop)) {
        Ok(()) => Ok(Proof::Hashes),
        Err(unproven) => {
            let why = "the content of the older one is gone, and no export of it was found";
            let fault = impossible(point, &guid(base.id), why);
            Err(fault.caused_by(unreadable).caused_by(unproven))
        }
    }
}

/// The disks both points have.
fn common<'a>(
    point: &'a Point,
    base: &'a Point,
) -> impl Iterator<Item = (&'a PointDisk, &'a PointDisk)> {
    point
        .disks
        .iter()
        .filter_map(|new| Some((new, base.disks.iter().find(|old| old.uid == new.uid)?)))
}

/// Whether the content of all these disks of a point lies in layers.
fn readable(vm: &Vm, point: &Point, disks: &[PointDisk]) -> Result<()> {
    for disk in disks {
        let found = vm
            .disk(disk.uid)
            .ok_or_else(|| fault!(DiskNotFound, guid(vm.id), disk.device))?;
        let node = found.layers.nodes.get(&disk.node);
        if node.is_none_or(|n| n.file.is_none()) {
            return Err(fault!(NoAssociatedData, guid(point.id)));
        }
        // While layers are merged, files beneath change by our own hand. The job looks again once they stand still.
        if found.layers.pending.is_none() {
            check_chain(&disk.device, &found.layers, disk.node)?;
            check_formats(&found.layers, disk.node)?;
        }
    }
    Ok(())
}

/// The block lists that tell the hashes of a disk of a point, base first, each proven: the one that was kept when the point was
/// exported, else those of its newest export with all it builds on.
fn hashes(base: &Point, disk: &PointDisk) -> Result<Vec<PathBuf>> {
    let id = disk_id_text(base.vm, &disk.device);
    let mut why = fault!(NoAssociatedData, guid(base.id));
    match kept_list(base, disk) {
        Some(Ok(list)) => return Ok(vec![list]),
        Some(Err(cause)) => why.causes.push(cause),
        None => {}
    }
    for dir in base.exports.iter().rev() {
        let found = crate::restore::verify::chain_of(dir).and_then(|chain| {
            let top = chain
                .last()
                .map(|e| (&e.manifest.machine.id, &e.manifest.point.id));
            if top.is_none_or(|(vm, point)| *vm != guid(base.vm) || *point != guid(base.id)) {
                return Err(fault!(ManifestUnusable, dir.display()));
            }
            proven_lists(&chain, &id)
        });
        match found {
            Ok(found) => return Ok(found),
            Err(cause) => why.causes.push(cause),
        }
    }
    Err(why)
}

/// What stands for the older content of a disk.
enum Older {
    Layers(Chain),
    Hashes(Vec<PathBuf>),
}

/// A disk ready to be compared.
struct Part {
    disk: PointDisk,
    device: String,
    now: Chain,
    older: Older,
    older_size: u64,
    map: ChangeMap,
}

/// Does the proof.
pub(crate) async fn run(vmms: &Arc<Vmms>, ctx: &JobContext, work: &AuditPoint) -> Result<()> {
    let AuditPoint { point, base, proof } = *work;
    ctx.checkpoint().await?;
    let record = vmms.db.get::<Point>(point)?;
    let older = vmms.db.get::<Point>(base)?;
    let lists: Lists = match proof {
        Proof::Layers => Vec::new(),
        Proof::Hashes => {
            let (record, older) = (Arc::clone(&record), Arc::clone(&older));
            blocking(move || {
                let of = |(_, old): (&PointDisk, &PointDisk)| Ok((old.uid, hashes(&older, old)?));
                common(&record, &older).map(of).collect()
            })
            .await?
        }
    };
    let parts = {
        // A merge beneath is ended, and no instant on the way from the one to the other is dropped meanwhile. Afterwards the
        // running job keeps the files, which are open.
        let _lock = vmms.lock(record.vm).await;
        let _paused = merge::pause_merges(vmms, record.vm).await;
        merge::reconcile(vmms, record.vm).await?;
        distrust(vmms, record.vm).await?;
        let (shared, record, older) = (Arc::clone(vmms), Arc::clone(&record), Arc::clone(&older));
        blocking(move || prepare(&shared, &record, &older, proof, &lists)).await?
    };
    let (cancel, told) = (ctx.cancel_flag(), ctx.clone());
    let disks = blocking(move || compare_all(&parts, &cancel, &told)).await?;
    // What something else changed meanwhile was compared as it was, or as it became.
    let vm = vmms.db.get::<Vm>(record.vm)?;
    for (new, old) in common(&record, &older) {
        let found = vm
            .disk(new.uid)
            .ok_or_else(|| fault!(DiskNotFound, guid(vm.id), new.device))?;
        check_chain(&new.device, &found.layers, new.node)?;
        if proof == Proof::Layers {
            check_chain(&new.device, &found.layers, old.node)?;
        }
    }
    let audit = Audit {
        at: SystemTime::now(),
        base,
        proof,
        disks,
    };
    vmms.db
        .change(|draft| {
            draft.get_mut::<Point>(point)?.audit = Some(audit.clone());
            Ok(())
        })
        .await?;
    ctx.output(|output| {
        output.bytes_read = audit.disks.iter().map(|d| d.compared).sum();
        output.report = audit.disks.iter().map(|d| line(d, proof)).collect();
    })
    .await?;
    verdict(&record, &audit)
}

/// The block lists of a disk, by its uid.
type Lists = Vec<(Uuid, Vec<PathBuf>)>;

fn prepare(
    vmms: &Vmms,
    point: &Point,
    base: &Point,
    proof: Proof,
    lists: &Lists,
) -> Result<Vec<Part>> {
    let vm = vmms.db.get::<Vm>(point.vm)?;
    let mut parts = Vec::new();
    for (new, old) in common(point, base) {
        let found = vm
            .disk(new.uid)
            .ok_or_else(|| fault!(DiskNotFound, guid(vm.id), new.device))?;
        let tree = &found.layers;
        let now = open_chain(&new.device, tree, new.node)?;
        let map = maps::between(vmms, found, old.node, new.node, now.size(), None)?;
        let older = match proof {
            Proof::Layers => Older::Layers(open_chain(&new.device, tree, old.node)?),
            Proof::Hashes => {
                let found = lists.iter().find(|(uid, _)| *uid == old.uid);
                Older::Hashes(found.map(|(_, lists)| lists.clone()).unwrap_or_default())
            }
        };
        parts.push(Part {
            disk: old.clone(),
            device: new.device.clone(),
            now,
            older,
            older_size: old.size,
            map,
        });
    }
    Ok(parts)
}

fn compare_all(parts: &[Part], cancel: &CancelFlag, ctx: &JobContext) -> Result<Vec<DiskAudit>> {
    let total: u64 = parts.iter().map(|p| p.now.size()).sum();
    let mut before = 0;
    let mut found = Vec::new();
    for part in parts {
        let size = part.now.size();
        let progress = |p: disk::Progress| ctx.progress(before + p.done.min(size), total);
        found.push(compare(part, &progress, cancel)?);
        before += size;
        ctx.progress(before, total);
    }
    Ok(found)
}

fn compare(
    part: &Part,
    progress: &(dyn Fn(disk::Progress) + Sync),
    cancel: &CancelFlag,
) -> Result<DiskAudit> {
    let size = part.now.size();
    let (different, allowed) = match &part.older {
        Older::Layers(older) => (
            differing_bytes(&part.now, older, progress, cancel)?,
            part.map.clone(),
        ),
        Older::Hashes(lists) => {
            let changed = changed_blocks(&part.now, lists, progress, cancel)?;
            let mut allowed = part.map.widen(BLOCK_SIZE);
            if size < part.older_size {
                // The last block of a disk that shrank has another hash because it is shorter.
                allowed.insert(size.saturating_sub(1) / BLOCK_SIZE * BLOCK_SIZE..size);
            }
            (changed, allowed)
        }
    };
    let missed = different.without(&allowed);
    Ok(DiskAudit {
        uid: part.disk.uid,
        device: part.device.clone(),
        compared: size,
        different: different.total(),
        mapped: part.map.total(),
        missed_bytes: missed.total(),
        missed: missed
            .iter()
            .take(KEPT_RANGES)
            .map(|r| (r.start, r.end - r.start))
            .collect(),
        missed_ranges: missed.iter().count() as u64,
    })
}

fn line(disk: &DiskAudit, proof: Proof) -> String {
    let DiskAudit {
        device,
        compared,
        different,
        mapped,
        ..
    } = disk;
    let how = proof.word();
    let end = match disk.missed_bytes {
        0 => "nothing was missed".to_owned(),
        n => format!("{n} bytes were missed: {}", ranges(disk)),
    };
    format!(
        "{device}: {compared} bytes compared by {how}, {different} differ, {mapped} are in the map, {end}"
    )
}

fn ranges(disk: &DiskAudit) -> String {
    let told: Vec<String> = disk
        .missed
        .iter()
        .take(TOLD_RANGES)
        .map(|(at, len)| format!("{at}-{}", at.saturating_add(*len)))
        .collect();
    let all = disk.missed_ranges.max(disk.missed.len() as u64);
    let more = all.saturating_sub(told.len() as u64);
    match more {
        0 => told.join(", "),
        _ => format!("{} and {more} more ranges", told.join(", ")),
    }
}

/// Fails where a map missed something: the first disk, the others beneath it.
fn verdict(point: &Point, audit: &Audit) -> Result<()> {
    let mut faults = audit
        .disks
        .iter()
        .filter(|d| d.missed_bytes > 0)
        .map(|disk| {
            fault!(
                AuditMissed,
                disk.device,
                guid(audit.base),
                guid(point.id),
                disk.missed_bytes,
                ranges(disk)
            )
            .about(Element::Point(point.id))
        });
    let Some(mut first) = faults.next() else {
        return Ok(());
    };
    first.causes.extend(faults);
    Err(first)
}
