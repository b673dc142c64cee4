//! The feed of changes: what became visible, in order, each change once.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use uuid::Uuid;

use super::Row;

/// Changes that are kept for those who are slow, or come back with a cursor.
const KEPT: usize = 16_384;

/// A place in the feed: the n-th change of a transaction of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The revision of the store.
    pub revision: u64,
    /// Which change of it.
    pub n: u32,
}

impl Place {
    /// The beginning of the transaction after one.
    fn after(revision: u64) -> Self {
        Place {
            revision: revision + 1,
            n: 0,
        }
    }
}

type Erased = Arc<dyn Any + Send + Sync>;

/// A record that was made, changed or deleted.
#[derive(Clone)]
pub struct Change {
    /// Where it stands in the feed.
    pub at: Place,
    /// The prefix under which records of its kind are stored ([`Row::PREFIX`]).
    pub kind: &'static str,
    /// The record's identifier.
    pub id: Uuid,
    before: Option<Erased>,
    after: Option<Erased>,
    /// Whether it is the last of its transaction.
    last: bool,
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Change")
            .field("at", &self.at)
            .field("kind", &self.kind)
            .field("id", &self.id)
            .field("made", &self.before.is_none())
            .field("deleted", &self.after.is_none())
            .finish()
    }
}

impl Change {
    pub(super) fn new<T: Row>(
        at: Place,
        id: Uuid,
        before: Option<Arc<T>>,
        after: Option<Arc<T>>,
    ) -> Self {
        let erased = |record: Arc<T>| -> Erased { record };
        Change {
            at,
            kind: T::PREFIX,
            id,
            before: before.map(erased),
            after: after.map(erased),
            last: false,
        }
    }

    /// The place behind it: a cursor that saw all of a transaction stands before the next one, and so outlives a restart.
    fn behind(&self) -> Place {
        match self.last {
            true => Place::after(self.at.revision),
            false => Place {
                n: self.at.n + 1,
                ..self.at
            },
        }
    }

    /// The record as it was; `None` where it is new, or of another kind.
    #[must_use]
    pub fn before<T: Row>(&self) -> Option<Arc<T>> {
        let record = self.before.clone()?;
        record.downcast().ok()
    }

    /// The record as it is now; `None` where it is deleted, or of another kind.
    #[must_use]
    pub fn after<T: Row>(&self) -> Option<Arc<T>> {
        let record = self.after.clone()?;
        record.downcast().ok()
    }
}

/// That changes were passed over: whoever follows reads everything anew, and follows from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The oldest change that is still there.
    pub oldest: Place,
}

impl std::fmt::Display for Missed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "changes before revision {} are not kept",
            self.oldest.revision
        )
    }
}

impl std::error::Error for Missed {}

struct Kept {
    changes: VecDeque<Change>,
    /// The place of the first change that is not forgotten.
    oldest: Place,
}

/// The newest changes.
pub(super) struct Log {
    kept: Mutex<Kept>,
    /// The place behind the newest.
    end: watch::Sender<Place>,
}

impl Log {
    /// The feed of a store at this revision: what came before is not told.
    pub(super) fn new(revision: u64) -> Self {
        let start = Place::after(revision);
        Log {
            kept: Mutex::new(Kept {
                changes: VecDeque::new(),
                oldest: start,
            }),
            end: watch::Sender::new(start),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All changes of a transaction.
    pub(super) fn add(&self, mut changes: Vec<Change>) {
        let Some(newest) = changes.last_mut() else {
            return;
        };
        newest.last = true;
        let end = newest.behind();
        let mut kept = self.kept();
        kept.changes.extend(changes);
        while kept.changes.len() > KEPT
            && let Some(gone) = kept.changes.pop_front()
        {
            kept.oldest = gone.behind();
        }
        drop(kept);
        self.end.send_replace(end);
    }

    pub(super) fn end(&self) -> watch::Receiver<Place> {
        self.end.subscribe()
    }

    /// The first change at or behind a place.
    fn at(&self, from: Place) -> Result<Option<Change>, Missed> {
        let kept = self.kept();
        if from < kept.oldest {
            return Err(Missed {
                oldest: kept.oldest,
            });
        }
        let first = kept.changes.partition_point(|c| c.at < from);
        Ok(kept.changes.get(first).cloned())
    }
}

/// Somebody who follows the changes. Costs nothing while nobody reads on; whoever is too slow is told so.
pub struct Feed {
    log: Arc<Log>,
    end: watch::Receiver<Place>,
    next: Place,
}

impl Feed {
    pub(super) fn new(log: &Arc<Log>, from: Option<Place>) -> Self {
        let end = log.end();
        let next = from.unwrap_or(*end.borrow());
        Feed {
            log: Arc::clone(log),
            end,
            next,
        }
    }

    /// Where it goes on: a cursor for [`super::Db::feed_from`].
    #[must_use]
    pub fn cursor(&self) -> Place {
        self.next
    }

    /// The next change that is there already.
    ///
    /// # Errors
    /// [`Missed`].
    pub fn try_next(&mut self) -> Result<Option<Change>, Missed> {
        let found = self.log.at(self.next)?;
        if let Some(change) = &found {
            self.next = change.behind();
        }
        Ok(found)
    }

    /// The next change; waits for it. Can be dropped while it waits: nothing is lost.
    ///
    /// # Errors
    /// [`Missed`].
    pub async fn next(&mut self) -> Result<Change, Missed> {
        loop {
            self.end.borrow_and_update();
            if let Some(change) = self.try_next()? {
                return Ok(change);
            }
            // The sender lives in the log.
            let _ = self.end.changed().await;
        }
    }
}
