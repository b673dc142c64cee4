//! Finding changes without a change map: by the hashes of the base export.

use std::path::PathBuf;

use super::{Copy, Progress, default_threads};
use crate::blocks::{Compare, Merged};
use crate::cancel::CancelFlag;
use crate::error::Result;
use crate::map::ChangeMap;
use crate::source::Source;
use crate::zero::BLOCK_SIZE;

/// Reads a whole disk and returns the blocks that are not what the exports beneath it hold (`base_lists`: their block lists, the full
/// one FIRST). For a disk that was changed behind our back: it costs a read, but the differential export of the result is exact.
///
/// # Errors
/// [`crate::Error::Cancelled`]; else what reading the disk or the lists ran into.
pub fn changed_blocks(
    source: &dyn Source,
    base_lists: &[PathBuf],
    progress: &(dyn Fn(Progress) + Sync),
    cancel: &CancelFlag,
) -> Result<ChangeMap> {
    let size = source.size();
    let base = Merged::open(base_lists)?;
    let base_size = base.disk_size();
    let mut compare = Compare::new(base, size);
    let mut ranges = Vec::new();
    let threads = default_threads();
    let copy = Copy {
        source,
        changes: None,
        threads,
        progress,
        cancel,
        gather: true,
    };
    copy.run(&|_, _| Ok(0), &mut |run| {
        for blocks in compare.differences(run)? {
            ranges.push(blocks.start * BLOCK_SIZE..(blocks.end * BLOCK_SIZE).min(size));
        }
        Ok(())
    })?;
    compare.finish()?;
    let mut changes = ChangeMap::from_ranges(ranges);
    if base_size < size {
        changes.insert(base_size..size);
    }
    Ok(changes)
}
