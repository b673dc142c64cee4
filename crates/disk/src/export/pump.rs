//! Readers in parallel, results in order, content to where the caller stores it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use blake3::Hash;
use serde::{Deserialize, Serialize};

use super::plan::{ITEM_BYTES, Item, Piece, Planner, planned_bytes};
use super::{ExportPlan, Progress, default_threads, export_disk};
use crate::atomic::AtomicFile;
use crate::cancel::CancelFlag;
use crate::error::{Error, Result};
use crate::map::ChangeMap;
use crate::ordered;
use crate::source::{LayerFormat, Source};
use crate::zero::{BLOCK, BLOCK_SIZE, block_len, is_zero};

/// What became of a run of blocks.
#[derive(Debug)]
pub(crate) enum Run {
    /// Zeros.
    Zero { first: u64, count: u64 },
    /// Content, stored at consecutive places from `place` on; the hash of each block.
    Data {
        first: u64,
        place: u64,
        hashes: Vec<Hash>,
    },
}

/// Numbers of a copy, and how far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Copied {
    pub(crate) read: u64,
    pub(crate) extents: u64,
    pub(crate) data_blocks: u64,
    pub(crate) zero_blocks: u64,
    /// Bytes of the disk dealt with.
    done: u64,
    /// The block behind the last one dealt with, and behind the last one that held data.
    next: u64,
    data_end: Option<u64>,
}

/// One copy (or one reading for its hashes).
pub(crate) struct Copy<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) changes: Option<&'a ChangeMap>,
    pub(crate) threads: usize,
    pub(crate) progress: &'a (dyn Fn(Progress) + Sync),
    pub(crate) cancel: &'a CancelFlag,
    /// Blocks that are apart on the disk may be stored side by side.
    pub(crate) gather: bool,
}

struct Done {
    runs: Vec<Run>,
    read: u64,
    covered: u64,
}

impl Copy<'_> {
    /// Reads, tests for zeros, hashes; `store` gets runs of whole blocks (the number of the first, zero-padded content), on any
    /// thread, and returns the place of the first; `record` gets every run in order.
    pub(crate) fn run(
        &self,
        store: &(dyn Fn(u64, &[u8]) -> Result<u64> + Sync),
        record: &mut (dyn FnMut(&Run) -> Result<()> + Send),
    ) -> Result<Copied> {
        let mut numbers = Copied::default();
        let mut planner = Planner::new(self.source, self.changes);
        self.part(&mut planner, u64::MAX, &mut numbers, store, record)?;
        Ok(numbers)
    }

    /// What is left to do after `numbers`.
    pub(crate) fn planner(&self, numbers: &Copied) -> Planner<'_> {
        Planner::from(self.source, self.changes, numbers.next)
    }

    /// As [`Copy::run`], up to the end or until this many blocks were read. Nothing is under way when it returns; it returns whether
    /// the end was reached.
    pub(crate) fn part(
        &self,
        planner: &mut Planner<'_>,
        blocks: u64,
        numbers: &mut Copied,
        store: &(dyn Fn(u64, &[u8]) -> Result<u64> + Sync),
        record: &mut (dyn FnMut(&Run) -> Result<()> + Send),
    ) -> Result<bool> {
        let size = self.source.size();
        let total = planned_bytes(self.changes, size);
        let written = AtomicU64::new(numbers.data_blocks * BLOCK_SIZE);
        let (mut given, mut ended, mut next) = (0u64, false, numbers.next);
        (self.progress)(Progress {
            done: numbers.done,
            total,
            written: written.load(Ordering::Relaxed),
        });
        ordered::run(
            self.threads,
            ITEM_BYTES,
            self.cancel,
            || {
                if given >= blocks {
                    return Ok(None);
                }
                let item = planner.next_item()?;
                match &item {
                    Some(item) => {
                        given += item.reads();
                        next = item.end();
                    }
                    None => ended = true,
                }
                Ok(item)
            },
            |item, buffer| self.work(&item, buffer, store, &written),
            |result: Done| {
                for run in &result.runs {
                    record(run)?;
                    match run {
                        Run::Zero { count, .. } => numbers.zero_blocks += count,
                        Run::Data { first, hashes, .. } => {
                            let count = hashes.len() as u64;
                            numbers.data_blocks += count;
                            numbers.extents += u64::from(numbers.data_end != Some(*first));
                            numbers.data_end = Some(first + count);
                        }
                    }
                }
                numbers.read += result.read;
                numbers.done += result.covered;
                (self.progress)(Progress {
                    done: numbers.done,
                    total,
                    written: written.load(Ordering::Relaxed),
                });
                Ok(())
            },
        )?;
        numbers.next = next;
        Ok(ended)
    }

    fn work(
        &self,
        item: &Item,
        buffer: &mut [u8],
        store: &(dyn Fn(u64, &[u8]) -> Result<u64> + Sync),
        written: &AtomicU64,
    ) -> Result<Done> {
        let size = self.source.size();
        let mut done = Done {
            runs: Vec::new(),
            read: 0,
            covered: 0,
        };
        // All reads first, one piece behind the other, so that what is stored can be stored in one go.
        let mut filled = 0;
        for piece in &item.pieces {
            let bytes =
                ((piece.first + piece.count) * BLOCK_SIZE).min(size) - piece.first * BLOCK_SIZE;
            done.covered += bytes;
            if !piece.zero {
                let room = (piece.count * BLOCK_SIZE) as usize;
                let part = buffer.get_mut(filled..filled + room).unwrap_or_default();
                let (content, padding) = part.split_at_mut(part.len().min(bytes as usize));
                self.source.read_at(content, piece.first * BLOCK_SIZE)?;
                padding.fill(0);
                filled += room;
                done.read += bytes;
            }
        }
        let mut pending = Pending {
            start: 0,
            end: 0,
            first_run: 0,
        };
        let mut slot = 0;
        for piece in &item.pieces {
            if piece.zero {
                push_zero(&mut done.runs, *piece);
                continue;
            }
            for block in piece.first..piece.first + piece.count {
                let bytes = buffer.get(slot..slot + BLOCK).unwrap_or_default();
                if is_zero(bytes) {
                    push_zero(
                        &mut done.runs,
                        Piece {
                            first: block,
                            count: 1,
                            zero: true,
                        },
                    );
                } else {
                    let joins = matches!(done.runs.last(), Some(Run::Data { first, hashes, .. })
                        if first + hashes.len() as u64 == block);
                    if pending.end != slot || !(joins || self.gather) {
                        pending.flush(&mut done.runs, buffer, store, written)?;
                        pending = Pending {
                            start: slot,
                            end: slot,
                            first_run: done.runs.len(),
                        };
                    }
                    let len = block_len(block, size) as usize;
                    let hash = blake3::hash(bytes.get(..len).unwrap_or(bytes));
                    match done.runs.last_mut() {
                        Some(Run::Data { hashes, .. }) if joins && pending.start < slot => {
                            hashes.push(hash);
                        }
                        _ => done.runs.push(Run::Data {
                            first: block,
                            place: 0,
                            hashes: vec![hash],
                        }),
                    }
                    pending.end = slot + BLOCK;
                }
                slot += BLOCK;
            }
        }
        pending.flush(&mut done.runs, buffer, store, written)?;
        Ok(done)
    }
}

/// Bytes of the buffer that go out in one write, and the first run among them.
struct Pending {
    start: usize,
    end: usize,
    first_run: usize,
}

impl Pending {
    fn flush(
        &self,
        runs: &mut [Run],
        buffer: &[u8],
        store: &(dyn Fn(u64, &[u8]) -> Result<u64> + Sync),
        written: &AtomicU64,
    ) -> Result<()> {
        let runs = runs.get_mut(self.first_run..).unwrap_or_default();
        let first = runs.iter().find_map(|run| match run {
            Run::Data { first, .. } => Some(*first),
            Run::Zero { .. } => None,
        });
        let (Some(first), Some(bytes)) = (first, buffer.get(self.start..self.end)) else {
            return Ok(());
        };
        let mut next = store(first, bytes)?;
        written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        for run in runs {
            if let Run::Data { place, hashes, .. } = run {
                *place = next;
                next += hashes.len() as u64;
            }
        }
        Ok(())
    }
}

fn push_zero(runs: &mut Vec<Run>, piece: Piece) {
    match runs.last_mut() {
        Some(Run::Zero { first, count }) if *first + *count == piece.first => *count += piece.count,
        _ => runs.push(Run::Zero {
            first: piece.first,
            count: piece.count,
        }),
    }
}

/// Writes a disk into one image of its own, of either format, for imports.
///
/// # Errors
/// As [`export_disk`]; the target must not exist, and none is left after an error.
pub fn flatten(
    source: &dyn Source,
    target: &Path,
    format: LayerFormat,
    progress: &(dyn Fn(Progress) + Sync),
    cancel: &CancelFlag,
) -> Result<()> {
    if format == LayerFormat::Qcow2 {
        return export_disk(&ExportPlan::full(source, target), progress, cancel).map(|_| ());
    }
    let image = AtomicFile::create(target)?;
    let size = source.size();
    let file: &File = image.file();
    file.set_len(size)
        .map_err(|e| Error::io("extend", image.path(), e))?;
    let copy = Copy {
        source,
        changes: None,
        threads: default_threads(),
        progress,
        cancel,
        gather: false,
    };
    let store = |first: u64, bytes: &[u8]| {
        let offset = first * BLOCK_SIZE;
        let there = size.saturating_sub(offset).min(bytes.len() as u64) as usize;
        file.write_all_at(bytes.get(..there).unwrap_or(bytes), offset)
            .map_err(|e| Error::io_at("write", image.path(), offset, e))?;
        Ok(first)
    };
    copy.run(&store, &mut |_| Ok(()))?;
    image.commit()
}
