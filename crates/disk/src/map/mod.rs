//! Change maps: which bytes of a disk differ between two instants.
//!
//! A [`ChangeMap`] is a sorted list of half-open byte ranges that neither touch nor overlap, so two maps with the same
//! bytes are equal. It is a plain value; its file form is: magic, version, disk size, ranges, BLAKE3 trailer.

mod file;

pub use file::MapError;

use std::ops::Range;

/// A set of bytes of a disk, as sorted, merged, half-open ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeMap {
    ranges: Vec<Range<u64>>,
}

impl ChangeMap {
    /// The empty map.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A map of one range (empty when the range is).
    #[must_use]
    pub fn of(range: Range<u64>) -> Self {
        let mut map = Self::new();
        map.insert(range);
        map
    }

    /// A map of any ranges, in any order, overlapping or not.
    #[must_use]
    pub fn from_ranges(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut list: Vec<Range<u64>> = ranges.into_iter().filter(|r| r.start < r.end).collect();
        list.sort_unstable_by_key(|r| r.start);
        let mut map = Self {
            ranges: Vec::with_capacity(list.len()),
        };
        for range in list {
            map.push(range);
        }
        map
    }

    /// Adds a range whose start is not before the start of the last one (cheap: merges with the last only).
    fn push(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        match self.ranges.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => self.ranges.push(range),
        }
    }

    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        // All ranges that touch or overlap the new one are folded into it.
        let first = self.ranges.partition_point(|r| r.end < range.start);
        let after = self.ranges.partition_point(|r| r.start <= range.end);
        let touched = self.ranges.get(first..after).unwrap_or_default();
        let start = touched
            .first()
            .map_or(range.start, |r| r.start.min(range.start));
        let end = touched.last().map_or(range.end, |r| r.end.max(range.end));
        self.ranges
            .splice(first..after, std::iter::once(start..end));
    }

    /// The bytes in either map.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut out = Self {
            ranges: Vec::with_capacity(self.ranges.len() + other.ranges.len()),
        };
        let (mut a, mut b) = (
            self.ranges.iter().peekable(),
            other.ranges.iter().peekable(),
        );
        loop {
            let next = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) if x.start <= y.start => a.next(),
                (Some(_), None) => a.next(),
                (_, Some(_)) => b.next(),
                (None, None) => return out,
            };
            if let Some(range) = next {
                out.push(range.clone());
            }
        }
    }

    /// The bytes in both maps.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let mut out = Self::new();
        let (mut a, mut b) = (
            self.ranges.iter().peekable(),
            other.ranges.iter().peekable(),
        );
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            out.push(x.start.max(y.start)..x.end.min(y.end));
            if x.end <= y.end {
                a.next();
            } else {
                b.next();
            }
        }
        out
    }

    /// The bytes of this map that the other one does not have.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut out = Self::new();
        for range in &self.ranges {
            let mut at = range.start;
            for taken in other.iter_from(range.start) {
                if taken.start >= range.end {
                    break;
                }
                out.push(at..taken.start);
                at = at.max(taken.end);
            }
            out.push(at..range.end);
        }
        out
    }

    /// The bytes below `size`.
    #[must_use]
    pub fn clip(&self, size: u64) -> Self {
        self.intersect(&Self::of(0..size))
    }

    /// The same map widened to whole blocks of `block` bytes (a zero block size changes nothing).
    #[must_use]
    pub fn widen(&self, block: u64) -> Self {
        if block == 0 {
            return self.clone();
        }
        let mut out = Self::new();
        for range in &self.ranges {
            let start = range.start / block * block;
            let end = range
                .end
                .checked_next_multiple_of(block)
                .unwrap_or(u64::MAX);
            out.push(start..end);
        }
        out
    }

    /// Number of bytes in the map.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ranges.iter().map(|r| r.end - r.start).sum()
    }

    /// Number of ranges in the map.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// True when no byte is in the map.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// True when the byte at `offset` is in the map.
    #[must_use]
    pub fn contains(&self, offset: u64) -> bool {
        self.iter_from(offset)
            .next()
            .is_some_and(|r| r.start <= offset)
    }

    /// One past the last byte in the map; 0 for an empty map.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |r| r.end)
    }

    /// The ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().cloned()
    }

    /// The ranges that end after `offset`, the first one not yet cut.
    pub fn iter_from(&self, offset: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self.ranges.partition_point(|r| r.end <= offset);
        self.ranges.get(first..).unwrap_or_default().iter().cloned()
    }

    /// One page of an answer: the ranges inside `window`, cut to it, at most `limit` of them, and the number of bytes of
    /// the window that this page speaks about. It always makes progress: with a limit of at least one, the processed part
    /// is empty only for an empty window.
    #[must_use]
    pub fn page(&self, window: Range<u64>, limit: usize) -> Page {
        let mut ranges = Vec::new();
        for range in self.iter_from(window.start) {
            if range.start >= window.end {
                break;
            }
            if ranges.len() == limit {
                // The page speaks for everything up to where the first range left out begins.
                let processed = range.start.saturating_sub(window.start);
                return Page { ranges, processed };
            }
            ranges.push(range.start.max(window.start)..range.end.min(window.end));
        }
        Page {
            ranges,
            processed: window.end.saturating_sub(window.start),
        }
    }
}

/// The answer of [`ChangeMap::page`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Changed ranges, ascending, inside the window.
    pub ranges: Vec<Range<u64>>,
    /// Bytes of the window this page covers, from its start.
    pub processed: u64,
}

impl FromIterator<Range<u64>> for ChangeMap {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(iter: I) -> Self {
        Self::from_ranges(iter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bits(map: &ChangeMap) -> Vec<bool> {
        (0..256).map(|i| map.contains(i)).collect()
    }

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        prop::collection::vec((0u64..200, 0u64..30).prop_map(|(s, l)| s..s + l), 0..20)
    }

    fn is_canonical(map: &ChangeMap) -> bool {
        map.ranges.iter().all(|r| r.start < r.end)
            && map.ranges.windows(2).all(|w| w[0].end < w[1].start)
    }

    proptest! {
        #[test]
        fn insertion_in_any_order_gives_the_same_map(list in ranges()) {
            let sorted = ChangeMap::from_ranges(list.clone());
            let mut inserted = ChangeMap::new();
            for range in list {
                inserted.insert(range);
            }
            prop_assert!(is_canonical(&sorted));
            prop_assert_eq!(sorted, inserted);
        }

        #[test]
        fn union_and_intersection_act_byte_by_byte(a in ranges(), b in ranges()) {
            let (a, b) = (ChangeMap::from_ranges(a), ChangeMap::from_ranges(b));
            let (or, and) = (a.union(&b), a.intersect(&b));
            prop_assert!(is_canonical(&or) && is_canonical(&and));
            for (i, (x, y)) in bits(&a).into_iter().zip(bits(&b)).enumerate() {
                prop_assert_eq!(bits(&or)[i], x || y);
                prop_assert_eq!(bits(&and)[i], x && y);
                prop_assert_eq!(a.without(&b).contains(i as u64), x && !y);
            }
            prop_assert!(is_canonical(&a.without(&b)));
            prop_assert_eq!(a.total() + b.total(), or.total() + and.total());
        }

        #[test]
        fn clip_and_widen_keep_or_add_only_what_they_say(list in ranges(), size in 0u64..256, block in 1u64..40) {
            let map = ChangeMap::from_ranges(list);
            let clipped = map.clip(size);
            prop_assert!(clipped.end() <= size);
            let wide = map.widen(block);
            prop_assert!(is_canonical(&wide));
            for i in 0..256 {
                prop_assert_eq!(clipped.contains(i), map.contains(i) && i < size);
                let start = i / block * block;
                let any = (start..start + block).any(|j| map.contains(j));
                prop_assert_eq!(wide.contains(i), any);
            }
        }

        #[test]
        fn pages_put_together_give_the_whole_window(list in ranges(), start in 0u64..100, len in 0u64..200, limit in 1usize..4) {
            let map = ChangeMap::from_ranges(list);
            let (mut at, end) = (start, start + len);
            let mut seen = ChangeMap::new();
            while at < end {
                let page = map.page(at..end, limit);
                prop_assert!(page.ranges.len() <= limit);
                prop_assert!(page.processed > 0);
                for range in page.ranges {
                    prop_assert!(range.end <= at + page.processed);
                    seen.insert(range);
                }
                at += page.processed;
            }
            prop_assert_eq!(seen, map.intersect(&ChangeMap::of(start..end)));
        }
    }

    #[test]
    fn ranges_that_touch_are_merged() {
        let map = ChangeMap::from_ranges([10..20, 20..30, 0..5]);
        assert_eq!(map.iter().collect::<Vec<_>>(), [0..5, 10..30]);
        assert_eq!(map.total(), 25);
    }
}
