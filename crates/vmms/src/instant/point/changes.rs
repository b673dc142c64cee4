//! Which bytes of a disk changed since a point: GetVirtualDiskChanges, answered at once.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use disk::ChangeMap;
use disk::nbd::{NbdAddress, NbdClient, QEMU_ALLOCATION_DEPTH};
use hypervisor::Machine;
use uuid::Uuid;

use crate::blocking;
use crate::instant::freeze::{Mode, mode};
use crate::machine::{Disk, Vm, spec};
use crate::merge;
use crate::merge::ReadMap;
use crate::point::{Point, PointDisk, maps};
use crate::{Element, Result, Vmms, fault, guid};

/// How long a map that was read for the first part of a disk serves the parts after it.
pub(crate) const KEEP: Duration = Duration::from_secs(300);
/// Most ranges of one answer.
const MAX_RANGES: usize = 4096;

/// A part of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// How many bytes, from the offset asked for, this answer speaks of. Never 0 for a range inside the disk.
    pub processed: u64,
    /// Changed ranges: offset and length in bytes, ascending, inside the part spoken of.
    pub ranges: Vec<(u64, u64)>,
    /// Size of the disk in bytes.
    pub size: u64,
}

/// The bytes of the disk at `path` (the image a user attached, or one of its layers) that changed since the instant `limit_id`:
/// the identifier a point shows for that disk. `length` beyond the end is cut; 0 means up to the end. A loop that asks on from
/// `offset + processed` sees one consistent answer.
pub async fn changes(
    vmms: &Arc<Vmms>,
    path: &Path,
    limit_id: &str,
    offset: u64,
    length: u64,
) -> Result<Changes> {
    let (vm, disk) = find(vmms, path)?;
    let limit = limit(vmms, vm.id, &disk, limit_id)?;
    let kept = vmms
        .points
        .kept_map(disk.uid, limit)
        .filter(|m| offset > 0 && m.active == disk.layers.active);
    let map = match kept {
        Some(map) => map,
        None => {
            let map = read(vmms, vm.id, disk.uid, limit).await?;
            vmms.points.keep_map(disk.uid, limit, map.clone());
            map
        }
    };
    answer(&map.map, map.size, offset, length)
}

fn answer(map: &ChangeMap, size: u64, offset: u64, length: u64) -> Result<Changes> {
    if offset >= size && size > 0 {
        return Err(fault!(RangeOutside, offset, size));
    }
    let end = if length == 0 {
        size
    } else {
        offset.saturating_add(length).min(size)
    };
    let page = map.page(offset..end, MAX_RANGES);
    let pair = |r: Range<u64>| (r.start, r.end - r.start);
    Ok(Changes {
        processed: page.processed,
        ranges: page.ranges.into_iter().map(pair).collect(),
        size,
    })
}

/// The disk that a path means.
fn find(vmms: &Vmms, path: &Path) -> Result<(Arc<Vm>, Disk)> {
    for vm in vmms.db.all::<Vm>() {
        let found = vm.disks().find(|(_, disk)| {
            disk.path == path || disk.layers.active_chain().iter().any(|f| f.path == path)
        });
        if let Some((_, disk)) = found {
            let disk = disk.clone();
            return Ok((vm, disk));
        }
    }
    if path.exists() {
        return Err(fault!(
            LimitIdUnknown,
            "it",
            format!("{}, which is attached to no machine", path.display())
        ));
    }
    Err(fault!(ImageMissing, path.display()))
}

/// The instant that an identifier means: one that a point names.
fn limit(vmms: &Vmms, vm: Uuid, disk: &Disk, text: &str) -> Result<Uuid> {
    let unknown = || fault!(LimitIdUnknown, text, disk.path.display()).about(Element::Vm(vm));
    let id: Uuid = text
        .trim()
        .trim_matches(['{', '}'])
        .parse()
        .map_err(|_| unknown())?;
    let means = |d: &PointDisk| d.uid == disk.uid && d.node == id;
    let named = vmms
        .db
        .all::<Point>()
        .iter()
        .any(|p| p.vm == vm && p.complete && p.disks.iter().any(means))
        || crate::snapshot::of_vm(vmms, vm)
            .iter()
            .any(|s| s.disks.iter().any(means));
    if named { Ok(id) } else { Err(unknown()) }
}

async fn read(vmms: &Arc<Vmms>, vm: Uuid, disk: Uuid, limit: Uuid) -> Result<ReadMap> {
    // Nobody may put a layer on top or take one away meanwhile.
    let _lock = vmms.lock(vm).await;
    let _paused = merge::pause_merges(vmms, vm).await;
    merge::reconcile(vmms, vm).await?;
    crate::point::distrust(vmms, vm).await?;
    let record = vmms.db.get::<Vm>(vm)?;
    let found = record
        .disk(disk)
        .ok_or_else(|| fault!(DiskNotFound, guid(vm), disk))?
        .clone();
    let mode = mode(vmms, &record)?;
    let active = found.layers.active;
    let (live, size) = match &mode {
        Mode::Running(machine) => live_map(&**machine, &found).await?,
        Mode::Files => {
            let tree = found.layers.clone();
            blocking(move || maps::of_stopped_active(&tree)).await?
        }
    };
    let shared = Arc::clone(vmms);
    let map = blocking(move || {
        let parent = found.layers.nodes.get(&active).and_then(|n| n.parent);
        let before = parent
            .and_then(|p| found.layers.nodes.get(&p))
            .map_or(size, |p| p.size);
        let live = live.union(&ChangeMap::of(before.min(size)..size));
        maps::between(&shared, &found, limit, active, size, Some(&live))
    })
    .await?;
    Ok(ReadMap {
        active,
        at: Instant::now(),
        map: Arc::new(map),
        size,
    })
}

/// The map of the active layer of a running machine, from QEMU: in the file it may not be written yet.
async fn live_map(machine: &dyn Machine, disk: &Disk) -> Result<(ChangeMap, u64)> {
    let drive = spec::drive_id(disk);
    let export = machine.export_active(&drive).await?;
    let read = blocking(move || {
        let address = NbdAddress::Unix {
            path: export.socket,
            export: export.name,
        };
        let mut client = NbdClient::connect(&address, &[QEMU_ALLOCATION_DEPTH])?;
        let size = client.size();
        Ok((client.allocation_map_depth1()?, size))
    })
    .await;
    // Before the next mark: an export follows the drive to its new layer.
    let closed = machine.close_export(&drive).await;
    let read = read?;
    closed?;
    Ok(read)
}
