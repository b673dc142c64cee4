//! Revisioned records: the one place where kvmms keeps what must survive.
//!
//! # Model
//! A *record* is a JSON value under a path-like key (`vm/<guid>`), with the
//! number of the layout it is written in. The store counts *revisions*: each
//! transaction that changes something is one revision, and a record remembers
//! the revision that created it and the one that changed it last. The whole
//! store is therefore a numbered list of changes, and everything here is said
//! in those numbers: compare-and-set ([`Txn`]), gap-free listing followed by a
//! watch ([`Page::revision`], [`Store::watch`]), and leases, whose end is a
//! change like any other.
//!
//! ```text
//!   Records<T> (typed, upgrades old layouts)
//!        |
//!   dyn Store --- FlakyStore (tests: the n-th call fails or stops)
//!        |
//!   +----+-----------+
//!   MemoryStore   SqliteStore
//! ```
//!
//! The limits ([`MAX_TXN_PARTS`], [`MAX_VALUE_BYTES`], [`MAX_KEY_BYTES`]) are
//! the same in every engine and fit the defaults of etcd, so that code written
//! against one engine runs on all.
//!
//! # Errors
//! One enum, [`StoreError`]; [`StoreError::kind`] folds it into the few cases a
//! caller decides on. A failed transaction has changed nothing, except for
//! [`StoreError::Indeterminate`], which says exactly that it may have.
//!
//! # Concurrency
//! Every method may be called from any task at any time. Transactions are
//! serialised by the engine; a read that starts after a transaction was
//! acknowledged sees it. Dropping a future of [`Store::txn`] does not take the
//! transaction back: it may still be committed.

mod clock;
mod error;
mod flaky;
mod journal;
mod lease;
mod memory;
mod record;
mod records;
mod sqlite;
mod txn;
mod watch;

pub use clock::{Clock, ManualClock};
pub use error::{ErrorKind, StoreError};
pub use flaky::{Calls, Fault, FlakyStore};
pub use lease::{Lease, LeaseId};
pub use memory::{MemoryOptions, MemoryStore};
pub use record::{Page, Record, Revision};
pub use records::{
    FirstVersion, Records, Stored, TypedChange, TypedEvent, TypedPage, TypedWatch, Versioned,
};
pub use sqlite::{Check, Copies, Copy, Recovered, SqliteOptions, SqliteStore, copies_in, recover};
pub use txn::{Condition, Op, Txn};
pub use watch::{Change, Event, Watch};

use async_trait::async_trait;
use std::time::Duration;

/// Most conditions, and most operations, one [`Txn`] may hold.
pub const MAX_TXN_PARTS: usize = 128;
/// Longest value, in bytes of its JSON text.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;
/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 512;
/// Most records one [`Store::list`] returns, whatever the limit asked for.
pub const MAX_PAGE: usize = 1000;

/// Revisioned records behind any engine.
#[async_trait]
pub trait Store: Send + Sync {
    /// The record under `key`, or `None`.
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError>;

    /// Records whose key begins with `prefix`, in byte order of the keys,
    /// beginning after the key `start_after`; at most `limit` (clamped to
    /// 1..=[`MAX_PAGE`]), fewer where the values are large: [`Page::more`] says
    /// whether to go on. One page is one instant; two pages may be two.
    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError>;

    /// Applies a transaction: if every condition holds, all operations, else
    /// none and [`StoreError::Conflict`] with the key of the first condition
    /// that does not hold. When it returns, the change is durable (as durable
    /// as the engine is). A transaction that changes nothing makes no new
    /// revision and returns the current one.
    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError>;

    /// The revision of the newest change; [`Revision::ZERO`] for an untouched store.
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// Changes under `prefix`, in order and without gaps, starting with
    /// revision `from` (replayed from history where it is past), or with the
    /// next change when `None`. Errors: [`StoreError::Compacted`] when history
    /// no longer reaches back to `from`, [`StoreError::FutureRevision`] when
    /// `from` lies more than one beyond the newest revision.
    async fn watch(&self, prefix: &str, from: Option<Revision>) -> Result<Watch, StoreError>;

    /// A new lease that ends `ttl` (at least one second) after its grant or its
    /// last [`Store::keep_alive`]. When it ends, the records put with it vanish.
    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError>;

    /// Starts the lease's time again. [`StoreError::LeaseLost`] once it has ended:
    /// the caller no longer owns what it held and must not go on as if it did.
    async fn keep_alive(&self, id: LeaseId) -> Result<Lease, StoreError>;

    /// Ends a lease now and deletes its records, in one revision.
    async fn revoke(&self, id: LeaseId) -> Result<(), StoreError>;
}

#[async_trait]
impl<S: Store + ?Sized> Store for std::sync::Arc<S> {
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        (**self).get(key).await
    }
    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        (**self).list(prefix, start_after, limit).await
    }
    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        (**self).txn(txn).await
    }
    async fn revision(&self) -> Result<Revision, StoreError> {
        (**self).revision().await
    }
    async fn watch(&self, prefix: &str, from: Option<Revision>) -> Result<Watch, StoreError> {
        (**self).watch(prefix, from).await
    }
    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        (**self).grant(ttl).await
    }
    async fn keep_alive(&self, id: LeaseId) -> Result<Lease, StoreError> {
        (**self).keep_alive(id).await
    }
    async fn revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        (**self).revoke(id).await
    }
}
