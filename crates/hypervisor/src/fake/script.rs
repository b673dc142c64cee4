//! What a fake was told to do wrong, and what it was asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::error::{Error, Result};

/// A clock that only moves when told to.
#[derive(Debug, Clone)]
pub struct FakeClock {
    now: Arc<Mutex<SystemTime>>,
}

impl Default for FakeClock {
    fn default() -> Self {
        // Some fixed day, so that tests can compare.
        Self {
            now: Arc::new(Mutex::new(
                SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            )),
        }
    }
}

impl FakeClock {
    /// What time it is.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        *locked(&self.now)
    }

    /// Moves on.
    pub fn advance(&self, by: Duration) {
        *locked(&self.now) += by;
    }
}

/// What happens to one call instead of the usual.
pub enum Fault {
    /// It fails before doing anything.
    Fail(Box<dyn Fn() -> Error + Send + Sync>),
    /// It does its work, then its answer is lost: the caller sees this error.
    FailAfter(Box<dyn Fn() -> Error + Send + Sync>),
    /// It hangs before doing anything until [`Script::release_hangs`].
    Hang,
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fail(_) => "Fail",
            Self::FailAfter(_) => "FailAfter",
            Self::Hang => "Hang",
        })
    }
}

impl Fault {
    /// QEMU refuses with that text.
    #[must_use]
    pub fn refuse(desc: &str) -> Self {
        let desc = desc.to_owned();
        Self::Fail(Box::new(move || refusal(&desc)))
    }

    /// The call works but its answer never arrives.
    #[must_use]
    pub fn lose_answer(after: Duration) -> Self {
        Self::FailAfter(Box::new(move || Error::Timeout {
            command: "scripted".into(),
            after,
        }))
    }
}

fn refusal(desc: &str) -> Error {
    Error::Qmp {
        command: "scripted".into(),
        class: "GenericError".into(),
        desc: desc.to_owned(),
    }
}

/// Faults and the record of calls, shared by a fake hypervisor and its machines. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Script {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    generation: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<String>,
    counts: HashMap<String, usize>,
    faults: HashMap<(String, usize), Fault>,
}

impl Default for Script {
    fn default() -> Self {
        Self::new()
    }
}

impl Script {
    /// Nothing goes wrong.
    #[must_use]
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                state: Mutex::default(),
                generation: watch::Sender::new(0),
            }),
        }
    }

    /// Makes the `nth` call (from 1) of that method, counted from the beginning, go wrong.
    pub fn on(&self, method: &str, nth: usize, fault: Fault) {
        self.state().faults.insert((method.to_owned(), nth), fault);
    }

    /// Makes the next call of that method go wrong.
    pub fn on_next(&self, method: &str, fault: Fault) {
        let mut state = self.state();
        let nth = state.counts.get(method).copied().unwrap_or(0) + 1;
        state.faults.insert((method.to_owned(), nth), fault);
    }

    /// Lets all hanging calls go on.
    pub fn release_hangs(&self) {
        self.inner
            .generation
            .send_modify(|generation| *generation += 1);
    }

    /// Calls so far: `method` or `method detail`, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// How often that method was called.
    #[must_use]
    pub fn count(&self, method: &str) -> usize {
        self.state().counts.get(method).copied().unwrap_or(0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.inner.state)
    }

    /// Records a call. The answer is the error to be returned after the work, if any.
    pub(super) async fn enter(&self, method: &str, detail: &str) -> Result<After> {
        let mut released = self.inner.generation.subscribe();
        let fault = {
            let mut state = self.state();
            let text = if detail.is_empty() {
                method.to_owned()
            } else {
                format!("{method} {detail}")
            };
            state.calls.push(text);
            let count = state.counts.entry(method.to_owned()).or_default();
            *count += 1;
            let nth = *count;
            state.faults.remove(&(method.to_owned(), nth))
        };
        match fault {
            None => Ok(After(None)),
            Some(Fault::Fail(error)) => Err(error()),
            Some(Fault::FailAfter(error)) => Ok(After(Some(error()))),
            Some(Fault::Hang) => {
                // The sender lives in the script itself, so only a release ends this.
                let _ = released.changed().await;
                Ok(After(None))
            }
        }
    }
}

/// The fault to be shown once the work is done.
#[must_use]
pub(super) struct After(Option<Error>);

impl After {
    pub(super) fn answer<T>(self, value: T) -> Result<T> {
        self.0.map_or(Ok(value), Err)
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in another test thread leaves usable data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
