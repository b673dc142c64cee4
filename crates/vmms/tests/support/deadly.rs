//! A store whose service is killed at one of its transactions.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use store::{Lease, LeaseId, Page, Record, Revision, Store, StoreError, Txn, Watch};
use tokio::sync::watch;

/// A store whose service is killed at one of its transactions.
pub struct Deadly {
    pub inner: Arc<dyn Store>,
    /// How many transactions it still has.
    pub left: AtomicI64,
    /// The transaction still becomes durable.
    pub after: bool,
    pub dead: watch::Sender<bool>,
}

#[async_trait]
impl Store for Deadly {
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        self.inner.get(key).await
    }
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        self.inner.list(prefix, after, limit).await
    }
    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        if left > 0 {
            return self.inner.txn(txn).await;
        }
        if left == 0 && self.after {
            self.inner.txn(txn).await?;
        }
        self.dead.send_replace(true);
        std::future::pending().await
    }
    async fn revision(&self) -> Result<Revision, StoreError> {
        self.inner.revision().await
    }
    async fn watch(&self, prefix: &str, from: Option<Revision>) -> Result<Watch, StoreError> {
        self.inner.watch(prefix, from).await
    }
    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.inner.grant(ttl).await
    }
    async fn keep_alive(&self, id: LeaseId) -> Result<Lease, StoreError> {
        self.inner.keep_alive(id).await
    }
    async fn revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.inner.revoke(id).await
    }
}
