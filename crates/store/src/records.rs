//! Typed records: one Rust type per prefix, and how its layout evolves.

use crate::{Change, LeaseId, Op, Record, Revision, Store, StoreError, Txn, Watch};
use serde::Serialize;
use serde::de::{DeserializeOwned, Deserializer};
use serde_json::Value;
use std::marker::PhantomData;
use std::sync::Arc;

/// A type that is stored, with the number of its layout.
///
/// A change of the layout that old records cannot be read with is a new type
/// with the next number, whose `Previous` is the old one:
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use store::{FirstVersion, Versioned};
///
/// #[derive(Serialize, Deserialize)]
/// struct Disk1 { path: String }
/// impl Versioned for Disk1 {
///     const VERSION: u32 = 1;
///     type Previous = FirstVersion;
///     fn upgrade(previous: FirstVersion) -> Self { match previous {} }
/// }
///
/// #[derive(Serialize, Deserialize)]
/// struct Disk { path: String, read_only: bool }
/// impl Versioned for Disk {
///     const VERSION: u32 = 2;
///     type Previous = Disk1;
///     fn upgrade(previous: Disk1) -> Self { Disk { path: previous.path, read_only: false } }
/// }
/// ```
///
/// Reading upgrades; the record on disk keeps its layout until it is next written.
pub trait Versioned: Serialize + DeserializeOwned + Send + Sync {
    /// The number of this layout; 1 or more, greater than that of `Previous`.
    const VERSION: u32;
    /// The layout before, or [`FirstVersion`].
    type Previous: Versioned;
    /// This layout from the one before.
    fn upgrade(previous: Self::Previous) -> Self;
}

/// Stands for "there was no layout before". It has no values.
#[derive(Clone, Copy, Debug)]
pub enum FirstVersion {}

impl Serialize for FirstVersion {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        match *self {}
    }
}

impl<'de> serde::Deserialize<'de> for FirstVersion {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("there is no layout 0"))
    }
}

impl Versioned for FirstVersion {
    const VERSION: u32 = 0;
    type Previous = FirstVersion;
    fn upgrade(previous: FirstVersion) -> Self {
        previous
    }
}

fn decode<T: Versioned>(key: &str, schema: u32, value: Value) -> Result<T, StoreError> {
    const {
        assert!(
            T::VERSION == 0 || T::VERSION > T::Previous::VERSION,
            "a layout's number is greater than that of the one before"
        );
    }
    if schema == T::VERSION && schema != 0 {
        serde_json::from_value(value).map_err(|source| StoreError::Decode {
            key: key.to_owned(),
            schema,
            source,
        })
    } else if schema > T::VERSION || T::VERSION == 0 {
        Err(StoreError::UnknownSchema {
            key: key.to_owned(),
            stored: schema,
        })
    } else {
        decode::<T::Previous>(key, schema, value).map(T::upgrade)
    }
}

/// A record read into its type.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<T> {
    /// Its key without the prefix.
    pub id: String,
    /// The content, in the newest layout.
    pub value: T,
    /// The revision that created it.
    pub create_revision: Revision,
    /// The revision that changed it last: what [`Records::update`] compares.
    pub revision: Revision,
    /// The lease it vanishes with.
    pub lease: Option<LeaseId>,
}

/// A part of a typed listing; see [`crate::Page`].
#[derive(Clone, Debug)]
pub struct TypedPage<T> {
    /// The records, in byte order of their ids.
    pub records: Vec<Stored<T>>,
    /// The revision this page shows.
    pub revision: Revision,
    /// Whether more follow.
    pub more: bool,
}

/// A change of a typed record.
#[derive(Clone, Debug)]
pub struct TypedEvent<T> {
    /// The revision it belongs to.
    pub revision: Revision,
    /// What happened.
    pub change: TypedChange<T>,
}

/// What happened to a typed record.
#[derive(Clone, Debug)]
pub enum TypedChange<T> {
    /// Created or replaced.
    Put(Stored<T>),
    /// Deleted.
    Deleted {
        /// Its key without the prefix.
        id: String,
    },
}

/// The records of one type, all under one prefix.
pub struct Records<T> {
    store: Arc<dyn Store>,
    prefix: String,
    kind: PhantomData<fn() -> T>,
}

impl<T> Clone for Records<T> {
    fn clone(&self) -> Self {
        Records {
            store: Arc::clone(&self.store),
            prefix: self.prefix.clone(),
            kind: PhantomData,
        }
    }
}

impl<T: Versioned> Records<T> {
    /// The records `<name>/<id>` of `store`. Ids may contain slashes themselves.
    pub fn new(store: Arc<dyn Store>, name: &str) -> Self {
        Records {
            store,
            prefix: format!("{}/", name.trim_end_matches('/')),
            kind: PhantomData,
        }
    }

    /// The store beneath.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The whole key of the record `id`, for conditions in a [`Txn`].
    pub fn key(&self, id: &str) -> String {
        format!("{}{id}", self.prefix)
    }

    /// The record `id`.
    pub async fn get(&self, id: &str) -> Result<Option<Stored<T>>, StoreError> {
        match self.store.get(&self.key(id)).await? {
            Some(record) => self.read(record).map(Some),
            None => Ok(None),
        }
    }

    /// Records whose id begins with `under`, after the id `start_after`; see [`Store::list`].
    /// One record that cannot be read fails the page: nothing is passed over in silence.
    pub async fn page(
        &self,
        under: &str,
        start_after: Option<&str>,
        limit: usize,
    ) -> Result<TypedPage<T>, StoreError> {
        let after = start_after.map(|id| self.key(id));
        let page = self
            .store
            .list(&self.key(under), after.as_deref(), limit)
            .await?;
        let records = page
            .records
            .into_iter()
            .map(|record| self.read(record))
            .collect::<Result<_, _>>()?;
        Ok(TypedPage {
            records,
            revision: page.revision,
            more: page.more,
        })
    }

    /// All records whose id begins with `under`, read page by page, and the
    /// revision of the first page: a watch from the one after it misses nothing.
    pub async fn all(&self, under: &str) -> Result<(Vec<Stored<T>>, Revision), StoreError> {
        let mut page = self.page(under, None, crate::MAX_PAGE).await?;
        let first = page.revision;
        let mut records = std::mem::take(&mut page.records);
        while page.more {
            let Some(last) = records.last() else { break };
            page = self.page(under, Some(&last.id), crate::MAX_PAGE).await?;
            records.append(&mut page.records);
        }
        Ok((records, first))
    }

    /// Stores a new record; [`StoreError::Conflict`] if the id is taken.
    pub async fn create(&self, id: &str, value: &T) -> Result<Revision, StoreError> {
        self.store.txn(self.creating(id, value)?).await
    }

    /// Replaces a record that is unchanged since it was read; else [`StoreError::Conflict`].
    pub async fn update(&self, old: &Stored<T>, value: &T) -> Result<Revision, StoreError> {
        self.store.txn(self.updating(old, value)?).await
    }

    /// Creates or replaces, whatever is there.
    pub async fn put(&self, id: &str, value: &T) -> Result<Revision, StoreError> {
        self.store.txn(Txn::new().op(self.put_op(id, value)?)).await
    }

    /// Deletes a record that is unchanged since it was read; else [`StoreError::Conflict`].
    pub async fn delete(&self, old: &Stored<T>) -> Result<Revision, StoreError> {
        self.store.txn(self.deleting(old)).await
    }

    /// Reads, lets `change` work on it, and writes, again and again until nobody
    /// came between. `change` may be called several times and refuses with an
    /// error of its own. `None` when there is no such record. Its lease stays.
    pub async fn modify<E: From<StoreError>>(
        &self,
        id: &str,
        mut change: impl FnMut(&mut T) -> Result<(), E> + Send,
    ) -> Result<Option<Stored<T>>, E>
    where
        T: 'static,
    {
        loop {
            let Some(mut stored) = self.get(id).await? else {
                return Ok(None);
            };
            change(&mut stored.value)?;
            match self.store.txn(self.updating(&stored, &stored.value)?).await {
                Ok(revision) => return Ok(Some(Stored { revision, ..stored })),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The transaction of [`Records::create`], to be joined with others.
    pub fn creating(&self, id: &str, value: &T) -> Result<Txn, StoreError> {
        Ok(Txn::new().missing(self.key(id)).op(self.put_op(id, value)?))
    }

    /// The transaction of [`Records::update`]. The record keeps its lease.
    pub fn updating(&self, old: &Stored<T>, value: &T) -> Result<Txn, StoreError> {
        let mut op = self.put_op(&old.id, value)?;
        if let Op::Put { lease, .. } = &mut op {
            *lease = old.lease;
        }
        Ok(Txn::new()
            .revision_is(self.key(&old.id), old.revision)
            .op(op))
    }

    /// The transaction of [`Records::delete`].
    pub fn deleting(&self, old: &Stored<T>) -> Txn {
        let key = self.key(&old.id);
        Txn::new()
            .revision_is(key.clone(), old.revision)
            .delete(key)
    }

    /// The operation that puts `value` under `id`, for a [`Txn`].
    pub fn put_op(&self, id: &str, value: &T) -> Result<Op, StoreError> {
        let key = self.key(id);
        match serde_json::to_value(value) {
            Ok(value) => Ok(Op::Put {
                key,
                schema: T::VERSION,
                value,
                lease: None,
            }),
            Err(source) => Err(StoreError::Encode { key, source }),
        }
    }

    /// The same, for a record that vanishes with a lease.
    pub fn put_leased_op(&self, id: &str, value: &T, with: LeaseId) -> Result<Op, StoreError> {
        let mut op = self.put_op(id, value)?;
        if let Op::Put { lease, .. } = &mut op {
            *lease = Some(with);
        }
        Ok(op)
    }

    /// The operation that deletes `id`, for a [`Txn`].
    pub fn delete_op(&self, id: &str) -> Op {
        Op::Delete { key: self.key(id) }
    }

    /// The changes of the records whose id begins with `under`; see [`Store::watch`].
    pub async fn watch(
        &self,
        under: &str,
        from: Option<Revision>,
    ) -> Result<TypedWatch<T>, StoreError> {
        let watch = self.store.watch(&self.key(under), from).await?;
        Ok(TypedWatch {
            records: self.clone(),
            watch,
        })
    }

    fn id(&self, key: String) -> String {
        key.strip_prefix(&self.prefix)
            .map(str::to_owned)
            .unwrap_or(key)
    }

    fn read(&self, record: Record) -> Result<Stored<T>, StoreError> {
        if record.schema > T::VERSION {
            return Err(StoreError::NewerSchema {
                key: record.key,
                stored: record.schema,
                known: T::VERSION,
            });
        }
        let value = decode(&record.key, record.schema, record.value)?;
        Ok(Stored {
            id: self.id(record.key),
            value,
            create_revision: record.create_revision,
            revision: record.mod_revision,
            lease: record.lease,
        })
    }
}

/// The changes of typed records.
pub struct TypedWatch<T> {
    records: Records<T>,
    watch: Watch,
}

impl<T: Versioned> TypedWatch<T> {
    /// The next change; see [`Watch::next`]. After an error about one record
    /// that cannot be read it goes on with the next change.
    pub async fn next(&mut self) -> Result<Option<TypedEvent<T>>, StoreError> {
        let Some(event) = self.watch.next().await? else {
            return Ok(None);
        };
        let change = match event.change {
            Change::Put(record) => TypedChange::Put(self.records.read(record)?),
            Change::Deleted { key } => TypedChange::Deleted {
                id: self.records.id(key),
            },
        };
        Ok(Some(TypedEvent {
            revision: event.revision,
            change,
        }))
    }
}
