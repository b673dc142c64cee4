//! The copying itself: on a thread for blocking work, no lock held.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::atomic::AtomicFile;
use disk::confined::Dir;
use disk::manifest::{
    self, DiskEntry, HexHash, MachineIdentity, Manifest, PlainFile, PointIdentity, RelativePath,
};
use disk::verify::{self, Export};
use disk::{Backing, CancelFlag, Chain, ChangeMap, ExportPlan, Marks, Source, export_disk};
use serde::Serialize;

use super::layout;
use super::own::{self, Finished, Ledger};
use super::repair::{self, Decided, Extent};
use crate::collection::{Collection, CollectionPoint, CollectionSnapshot};
use crate::machine::Vm;
use crate::point::{self, Consistency, Point, PointDisk, PointType, disk_id_text};
use crate::{Fault, Result, Vmms, fault, guid};

/// Role of the configuration file in a manifest.
pub(super) const CONFIGURATION: &str = "configuration";
/// Role of the guest state file.
pub(super) const GUEST_STATE: &str = "guest-state";
/// Role of the firmware variables.
const FIRMWARE: &str = "firmware-variables";
/// Room for tables and small files beside the content.
const OVERHEAD: u64 = 1 << 20;
/// Extents are asked for in steps of this many bytes of the disk.
const STEP: u64 = 1 << 30;

/// What is to be written where.
#[derive(Clone)]
pub(super) struct Order {
    pub(super) vmms: Arc<Vmms>,
    pub(super) point: Arc<Point>,
    pub(super) base: Option<Arc<Point>>,
    /// The directory the user named.
    pub(super) directory: PathBuf,
    /// The directory for the manifest.
    pub(super) dir: Dir,
    pub(super) ledger: Ledger,
    pub(super) disks: Vec<PointDisk>,
    pub(super) cancel: CancelFlag,
}

/// A disk ready to be copied.
struct Job<'a> {
    disk: &'a PointDisk,
    source: Chain,
    changes: Option<ChangeMap>,
    /// Bytes of the disk that the copy goes through.
    total: u64,
}

/// What an export will need.
pub(crate) struct Needs {
    /// Bytes of the disks that the copy goes through.
    pub(crate) total: u64,
    /// Bytes it writes, where that can be known before.
    pub(crate) bytes: u64,
}

/// What the export will need; fails where a disk cannot be read.
pub(super) fn needs(order: &Order) -> Result<Needs> {
    let vm = order.vmms.db.get::<Vm>(order.point.vm)?;
    let decided = repair::decide(order, &vm)?;
    let mut bytes = OVERHEAD;
    for (disk, (source, extent)) in order.disks.iter().zip(&decided.disks) {
        order.cancel.check()?;
        if order.ledger.progress(disk.uid)?.0.is_some() {
            continue;
        }
        bytes += match extent {
            Extent::Whole => content(source, &order.cancel)?,
            Extent::Changed(map) => copied(source, map),
            // Known only after the comparison, and little.
            Extent::Compared(_) => 0,
        };
    }
    Ok(Needs {
        total: known(&decided) + repair::compared_bytes(&decided),
        bytes: bytes.saturating_sub(order.ledger.written(&order.dir)),
    })
}

/// Bytes that a copy goes through whatever a comparison finds.
fn known(decided: &Decided) -> u64 {
    let each = |(source, extent): &(Chain, Extent)| match extent {
        Extent::Whole => source.size(),
        Extent::Changed(map) => copied(source, map),
        Extent::Compared(_) => 0,
    };
    decided.disks.iter().map(each).sum()
}

fn copied(source: &Chain, changes: &ChangeMap) -> u64 {
    let whole_blocks = changes.widen(disk::BLOCK_SIZE);
    whole_blocks.clip(source.size()).total()
}

/// Exports the disks and the small files; returns the manifest that makes them an export.
pub(super) fn write(order: &Order, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Manifest> {
    let vm = order.vmms.db.get::<Vm>(order.point.vm)?;
    let mut decided = repair::decide(order, &vm)?;
    let compared = repair::compared_bytes(&decided);
    // What is to be copied of these disks is known only after the comparison, and is little.
    let expected = compared + known(&decided);
    repair::compare(order, &mut decided, &|done| {
        progress(done.min(compared), expected)
    })?;
    let Decided {
        base: base_point,
        disks,
        decisions,
    } = decided;
    let order = &Order {
        base: base_point,
        ..order.clone()
    };
    let jobs: Vec<Job<'_>> = order
        .disks
        .iter()
        .zip(disks)
        .map(|(disk, (source, extent))| {
            let (changes, total) = match extent {
                Extent::Changed(map) => {
                    let total = copied(&source, &map);
                    (Some(map), total)
                }
                Extent::Whole | Extent::Compared(_) => (None, source.size()),
            };
            Job {
                disk,
                source,
                changes,
                total,
            }
        })
        .collect();
    let mut manifest = head(order, &vm);
    manifest.decisions.extend(decisions);
    let base = order
        .base
        .as_deref()
        .map(|base| find_base(order, base))
        .transpose()?
        .flatten();
    manifest.point.base_manifest = base.as_ref().map(|b| HexHash(b.export.hash));
    manifest.files = small_files(order, &vm)?;

    let total: u64 = jobs.iter().map(|j| j.total).sum::<u64>() + compared;
    let mut before = compared;
    let mut written = Vec::new();
    progress(before, total);
    for job in &jobs {
        let told = |p: disk::Progress| progress(before + p.done.min(job.total), total);
        let done = one_disk(order, job, base.as_ref(), &told)?;
        manifest.decisions.extend(done.decisions);
        manifest.disks.push(done.entry);
        written.push((job.disk.uid, done.lists));
        before += job.total;
        progress(before, total);
    }
    untouched(order)?;
    // Only now they are known to be the hashes of the point.
    for (disk, lists) in written.iter().filter(|(_, lists)| !lists.is_empty()) {
        repair::keep_list(&order.vmms, order.point.id, *disk, lists);
    }
    Ok(manifest)
}

/// Looks once more at the files that were read: what changed meanwhile may be in the copy.
fn untouched(order: &Order) -> Result<()> {
    let vm = order.vmms.db.get::<Vm>(order.point.vm)?;
    order.disks.iter().try_for_each(|disk| {
        let found = vm
            .disk(disk.uid)
            .ok_or_else(|| fault!(DiskNotFound, guid(vm.id), disk.device))?;
        point::check_chain(&disk.device, &found.layers, disk.node)
    })
}

/// Bytes that are not known to be zero.
fn content(source: &Chain, cancel: &CancelFlag) -> Result<u64> {
    let (mut bytes, mut at) = (0, 0);
    while at < source.size() {
        cancel.check()?;
        let end = at.saturating_add(STEP).min(source.size());
        bytes += source
            .extents(at..end)?
            .iter()
            .filter(|e| !e.zero)
            .map(|e| e.len)
            .sum::<u64>();
        at = end;
    }
    Ok(bytes)
}

fn head(order: &Order, vm: &Vm) -> Manifest {
    let point = &order.point;
    let instant = jiff::Timestamp::try_from(point.instant).unwrap_or_default();
    let mut manifest = Manifest::new(
        concat!("kvmms ", env!("CARGO_PKG_VERSION")),
        MachineIdentity {
            id: guid(vm.id),
            name: vm.name.clone(),
        },
        PointIdentity {
            id: guid(point.id),
            name: Some(point.name.clone()).filter(|n| !n.is_empty()),
            instant: format!("{instant:.6}"),
            consistency: match point.consistency {
                Consistency::Application => manifest::Consistency::Application,
                Consistency::Crash => manifest::Consistency::Crash,
            },
            kind: match point.kind {
                PointType::Log => manifest::PointType::LogBased,
                PointType::Rct => manifest::PointType::RctBased,
            },
            base_id: order.base.as_ref().map(|b| guid(b.id)),
            base_manifest: None,
        },
    );
    let told = |d: &point::Decision| manifest::Decision {
        disk: None,
        decision: d.what.clone(),
        reason: d.reason.clone(),
    };
    manifest.decisions = point.decisions.iter().map(told).collect();
    manifest.collection = point
        .collection_point
        .and_then(|id| collection(&order.vmms, id));
    manifest
}

/// The collection's point, or snapshot, that an instant is a part of; `None` once that was deleted.
fn collection(vmms: &Vmms, id: uuid::Uuid) -> Option<manifest::CollectionIdentity> {
    let (name, collection, members, skew_us) = match vmms.db.get::<CollectionPoint>(id) {
        Ok(p) => (p.name.clone(), p.collection, p.members.clone(), p.skew_us),
        Err(_) => {
            let s = vmms.db.get::<CollectionSnapshot>(id).ok()?;
            (s.name.clone(), s.collection, s.members.clone(), s.skew_us)
        }
    };
    let named = |id: uuid::Uuid| vmms.db.get::<Vm>(id).map(|vm| vm.name.clone());
    Some(manifest::CollectionIdentity {
        point: guid(id),
        point_name: name,
        id: guid(collection),
        name: vmms
            .db
            .get::<Collection>(collection)
            .map_or_else(|_| guid(collection), |g| g.name.clone()),
        machines: members
            .iter()
            .map(|m| MachineIdentity {
                id: guid(m.vm),
                name: named(m.vm).unwrap_or_default(),
            })
            .collect(),
        skew_us,
    })
}

/// The export of the base.
struct Base {
    export: Export,
    /// The chain that ends with it, the full one first; none where a part of it is not to be found.
    chain: Option<Vec<Export>>,
}

fn find_base(order: &Order, base: &Point) -> Result<Option<Base>> {
    let near = layout::exports_in(&order.directory, base.vm);
    let known = base.exports.iter().rev().cloned();
    // Without links: none of a stranger's leads to what the new image stands on.
    let real = |dir: PathBuf| match Dir::open(&dir) {
        Ok(dir) => Some(dir.path().to_owned()),
        Err(disk::Error::Refused { source, .. }) => {
            tracing::warn!(dir = %dir.display(), why = %source, "an export of the base is not used");
            None
        }
        Err(_) => None,
    };
    let found = layout::find(
        near.into_iter().chain(known).filter_map(real),
        &guid(base.vm),
        &guid(base.id),
    );
    let Some(dir) = found else {
        return Ok(None);
    };
    let chain = crate::restore::verify::chain_of(&dir);
    if let Err(error) = &chain {
        tracing::warn!(dir = %dir.display(), %error, "the export of the base is not complete");
    }
    let (manifest, hash) = Manifest::load(&dir)?;
    Ok(Some(Base {
        export: Export {
            dir,
            manifest,
            hash,
        },
        chain: chain.ok(),
    }))
}

/// Exports a disk, unless that was done before the job was interrupted; notes it durably.
fn one_disk(
    order: &Order,
    job: &Job<'_>,
    base: Option<&Base>,
    progress: &(dyn Fn(disk::Progress) + Sync),
) -> Result<Finished> {
    let (finished, mark) = order.ledger.progress(job.disk.uid)?;
    let on = order.base.as_ref().map(|b| b.id);
    if let Some(finished) = finished.filter(|f| f.base == on)
        && order.ledger.is_there(&order.dir, &finished.entry)?
    {
        return Ok(finished);
    }
    let finished = write_disk(order, job, base, mark.as_ref(), progress)?;
    order.ledger.finished(finished.clone())?;
    Ok(finished)
}

/// Exports a disk; returns its entry, and the block lists that together tell all its blocks, where they are known.
fn write_disk(
    order: &Order,
    job: &Job<'_>,
    base: Option<&Base>,
    mark: Option<&disk::Mark>,
    progress: &(dyn Fn(disk::Progress) + Sync),
) -> Result<Finished> {
    let id = disk_id_text(order.point.vm, &job.disk.device);
    let image = layout::image(job.disk, order.point.id)?;
    let list = layout::block_list(job.disk, order.point.id)?;
    let paths = [image.as_ref(), list.as_ref()];
    let slots = order.ledger.slots(&order.dir, &paths)?;
    let [image_slot, list_slot]: [_; 2] = slots
        .try_into()
        .map_err(|_| fault!(Internal, "files without slots"))?;
    let mut plan = ExportPlan::full(&job.source, image_slot);
    let list_path = list_slot.target().to_owned();
    plan.block_list = Some(list_slot);
    plan.threads = order.vmms.options.export_threads.clamp(1, 16);
    let note = |mark| {
        if let Err(error) = order.ledger.mark(job.disk.uid, mark) {
            tracing::warn!(%error, "how far an export is could not be noted");
        }
    };
    plan.marks = Some(Marks {
        every: order.vmms.options.export_mark,
        from: mark,
        note: &note,
    });
    let mut base_file = None;
    let mut decisions = Vec::new();
    if let (Some(changes), Some(base_point)) = (&job.changes, &order.base) {
        plan.changes = Some(changes);
        // What is known of the base without its exports.
        let known = base_point.disks.iter().find(|d| d.uid == job.disk.uid);
        let kept = known.and_then(|d| repair::kept_list(base_point, d)?.ok());
        let mut decide = |decision: &str, reason: String| {
            decisions.push(manifest::Decision {
                disk: Some(id.clone()),
                decision: decision.to_owned(),
                reason,
            });
        };
        let name = match base.and_then(|b| Some((b, image_of(&b.export, &id)?))) {
            Some((base, there)) => {
                let chain = base.chain.as_deref();
                match chain.and_then(|chain| verify::disk_files(chain, &id).ok()) {
                    Some(files) => plan.base_lists = files.lists,
                    None if kept.is_some() => {}
                    None => decide(
                        "the manifest has no digest of the whole disk",
                        format!(
                            "an export that {} builds on was not found",
                            base.export.dir.display()
                        ),
                    ),
                }
                layout::relative(&order.dir.path().join(layout::DISKS), &there)
            }
            None => {
                decide(
                    "the image names its base as a neighbour in its own directory",
                    format!(
                        "no export of base point {} with this disk was found",
                        guid(base_point.id)
                    ),
                );
                PathBuf::from(layout::image_name(known.unwrap_or(job.disk), base_point.id))
            }
        };
        let plain = name
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        base_file = Some(RelativePath::new(plain)?);
        if plan.base_lists.is_empty() {
            plan.base_lists.extend(kept);
        }
        plan.backing = Some(Backing {
            file: name.to_string_lossy().into_owned(),
            format: "qcow2".to_owned(),
        });
    }
    let report = export_disk(&plan, progress, &order.cancel).map_err(own::named)?;
    let mut lists = Vec::new();
    if job.changes.is_none() || !plan.base_lists.is_empty() {
        lists.clone_from(&plan.base_lists);
        lists.push(list_path);
    }
    Ok(Finished {
        disk: job.disk.uid,
        base: order.base.as_ref().map(|b| b.id),
        entry: DiskEntry::of(id, image, list, base_file, &report)?,
        lists,
        decisions,
    })
}

/// The image of a disk in an export, if it is there.
fn image_of(export: &Export, disk: &str) -> Option<PathBuf> {
    let entry = export
        .manifest
        .disks
        .iter()
        .find(|d| d.instance_id == disk)?;
    let there = Dir::open(&export.dir).and_then(|dir| dir.open_file(entry.file.as_ref()));
    there.ok().map(|_| export.dir.join(&entry.file))
}

/// Guest state as it is exported.
#[derive(Serialize)]
struct GuestState<'a> {
    format: &'a str,
    version: u32,
    consistency: Consistency,
    firmware_variables: Option<String>,
}

/// Writes configuration, guest state and firmware variables.
fn small_files(order: &Order, vm: &Vm) -> Result<Vec<PlainFile>> {
    let id = guid(vm.id);
    let config = std::fs::read(&order.point.config)
        .map_err(|e| Fault::io("read", &order.point.config, &e))?;
    let mut files = vec![(CONFIGURATION, format!("{id}.json"), config)];
    let firmware = order.point.config.with_file_name(point::FIRMWARE_VARS);
    let firmware_name = format!("{id}.firmware.fd");
    let firmware_variables = match std::fs::read(&firmware) {
        Ok(bytes) => {
            files.push((FIRMWARE, firmware_name.clone(), bytes));
            Some(firmware_name)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(Fault::io("read", &firmware, &e)),
    };
    let state = GuestState {
        format: "kvmms-guest-state",
        version: 1,
        consistency: order.point.consistency,
        firmware_variables,
    };
    let state = serde_json::to_vec_pretty(&state).map_err(|e| fault!(Internal, e))?;
    files.push((GUEST_STATE, format!("{id}.guest.json"), state));
    let path = |(_, name, _): &(&str, String, Vec<u8>)| {
        RelativePath::new(format!("{}/{name}", layout::MACHINES))
    };
    let paths = files.iter().map(path).collect::<Result<Vec<_>, _>>()?;
    let relative: Vec<&Path> = paths.iter().map(AsRef::as_ref).collect();
    let slots = order.ledger.slots(&order.dir, &relative)?;
    let mut written = Vec::new();
    for (((role, _, bytes), path), slot) in files.into_iter().zip(paths).zip(&slots) {
        AtomicFile::fill(slot, &bytes).map_err(own::named)?;
        written.push(PlainFile {
            role: role.to_owned(),
            path,
            bytes: bytes.len() as u64,
            blake3: HexHash(blake3::hash(&bytes)),
        });
    }
    Ok(written)
}
