//! All records of one kind, in memory.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use store::{Store, Txn};
use uuid::Uuid;

use super::feed::{Change, Place};
use super::row::{Row, key};
use crate::{Failure as _, Trouble};

type Keys = BTreeMap<(&'static str, String), BTreeSet<Uuid>>;

/// The records and their indexes.
struct Rows<T> {
    rows: BTreeMap<Uuid, Arc<T>>,
    keys: Keys,
}

impl<T: Row> Rows<T> {
    fn keys_of(record: &T) -> impl Iterator<Item = (&'static str, String)> {
        let of = |index: &'static super::Index<T>| {
            let keys = (index.keys)(record).into_iter();
            keys.map(|key| (index.name, key))
        };
        T::INDEXES.iter().flat_map(of)
    }

    fn put(&mut self, id: Uuid, record: Arc<T>) -> Option<Arc<T>> {
        let before = self.remove(id);
        for key in Self::keys_of(&record) {
            self.keys.entry(key).or_default().insert(id);
        }
        self.rows.insert(id, record);
        before
    }

    fn remove(&mut self, id: Uuid) -> Option<Arc<T>> {
        let before = self.rows.remove(&id)?;
        for key in Self::keys_of(&before) {
            if let Some(ids) = self.keys.get_mut(&key) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.keys.remove(&key);
                }
            }
        }
        Some(before)
    }
}

/// One kind of record.
pub(super) struct Table<T>(RwLock<Rows<T>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table(RwLock::new(Rows {
            rows: BTreeMap::new(),
            keys: Keys::new(),
        }))
    }
}

impl<T: Row> Table<T> {
    fn read(&self) -> RwLockReadGuard<'_, Rows<T>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Rows<T>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id: Uuid) -> Option<Arc<T>> {
        self.read().rows.get(&id).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<T>> {
        self.read().rows.values().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.read().rows.len()
    }

    pub(super) fn by(&self, index: &'static str, value: &str) -> Vec<Arc<T>> {
        let table = self.read();
        let ids = table.keys.get(&(index, value.to_owned()));
        let found = ids.into_iter().flatten();
        found.filter_map(|id| table.rows.get(id).cloned()).collect()
    }

    /// Makes changes visible; returns each with what was there before.
    pub(super) fn publish(&self, staged: Staged<T>, at: &mut Place) -> Vec<Change> {
        let mut table = self.write();
        let mut changes = Vec::new();
        for (id, after) in staged.0 {
            let after = after.map(Arc::new);
            let before = match &after {
                Some(record) => table.put(id, Arc::clone(record)),
                None => table.remove(id),
            };
            if before.is_some() || after.is_some() {
                changes.push(Change::new(*at, id, before, after));
                at.n += 1;
            }
        }
        changes
    }
}

/// Changes of one kind of record that are being put together.
pub(super) struct Staged<T>(pub(super) BTreeMap<Uuid, Option<T>>);

impl<T> Default for Staged<T> {
    fn default() -> Self {
        Staged(BTreeMap::new())
    }
}

/// A table, whatever is in it.
#[async_trait]
pub(super) trait AnyTable<F>: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    async fn load(&self, store: &Arc<dyn Store>) -> Result<(), F>;
}

#[async_trait]
impl<T: Row> AnyTable<T::Fault> for Table<T> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    async fn load(&self, store: &Arc<dyn Store>) -> Result<(), T::Fault> {
        let records = store::Records::<T>::new(Arc::clone(store), T::PREFIX);
        let (all, _) = records.all("").await?;
        let mut table = self.write();
        for stored in all {
            table.put(stored.value.id(), Arc::new(stored.value));
        }
        Ok(())
    }
}

/// Staged changes, whatever they are of.
pub(super) trait AnyStaged<F>: Send {
    fn as_any_mut(&mut self) -> &mut dyn Any;
    fn add(&self, txn: Txn) -> Result<Txn, F>;
    fn publish(self: Box<Self>, table: &dyn AnyTable<F>, at: &mut Place) -> Vec<Change>;
}

impl<T: Row> AnyStaged<T::Fault> for Staged<T> {
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn add(&self, mut txn: Txn) -> Result<Txn, T::Fault> {
        for (id, record) in &self.0 {
            txn = match record {
                Some(record) => txn.put(key::<T>(*id), T::VERSION, value(record)?),
                None => txn.delete(key::<T>(*id)),
            };
        }
        Ok(txn)
    }

    fn publish(self: Box<Self>, table: &dyn AnyTable<T::Fault>, at: &mut Place) -> Vec<Change> {
        match table.as_any().downcast_ref::<Table<T>>() {
            Some(table) => table.publish(*self, at),
            None => Vec::new(),
        }
    }
}

pub(super) fn value<T: Row>(record: &T) -> Result<serde_json::Value, T::Fault> {
    serde_json::to_value(record).map_err(|e| {
        let why = format!("a record cannot be written: {e}");
        T::Fault::of(Trouble::Internal(&why))
    })
}
