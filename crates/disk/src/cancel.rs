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
    /// How many threads are at work, and the bell for when none is.
    working: Arc<(Mutex<usize>, Condvar)>,
}

/// A thread is at work; until it is dropped.
#[derive(Debug)]
pub struct Working(CancelFlag);

impl Drop for Working {
    fn drop(&mut self) {
        *self.0.workers() -= 1;
        self.0.working.1.notify_all();
    }
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
            working: Arc::default(),
        }
    }

    fn workers(&self) -> MutexGuard<'_, usize> {
        self.working
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a thread is at work which heeds this switch, so that others can wait for its end.
    #[must_use]
    pub fn work(&self) -> Working {
        *self.workers() += 1;
        Working(self.clone())
    }

    /// Waits until no thread is at work.
    pub fn wait_until_idle(&self) {
        let mut workers = self.workers();
        while *workers > 0 {
            workers = self
                .working
                .1
                .wait(workers)
                .unwrap_or_else(PoisonError::into_inner);
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
    fn the_end_of_all_work_can_be_waited_for() {
        let flag = CancelFlag::new();
        flag.wait_until_idle();
        let (one, two) = (flag.work(), flag.clone().work());
        let waiting = flag.clone();
        let handle = std::thread::spawn(move || waiting.wait_until_idle());
        drop(one);
        assert!(!handle.is_finished());
        drop(two);
        handle.join().unwrap();
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
