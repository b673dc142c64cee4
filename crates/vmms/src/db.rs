//! The records in memory, and the one way to change them.
//!
//! All machines, points and visible jobs are kept in memory as well; reading never touches the store. A
//! change is made on copies in a [`Draft`], becomes one transaction of the store, and shows in memory only
//! after the store has made it durable. Changes are serialised by one lock; what is done outside of
//! the store (files, QEMU) is never done under it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use store::{Store, Txn, Versioned};
use tokio::sync::{Mutex, watch};
use uuid::Uuid;

use crate::group::{Group, GroupPoint};
use crate::job::Job;
use crate::point::Point;
use crate::vm::Vm;
use crate::{Fault, Result, fault};

type Map<T> = RwLock<BTreeMap<Uuid, Arc<T>>>;

/// The tables.
pub struct Db {
    store: Arc<dyn Store>,
    commit: Mutex<()>,
    vms: Map<Vm>,
    points: Map<Point>,
    jobs: Map<Job>,
    groups: Map<Group>,
    group_points: Map<GroupPoint>,
    changed: watch::Sender<u64>,
}

/// A kind of record: where it is stored and kept.
pub trait Row: Versioned + Clone + 'static {
    /// The prefix of its keys.
    const PREFIX: &'static str;
    /// Its identifier.
    fn id(&self) -> Uuid;
    /// That there is none with this identifier.
    fn missing(id: Uuid) -> Fault;
    #[doc(hidden)]
    fn table(db: &Db) -> &Map<Self>;
    #[doc(hidden)]
    fn staged<'a>(draft: &'a mut Draft<'_>) -> &'a mut BTreeMap<Uuid, Option<Self>>;
}

macro_rules! row {
    ($type:ty, $prefix:literal, $table:ident, $missing:ident) => {
        impl Row for $type {
            const PREFIX: &'static str = $prefix;
            fn id(&self) -> Uuid {
                self.id
            }
            fn missing(id: Uuid) -> Fault {
                fault!($missing, crate::guid(id))
            }
            fn table(db: &Db) -> &Map<Self> {
                &db.$table
            }
            fn staged<'a>(draft: &'a mut Draft<'_>) -> &'a mut BTreeMap<Uuid, Option<Self>> {
                &mut draft.$table
            }
        }
    };
}
row!(Vm, "vm/", vms, VmNotFound);
row!(Point, "point/", points, PointNotFound);
row!(Job, "job/", jobs, JobNotFound);
row!(Group, "group/", groups, GroupNotFound);
row!(GroupPoint, "group-point/", group_points, PointNotFound);

fn key<T: Row>(id: Uuid) -> String {
    format!("{}{id}", T::PREFIX)
}

/// Changes being put together. Reads see what was staged before.
pub struct Draft<'db> {
    db: &'db Db,
    vms: BTreeMap<Uuid, Option<Vm>>,
    points: BTreeMap<Uuid, Option<Point>>,
    jobs: BTreeMap<Uuid, Option<Job>>,
    groups: BTreeMap<Uuid, Option<Group>>,
    group_points: BTreeMap<Uuid, Option<GroupPoint>>,
}

impl Draft<'_> {
    /// A record to change.
    pub fn get_mut<T: Row>(&mut self, id: Uuid) -> Result<&mut T> {
        let current = self.db.get::<T>(id);
        let slot = T::staged(self)
            .entry(id)
            .or_insert_with(|| current.ok().map(|a| (*a).clone()));
        slot.as_mut().ok_or_else(|| T::missing(id))
    }

    /// A new record, or a whole one in place of the old.
    pub fn put<T: Row>(&mut self, record: T) {
        T::staged(self).insert(record.id(), Some(record));
    }

    /// Deletes a record; one that is not there is no error.
    pub fn delete<T: Row>(&mut self, id: Uuid) {
        T::staged(self).insert(id, None);
    }

    /// All records of a kind as they would be after this draft.
    pub fn all<T: Row>(&mut self) -> Vec<T> {
        let mut all: BTreeMap<Uuid, T> = self
            .db
            .all::<T>()
            .into_iter()
            .map(|r| (r.id(), (*r).clone()))
            .collect();
        for (id, staged) in T::staged(self) {
            match staged {
                Some(record) => drop(all.insert(*id, record.clone())),
                None => drop(all.remove(id)),
            }
        }
        all.into_values().collect()
    }

    fn add<T: Row>(&mut self, mut txn: Txn) -> Result<Txn> {
        for (id, record) in std::mem::take(T::staged(self)) {
            txn = match &record {
                Some(record) => {
                    let value = serde_json::to_value(record).map_err(|e| {
                        fault!(Internal, format!("a record cannot be written: {e}"))
                    })?;
                    txn.put(key::<T>(id), T::VERSION, value)
                }
                None => txn.delete(key::<T>(id)),
            };
            T::staged(self).insert(id, record);
        }
        Ok(txn)
    }

    fn publish<T: Row>(&mut self) {
        let staged = std::mem::take(T::staged(self));
        let mut table = T::table(self.db)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        for (id, record) in staged {
            match record {
                Some(record) => drop(table.insert(id, Arc::new(record))),
                None => drop(table.remove(&id)),
            }
        }
    }
}

impl Db {
    /// Reads everything that is stored. Jobs that have vanished from view stay in the store only.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self> {
        let db = Db {
            store,
            commit: Mutex::new(()),
            vms: RwLock::default(),
            points: RwLock::default(),
            jobs: RwLock::default(),
            groups: RwLock::default(),
            group_points: RwLock::default(),
            changed: watch::Sender::new(0),
        };
        db.load::<Vm>(|_| true).await?;
        db.load::<Point>(|_| true).await?;
        db.load::<Group>(|_| true).await?;
        db.load::<GroupPoint>(|_| true).await?;
        let now = std::time::SystemTime::now();
        db.load::<Job>(|job| job.vanishes().is_none_or(|at| at > now))
            .await?;
        Ok(db)
    }

    async fn load<T: Row>(&self, keep: impl Fn(&T) -> bool) -> Result<()> {
        let records = store::Records::<T>::new(Arc::clone(&self.store), T::PREFIX);
        let mut after: Option<String> = None;
        loop {
            let page = records.page("", after.as_deref(), store::MAX_PAGE).await?;
            after = page.records.last().map(|r| r.id.clone());
            let mut table = T::table(self).write().unwrap_or_else(PoisonError::into_inner);
            for stored in page.records {
                if keep(&stored.value) {
                    table.insert(stored.value.id(), Arc::new(stored.value));
                }
            }
            if !page.more {
                return Ok(());
            }
        }
    }

    /// The record with that identifier.
    pub fn get<T: Row>(&self, id: Uuid) -> Result<Arc<T>> {
        let table = T::table(self)
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        table.get(&id).cloned().ok_or_else(|| T::missing(id))
    }

    /// All records of a kind, in the order of their identifiers.
    pub fn all<T: Row>(&self) -> Vec<Arc<T>> {
        T::table(self)
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Changes records: `change` works on a draft; when it returns `Ok`, all its changes become durable in one
    /// transaction and visible, otherwise none.
    pub async fn change<R>(&self, change: impl FnOnce(&mut Draft<'_>) -> Result<R>) -> Result<R> {
        let _one_at_a_time = self.commit.lock().await;
        let mut draft = Draft {
            db: self,
            vms: BTreeMap::new(),
            points: BTreeMap::new(),
            jobs: BTreeMap::new(),
            groups: BTreeMap::new(),
            group_points: BTreeMap::new(),
        };
        let result = change(&mut draft)?;
        let txn = draft.add::<Vm>(Txn::new())?;
        let txn = draft.add::<Point>(txn)?;
        let txn = draft.add::<Job>(txn)?;
        let txn = draft.add::<Group>(txn)?;
        let txn = draft.add::<GroupPoint>(txn)?;
        if !txn.ops().is_empty() {
            self.store.txn(txn).await?;
        }
        draft.publish::<Vm>();
        draft.publish::<Point>();
        draft.publish::<Job>();
        draft.publish::<Group>();
        draft.publish::<GroupPoint>();
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
        Ok(result)
    }

    /// Forgets a job that has vanished from view; its record stays in the store as history.
    pub fn forget(&self, job: Uuid) {
        self.jobs
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&job);
    }

    /// Stored jobs, also those that vanished from view: the history, in pages by identifier.
    pub async fn history(&self, after: Option<Uuid>, limit: usize) -> Result<Vec<Job>> {
        let records = store::Records::<Job>::new(Arc::clone(&self.store), Job::PREFIX);
        let after = after.map(|id| id.to_string());
        let page = records.page("", after.as_deref(), limit)
            .await?;
        Ok(page.records.into_iter().map(|r| r.value).collect())
    }

    /// A stored job, also one that vanished from view.
    pub async fn past_job(&self, id: Uuid) -> Result<Job> {
        let records = store::Records::<Job>::new(Arc::clone(&self.store), Job::PREFIX);
        let found = records.get(&id.to_string()).await?;
        found.map(|r| r.value).ok_or_else(|| Job::missing(id))
    }

    /// Ticks with each change; what changed is read from the tables.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
