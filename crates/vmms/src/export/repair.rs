//! What a differential export does where the changes since its base are not known: something other than kvmms wrote to a file, or
//! a change map is gone. The content of the point itself is good, or there is no export at all.
//!
//! The hashes of the base's blocks tell what differs: from the list that was kept when the base was exported, else from
//! its exports, each list proven against its manifest. What differs from them is exactly what an image over the base's export must hold.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::blocks::{BlockListWriter, Merged, check_block_list};
use disk::manifest;
use disk::verify::{self, Export};
use disk::{Chain, ChangeMap, Source};
use uuid::Uuid;

use super::disks::Order;
use super::layout;
use crate::machine::{Disk, Vm};
use crate::point::{self, Point, PointDisk, disk_id_text};
use crate::service::TamperingPolicy;
use crate::{Fault, Message, Result, Vmms, fault, guid};

/// The decision of a repair, as it stands in manifests.
pub(super) const REPAIRED: &str = "the changed blocks were found by comparing hashes";
/// The decision for a whole export.
pub(super) const WHOLE: &str = "the point is exported whole, without its base";

/// How the bytes of a disk that go into the export are known.
pub(super) enum Extent {
    /// All of them go.
    Whole,
    /// Those that changed since the base.
    Changed(ChangeMap),
    /// Those whose hash is not in these block lists, the full one first.
    Compared(Vec<PathBuf>),
}

/// What goes into an export.
pub(super) struct Decided {
    /// The base, unless the export is whole.
    pub(super) base: Option<Arc<Point>>,
    /// The disks' contents and what of them goes, in the order of the disks.
    pub(super) disks: Vec<(Chain, Extent)>,
    /// What was decided, with reasons.
    pub(super) decisions: Vec<manifest::Decision>,
}

/// Looks at the contents and at what changed since the base, and decides where that is not known.
pub(super) fn decide(order: &Order, vm: &Vm) -> Result<Decided> {
    let mut decided = Decided {
        base: order.base.clone(),
        disks: Vec::new(),
        decisions: Vec::new(),
    };
    let mut whole = false;
    for disk in &order.disks {
        let found = vm
            .disk(disk.uid)
            .ok_or_else(|| fault!(DiskNotFound, guid(vm.id), disk.device))?;
        let source = point::open_chain(&disk.device, &found.layers, disk.node)?;
        let extent = match &order.base {
            None => Extent::Whole,
            Some(base) => match changed(order, base, found, disk, source.size()) {
                Ok(map) => Extent::Changed(map),
                Err(lost) if lost.has(Message::TrackingLost) => {
                    let (extent, decision) = resolve(order, base, disk, lost)?;
                    whole |= matches!(extent, Extent::Whole);
                    decided.decisions.push(decision);
                    extent
                }
                Err(other) => return Err(other),
            },
        };
        decided.disks.push((source, extent));
    }
    if whole {
        // All disks alike: the export stands alone, so that nobody has to know which disk needs which base.
        decided.base = None;
        for (_, extent) in &mut decided.disks {
            *extent = Extent::Whole;
        }
    }
    Ok(decided)
}

fn changed(
    order: &Order,
    base: &Point,
    found: &Disk,
    disk: &PointDisk,
    size: u64,
) -> Result<ChangeMap> {
    let from = of_base(base, disk)?;
    point::between(&order.vmms, found, from.node, disk.node, size, None)
}

fn of_base<'a>(base: &'a Point, disk: &PointDisk) -> Result<&'a PointDisk> {
    let found = base.disks.iter().find(|d| d.uid == disk.uid);
    found.ok_or_else(|| fault!(BaseWithoutDisk, guid(base.id), disk.device))
}

fn resolve(
    order: &Order,
    base: &Point,
    disk: &PointDisk,
    lost: Fault,
) -> Result<(Extent, manifest::Decision)> {
    let told: Vec<String> = lost.chain().into_iter().map(Fault::text).collect();
    let told = told.join(": ");
    let decision = |what: &str, reason: String| manifest::Decision {
        disk: Some(disk_id_text(order.point.vm, &disk.device)),
        decision: what.to_owned(),
        reason,
    };
    match order.vmms.options.tampering {
        TamperingPolicy::Fail => Err(lost),
        TamperingPolicy::Full => Ok((
            Extent::Whole,
            decision(WHOLE, format!("{told} (tampering_policy is full)")),
        )),
        TamperingPolicy::Repair => match base_lists(order, base, disk) {
            Ok(lists) => {
                let from: Vec<String> = lists.iter().map(|l| l.display().to_string()).collect();
                let from = from.join(", ");
                let reason =
                    format!("{told} (tampering_policy is repair; hashes of the base from {from})");
                Ok((Extent::Compared(lists), decision(REPAIRED, reason)))
            }
            Err(whys) => {
                let failed = fault!(RepairImpossible, disk.path.display(), guid(base.id));
                let failed = failed.caused_by(lost);
                Err(whys.into_iter().fold(failed, Fault::caused_by))
            }
        },
    }
}

/// The block lists that tell what a disk held at the base, the full one first; else why there are none.
fn base_lists(
    order: &Order,
    base: &Point,
    disk: &PointDisk,
) -> std::result::Result<Vec<PathBuf>, Vec<Fault>> {
    let mut whys = Vec::new();
    let known = of_base(base, disk).map_err(|e| vec![e])?;
    match kept_list(base, known) {
        Some(Ok(list)) => return Ok(vec![list]),
        Some(Err(why)) => whys.push(why),
        None => whys.push(fault!(
            Block,
            "no hashes of the base were kept here, since it was not exported by this service"
        )),
    }
    let id = disk_id_text(base.vm, &known.device);
    let near = layout::exports_in(&order.directory, base.vm);
    let dirs = near.into_iter().chain(base.exports.iter().rev().cloned());
    for dir in dirs {
        let is_base = layout::find([dir.clone()], &guid(base.vm), &guid(base.id)).is_some();
        if !is_base {
            continue;
        }
        match crate::restore::verify::chain_of(&dir).and_then(|chain| proven_lists(&chain, &id)) {
            Ok(lists) => return Ok(lists),
            Err(why) => whys.push(why),
        }
    }
    whys.push(fault!(
        Block,
        "no complete export of the base was found in the export directory or where it was exported to before"
    ));
    Err(whys)
}

/// The list that was kept when the base was exported, proven by its check sum.
pub(crate) fn kept_list(base: &Point, disk: &PointDisk) -> Option<Result<PathBuf>> {
    let list = disk.blocks.clone()?;
    Some(match check_block_list(&list) {
        Ok(_) => Ok(list),
        Err(error) => {
            tracing::warn!(point = %guid(base.id), list = %list.display(), %error, "kept hashes are of no use");
            Err(error.into())
        }
    })
}

/// The block lists of a disk in a chain of exports, each proven against its manifest.
pub(crate) fn proven_lists(chain: &[Export], id: &str) -> Result<Vec<PathBuf>> {
    let lists = verify::disk_files(chain, id)?.lists;
    for (list, export) in lists.iter().rev().zip(chain.iter().rev()) {
        let entry = export.manifest.disks.iter().find(|d| d.instance_id == id);
        let expected = entry.map(|e| e.block_list.blake3.0);
        if Some(check_block_list(list)?.0) != expected {
            return Err(fault!(DigestMismatch, list.display(), 0));
        }
    }
    Ok(lists)
}

/// Finds what differs from the base of each disk that has to be compared. `progress` counts bytes of these disks.
pub(super) fn compare(
    order: &Order,
    decided: &mut Decided,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let mut before = 0;
    for (source, extent) in &mut decided.disks {
        if let Extent::Compared(lists) = extent {
            let told = |p: disk::Progress| progress(before + p.done);
            let changes = disk::export::changed_blocks(source, lists, &told, &order.cancel)?;
            *extent = Extent::Changed(changes);
            before += source.size();
        }
    }
    Ok(())
}

/// Keeps the hashes of all blocks of a disk that was just exported, so that later disks can be compared with it wherever the export
/// goes. `lists`: the full one first. Without them there is one thing less to go on, but the export is good.
pub(super) fn keep_list(vmms: &Vmms, point: Uuid, disk: Uuid, lists: &[PathBuf]) {
    let target = point::blocks_path(vmms, point, disk);
    if check_block_list(&target).is_ok() {
        // From an earlier export of the same instant.
        return;
    }
    if let Err(error) = write_list(&target, lists) {
        tracing::warn!(point = %guid(point), list = %target.display(), %error, "the hashes of an exported disk could not be kept");
    }
}

fn write_list(target: &Path, lists: &[PathBuf]) -> Result<()> {
    // Under a name of its own: another export of the same point may do the same.
    let own = target.with_extension(format!("{}.blocks", Uuid::new_v4().simple()));
    let mut merged = Merged::open(lists)?;
    let mut writer = BlockListWriter::create(&own, merged.disk_size(), None)?;
    while let Some(run) = merged.next_run()? {
        writer.push(run.first, run.count, run.hash)?;
    }
    writer.finish()?;
    std::fs::rename(&own, target).map_err(|e| Fault::io("rename to", target, &e))?;
    point::sync(target)
}

/// Notes the hashes that were kept of these disks with the point.
pub(super) fn note_lists(vmms: &Vmms, point: Uuid, disks: &mut [PointDisk]) {
    for disk in disks {
        let list = point::blocks_path(vmms, point, disk.uid);
        if list.is_file() {
            disk.blocks = Some(list);
        }
    }
}

/// What was decided about one disk of a finished export.
#[derive(Clone, Debug)]
pub(crate) struct Doubtful {
    disk: String,
    what: String,
    reason: String,
}

/// The decisions in a manifest that a lost tracking forced.
pub(super) fn doubtful(manifest: &manifest::Manifest) -> Vec<Doubtful> {
    let of_ours = |d: &&manifest::Decision| d.decision == REPAIRED || d.decision == WHOLE;
    let told = manifest.decisions.iter().filter(of_ours);
    told.map(|d| Doubtful {
        disk: d.disk.clone().unwrap_or_default(),
        what: d.decision.clone(),
        reason: d.reason.clone(),
    })
    .collect()
}

impl Doubtful {
    /// The line for the job.
    pub(super) fn line(&self) -> String {
        format!("{}: {}: {}", self.disk, self.what, self.reason)
    }

    /// The warning for the job, which clients of the documented classes see.
    pub(super) fn warning(&self) -> Fault {
        match self.what == WHOLE {
            true => fault!(ExportedWhole, self.disk, self.reason),
            false => fault!(ExportRepaired, self.disk, self.reason),
        }
    }

    /// The note on the point.
    pub(super) fn decision(&self, root: &Path) -> point::Decision {
        point::Decision {
            what: format!(
                "export to {}, disk {}: {}",
                root.display(),
                self.disk,
                self.what
            ),
            reason: self.reason.clone(),
        }
    }
}

/// Notes with a point what was decided for its export, once.
pub(super) fn note_decisions(to: &mut Vec<point::Decision>, root: &Path, doubtful: &[Doubtful]) {
    for decision in doubtful.iter().map(|d| d.decision(root)) {
        if !to.contains(&decision) {
            to.push(decision);
        }
    }
}

/// The bytes that a comparison reads.
pub(super) fn compared_bytes(decided: &Decided) -> u64 {
    let compared = |(source, extent): &(Chain, Extent)| match extent {
        Extent::Compared(_) => source.size(),
        _ => 0,
    };
    decided.disks.iter().map(compared).sum()
}
