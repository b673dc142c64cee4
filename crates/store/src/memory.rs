//! The engine without a disk: for tests, and for stores that may be lost.

use crate::journal::Journal;
use crate::lease::{Leases, check_ttl};
use crate::record::check_key;
use crate::watch::{Batch, History, Place};
use crate::{
    Change, Clock, Lease, LeaseId, MAX_PAGE, Op, Page, Record, Revision, Store, StoreError, Txn,
    Watch,
};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;

/// How a [`MemoryStore`] behaves.
#[derive(Clone, Debug)]
pub struct MemoryOptions {
    /// What its leases run on.
    pub clock: Clock,
    /// How many past revisions a watch can go back.
    pub history: u64,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        MemoryOptions {
            clock: Clock::system(),
            history: 10_000,
        }
    }
}

/// Records in memory. Everything is gone when it is dropped.
pub struct MemoryStore {
    // Before `shared`: its thread ends first.
    leases: Leases,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    newest: watch::Sender<Revision>,
}

struct State {
    records: BTreeMap<String, Record>,
    leases: HashMap<LeaseId, BTreeSet<String>>,
    last_lease: u64,
    revision: Revision,
    journal: Journal,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        MemoryStore::with_options(MemoryOptions::default())
    }

    /// An empty store that behaves as told.
    pub fn with_options(options: MemoryOptions) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                records: BTreeMap::new(),
                leases: HashMap::new(),
                last_lease: 0,
                revision: Revision::ZERO,
                journal: Journal::new(Revision::ZERO, options.history, usize::MAX),
            }),
            newest: watch::Sender::new(Revision::ZERO),
        });
        let weak = Arc::downgrade(&shared);
        let leases = Leases::new(options.clock, move |id| {
            if let Some(shared) = weak.upgrade() {
                shared.end_lease(id);
            }
            true
        });
        MemoryStore { leases, shared }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        MemoryStore::new()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_lease(&self, id: LeaseId) {
        let mut state = self.lock();
        let Some(keys) = state.leases.remove(&id) else {
            return;
        };
        let revision = state.revision.next();
        let changes: Vec<Change> = keys
            .into_iter()
            .filter_map(|key| state.delete(&key))
            .collect();
        self.publish(&mut state, revision, changes);
    }

    /// Makes `revision` the newest one, if anything changed in it.
    fn publish(&self, state: &mut State, revision: Revision, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        state.revision = revision;
        state.journal.push(
            revision,
            changes.into_iter().map(|change| (change, 0)).collect(),
        );
        self.newest.send_replace(revision);
    }
}

impl State {
    fn detach(&mut self, key: &str) {
        if let Some(lease) = self.records.get(key).and_then(|record| record.lease)
            && let Some(keys) = self.leases.get_mut(&lease)
        {
            keys.remove(key);
        }
    }

    fn delete(&mut self, key: &str) -> Option<Change> {
        self.detach(key);
        self.records
            .remove(key)
            .map(|record| Change::Deleted { key: record.key })
    }

    fn put(&mut self, revision: Revision, record: Record) -> Change {
        self.detach(&record.key);
        if let Some(keys) = record.lease.and_then(|lease| self.leases.get_mut(&lease)) {
            keys.insert(record.key.clone());
        }
        let create_revision = self
            .records
            .get(&record.key)
            .map_or(revision, |old| old.create_revision);
        let record = Record {
            create_revision,
            mod_revision: revision,
            ..record
        };
        self.records.insert(record.key.clone(), record.clone());
        Change::Put(record)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        check_key(key)?;
        Ok(self.shared.lock().records.get(key).cloned())
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let limit = limit.clamp(1, MAX_PAGE);
        let state = self.shared.lock();
        let start = match start_after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut found = state
            .records
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix));
        let records = found
            .by_ref()
            .take(limit)
            .map(|(_, record)| record.clone())
            .collect();
        Ok(Page {
            records,
            revision: state.revision,
            more: found.next().is_some(),
        })
    }

    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        let txn = txn.check()?;
        let mut state = self.shared.lock();
        for condition in &txn.conditions {
            let current = state
                .records
                .get(condition.key())
                .map(|record| record.mod_revision);
            if !condition.holds(current) {
                return Err(StoreError::Conflict {
                    key: condition.key().to_owned(),
                });
            }
        }
        for op in &txn.ops {
            if let Op::Put {
                lease: Some(id), ..
            } = op
                && !state.leases.contains_key(id)
            {
                return Err(StoreError::LeaseLost { id: *id });
            }
        }
        let revision = state.revision.next();
        let mut changes = Vec::new();
        for op in txn.ops {
            match op {
                Op::Put {
                    key,
                    schema,
                    value,
                    lease,
                } => {
                    let record = Record {
                        key,
                        schema,
                        value,
                        create_revision: revision,
                        mod_revision: revision,
                        lease,
                    };
                    changes.push(state.put(revision, record));
                }
                Op::Delete { key } => changes.extend(state.delete(&key)),
            }
        }
        self.shared.publish(&mut state, revision, changes);
        Ok(state.revision)
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.shared.lock().revision)
    }

    async fn watch(&self, prefix: &str, from: Option<Revision>) -> Result<Watch, StoreError> {
        let (newest, oldest) = {
            let state = self.shared.lock();
            (state.revision, state.journal.oldest())
        };
        let from = crate::watch::start(from, newest, oldest)?;
        let shared: Arc<dyn History> = self.shared.clone();
        let history: Weak<dyn History> = Arc::downgrade(&shared);
        Ok(Watch::new(
            history,
            self.shared.newest.subscribe(),
            prefix,
            from,
        ))
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        check_ttl(ttl)?;
        let id = {
            let mut state = self.shared.lock();
            state.last_lease += 1;
            let id = LeaseId::new(state.last_lease);
            state.leases.insert(id, BTreeSet::new());
            id
        };
        self.leases.add(id, ttl)?;
        Ok(Lease { id, ttl })
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Lease, StoreError> {
        self.leases.keep_alive(id)
    }

    async fn revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        let taken = self.leases.take(id)?;
        self.shared.end_lease(id);
        taken.ended();
        Ok(())
    }
}

#[async_trait]
impl History for Shared {
    async fn read(&self, prefix: &str, from: Place, newest: Revision) -> Result<Batch, StoreError> {
        let state = self.lock();
        state
            .journal
            .read(prefix, from, newest)
            .ok_or_else(|| StoreError::Compacted {
                requested: from.revision,
                oldest: state.journal.oldest(),
            })
    }
}
