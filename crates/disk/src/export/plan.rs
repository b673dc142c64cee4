//! What is read, in which portions.

use std::ops::Range;

use crate::error::Result;
use crate::map::ChangeMap;
use crate::source::Source;
use crate::zero::{BLOCK_SIZE, block_count};

/// Blocks read by one item: 1 MiB, one buffer, one large write.
pub(crate) const ITEM_BLOCKS: u64 = 16;
/// The buffer one item needs, in bytes.
pub(crate) const ITEM_BYTES: usize = (ITEM_BLOCKS * BLOCK_SIZE) as usize;
/// Pieces of one item at most, so that alternating runs do not grow it without bound.
const ITEM_PIECES: usize = 256;
/// Blocks covered by one item at most (1 GiB), so that a vast run of zeros can be cancelled and shows progress.
const ITEM_SPAN: u64 = 16_384;
/// Blocks whose extents are asked for at a time: 64 MiB.
const WINDOW: u64 = 1024;
/// Ranges up to this many blocks are read without asking for extents first; the zero test finds what is zero.
const SMALL: u64 = 16;

/// A run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) first: u64,
    pub(crate) count: u64,
    /// Known to be zero without reading.
    pub(crate) zero: bool,
}

/// One portion of work: pieces in ascending order, at most [`ITEM_BLOCKS`] blocks to read among them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) pieces: Vec<Piece>,
    reads: u64,
    covered: u64,
}

impl Item {
    /// Blocks it reads.
    pub(crate) fn reads(&self) -> u64 {
        self.reads
    }

    /// The block behind its last one.
    pub(crate) fn end(&self) -> u64 {
        self.pieces.last().map_or(0, |p| p.first + p.count)
    }

    fn is_full(&self) -> bool {
        self.reads >= ITEM_BLOCKS || self.covered >= ITEM_SPAN || self.pieces.len() >= ITEM_PIECES
    }

    /// Adds as much of `piece` as fits; returns the rest.
    fn add(&mut self, piece: Piece) -> Option<Piece> {
        let taken = if piece.zero {
            piece.count
        } else {
            let taken = piece.count.min(ITEM_BLOCKS - self.reads);
            self.reads += taken;
            taken
        };
        self.covered += taken;
        match self.pieces.last_mut() {
            Some(last) if last.zero == piece.zero && last.first + last.count == piece.first => {
                last.count += taken;
            }
            _ => self.pieces.push(Piece {
                count: taken,
                ..piece
            }),
        }
        let rest = Piece {
            first: piece.first + taken,
            count: piece.count - taken,
            ..piece
        };
        (rest.count > 0).then_some(rest)
    }
}

/// Gives out the blocks of a disk, or those a change map touches, in order.
pub(crate) struct Planner<'a> {
    source: &'a dyn Source,
    /// Block ranges still to be planned.
    ranges: Box<dyn Iterator<Item = Range<u64>> + Send + 'a>,
    current: Range<u64>,
    /// Pieces found and not yet given out, in reverse order.
    found: Vec<Piece>,
}

impl<'a> Planner<'a> {
    pub(crate) fn new(source: &'a dyn Source, changes: Option<&'a ChangeMap>) -> Self {
        Self::from(source, changes, 0)
    }

    /// As [`Planner::new`], without the blocks before `start`.
    pub(crate) fn from(source: &'a dyn Source, changes: Option<&'a ChangeMap>, start: u64) -> Self {
        let blocks = block_count(source.size());
        let ranges: Box<dyn Iterator<Item = Range<u64>> + Send + 'a> = match changes {
            None => Box::new(std::iter::once(start.min(blocks)..blocks)),
            Some(map) => Box::new(
                block_ranges(map, blocks)
                    .map(move |r| r.start.max(start)..r.end)
                    .filter(|r| !r.is_empty()),
            ),
        };
        Self {
            source,
            ranges,
            current: 0..0,
            found: Vec::new(),
        }
    }

    pub(crate) fn next_item(&mut self) -> Result<Option<Item>> {
        let mut item = Item::default();
        while !item.is_full() {
            let Some(piece) = self.next_piece()? else {
                break;
            };
            self.found.extend(item.add(piece));
        }
        Ok((!item.pieces.is_empty()).then_some(item))
    }

    fn next_piece(&mut self) -> Result<Option<Piece>> {
        if let Some(piece) = self.found.pop() {
            return Ok(Some(piece));
        }
        if self.current.is_empty() {
            match self.ranges.next() {
                Some(range) if !range.is_empty() => self.current = range,
                _ => return Ok(None),
            }
        }
        let first = self.current.start;
        let count = (self.current.end - first).min(WINDOW);
        self.current.start += count;
        if count <= SMALL {
            return Ok(Some(Piece {
                first,
                count,
                zero: false,
            }));
        }
        self.scan(first, count)?;
        Ok(self.found.pop())
    }

    /// Splits a window into runs that are zero and runs that must be read.
    fn scan(&mut self, first: u64, count: u64) -> Result<()> {
        let size = self.source.size();
        let end = (first + count).saturating_mul(BLOCK_SIZE).min(size);
        let extents = self.source.extents(first * BLOCK_SIZE..end)?;
        // Blocks that any non-zero run touches are read; all others are zero.
        let mut at = first;
        let mut pieces = Vec::new();
        for extent in extents.iter().filter(|e| !e.zero) {
            let from = (extent.start / BLOCK_SIZE).max(at);
            let to = extent.end().div_ceil(BLOCK_SIZE).min(first + count);
            if from > at {
                pieces.push(Piece {
                    first: at,
                    count: from - at,
                    zero: true,
                });
            }
            if to > from {
                pieces.push(Piece {
                    first: from,
                    count: to - from,
                    zero: false,
                });
            }
            at = at.max(to);
        }
        if at < first + count {
            pieces.push(Piece {
                first: at,
                count: first + count - at,
                zero: true,
            });
        }
        pieces.reverse();
        self.found = pieces;
        Ok(())
    }
}

/// The blocks a map touches, as ascending ranges that do not touch each other.
pub(crate) fn block_ranges(
    map: &ChangeMap,
    blocks: u64,
) -> impl Iterator<Item = Range<u64>> + Send + '_ {
    let mut ranges = map
        .iter()
        .map(move |r| (r.start / BLOCK_SIZE).min(blocks)..r.end.div_ceil(BLOCK_SIZE).min(blocks))
        .filter(|r| !r.is_empty())
        .peekable();
    std::iter::from_fn(move || {
        let mut range = ranges.next()?;
        while let Some(next) = ranges.next_if(|next| next.start <= range.end) {
            range.end = range.end.max(next.end);
        }
        Some(range)
    })
}

/// Number of bytes in the blocks a map touches, on a disk of `size` bytes.
pub(crate) fn planned_bytes(changes: Option<&ChangeMap>, size: u64) -> u64 {
    match changes {
        None => size,
        Some(map) => block_ranges(map, block_count(size))
            .map(|r| r.end.saturating_mul(BLOCK_SIZE).min(size) - r.start * BLOCK_SIZE)
            .sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SourceExtent;
    use proptest::prelude::*;

    /// A disk known only by its map of data.
    struct Sketch(u64, ChangeMap);

    impl Source for Sketch {
        fn size(&self) -> u64 {
            self.0
        }
        fn read_at(&self, buf: &mut [u8], _: u64) -> Result<()> {
            buf.fill(0);
            Ok(())
        }
        fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>> {
            let mut out = Vec::new();
            let mut at = range.start;
            for data in self.1.intersect(&ChangeMap::of(range.clone())).iter() {
                if data.start > at {
                    out.push(SourceExtent {
                        start: at,
                        len: data.start - at,
                        zero: true,
                    });
                }
                out.push(SourceExtent {
                    start: data.start,
                    len: data.end - data.start,
                    zero: false,
                });
                at = data.end;
            }
            if at < range.end {
                out.push(SourceExtent {
                    start: at,
                    len: range.end - at,
                    zero: true,
                });
            }
            Ok(out)
        }
    }

    fn map(blocks: u64) -> impl Strategy<Value = ChangeMap> {
        let bytes = blocks * BLOCK_SIZE;
        prop::collection::vec((0..bytes, 1..40 * BLOCK_SIZE), 0..30).prop_map(move |list| {
            ChangeMap::from_ranges(list.into_iter().map(|(s, l)| s..(s + l).min(bytes)))
        })
    }

    proptest! {
        #[test]
        fn every_asked_block_is_planned_once_in_order_and_data_is_never_taken_for_zero(
            data in map(3000), changes in prop::option::of(map(3000)), cut in 1u64..BLOCK_SIZE
        ) {
            let size = 3000 * BLOCK_SIZE - cut;
            let source = Sketch(size, data.clip(size));
            let mut planner = Planner::new(&source, changes.as_ref());
            let mut planned = Vec::new();
            while let Some(item) = planner.next_item().unwrap() {
                let reads: u64 = item.pieces.iter().filter(|p| !p.zero).map(|p| p.count).sum();
                prop_assert!(reads <= ITEM_BLOCKS);
                for piece in &item.pieces {
                    for block in piece.first..piece.first + piece.count {
                        let bytes = block * BLOCK_SIZE..(block + 1) * BLOCK_SIZE;
                        let holds_data = !source.1.intersect(&ChangeMap::of(bytes)).is_empty();
                        prop_assert!(!(piece.zero && holds_data));
                        planned.push(block);
                    }
                }
            }
            let expected: Vec<u64> = match &changes {
                None => (0..3000).collect(),
                Some(map) => map.widen(BLOCK_SIZE).iter()
                    .flat_map(|r| r.start / BLOCK_SIZE..r.end / BLOCK_SIZE).collect(),
            };
            let bytes: u64 = planned.iter().map(|b| crate::zero::block_len(*b, size)).sum();
            prop_assert_eq!(planned_bytes(changes.as_ref(), size), bytes);
            prop_assert_eq!(planned, expected);
        }
    }
}
