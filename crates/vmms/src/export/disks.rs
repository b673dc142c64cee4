//! The copying itself: on a thread for blocking work, no lock held.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::manifest::{
    self, DiskEntry, HexHash, MachineIdentity, Manifest, PlainFile, PointIdentity, RelativePath,
};
use disk::verify::{self, Export};
use disk::{Backing, CancelFlag, Chain, ChangeMap, ExportPlan, Source, export_disk};
use serde::Serialize;

use super::layout;
use super::repair::{self, Decided, Extent};
use crate::group::{Group, GroupPoint, GroupSnapshot};
use crate::point::{self, Consistency, Point, PointDisk, PointType, disk_id_text};
use crate::vm::Vm;
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
    pub(super) root: PathBuf,
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

/// How many bytes of the disks a copy will go through; fails where one cannot be read.
pub(super) fn total(order: &Order) -> Result<u64> {
    let vm = order.vmms.db.get::<Vm>(order.point.vm)?;
    let decided = repair::decide(order, &vm)?;
    Ok(known(&decided) + repair::compared_bytes(&decided))
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
    make_room(order, &jobs)?;

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
        let (entry, lists) = write_disk(order, job, base.as_ref(), &mut manifest.decisions, &told)?;
        manifest.disks.push(entry);
        written.push((job.disk.uid, lists));
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

/// Makes the directories and fails early where the content will not fit.
fn make_room(order: &Order, jobs: &[Job<'_>]) -> Result<()> {
    let mut needed = OVERHEAD;
    for job in jobs {
        order.cancel.check()?;
        needed += match &job.changes {
            Some(_) => job.total,
            None => content(&job.source, &order.cancel)?,
        };
    }
    let unusable =
        |cause: Fault| fault!(ExportDirectory, order.directory.display()).caused_by(cause);
    for dir in [layout::MACHINES, layout::DISKS].map(|d| order.root.join(d)) {
        std::fs::create_dir_all(&dir).map_err(|e| unusable(Fault::io("create", &dir, &e)))?;
        disk::target::check_writable(&dir).map_err(|e| unusable(e.into()))?;
    }
    let room = disk::target::space(&order.root)?;
    if room.available < needed {
        let what = format!(
            "{} ({needed} bytes needed, {} free)",
            order.root.display(),
            room.available
        );
        return Err(fault!(NoSpace, what));
    }
    Ok(())
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
    manifest.collection = point.group_point.and_then(|id| collection(&order.vmms, id));
    manifest
}

/// The collection's point, or snapshot, that an instant is a part of; `None` once that was deleted.
fn collection(vmms: &Vmms, id: uuid::Uuid) -> Option<manifest::CollectionIdentity> {
    let (name, group, members, skew_us) = match vmms.db.get::<GroupPoint>(id) {
        Ok(p) => (p.name.clone(), p.group, p.members.clone(), p.skew_us),
        Err(_) => {
            let s = vmms.db.get::<GroupSnapshot>(id).ok()?;
            (s.name.clone(), s.group, s.members.clone(), s.skew_us)
        }
    };
    let named = |id: uuid::Uuid| vmms.db.get::<Vm>(id).map(|vm| vm.name.clone());
    Some(manifest::CollectionIdentity {
        point: guid(id),
        point_name: name,
        id: guid(group),
        name: vmms
            .db
            .get::<Group>(group)
            .map_or_else(|_| guid(group), |g| g.name.clone()),
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
    let found = layout::find(
        near.into_iter().chain(known),
        &guid(base.vm),
        &guid(base.id),
    );
    let Some(dir) = found else {
        return Ok(None);
    };
    let chain = crate::verify::chain_of(&dir);
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

/// Exports a disk; returns its entry, and the block lists that together tell all its blocks, where they are known.
fn write_disk(
    order: &Order,
    job: &Job<'_>,
    base: Option<&Base>,
    decisions: &mut Vec<manifest::Decision>,
    progress: &(dyn Fn(disk::Progress) + Sync),
) -> Result<(DiskEntry, Vec<PathBuf>)> {
    let id = disk_id_text(order.point.vm, &job.disk.device);
    let image = layout::image(job.disk, order.point.id)?;
    let list = layout::block_list(job.disk, order.point.id)?;
    let target = order.root.join(&image);
    let mut plan = ExportPlan::full(&job.source, &target);
    plan.block_list = Some(order.root.join(&list));
    plan.threads = order.vmms.options.export_threads.clamp(1, 16);
    let mut base_file = None;
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
                let here = canonical(target.parent().unwrap_or(&order.root))?;
                layout::relative(&here, &there)
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
    let report = export_disk(&plan, progress, &order.cancel)?;
    let mut lists = Vec::new();
    if job.changes.is_none() || !plan.base_lists.is_empty() {
        lists.clone_from(&plan.base_lists);
        lists.extend(plan.block_list.clone());
    }
    let entry = DiskEntry::of(id, image, list, base_file, &report)?;
    Ok((entry, lists))
}

/// The image of a disk in an export, if it is there.
fn image_of(export: &Export, disk: &str) -> Option<PathBuf> {
    let entry = export
        .manifest
        .disks
        .iter()
        .find(|d| d.instance_id == disk)?;
    export.dir.join(&entry.file).canonicalize().ok()
}

fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|e| Fault::io("find", path, &e))
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
    let mut files = vec![plain(order, CONFIGURATION, &format!("{id}.json"), &config)?];
    let firmware = order.point.config.with_file_name(point::FIRMWARE_VARS);
    let firmware_name = format!("{id}.firmware.fd");
    let firmware = match std::fs::read(&firmware) {
        Ok(bytes) => Some(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(Fault::io("read", &firmware, &e)),
    };
    if let Some(bytes) = &firmware {
        files.push(plain(order, FIRMWARE, &firmware_name, bytes)?);
    }
    let state = GuestState {
        format: "kvmms-guest-state",
        version: 1,
        consistency: order.point.consistency,
        firmware_variables: firmware.is_some().then_some(firmware_name),
    };
    let state = serde_json::to_vec_pretty(&state).map_err(|e| fault!(Internal, e))?;
    files.push(plain(
        order,
        GUEST_STATE,
        &format!("{id}.guest.json"),
        &state,
    )?);
    Ok(files)
}

fn plain(order: &Order, role: &str, name: &str, bytes: &[u8]) -> Result<PlainFile> {
    let path = RelativePath::new(format!("{}/{name}", layout::MACHINES))?;
    disk::atomic::AtomicFile::replace(&order.root.join(&path), bytes)?;
    Ok(PlainFile {
        role: role.to_owned(),
        path,
        bytes: bytes.len() as u64,
        blake3: HexHash(blake3::hash(bytes)),
    })
}
