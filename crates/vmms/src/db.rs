//! The records in memory, and the one way to change them.
//!
//! All machines, points, collections and visible jobs are kept in memory as well; reading never touches the store. A
//! change is made on copies in a [`Draft`], becomes one transaction of the store, and shows in memory only
//! after the store has made it durable. Changes are serialised by one lock; what is done outside of
//! the store (files, QEMU) is never done under it. A change whose caller goes away in the middle is carried to its
//! end all the same, so that memory never lags behind the store.
//!
//! Jobs that have vanished from view move to a prefix of their own, in one transaction: the history does not
//! slow the start of the service.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use store::{Store, Txn, Versioned};
use tokio::sync::{Mutex, watch};
use uuid::Uuid;

use crate::group::{Group, GroupPoint, GroupSnapshot};
use crate::job::Job;
use crate::point::Point;
use crate::snapshot::Snapshot;
use crate::trusted::KnownImage;
use crate::vm::{HostBoot, MachineUser, Vm};
use crate::{Fault, Result, fault};

type Map<T> = RwLock<BTreeMap<Uuid, Arc<T>>>;
type Changes<T> = BTreeMap<Uuid, Option<T>>;

/// Where jobs go that have vanished from view.
const HISTORY: &str = "past-job/";
/// Their identifiers again, the newest first: keys begin with how far before the end of time the job was submitted.
const HISTORY_ORDER: &str = "past-job-order/";

fn order_key(job: &Job) -> String {
    let since = job
        .submitted
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let left = u64::MAX - u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
    format!("{HISTORY_ORDER}{left:020}/{}", job.id)
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
    fn table(tables: &Tables) -> &Map<Self>;
    #[doc(hidden)]
    fn staged(staged: &mut Staged) -> &mut Changes<Self>;
}

macro_rules! tables {
    ($($field:ident: $type:ty = $prefix:literal, $missing:ident;)*) => {
        /// What is in memory.
        #[doc(hidden)]
        #[derive(Default)]
        pub struct Tables {
            $($field: Map<$type>,)*
        }

        /// What is being changed.
        #[doc(hidden)]
        #[derive(Default)]
        pub struct Staged {
            $($field: Changes<$type>,)*
        }

        impl Staged {
            fn txn(&self) -> Result<Txn> {
                let txn = Txn::new();
                $(let txn = add(txn, &self.$field)?;)*
                Ok(txn)
            }

            fn publish(self, tables: &Tables) {
                $(publish(self.$field, &tables.$field);)*
            }
        }

        $(impl Row for $type {
            const PREFIX: &'static str = $prefix;
            fn id(&self) -> Uuid {
                self.id
            }
            fn missing(id: Uuid) -> Fault {
                fault!($missing, crate::guid(id))
            }
            fn table(tables: &Tables) -> &Map<Self> {
                &tables.$field
            }
            fn staged(staged: &mut Staged) -> &mut Changes<Self> {
                &mut staged.$field
            }
        })*

        impl Db {
            async fn load_all(&self) -> Result<()> {
                $(self.load::<$type>().await?;)*
                Ok(())
            }
        }
    };
}

tables! {
    vms: Vm = "vm/", VmNotFound;
    points: Point = "point/", PointNotFound;
    jobs: Job = "job/", JobNotFound;
    groups: Group = "group/", GroupNotFound;
    group_points: GroupPoint = "group-point/", PointNotFound;
    group_snapshots: GroupSnapshot = "group-snapshot/", SnapshotNotFound;
    snapshots: Snapshot = "snapshot/", SnapshotNotFound;
    boots: HostBoot = "host-boot/", BootUnknown;
    machine_users: MachineUser = "machine-user/", VmNotFound;
    known_images: KnownImage = "known-image/", ImageMissing;
}

fn key<T: Row>(id: Uuid) -> String {
    format!("{}{id}", T::PREFIX)
}

fn value<T: Row>(record: &T) -> Result<serde_json::Value> {
    serde_json::to_value(record)
        .map_err(|e| fault!(Internal, format!("a record cannot be written: {e}")))
}

fn add<T: Row>(mut txn: Txn, changes: &Changes<T>) -> Result<Txn> {
    for (id, record) in changes {
        txn = match record {
            Some(record) => txn.put(key::<T>(*id), T::VERSION, value(record)?),
            None => txn.delete(key::<T>(*id)),
        };
    }
    Ok(txn)
}

fn publish<T>(changes: Changes<T>, table: &Map<T>) {
    let mut table = table.write().unwrap_or_else(PoisonError::into_inner);
    for (id, record) in changes {
        match record {
            Some(record) => drop(table.insert(id, Arc::new(record))),
            None => drop(table.remove(&id)),
        }
    }
}

fn get<T: Row>(tables: &Tables, id: Uuid) -> Result<Arc<T>> {
    let table = T::table(tables)
        .read()
        .unwrap_or_else(PoisonError::into_inner);
    table.get(&id).cloned().ok_or_else(|| T::missing(id))
}

fn all<T: Row>(tables: &Tables) -> Vec<Arc<T>> {
    let table = T::table(tables)
        .read()
        .unwrap_or_else(PoisonError::into_inner);
    table.values().cloned().collect()
}

/// Changes being put together. Reads see what was staged before.
pub struct Draft<'db> {
    tables: &'db Tables,
    staged: Staged,
}

impl Draft<'_> {
    /// A record to change.
    pub fn get_mut<T: Row>(&mut self, id: Uuid) -> Result<&mut T> {
        let tables = self.tables;
        let current = || get::<T>(tables, id).ok().map(|a| (*a).clone());
        let slot = T::staged(&mut self.staged)
            .entry(id)
            .or_insert_with(current);
        slot.as_mut().ok_or_else(|| T::missing(id))
    }

    /// A new record, or a whole one in place of the old.
    pub fn put<T: Row>(&mut self, record: T) {
        T::staged(&mut self.staged).insert(record.id(), Some(record));
    }

    /// Deletes a record; one that is not there is no error.
    pub fn delete<T: Row>(&mut self, id: Uuid) {
        T::staged(&mut self.staged).insert(id, None);
    }

    /// All records of a kind as they would be after this draft.
    pub fn all<T: Row>(&mut self) -> Vec<T> {
        let now = all::<T>(self.tables);
        let mut now: BTreeMap<Uuid, T> = now.into_iter().map(|r| (r.id(), (*r).clone())).collect();
        for (id, staged) in T::staged(&mut self.staged) {
            match staged {
                Some(record) => drop(now.insert(*id, record.clone())),
                None => drop(now.remove(id)),
            }
        }
        now.into_values().collect()
    }
}

/// The tables.
pub struct Db {
    store: Arc<dyn Store>,
    commit: Arc<Mutex<()>>,
    tables: Arc<Tables>,
    changed: Arc<watch::Sender<u64>>,
}

impl Db {
    /// Reads everything that is stored but the history of jobs.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self> {
        let db = Db {
            store,
            commit: Arc::default(),
            tables: Arc::default(),
            changed: Arc::new(watch::Sender::new(0)),
        };
        db.load_all().await?;
        Ok(db)
    }

    async fn load<T: Row>(&self) -> Result<()> {
        let records = store::Records::<T>::new(Arc::clone(&self.store), T::PREFIX);
        let (all, _) = records.all("").await?;
        let mut table = T::table(&self.tables)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        table.extend(
            all.into_iter()
                .map(|stored| (stored.value.id(), Arc::new(stored.value))),
        );
        Ok(())
    }

    /// The record with that identifier.
    pub fn get<T: Row>(&self, id: Uuid) -> Result<Arc<T>> {
        get(&self.tables, id)
    }

    /// All records of a kind, in the order of their identifiers.
    pub fn all<T: Row>(&self) -> Vec<Arc<T>> {
        all(&self.tables)
    }

    /// Changes records: `change` works on a draft; when it returns `Ok`, all its changes become durable in one
    /// transaction and visible, otherwise none.
    pub async fn change<R>(&self, change: impl FnOnce(&mut Draft<'_>) -> Result<R>) -> Result<R> {
        let one_at_a_time = Arc::clone(&self.commit).lock_owned().await;
        let mut draft = Draft {
            tables: &self.tables,
            staged: Staged::default(),
        };
        let result = change(&mut draft)?;
        let staged = draft.staged;
        let txn = staged.txn()?;
        if txn.ops().is_empty() {
            return Ok(result);
        }
        let (store, tables) = (Arc::clone(&self.store), Arc::clone(&self.tables));
        let changed = Arc::clone(&self.changed);
        let committed = tokio::spawn(async move {
            let _held = one_at_a_time;
            store.txn(txn).await?;
            staged.publish(&tables);
            changed.send_modify(|n| *n = n.wrapping_add(1));
            Ok::<(), Fault>(())
        });
        committed.await.map_err(|e| fault!(Internal, e))??;
        Ok(result)
    }

    /// Moves a job that has vanished from view to the history.
    pub async fn retire(&self, job: Uuid) -> Result<()> {
        let _one_at_a_time = self.commit.lock().await;
        let Ok(record) = self.get::<Job>(job) else {
            return Ok(());
        };
        let txn = Txn::new()
            .delete(key::<Job>(job))
            .put(format!("{HISTORY}{job}"), Job::VERSION, value(&*record)?)
            .put(order_key(&record), Job::VERSION, serde_json::Value::Null);
        self.store.txn(txn).await?;
        let mut table = self
            .tables
            .jobs
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        table.remove(&job);
        Ok(())
    }

    /// Jobs that vanished from view, in pages by identifier.
    pub async fn history(&self, after: Option<Uuid>, limit: usize) -> Result<Vec<Job>> {
        let records = store::Records::<Job>::new(Arc::clone(&self.store), HISTORY);
        let after = after.map(|id| id.to_string());
        let page = records.page("", after.as_deref(), limit).await?;
        Ok(page.records.into_iter().map(|r| r.value).collect())
    }

    /// The newest jobs that vanished from view, newest first. Costs as much as it finds, however long the history is.
    pub async fn newest_history(&self, limit: usize) -> Result<Vec<Job>> {
        let records = store::Records::<Job>::new(Arc::clone(&self.store), HISTORY);
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        while found.len() < limit {
            let page = self
                .store
                .list(HISTORY_ORDER, after.as_deref(), limit - found.len())
                .await?;
            for record in &page.records {
                let id = record.key.rsplit('/').next().unwrap_or_default();
                // Without its record it was pruned just now.
                if let Some(job) = records.get(id).await? {
                    found.push(job.value);
                }
            }
            after = page.records.last().map(|r| r.key.clone());
            if !page.more || after.is_none() {
                break;
            }
        }
        Ok(found)
    }

    /// A job, also one that vanished from view.
    pub async fn past_job(&self, id: Uuid) -> Result<Job> {
        if let Ok(job) = self.get::<Job>(id) {
            return Ok((*job).clone());
        }
        let records = store::Records::<Job>::new(Arc::clone(&self.store), HISTORY);
        let found = records.get(&id.to_string()).await?;
        found.map(|r| r.value).ok_or_else(|| Job::missing(id))
    }

    /// Ticks with each change; what changed is read from the tables.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
