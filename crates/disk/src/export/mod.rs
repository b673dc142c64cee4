//! The copy pump: a disk, or what changed in it, into a qcow2 image with a block list.

mod differ;
mod plan;
mod pump;
mod rescan;

use pump::Copied;
pub use pump::flatten;
pub(crate) use pump::{Copy, Run};

pub use differ::differing_bytes;
use plan::Planner;
pub use rescan::changed_blocks;

use std::fs;
use std::path::{Path, PathBuf};

use blake3::Hash;
use serde::{Deserialize, Serialize};

use crate::atomic::{Slot, sync_parent};
use crate::blocks::{
    BlockHash, BlockListInfo, BlockListReader, BlockListWriter, DiskDigest, ListMark, Merged,
};
use crate::cancel::CancelFlag;
use crate::error::{Error, Result};
use crate::manifest::HexHash;
use crate::map::ChangeMap;
use crate::source::{Chain, Source};
use crate::verify::{DiskProof, Export, disk_files};
use crate::writer::{Backing, BlockState, ImageMark, L2_ENTRIES, Qcow2Writer};
use crate::zero::BLOCK_SIZE;

/// What is to be exported, and where to.
pub struct ExportPlan<'a> {
    /// The disk at the instant of the point.
    pub source: &'a dyn Source,
    /// For a differential export: the bytes that differ from the base.
    pub changes: Option<&'a ChangeMap>,
    /// The image to write. It must not exist.
    pub target: Slot,
    /// For a differential export: the image of the base, relative to the target's directory.
    pub backing: Option<Backing>,
    /// Where the block list goes. It must not exist. `None`: no list is kept.
    pub block_list: Option<Slot>,
    /// For a differential export: the block lists of the exports beneath it, the full one FIRST. With them the report carries the
    /// digest of the whole disk, and a change of the disk's size needs no care of the caller.
    pub base_lists: Vec<PathBuf>,
    /// Reader threads, 1 to 16.
    pub threads: usize,
    /// Durable marks on the way, to go on from after a crash; for slots that stay ([`Slot::kept`]).
    pub marks: Option<Marks<'a>>,
}

/// How an export sets its marks.
#[derive(Clone, Copy)]
pub struct Marks<'a> {
    /// Bytes of content between two of them.
    pub every: u64,
    /// The mark to go on from. Where plan or files are not what they were, the export begins anew.
    pub from: Option<&'a Mark>,
    /// Told each mark, after everything before it is durable.
    pub note: &'a dyn Fn(Mark),
}

/// How far an unfinished export of a disk is: all before it is durable in the image and in the block list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Hash of what was to be exported.
    plan: HexHash,
    image: ImageMark,
    list: Option<ListMark>,
    numbers: Copied,
}

impl<'a> ExportPlan<'a> {
    /// A full export.
    #[must_use]
    pub fn full(source: &'a dyn Source, target: impl Into<Slot>) -> Self {
        Self {
            source,
            changes: None,
            target: target.into(),
            backing: None,
            block_list: None,
            base_lists: Vec::new(),
            threads: default_threads(),
            marks: None,
        }
    }

    /// A differential export over the image `backing`.
    #[must_use]
    pub fn differential(
        source: &'a dyn Source,
        changes: &'a ChangeMap,
        backing: Backing,
        target: impl Into<Slot>,
    ) -> Self {
        Self {
            changes: Some(changes),
            backing: Some(backing),
            ..Self::full(source, target)
        }
    }
}

/// Reader threads when nothing else is known: one per processor, at most four (the target is the limit then).
#[must_use]
pub fn default_threads() -> usize {
    std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(1, 4)
}

/// How far the work is, in bytes of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes dealt with, zeros included.
    pub done: u64,
    /// Bytes to deal with.
    pub total: u64,
    /// Bytes of content written to the target.
    pub written: u64,
}

/// What an export did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskReport {
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Bytes read from the source.
    pub bytes_read: u64,
    /// Length of the image in bytes, tables included.
    pub bytes_written: u64,
    /// Runs of blocks that hold data in the image.
    pub extents: u64,
    /// Blocks that hold data in the image.
    pub data_blocks: u64,
    /// Exported blocks that are zero.
    pub zero_blocks: u64,
    /// The block list, where one was asked for.
    pub block_list: Option<BlockListInfo>,
    /// The digest of the whole disk: always for a full export, for a differential one when the base lists were given.
    pub digest: Option<Hash>,
}

/// Exports a disk. The image and the block list appear under their names only when they are complete and durable; a failed or
/// cancelled export leaves neither, but for what lies in slots that are kept.
///
/// `progress` is called from the reader threads, about once per MiB. Memory: about 1 MiB per thread and what the source needs,
/// whatever the size of the disk.
///
/// # Errors
/// [`Error::Cancelled`]; [`Error::Invalid`] for a plan that contradicts itself; else what reading or writing ran into, with the path
/// and the offset.
pub fn export_disk(
    plan: &ExportPlan<'_>,
    progress: &(dyn Fn(Progress) + Sync),
    cancel: &CancelFlag,
) -> Result<DiskReport> {
    export_proven(plan, None, progress, cancel)
}

/// Writes a disk out of exports into one image of its own, and proves every block against their manifests while it is read. The image is
/// there only if all of it is what was exported.
///
/// # Errors
/// As [`export_disk`] and [`crate::verify::disk_files`]; [`Error::Differs`], [`Error::Altered`], [`Error::BlockList`] for what is not what was
/// exported.
pub fn import_disk(
    chain: &[Export],
    instance_id: &str,
    target: &Path,
    progress: &(dyn Fn(Progress) + Sync),
    cancel: &CancelFlag,
) -> Result<DiskReport> {
    let files = disk_files(chain, instance_id)?;
    let source = Chain::open(&files.layers)?;
    if source.size() != files.virtual_size {
        let path = files.layers.last().map(|l| l.path.clone());
        return Err(Error::Altered {
            path: path.unwrap_or_default(),
            why: "its disk has another size than its manifest says",
        });
    }
    let proof = DiskProof::open(chain, instance_id)?;
    let plan = ExportPlan::full(&source, target);
    export_proven(&plan, Some(proof), progress, cancel)
}

fn export_proven(
    plan: &ExportPlan<'_>,
    mut proof: Option<DiskProof>,
    progress: &(dyn Fn(Progress) + Sync),
    cancel: &CancelFlag,
) -> Result<DiskReport> {
    check(plan)?;
    let size = plan.source.size();
    let resized = resized_changes(plan)?;
    let changes = resized.as_ref().or(plan.changes);

    let from = plan.marks.and_then(|m| m.from);
    let Parts {
        mut writer,
        mut list,
        numbers: mut copied,
    } = match from.map(|mark| go_on(plan, changes, mark)).transpose()? {
        Some(Some(parts)) => parts,
        _ => Parts::new(plan, changes)?,
    };
    // The hashes before a mark are in the list alone.
    let mut digest = (copied == Copied::default()).then(|| DiskDigest::new(size));
    let copy = Copy {
        source: plan.source,
        changes,
        threads: plan.threads,
        progress,
        cancel,
        gather: true,
    };
    // Without a backing image, what is never mentioned reads as zeros.
    let flag_zeros = plan.backing.is_some();
    let blocks = plan
        .marks
        .map_or(u64::MAX, |m| (m.every / BLOCK_SIZE).max(1));
    let mut planner = copy.planner(&copied);
    loop {
        let (area, mut mapping) = writer.split();
        let store = |_: u64, bytes: &[u8]| {
            let place = area.reserve(bytes.len() as u64 / BLOCK_SIZE);
            area.write(place, bytes)?;
            Ok(place)
        };
        let ended = copy.part(&mut planner, blocks, &mut copied, &store, &mut |run| {
            if let Some(proof) = &mut proof {
                proof.run(run)?;
            }
            let mut note = |first, count, hash| {
                if let Some(digest) = &mut digest {
                    digest.push(first, count, hash);
                }
                list.as_mut()
                    .map_or(Ok(()), |list| list.push(first, count, hash))
            };
            match run {
                Run::Zero { first, count } => {
                    if flag_zeros {
                        mapping.set(*first, *count, BlockState::Zero)?;
                    }
                    note(*first, *count, BlockHash::Zero)
                }
                Run::Data {
                    first,
                    place,
                    hashes,
                } => {
                    mapping.set(*first, hashes.len() as u64, BlockState::Data(*place))?;
                    (*first..)
                        .zip(hashes)
                        .try_for_each(|(block, hash)| note(block, 1, BlockHash::Hash(*hash)))
                }
            }
        })?;
        if ended {
            break;
        }
        if let Some(marks) = plan.marks {
            (marks.note)(Mark {
                plan: fingerprint(plan, changes),
                image: writer.mark()?,
                list: list.as_mut().map(BlockListWriter::mark).transpose()?,
                numbers: copied,
            });
        }
    }
    if let Some(proof) = proof {
        proof.finish()?;
    }
    let bytes_written = writer.finish()?;
    let finished = finish(plan, list, digest.as_ref());
    if finished.is_err() {
        discard(&plan.target);
        if let Some(slot) = &plan.block_list {
            discard(slot);
        }
    }
    let (block_list, digest) = finished?;
    Ok(DiskReport {
        virtual_size: size,
        bytes_read: copied.read,
        bytes_written,
        extents: copied.extents,
        data_blocks: copied.data_blocks,
        zero_blocks: copied.zero_blocks,
        block_list,
        digest,
    })
}

/// About how many bytes an export will write, found without reading content: for the space check. Blocks that turn out to be zero
/// make it less; tables and block list are included.
///
/// # Errors
/// What asking the source for its extents ran into.
pub fn estimate(source: &dyn Source, changes: Option<&ChangeMap>) -> Result<u64> {
    let mut planner = Planner::new(source, changes);
    let (mut data, mut tables, mut next_table) = (0u64, 0u64, 0u64);
    while let Some(item) = planner.next_item()? {
        for piece in item.pieces {
            data += if piece.zero { 0 } else { piece.count };
            // Zeros need an entry only where they hide a base.
            if !piece.zero || changes.is_some() {
                let end = (piece.first + piece.count).div_ceil(L2_ENTRIES);
                tables += end.saturating_sub(next_table.max(piece.first / L2_ENTRIES));
                next_table = next_table.max(end);
            }
        }
    }
    // 2 bytes of counts and 32 of hash for each block with data, and a few clusters for header and top tables.
    Ok(data * (BLOCK_SIZE + 34) + (tables + 8) * BLOCK_SIZE)
}

fn check(plan: &ExportPlan<'_>) -> Result<()> {
    let reason = if plan.changes.is_some() != plan.backing.is_some() {
        "a change map and a backing image belong together"
    } else if plan.changes.is_none() && !plan.base_lists.is_empty() {
        "a full export has no base"
    } else if !plan.base_lists.is_empty() && plan.block_list.is_none() {
        "the digest over a base needs a block list of its own"
    } else if plan
        .changes
        .is_some_and(|map| map.end() > plan.source.size())
    {
        "the change map reaches beyond the disk"
    } else if plan.block_list.as_ref().map(Slot::target) == Some(plan.target.target()) {
        "image and block list have the same name"
    } else if plan.marks.is_some() && (!plan.target.stays() || plan.block_list.is_none()) {
        "marks need files that stay, and a block list"
    } else {
        return Ok(());
    };
    Err(Error::invalid(reason))
}

/// When the disk has another size than its base: the changes, with everything that the new size alone changes. A grown disk changes
/// beyond the old end; a shrunk one changes its last block, which got shorter.
fn resized_changes(plan: &ExportPlan<'_>) -> Result<Option<ChangeMap>> {
    let (Some(changes), Some(base)) = (plan.changes, plan.base_lists.last()) else {
        return Ok(None);
    };
    let (old, new) = (BlockListReader::open(base)?.disk_size(), plan.source.size());
    let extra = if new > old {
        old..new
    } else {
        new.saturating_sub(1)..new
    };
    Ok((new != old).then(|| changes.union(&ChangeMap::of(extra))))
}

fn finish(
    plan: &ExportPlan<'_>,
    list: Option<BlockListWriter>,
    digest: Option<&DiskDigest>,
) -> Result<(Option<BlockListInfo>, Option<Hash>)> {
    let info = list.map(BlockListWriter::finish).transpose()?;
    if let (None, Some(digest)) = (plan.changes, digest) {
        return Ok((info, Some(digest.finish())));
    }
    if plan.changes.is_some() && plan.base_lists.is_empty() {
        return Ok((info, None));
    }
    let mut lists = plan.base_lists.clone();
    lists.extend(plan.block_list.iter().map(|s| s.target().to_owned()));
    let digest = Merged::open(&lists)?.digest()?;
    Ok((info, Some(digest)))
}

/// A writer and a list, and how far they are.
struct Parts {
    writer: Qcow2Writer,
    list: Option<BlockListWriter>,
    numbers: Copied,
}

impl Parts {
    fn new(plan: &ExportPlan<'_>, changes: Option<&ChangeMap>) -> Result<Self> {
        let size = plan.source.size();
        let list = |slot| BlockListWriter::start(slot, size, changes);
        Ok(Self {
            writer: Qcow2Writer::start(&plan.target, size, plan.backing.clone())?,
            list: plan.block_list.as_ref().map(list).transpose()?,
            numbers: Copied::default(),
        })
    }
}

/// What was written up to a mark; `None` where it cannot be gone on with.
fn go_on(plan: &ExportPlan<'_>, changes: Option<&ChangeMap>, mark: &Mark) -> Result<Option<Parts>> {
    if mark.plan != fingerprint(plan, changes) {
        return Ok(None);
    }
    let size = plan.source.size();
    let (Some(slot), Some(listed)) = (&plan.block_list, &mark.list) else {
        return Ok(None);
    };
    let writer = Qcow2Writer::go_on(&plan.target, size, plan.backing.clone(), &mark.image)?;
    let list = BlockListWriter::go_on(slot, size, listed)?;
    let (Some(writer), Some(list)) = (writer, list) else {
        return Ok(None);
    };
    Ok(Some(Parts {
        writer,
        list: Some(list),
        numbers: mark.numbers,
    }))
}

/// What tells one plan from another: the size of the disk, what of it is exported, and the base.
fn fingerprint(plan: &ExportPlan<'_>, changes: Option<&ChangeMap>) -> HexHash {
    let size = plan.source.size();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&size.to_le_bytes());
    if let Some(map) = changes {
        hasher.update(&map.encode(size));
    }
    if let Some(backing) = &plan.backing {
        hasher.update(backing.format.as_bytes());
        hasher.update(b"\0");
        hasher.update(backing.file.as_bytes());
    }
    HexHash(hasher.finalize())
}

fn discard(slot: &Slot) {
    if slot.stays() {
        return;
    }
    let path = slot.target();
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a useless file stays behind");
        }
        _ => {
            if let Err(error) = sync_parent(path) {
                tracing::warn!(path = %path.display(), %error, "a removal may not be durable");
            }
        }
    }
}
