//! Instances one after the other, made when somebody takes them.

use std::collections::VecDeque;
use std::fmt;

use cim::Instance;

use crate::{contexts, footprint};

/// Instances one after the other.
pub struct Instances {
    /// Looked at, and not taken yet.
    front: Option<Instance>,
    rest: Rest,
}

enum Rest {
    /// They are there already, and hold so many bytes.
    Held(VecDeque<Instance>, usize),
    Made {
        next: Box<dyn ExactSizeIterator<Item = Instance> + Send>,
        /// About what one of them holds before it is made.
        each: usize,
    },
}

impl Instances {
    /// Instances that are made when they are taken, each with its path. What they are made of holds about `bytes` of memory.
    pub fn made<I>(next: I, bytes: usize) -> Self
    where
        I: ExactSizeIterator<Item = Instance> + Send + 'static,
    {
        let each = bytes / next.len().max(1);
        let next = Box::new(next);
        Instances {
            front: None,
            rest: Rest::Made { next, each },
        }
    }

    /// Whether every one of them has a path, as far as that is known without making them.
    pub(crate) fn have_paths(&self) -> bool {
        let held = match &self.rest {
            Rest::Held(items, _) => items.iter().all(|i| i.path.is_some()),
            Rest::Made { .. } => true,
        };
        held && self.front.iter().all(|i| i.path.is_some())
    }

    /// The next one, which stays.
    pub(crate) fn peek(&mut self) -> Option<&Instance> {
        if self.front.is_none() {
            self.front = self.rest.next();
        }
        self.front.as_ref()
    }

    /// About how many bytes of memory what is left holds.
    pub(crate) fn bytes(&self) -> usize {
        let front = self.front.as_ref().map_or(0, footprint::instance);
        front
            + match &self.rest {
                Rest::Held(_, bytes) => *bytes,
                Rest::Made { next, each } => each.saturating_mul(next.len()),
            }
    }
}

impl Rest {
    fn next(&mut self) -> Option<Instance> {
        match self {
            Rest::Made { next, .. } => next.next(),
            Rest::Held(items, bytes) => {
                let taken = items.pop_front()?;
                *bytes = bytes.saturating_sub(footprint::instance(&taken));
                contexts::give_back(items);
                Some(taken)
            }
        }
    }
}

impl From<Vec<Instance>> for Instances {
    fn from(items: Vec<Instance>) -> Self {
        let bytes = items.iter().map(footprint::instance).sum();
        Instances {
            front: None,
            rest: Rest::Held(items.into(), bytes),
        }
    }
}

impl Iterator for Instances {
    type Item = Instance;

    fn next(&mut self) -> Option<Instance> {
        self.front.take().or_else(|| self.rest.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let rest = match &self.rest {
            Rest::Held(items, _) => items.len(),
            Rest::Made { next, .. } => next.len(),
        };
        let left = rest + usize::from(self.front.is_some());
        (left, Some(left))
    }
}

impl ExactSizeIterator for Instances {}

impl fmt::Debug for Instances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instances")
            .field("left", &self.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn one_is_made_when_it_is_taken_or_looked_at_and_not_before() {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let next = (0..1000usize).map(move |n| {
            count.fetch_add(1, Ordering::SeqCst);
            Instance::new("C").with("N", u64::try_from(n).unwrap_or_default())
        });
        let mut all = Instances::made(next, 64_000);
        assert_eq!((all.len(), all.bytes()), (1000, 64_000));
        assert!(all.peek().is_some() && all.peek().is_some());
        assert_eq!((all.len(), made.load(Ordering::SeqCst)), (1000, 1));
        assert_eq!(all.by_ref().take(10).count(), 10);
        assert_eq!((all.len(), made.load(Ordering::SeqCst)), (990, 10));
        assert_eq!(all.bytes(), 990 * 64);
    }

    #[test]
    fn those_that_are_there_count_what_they_hold() {
        let items = vec![Instance::new("C").with("P", "x".repeat(1000)); 3];
        let mut all = Instances::from(items);
        let whole = all.bytes();
        assert!(whole > 3000, "{whole}");
        all.peek();
        assert_eq!((all.len(), all.bytes()), (3, whole));
        assert_eq!(all.by_ref().count(), 3);
        assert_eq!((all.len(), all.bytes()), (0, 0));
    }
}
