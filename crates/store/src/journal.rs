//! The newest part of history, in memory.

use crate::Revision;
use crate::watch::{Batch, Change, Event, Place};
use std::collections::VecDeque;

/// Most entries looked at in one read, so that no reader holds the lock for long.
const SCAN: usize = 1024;

/// The last changes, bounded by revisions and by bytes.
#[derive(Debug)]
pub(crate) struct Journal {
    entries: VecDeque<Entry>,
    oldest: Revision,
    keep_revisions: u64,
    keep_bytes: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    place: Place,
    bytes: usize,
    event: Event,
}

impl Journal {
    /// Empty, for a store whose newest revision is `newest`.
    pub(crate) fn new(newest: Revision, keep_revisions: u64, keep_bytes: usize) -> Self {
        Journal {
            entries: VecDeque::new(),
            oldest: newest.next(),
            keep_revisions: keep_revisions.max(1),
            keep_bytes,
            bytes: 0,
        }
    }

    /// The oldest revision that can be read here.
    pub(crate) fn oldest(&self) -> Revision {
        self.oldest
    }

    /// Adds the changes of the next revision, each with the bytes it weighs.
    pub(crate) fn push(&mut self, revision: Revision, changes: Vec<(Change, usize)>) {
        for (seq, (change, bytes)) in (0..).zip(changes) {
            self.bytes += bytes;
            self.entries.push_back(Entry {
                place: Place { revision, seq },
                bytes,
                event: Event { revision, change },
            });
        }
        let floor = Revision::new(revision.get().saturating_sub(self.keep_revisions - 1));
        self.oldest = self.oldest.max(floor);
        while let Some(front) = self.entries.front() {
            if front.place.revision >= self.oldest {
                if self.bytes <= self.keep_bytes {
                    break;
                }
                // Too heavy: the whole oldest revision goes, never a part of one.
                self.oldest = front.place.revision.next();
            }
            self.bytes -= front.bytes;
            self.entries.pop_front();
        }
    }

    /// As [`crate::watch::History::read`]; `None` when that part is gone.
    pub(crate) fn read(&self, prefix: &str, from: Place, newest: Revision) -> Option<Batch> {
        if from.revision < self.oldest {
            return None;
        }
        let start = self.entries.partition_point(|entry| entry.place < from);
        let mut events = Vec::new();
        for (seen, entry) in self.entries.iter().skip(start).enumerate() {
            if entry.place.revision > newest {
                break;
            }
            if seen == SCAN {
                return Some(Batch {
                    events,
                    next: entry.place,
                });
            }
            if entry.event.key().starts_with(prefix) {
                events.push(entry.event.clone());
            }
        }
        Some(Batch {
            events,
            next: Place::start_of(newest.next()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deleted(key: &str, bytes: usize) -> (Change, usize) {
        (
            Change::Deleted {
                key: key.to_owned(),
            },
            bytes,
        )
    }

    fn keys(journal: &Journal, from: u64, newest: u64) -> Option<Vec<String>> {
        let mut place = Place::start_of(Revision::new(from));
        let newest = Revision::new(newest);
        let mut keys = Vec::new();
        while place.revision <= newest {
            let batch = journal.read("", place, newest)?;
            assert!(batch.next > place, "a read moves on");
            place = batch.next;
            keys.extend(batch.events.iter().map(|event| event.key().to_owned()));
        }
        Some(keys)
    }

    #[test]
    fn only_the_last_revisions_are_kept() {
        let mut journal = Journal::new(Revision::ZERO, 2, usize::MAX);
        for revision in 1..=4 {
            journal.push(
                Revision::new(revision),
                vec![deleted(&revision.to_string(), 1)],
            );
        }
        assert_eq!(journal.oldest(), Revision::new(3));
        assert_eq!(keys(&journal, 2, 4), None);
        assert_eq!(
            keys(&journal, 3, 4),
            Some(vec!["3".to_owned(), "4".to_owned()])
        );
    }

    #[test]
    fn a_heavy_revision_goes_as_a_whole() {
        let mut journal = Journal::new(Revision::ZERO, 100, 10);
        journal.push(Revision::new(1), vec![deleted("a", 4), deleted("b", 4)]);
        journal.push(Revision::new(2), vec![deleted("c", 4)]);
        assert_eq!(journal.oldest(), Revision::new(2));
        assert_eq!(keys(&journal, 2, 2), Some(vec!["c".to_owned()]));
        journal.push(Revision::new(3), vec![deleted("d", 11)]);
        assert_eq!(journal.oldest(), Revision::new(4));
        assert_eq!(keys(&journal, 3, 3), None);
    }

    #[test]
    fn a_revision_longer_than_one_read_is_read_in_parts() {
        let mut journal = Journal::new(Revision::ZERO, 100, usize::MAX);
        let many: Vec<_> = (0..SCAN * 2 + 5)
            .map(|n| deleted(&n.to_string(), 1))
            .collect();
        journal.push(Revision::new(1), many);
        assert_eq!(
            keys(&journal, 1, 1).map(|keys| keys.len()),
            Some(SCAN * 2 + 5)
        );
    }
}
