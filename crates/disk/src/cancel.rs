//! Stopping long work from another thread: run, suspend, cancel.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Running,
    Suspended,
    Cancelled,
}

/// A switch shared between the thread that works and those that may suspend or cancel it.
///
/// Clones are handles to the same switch. Cancelled is final.
#[derive(Clone, Debug)]
pub struct CancelFlag {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Default for CancelFlag {
    fn default() -> Self {
        Self::new()
    }
}

impl CancelFlag {
    /// A switch in the running position.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shared: Arc::new((Mutex::new(State::Running), Condvar::new())),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, next: State) {
        let mut state = self.state();
        if *state != State::Cancelled {
            *state = next;
        }
        drop(state);
        self.shared.1.notify_all();
    }

    /// Ends the work at its next check, also while it is suspended.
    pub fn cancel(&self) {
        self.set(State::Cancelled);
    }

    /// Makes the work wait at its next check.
    pub fn suspend(&self) {
        self.set(State::Suspended);
    }

    /// Lets suspended work go on.
    pub fn resume(&self) {
        self.set(State::Running);
    }

    /// True once cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *self.state() == State::Cancelled
    }

    /// True while suspended.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        *self.state() == State::Suspended
    }

    /// Called by the worker between steps: waits while suspended.
    ///
    /// # Errors
    /// [`Error::Cancelled`] once cancelled.
    pub fn check(&self) -> Result<()> {
        let mut state = self.state();
        while *state == State::Suspended {
            state = self
                .shared
                .1
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if *state == State::Cancelled {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_flag_stays_cancelled() {
        let flag = CancelFlag::new();
        assert!(flag.check().is_ok());
        flag.cancel();
        flag.resume();
        assert!(matches!(flag.check(), Err(Error::Cancelled)));
    }

    #[test]
    fn cancel_wakes_a_suspended_worker() {
        let flag = CancelFlag::new();
        flag.suspend();
        let worker = flag.clone();
        let handle = std::thread::spawn(move || worker.check());
        flag.cancel();
        assert!(matches!(handle.join().unwrap(), Err(Error::Cancelled)));
    }

    #[test]
    fn resume_lets_a_suspended_worker_go_on() {
        let flag = CancelFlag::new();
        flag.suspend();
        let worker = flag.clone();
        let handle = std::thread::spawn(move || worker.check());
        flag.resume();
        assert!(handle.join().unwrap().is_ok());
    }
}
