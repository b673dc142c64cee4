//! A list, read in step with a disk.

use std::ops::Range;

use super::{BlockHash, BlockRun, Runs};
use crate::error::Result;
use crate::export::Run;
use crate::zero::block_len;

/// Holds what is read of a disk against what a list says about it.
pub(crate) struct Compare<R> {
    list: R,
    run: Option<BlockRun>,
    /// Size of the disk in bytes.
    size: u64,
}

impl<R: Runs> Compare<R> {
    pub(crate) fn new(list: R, size: u64) -> Self {
        Self {
            list,
            run: None,
            size,
        }
    }

    /// The blocks of a run that are not what the list says; runs must come in ascending order. Blocks the list does not name
    /// differ.
    pub(crate) fn differences(&mut self, run: &Run) -> Result<Vec<Range<u64>>> {
        let (first, count) = match run {
            Run::Zero { first, count } => (*first, *count),
            Run::Data { first, hashes, .. } => (*first, hashes.len() as u64),
        };
        let end = first + count;
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut at = first;
        while at < end {
            let Some(listed) = self.listed(at)? else {
                add(&mut found, at..end);
                break;
            };
            if listed.first > at {
                let stop = listed.first.min(end);
                add(&mut found, at..stop);
                at = stop;
                continue;
            }
            // Long runs of zeros on both sides are compared in one step.
            if matches!(run, Run::Zero { .. }) && listed.hash == BlockHash::Zero {
                at = (listed.first + listed.count).min(end);
                continue;
            }
            let len = block_len(at, self.size);
            let now = match run {
                Run::Zero { .. } => Some(BlockHash::Zero.hash(len)),
                Run::Data { hashes, .. } => hashes.get((at - first) as usize).copied(),
            };
            if now != Some(listed.hash.hash(len)) {
                add(&mut found, at..at + 1);
            }
            at += 1;
        }
        Ok(found)
    }

    /// The run of the list that holds `block` or follows it.
    fn listed(&mut self, block: u64) -> Result<Option<BlockRun>> {
        while self.run.is_none_or(|run| run.first + run.count <= block) {
            self.run = self.list.next_run()?;
            if self.run.is_none() {
                return Ok(None);
            }
        }
        Ok(self.run)
    }

    /// Reads the list to its end, which proves its check sum, and gives it back.
    pub(crate) fn finish(mut self) -> Result<R> {
        while self.list.next_run()?.is_some() {}
        Ok(self.list)
    }
}

fn add(list: &mut Vec<Range<u64>>, next: Range<u64>) {
    match list.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => list.push(next),
    }
}
