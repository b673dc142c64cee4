//! Watches: the changes of the store, in order.
//!
//! A watch keeps a place in history and reads on from there whenever the newest
//! revision moves. Nothing is queued per watch: a slow reader costs no memory,
//! and one that is slower than history is long gets [`StoreError::Compacted`].

use crate::{Record, Revision, StoreError};
use async_trait::async_trait;
use std::collections::VecDeque;
use std::sync::Weak;
use tokio::sync::watch;

/// One change of one record.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The revision it belongs to. Several events share one when a transaction
    /// changed several records.
    pub revision: Revision,
    /// What happened.
    pub change: Change,
}

impl Event {
    /// The key of the record.
    pub fn key(&self) -> &str {
        match &self.change {
            Change::Put(record) => &record.key,
            Change::Deleted { key } => key,
        }
    }
}

/// What happened to a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Created or replaced; this is how it then was.
    Put(Record),
    /// Deleted, by a transaction or by the end of its lease.
    Deleted {
        /// Its key.
        key: String,
    },
}

/// A place in history: the n-th event of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) revision: Revision,
    pub(crate) seq: u32,
}

impl Place {
    pub(crate) fn start_of(revision: Revision) -> Self {
        Place { revision, seq: 0 }
    }
}

/// Some events, and where to read on.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) events: Vec<Event>,
    pub(crate) next: Place,
}

/// How a watch reads an engine's history.
#[async_trait]
pub(crate) trait History: Send + Sync {
    /// Events at and after `from`, up to and including revision `newest`, that
    /// begin with `prefix`. May return few or none; `next` always moves on.
    async fn read(&self, prefix: &str, from: Place, newest: Revision) -> Result<Batch, StoreError>;
}

/// The changes under a prefix; see [`crate::Store::watch`].
///
/// To go on later, or after an error, watch again from the revision of the last
/// event seen: the events of that revision come again, none is missed.
pub struct Watch {
    history: Weak<dyn History>,
    newest: watch::Receiver<Revision>,
    prefix: String,
    place: Place,
    waiting: VecDeque<Event>,
}

impl Watch {
    pub(crate) fn new(
        history: Weak<dyn History>,
        newest: watch::Receiver<Revision>,
        prefix: &str,
        from: Revision,
    ) -> Self {
        Watch {
            history,
            newest,
            prefix: prefix.to_owned(),
            place: Place::start_of(from),
            waiting: VecDeque::new(),
        }
    }

    /// The next event; waits for one. `None` once the store was closed. Dropping
    /// the future before it is done loses no event.
    ///
    /// Errors: [`StoreError::Compacted`] when this watch was too slow, and
    /// failures of the engine's reads, after which it may be called again.
    pub async fn next(&mut self) -> Result<Option<Event>, StoreError> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(Some(event));
            }
            let newest = *self.newest.borrow_and_update();
            if self.place.revision <= newest {
                let Some(history) = self.history.upgrade() else {
                    return Ok(None);
                };
                let batch = history.read(&self.prefix, self.place, newest).await?;
                self.place = batch.next;
                self.waiting = batch.events.into();
            } else if self.newest.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    /// Everything from here up to what is stored now, without waiting for more.
    pub async fn drain(&mut self) -> Result<Vec<Event>, StoreError> {
        let newest = *self.newest.borrow();
        while self.place.revision <= newest {
            let Some(history) = self.history.upgrade() else {
                break;
            };
            let batch = history.read(&self.prefix, self.place, newest).await?;
            self.place = batch.next;
            self.waiting.extend(batch.events);
        }
        Ok(self.waiting.drain(..).collect())
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("prefix", &self.prefix)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// Where a watch starts, given the newest revision and the oldest one in history.
pub(crate) fn start(
    from: Option<Revision>,
    newest: Revision,
    oldest: Revision,
) -> Result<Revision, StoreError> {
    let Some(from) = from else {
        return Ok(newest.next());
    };
    // There is no revision 0: "from the very beginning" is revision 1.
    let from = from.max(Revision::new(1));
    if from > newest.next() {
        Err(StoreError::FutureRevision {
            requested: from,
            newest,
        })
    } else if from < oldest {
        Err(StoreError::Compacted {
            requested: from,
            oldest,
        })
    } else {
        Ok(from)
    }
}
