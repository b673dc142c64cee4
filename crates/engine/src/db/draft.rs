//! Changes being put together.

use std::any::TypeId;
use std::collections::HashMap;
use std::collections::btree_map::BTreeMap;
use std::sync::Arc;

use store::Txn;
use uuid::Uuid;

use super::feed::{Change, Place};
use super::row::Row;
use super::table::{AnyStaged, Staged, Table};
use super::{Tables, table};
use crate::Failure;

pub(super) type AllStaged<F> = HashMap<TypeId, Box<dyn AnyStaged<F>>>;

/// Changes being put together. Reads see what was staged before.
pub struct Draft<'db, F> {
    tables: &'db Tables<F>,
    staged: AllStaged<F>,
}

impl<'db, F: Failure> Draft<'db, F> {
    pub(super) fn new(tables: &'db Tables<F>) -> Self {
        Draft {
            tables,
            staged: HashMap::new(),
        }
    }

    pub(super) fn into_staged(self) -> AllStaged<F> {
        self.staged
    }

    fn staged<T: Row<Fault = F>>(&mut self) -> Option<&mut BTreeMap<Uuid, Option<T>>> {
        let kind = TypeId::of::<T>();
        let staged = self.staged.entry(kind);
        let staged = staged.or_insert_with(|| Box::<Staged<T>>::default());
        let staged = staged.as_any_mut().downcast_mut::<Staged<T>>();
        staged.map(|s| &mut s.0)
    }

    /// A record to change.
    ///
    /// # Errors
    /// [`Row::missing`].
    pub fn get_mut<T: Row<Fault = F>>(&mut self, id: Uuid) -> Result<&mut T, F> {
        let tables = self.tables;
        let current = || {
            let record = table::<T>(tables)?.get(id);
            record.map(|record| (*record).clone())
        };
        let staged = self.staged::<T>();
        let slot = staged.and_then(|s| s.entry(id).or_insert_with(current).as_mut());
        slot.ok_or_else(|| T::missing(id))
    }

    /// A new record, or a whole one in place of the old.
    pub fn put<T: Row<Fault = F>>(&mut self, record: T) {
        if let Some(staged) = self.staged() {
            staged.insert(record.id(), Some(record));
        }
    }

    /// Deletes a record; one that is not there is no error.
    pub fn delete<T: Row<Fault = F>>(&mut self, id: Uuid) {
        if let Some(staged) = self.staged::<T>() {
            staged.insert(id, None);
        }
    }

    /// All records of a kind as they would be after this draft.
    pub fn all<T: Row<Fault = F>>(&mut self) -> Vec<T> {
        let now = table::<T>(self.tables).map(Table::all);
        let now = now.unwrap_or_default().into_iter();
        let mut now: BTreeMap<Uuid, T> = now.map(|r| (r.id(), (*r).clone())).collect();
        for (id, staged) in self.staged::<T>().into_iter().flatten() {
            match staged {
                Some(record) => drop(now.insert(*id, record.clone())),
                None => drop(now.remove(id)),
            }
        }
        now.into_values().collect()
    }

    /// The records that stand in an index under a key, as they would be after this draft.
    pub fn by<T: Row<Fault = F>>(&mut self, index: &'static str, key: &str) -> Vec<Arc<T>> {
        let now = table::<T>(self.tables).map(|t| t.by(index, key));
        let mut found: BTreeMap<Uuid, Arc<T>> = now
            .unwrap_or_default()
            .into_iter()
            .map(|r| (r.id(), r))
            .collect();
        let index = T::INDEXES.iter().find(|i| i.name == index);
        for (id, staged) in self.staged::<T>().into_iter().flatten() {
            found.remove(id);
            let stands = |r: &&T| index.is_some_and(|i| (i.keys)(r).iter().any(|k| k == key));
            if let Some(record) = staged.as_ref().filter(stands) {
                found.insert(*id, Arc::new(record.clone()));
            }
        }
        found.into_values().collect()
    }
}

pub(super) fn transaction<F>(staged: &AllStaged<F>) -> Result<Txn, F> {
    let mut txn = Txn::new();
    for changes in staged.values() {
        txn = changes.add(txn)?;
    }
    Ok(txn)
}

pub(super) fn publish<F>(staged: AllStaged<F>, tables: &Tables<F>, revision: u64) -> Vec<Change> {
    let mut at = Place { revision, n: 0 };
    let mut changes = Vec::new();
    for (kind, staged) in staged {
        if let Some(table) = tables.get(&kind) {
            changes.extend(staged.publish(&**table, &mut at));
        }
    }
    changes
}
