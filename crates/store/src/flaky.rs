//! A store that fails on purpose, for the tests of those who use one.

use crate::{Lease, LeaseId, Page, Record, Revision, Store, StoreError, Txn, Watch};
use async_trait::async_trait;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What happens at the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails and changes nothing; later calls work.
    Refuse,
    /// It does its work, but reports failure; later calls work.
    LoseReply,
    /// As if the process ended just before: it and all later calls fail and change nothing.
    Stop,
    /// As if the process ended just after: it does its work, but reports
    /// failure, and all later calls fail.
    StopAfter,
    /// It and all later calls never return, without doing anything: for tests
    /// that drop or time out the waiting task.
    Hang,
}

/// Which calls are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Every call of a [`Store`] method.
    All,
    /// Only [`Store::txn`].
    Txns,
}

#[derive(Debug, Default)]
struct Plan {
    all: u64,
    txns: u64,
    fault: Option<(Calls, u64, Fault)>,
    down: Option<Down>,
}

#[derive(Clone, Copy, Debug)]
enum Down {
    Fails,
    Hangs,
}

enum Verdict {
    Pass,
    Fail(u64),
    LoseReply(u64),
    Hang,
}

/// Passes every call on to another store, until the chosen one.
///
/// A crash test is: stop at call n, drop everything above, start again on the
/// store beneath ([`FlakyStore::inner`]), compare; for every n up to
/// [`FlakyStore::calls`] of a run that went through.
pub struct FlakyStore {
    inner: Arc<dyn Store>,
    plan: Mutex<Plan>,
}

impl FlakyStore {
    /// Passes everything on and counts.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        FlakyStore {
            inner,
            plan: Mutex::default(),
        }
    }

    /// Sets the fault for the `nth` call from now on (counted from 1), in place of an
    /// earlier one, and works again if it was stopped.
    pub fn arm(&self, calls: Calls, nth: u64, fault: Fault) {
        let mut plan = self.lock();
        let passed = match calls {
            Calls::All => plan.all,
            Calls::Txns => plan.txns,
        };
        plan.fault = Some((calls, passed + nth, fault));
        plan.down = None;
    }

    /// Takes the fault back; works again if it was stopped.
    pub fn disarm(&self) {
        let mut plan = self.lock();
        plan.fault = None;
        plan.down = None;
    }

    /// How many calls came so far, failed ones included.
    pub fn calls(&self, calls: Calls) -> u64 {
        let plan = self.lock();
        match calls {
            Calls::All => plan.all,
            Calls::Txns => plan.txns,
        }
    }

    /// The store beneath.
    pub fn inner(&self) -> &Arc<dyn Store> {
        &self.inner
    }

    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, is_txn: bool) -> Verdict {
        let mut plan = self.lock();
        plan.all += 1;
        if is_txn {
            plan.txns += 1;
        }
        let number = plan.all;
        match plan.down {
            Some(Down::Fails) => return Verdict::Fail(number),
            Some(Down::Hangs) => return Verdict::Hang,
            None => {}
        }
        let Some((calls, nth, fault)) = plan.fault else {
            return Verdict::Pass;
        };
        let hit = match calls {
            Calls::All => plan.all == nth,
            Calls::Txns => is_txn && plan.txns == nth,
        };
        if !hit {
            return Verdict::Pass;
        }
        plan.fault = None;
        match fault {
            Fault::Refuse => Verdict::Fail(number),
            Fault::LoseReply => Verdict::LoseReply(number),
            Fault::Stop => {
                plan.down = Some(Down::Fails);
                Verdict::Fail(number)
            }
            Fault::StopAfter => {
                plan.down = Some(Down::Fails);
                Verdict::LoseReply(number)
            }
            Fault::Hang => {
                plan.down = Some(Down::Hangs);
                Verdict::Hang
            }
        }
    }

    async fn pass<T>(
        &self,
        is_txn: bool,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        match self.judge(is_txn) {
            Verdict::Pass => call.await,
            Verdict::Fail(call) => Err(StoreError::Injected { call }),
            Verdict::LoseReply(number) => {
                call.await?;
                Err(StoreError::Injected { call: number })
            }
            Verdict::Hang => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Store for FlakyStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        self.pass(false, self.inner.get(key)).await
    }
    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        self.pass(false, self.inner.list(prefix, start_after, limit))
            .await
    }
    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        self.pass(true, self.inner.txn(txn)).await
    }
    async fn revision(&self) -> Result<Revision, StoreError> {
        self.pass(false, self.inner.revision()).await
    }
    async fn watch(&self, prefix: &str, from: Option<Revision>) -> Result<Watch, StoreError> {
        self.pass(false, self.inner.watch(prefix, from)).await
    }
    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.pass(false, self.inner.grant(ttl)).await
    }
    async fn keep_alive(&self, id: LeaseId) -> Result<Lease, StoreError> {
        self.pass(false, self.inner.keep_alive(id)).await
    }
    async fn revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.pass(false, self.inner.revoke(id)).await
    }
}
