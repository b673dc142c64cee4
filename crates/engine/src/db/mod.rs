//! The records in memory, and the one way to change them.
//!
//! All records are kept in memory as well; reading never touches the store. A change is made on copies in a [`Draft`], becomes one
//! transaction of the store, and shows in memory only after the store has made it durable; then it is told in the [`Feed`]. Changes
//! are serialised by one lock; what is done outside of the store (files, processes) is never done under it. A change whose
//! caller goes away in the middle is carried to its end all the same, so that memory never lags behind the store.

mod draft;
mod feed;
mod history;
mod row;
mod table;

use std::any::TypeId;
use std::collections::HashMap;
use std::sync::Arc;

use store::Store;
use tokio::sync::{Mutex, watch};
use uuid::Uuid;

use crate::{Failure, Trouble};

pub use draft::Draft;
use feed::Log;
pub use feed::{Change, Feed, Missed, Place};
pub use row::{Index, Row};
use table::{AnyTable, Table};

type Tables<F> = HashMap<TypeId, Arc<dyn AnyTable<F>>>;

fn table<T: Row>(tables: &Tables<T::Fault>) -> Option<&Table<T>> {
    let table = tables.get(&TypeId::of::<T>())?;
    table.as_any().downcast_ref()
}

/// The kinds of records that are kept.
pub struct Kinds<F>(Tables<F>);

impl<F: Failure> Default for Kinds<F> {
    fn default() -> Self {
        Kinds(HashMap::new())
    }
}

impl<F: Failure> Kinds<F> {
    /// These and one more. A record of a kind that is not named is never found.
    #[must_use]
    pub fn and<T: Row<Fault = F>>(mut self) -> Self {
        let table: Arc<dyn AnyTable<F>> = Arc::new(Table::<T>::default());
        self.0.insert(TypeId::of::<T>(), table);
        self
    }
}

/// The records.
pub struct Db<F> {
    store: Arc<dyn Store>,
    commit: Arc<Mutex<()>>,
    tables: Arc<Tables<F>>,
    log: Arc<Log>,
}

impl<F: Failure> Db<F> {
    /// Reads everything that is stored of these kinds.
    ///
    /// # Errors
    /// Of the store.
    pub async fn open(store: Arc<dyn Store>, kinds: Kinds<F>) -> Result<Self, F> {
        for table in kinds.0.values() {
            table.load(&store).await?;
        }
        let revision = store.revision().await?.get();
        Ok(Db {
            store,
            commit: Arc::default(),
            tables: Arc::new(kinds.0),
            log: Arc::new(Log::new(revision)),
        })
    }

    /// The record with that identifier.
    ///
    /// # Errors
    /// [`Row::missing`].
    pub fn get<T: Row<Fault = F>>(&self, id: Uuid) -> Result<Arc<T>, F> {
        let found = table::<T>(&self.tables).and_then(|t| t.get(id));
        found.ok_or_else(|| T::missing(id))
    }

    /// All records of a kind, in the order of their identifiers.
    pub fn all<T: Row<Fault = F>>(&self) -> Vec<Arc<T>> {
        table::<T>(&self.tables).map(Table::all).unwrap_or_default()
    }

    /// How many records of a kind there are.
    pub fn count<T: Row<Fault = F>>(&self) -> usize {
        table::<T>(&self.tables).map_or(0, Table::len)
    }

    /// The records that stand in an index ([`Row::INDEXES`]) under a key, in the order of their identifiers. Costs as much as it finds.
    pub fn by<T: Row<Fault = F>>(&self, index: &'static str, key: &str) -> Vec<Arc<T>> {
        let found = table::<T>(&self.tables).map(|t| t.by(index, key));
        found.unwrap_or_default()
    }

    /// Changes records: `change` works on a draft; when it returns `Ok`, all its changes become durable in one
    /// transaction and visible, otherwise none.
    ///
    /// # Errors
    /// Of `change`, and of the store.
    pub async fn change<R>(
        &self,
        change: impl FnOnce(&mut Draft<'_, F>) -> Result<R, F>,
    ) -> Result<R, F> {
        let one_at_a_time = Arc::clone(&self.commit).lock_owned().await;
        let mut draft = Draft::new(&self.tables);
        let result = change(&mut draft)?;
        let staged = draft.into_staged();
        let txn = draft::transaction(&staged)?;
        if txn.ops().is_empty() {
            return Ok(result);
        }
        let (store, tables) = (Arc::clone(&self.store), Arc::clone(&self.tables));
        let log = Arc::clone(&self.log);
        let committed = tokio::spawn(async move {
            let _held = one_at_a_time;
            let revision = store.txn(txn).await?.get();
            log.add(draft::publish(staged, &tables, revision));
            Ok::<(), F>(())
        });
        let committed = committed.await;
        committed.map_err(|e| F::of(Trouble::Internal(&e.to_string())))??;
        Ok(result)
    }

    /// Follows the changes from now on.
    pub fn feed(&self) -> Feed {
        Feed::new(&self.log, None)
    }

    /// Follows the changes from a cursor on ([`Feed::cursor`]), also one of before a restart of the service.
    pub fn feed_from(&self, cursor: Place) -> Feed {
        Feed::new(&self.log, Some(cursor))
    }

    /// Ticks with each change; what changed is read from the tables.
    pub fn changes(&self) -> watch::Receiver<Place> {
        self.log.end()
    }
}
