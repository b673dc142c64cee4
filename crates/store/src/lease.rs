//! Leases: how long they still run, and the thread that ends them.
//!
//! The engine keeps which leases exist and what hangs on them; here is only
//! their time. A lease whose time is up leaves this table first, and from then
//! on cannot be kept alive; then the engine deletes its records. So nobody is
//! ever told "still yours" about something that is being taken away.

use crate::{Clock, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// How long to wait before a lease that could not be ended is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The number of a lease; never reused within a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(u64);

impl LeaseId {
    /// The lease with this number.
    pub const fn new(number: u64) -> Self {
        LeaseId(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A lease as it was granted or kept alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// How long it runs from now without being kept alive.
    pub ttl: Duration,
}

/// Refuses times no engine could keep.
pub(crate) fn check_ttl(ttl: Duration) -> Result<(), StoreError> {
    if (SHORTEST..=LONGEST).contains(&ttl) {
        Ok(())
    } else {
        Err(StoreError::InvalidTtl {
            milliseconds: ttl.as_millis(),
        })
    }
}

/// Deletes a lease and its records; `false` when that failed and must be tried again.
type End = dyn Fn(LeaseId) -> bool + Send + Sync;

/// The running times of an engine's leases.
pub(crate) struct Leases {
    shared: Arc<Shared>,
    end: Arc<End>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    clock: Clock,
    table: Mutex<Table>,
    wake: Condvar,
}

#[derive(Default)]
struct Table {
    running: HashMap<LeaseId, Running>,
    closed: bool,
}

#[derive(Clone, Copy)]
struct Running {
    ttl: Duration,
    deadline: Duration,
    /// Its time was up once: only the deletion of its records is still to be done.
    over: bool,
}

impl Leases {
    /// An empty table. `end` is called by a thread of its own, never two at once.
    pub(crate) fn new(clock: Clock, end: impl Fn(LeaseId) -> bool + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            clock,
            table: Mutex::default(),
            wake: Condvar::new(),
        });
        let weak = Arc::downgrade(&shared);
        shared.clock.on_turn(move || match weak.upgrade() {
            Some(shared) => {
                // Taking the lock keeps the wake-up from falling between the
                // thread's look at the clock and its sleep.
                drop(shared.lock());
                shared.wake.notify_all();
                true
            }
            None => false,
        });
        Leases {
            shared,
            end: Arc::new(end),
            thread: Mutex::new(None),
        }
    }

    /// Starts a lease's time, and the thread with the first one.
    pub(crate) fn add(&self, id: LeaseId, ttl: Duration) -> Result<(), StoreError> {
        {
            let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
            if thread.is_none() {
                let shared = Arc::clone(&self.shared);
                let end = Arc::clone(&self.end);
                let started = std::thread::Builder::new()
                    .name("store-leases".to_owned())
                    .spawn(move || shared.run(&*end));
                *thread = Some(started.map_err(|source| StoreError::Engine {
                    what: "start the thread that ends leases",
                    source: Box::new(source),
                })?);
            }
        }
        let deadline = self.shared.clock.now() + ttl;
        self.shared.lock().running.insert(
            id,
            Running {
                ttl,
                deadline,
                over: false,
            },
        );
        self.shared.wake.notify_all();
        Ok(())
    }

    /// Starts a lease's time again.
    pub(crate) fn keep_alive(&self, id: LeaseId) -> Result<Lease, StoreError> {
        let now = self.shared.clock.now();
        match self.shared.lock().running.get_mut(&id) {
            Some(running) if !running.over && now < running.deadline => {
                running.deadline = now + running.ttl;
                Ok(Lease {
                    id,
                    ttl: running.ttl,
                })
            }
            _ => Err(StoreError::LeaseLost { id }),
        }
    }

    /// Stops a lease's time, for the caller to end it.
    pub(crate) fn take(&self, id: LeaseId) -> Result<Taken<'_>, StoreError> {
        match self.shared.lock().running.get_mut(&id) {
            Some(running) if !running.over => {
                *running = Running {
                    over: true,
                    deadline: Duration::MAX,
                    ..*running
                };
                Ok(Taken {
                    leases: self,
                    id,
                    ended: false,
                })
            }
            _ => Err(StoreError::LeaseLost { id }),
        }
    }
}

/// A lease being ended by hand. Dropped before that is done (an error, a caller
/// that went away), the thread does it.
pub(crate) struct Taken<'a> {
    leases: &'a Leases,
    id: LeaseId,
    ended: bool,
}

impl Taken<'_> {
    /// Its records are gone.
    pub(crate) fn ended(mut self) {
        self.ended = true;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let shared = &self.leases.shared;
        let mut table = shared.lock();
        if self.ended {
            table.running.remove(&self.id);
        } else if let Some(running) = table.running.get_mut(&self.id) {
            running.deadline = shared.clock.now();
            drop(table);
            shared.wake.notify_all();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, end: &End) {
        let mut table = self.lock();
        while !table.closed {
            let now = self.clock.now();
            let due = table
                .running
                .iter()
                .filter(|(_, running)| running.deadline <= now)
                .min_by_key(|(_, running)| running.deadline)
                .map(|(id, running)| (*id, *running));
            if let Some((id, running)) = due {
                table.running.insert(
                    id,
                    Running {
                        over: true,
                        ..running
                    },
                );
                drop(table);
                let ended = end(id);
                table = self.lock();
                if ended {
                    table.running.remove(&id);
                } else {
                    let deadline = self.clock.now() + RETRY;
                    table.running.insert(
                        id,
                        Running {
                            deadline,
                            over: true,
                            ..running
                        },
                    );
                }
                continue;
            }
            let next = table.running.values().map(|running| running.deadline).min();
            table = match next.and_then(|deadline| self.clock.sleep(deadline.saturating_sub(now))) {
                Some(left) => {
                    self.wake
                        .wait_timeout(table, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self
                    .wake
                    .wait(table)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread that ends leases panicked");
        }
    }
}
