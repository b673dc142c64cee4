//! Two disks held against each other, byte by byte.

use std::sync::{Mutex, PoisonError};

use super::{Copy, Progress, Run, default_threads};
use crate::cancel::CancelFlag;
use crate::error::Result;
use crate::map::ChangeMap;
use crate::source::Source;
use crate::zero::BLOCK_SIZE;

/// The finest difference that is told: a sector.
const SECTOR: usize = 512;

/// Zeros of one disk are looked up in the other in steps of this many bytes.
const STEP: u64 = 1 << 20;

/// Reads two disks and returns the sectors (of 512 bytes) of `source` that `base` does not hold the same bytes in. What lies beyond
/// the end of `base` is compared with zeros.
///
/// # Errors
/// [`crate::Error::Cancelled`]; else what reading either disk ran into.
pub fn differing_bytes(
    source: &dyn Source,
    base: &dyn Source,
    progress: &(dyn Fn(Progress) + Sync),
    cancel: &CancelFlag,
) -> Result<ChangeMap> {
    let size = source.size();
    let found = Mutex::new(Vec::new());
    let note = |at: u64, ours: &[u8], theirs: &[u8]| {
        let mut own = Vec::new();
        let mut start = at;
        for (a, b) in ours.chunks(SECTOR).zip(theirs.chunks(SECTOR)) {
            let end = start + a.len() as u64;
            if a != b {
                own.push(start..end);
            }
            start = end;
        }
        if !own.is_empty() {
            let mut all = found.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(ChangeMap::from_ranges(own).iter());
        }
    };
    let zeros = vec![0; STEP as usize];
    let copy = Copy {
        source,
        changes: None,
        threads: default_threads(),
        progress,
        cancel,
        // `look` must be told of blocks that follow each other on the disk.
        gather: false,
    };
    let look = |first: u64, bytes: &[u8]| {
        let at = first * BLOCK_SIZE;
        // The last block of the disk comes padded with zeros.
        let len = (bytes.len() as u64).min(size.saturating_sub(at)) as usize;
        let ours = bytes.get(..len).unwrap_or_default();
        let mut theirs = vec![0; len];
        read_padded(base, &mut theirs, at)?;
        if ours != theirs {
            note(at, ours, &theirs);
        }
        Ok(0)
    };
    copy.run(&look, &mut |run| {
        let Run::Zero { first, count } = run else {
            return Ok(());
        };
        let end = ((first + count) * BLOCK_SIZE).min(size).min(base.size());
        let mut at = first * BLOCK_SIZE;
        let mut theirs = Vec::new();
        while at < end {
            let window = (at + (1 << 30)).min(end);
            for extent in base.extents(at..window)? {
                let mut from = extent.start;
                while !extent.zero && from < extent.end() {
                    cancel.check()?;
                    let len = STEP.min(extent.end() - from) as usize;
                    theirs.resize(len, 0);
                    base.read_at(&mut theirs, from)?;
                    let ours = zeros.get(..len).unwrap_or_default();
                    if ours != theirs {
                        note(from, ours, &theirs);
                    }
                    from += len as u64;
                }
            }
            at = window;
        }
        Ok(())
    })?;
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(ChangeMap::from_ranges(found))
}

/// Reads what there is; zeros beyond the end.
fn read_padded(source: &dyn Source, buf: &mut [u8], at: u64) -> Result<()> {
    let there = source.size().saturating_sub(at).min(buf.len() as u64) as usize;
    let (inside, beyond) = buf.split_at_mut(there);
    beyond.fill(0);
    if inside.is_empty() {
        return Ok(());
    }
    source.read_at(inside, at)
}
