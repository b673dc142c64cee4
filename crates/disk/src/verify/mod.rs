//! Proving exports against their manifests.
//!
//! A chain of export directories, base first, is proven level by level: each block a level lists is read through the images up to
//! that level and held against its hash; an image must hold nothing its list does not speak of; and the lists laid over each other must
//! give the digest of the whole disk. So every point of the chain is proven, while each image is read once.

mod exports;
mod proof;

pub use exports::{DiskFiles, Export, disk_files, open_exports};
pub use proof::DiskProof;

use exports::open_inside;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use blake3::Hash;

use crate::blocks::{BlockListReader, Compare, Merged, check_list};
use crate::cancel::CancelFlag;
use crate::error::{Error, Result};
use crate::export::{Copy, Progress, default_threads};
use crate::manifest::{DiskEntry, RelativePath};
use crate::map::ChangeMap;
use crate::qcow2::Qcow2Layer;
use crate::source::Chain;
use crate::zero::BLOCK_SIZE;

/// What is wrong with a disk.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The first block whose content is not what was exported.
    #[error(
        "block {block} (byte {offset} of the disk) does not have the content that was exported"
    )]
    Block {
        /// Its number.
        block: u64,
        /// Its first byte on the disk.
        offset: u64,
    },
    /// The image holds something at a block the list does not speak of.
    #[error("the image changes byte {offset} of the disk, which its block list does not name")]
    Unlisted {
        /// First such byte.
        offset: u64,
    },
    /// A file has another length than the manifest says.
    #[error("{} has {found} bytes, its manifest says {expected}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Length in the manifest.
        expected: u64,
        /// Length found.
        found: u64,
    },
    /// A file does not have the hash the manifest gives.
    #[error("{} does not have the hash its manifest gives", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
    },
    /// The image has another size than the manifest says, or its list speaks of another disk.
    #[error("image, block list and manifest disagree about the size of the disk")]
    Size,
    /// The lists do not give the digest of the disk.
    #[error("the block lists do not give the digest of the disk")]
    Digest,
    /// The base image is named differently by manifest and image.
    #[error("the image names {found:?} as its base, the manifest {expected:?}")]
    Base {
        /// File name in the manifest.
        expected: String,
        /// Name in the image.
        found: String,
    },
    /// A file is missing, unreadable or damaged.
    #[error("it cannot be read")]
    Unreadable(#[source] Error),
}

/// The verdict on one disk (or plain file) of one export.
#[derive(Debug)]
pub struct Verdict {
    /// Identifier of the point.
    pub point: String,
    /// Identifier of the disk, or the path of a plain file.
    pub what: String,
    /// Blocks proven.
    pub blocks: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is wrong; none: it is exactly what was exported.
    pub problem: Option<Problem>,
}

/// Proves a chain of export directories, base FIRST: every disk and every plain file of each of them. One verdict for each; those
/// with a problem do not stop the others.
///
/// # Errors
/// [`Error::Cancelled`], and those of [`open_exports`].
pub fn verify(
    dirs: &[PathBuf],
    progress: &(dyn Fn(Progress) + Sync),
    cancel: &CancelFlag,
) -> Result<Vec<Verdict>> {
    let chain = open_exports(dirs)?;
    let entries = chain.iter().flat_map(|e| &e.manifest.disks);
    let total = entries
        .map(|d| d.block_list.blocks.saturating_mul(BLOCK_SIZE))
        .sum();
    let mut before = 0u64;
    let mut verdicts = Vec::new();
    for (level, export) in chain.iter().enumerate() {
        let verdict = |what: &str, result: Result<(u64, u64), Broken>| {
            let ((blocks, bytes), problem) = match result {
                Ok(numbers) => (numbers, None),
                Err(Broken::Told(problem)) => ((0, 0), Some(problem)),
                Err(Broken::Failed(Error::Cancelled)) => return Err(Error::Cancelled),
                Err(Broken::Failed(error)) => ((0, 0), Some(Problem::Unreadable(error))),
            };
            let point = export.manifest.point.id.clone();
            Ok(Verdict {
                point,
                what: what.to_owned(),
                blocks,
                bytes,
                problem,
            })
        };
        for file in &export.manifest.files {
            cancel.check()?;
            let result = check_plain(&export.dir, &file.path, file.bytes, file.blake3.0);
            verdicts.push(verdict(file.path.as_str(), result)?);
        }
        for disk in &export.manifest.disks {
            let told = |p: Progress| {
                progress(Progress {
                    done: before + p.done,
                    total,
                    written: 0,
                })
            };
            let levels = chain.get(..=level).unwrap_or_default();
            let result = check_disk(levels, &export.dir, disk, &told, cancel);
            verdicts.push(verdict(&disk.instance_id, result)?);
            before += disk.block_list.blocks.saturating_mul(BLOCK_SIZE);
            progress(Progress {
                done: before.min(total),
                total,
                written: 0,
            });
        }
    }
    Ok(verdicts)
}

/// A problem that was found, or something that kept us from looking.
enum Broken {
    Told(Problem),
    Failed(Error),
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Problem> for Broken {
    fn from(problem: Problem) -> Self {
        Self::Told(problem)
    }
}

fn check_length(path: &Path, file: &File, expected: u64) -> Result<(), Broken> {
    let found = file
        .metadata()
        .map_err(|e| Error::io("open", path, e))?
        .len();
    if found == expected {
        return Ok(());
    }
    Err(Problem::Length {
        path: path.to_owned(),
        expected,
        found,
    }
    .into())
}

fn check_plain(
    dir: &Path,
    file: &RelativePath,
    bytes: u64,
    hash: Hash,
) -> Result<(u64, u64), Broken> {
    let (path, handle) = open_inside(dir, file)?;
    check_length(&path, &handle, bytes)?;
    let mut hasher = blake3::Hasher::new();
    // A file that grows meanwhile is not read for ever.
    hasher
        .update_reader(handle.take(bytes.saturating_add(1)))
        .map_err(|e| Error::io("read", &path, e))?;
    if hasher.finalize() != hash {
        return Err(Problem::Hash { path }.into());
    }
    Ok((0, bytes))
}

fn check_disk(
    levels: &[Export],
    dir: &Path,
    disk: &DiskEntry,
    progress: &(dyn Fn(Progress) + Sync),
    cancel: &CancelFlag,
) -> Result<(u64, u64), Broken> {
    let files = disk_files(levels, &disk.instance_id)?;
    let (image, image_file) = open_inside(dir, &disk.file)?;
    let (list, list_file) = open_inside(dir, &disk.block_list.file)?;
    check_length(&image, &image_file, disk.file_bytes)?;
    check_length(&list, &list_file, disk.block_list.bytes)?;
    let reader = || -> Result<BlockListReader> {
        let (path, file) = open_inside(dir, &disk.block_list.file)?;
        BlockListReader::from_file(&path, file)
    };
    if check_list(reader()?)? != (disk.block_list.blake3.0, disk.block_list.blocks) {
        return Err(Problem::Hash { path: list }.into());
    }

    let listed = listed_blocks(reader()?)?;
    let layer = Qcow2Layer::from_file(&image, image_file)?;
    let size = reader()?.disk_size();
    if [layer.virtual_size(), size] != [disk.virtual_size; 2] {
        return Err(Problem::Size.into());
    }
    check_base(&layer, disk)?;
    let whole = disk.base_file.is_none();
    if whole && listed != ChangeMap::of(0..size) {
        return Err(Problem::Size.into());
    }
    let holds = layer.allocation()?.clip(size);
    if let Some(first) = first_outside(&holds, &listed) {
        return Err(Problem::Unlisted { offset: first }.into());
    }
    drop(layer);

    let source = Chain::open(&files.layers)?;
    let mut expected = Compare::new(reader()?, size);
    let mut bad = None;
    let copy = Copy {
        source: &source,
        changes: Some(&listed),
        threads: default_threads(),
        progress,
        cancel,
        gather: true,
    };
    let result = copy.run(&|_, _| Ok(0), &mut |run| {
        bad = expected.differences(run)?.first().map(|range| range.start);
        // Any error ends the reading; which one it was is in `bad`.
        if bad.is_some() {
            Err(Error::invalid("a block differs"))
        } else {
            Ok(())
        }
    });
    if let Some(block) = bad {
        return Err(Problem::Block {
            block,
            offset: block * BLOCK_SIZE,
        }
        .into());
    }
    let copied = result?;
    if let Some(digest) = disk.digest
        && Merged::open(&files.lists)?.digest()? != digest.0
    {
        return Err(Problem::Digest.into());
    }
    Ok((copied.data_blocks + copied.zero_blocks, copied.read))
}

/// The image must stand on the file its manifest names: by name only, the directory is that of the base's export.
fn check_base(layer: &Qcow2Layer, disk: &DiskEntry) -> Result<(), Broken> {
    let named = layer.backing().map(|b| b.rsplit('/').next().unwrap_or(b));
    let expected = disk.base_file.as_ref().map(RelativePath::as_str);
    if named == expected {
        return Ok(());
    }
    let text = |name: Option<&str>| name.unwrap_or("").to_owned();
    Err(Problem::Base {
        expected: text(expected),
        found: text(named),
    }
    .into())
}

/// The bytes of the blocks a list names.
fn listed_blocks(mut reader: BlockListReader) -> Result<ChangeMap> {
    let size = reader.disk_size();
    let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
    while let Some(run) = reader.next_run()? {
        let bytes = run.first * BLOCK_SIZE..((run.first + run.count) * BLOCK_SIZE).min(size);
        match ranges.last_mut() {
            Some(last) if last.end == bytes.start => last.end = bytes.end,
            _ => ranges.push(bytes),
        }
    }
    Ok(ChangeMap::from_ranges(ranges))
}

/// The first byte of `map` that is not in `listed`.
fn first_outside(map: &ChangeMap, listed: &ChangeMap) -> Option<u64> {
    map.iter()
        .find_map(|range| match listed.iter_from(range.start).next() {
            Some(l) if l.start <= range.start => (l.end < range.end).then_some(l.end),
            _ => Some(range.start),
        })
}
