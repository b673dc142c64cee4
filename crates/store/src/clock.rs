//! The clock that leases run on, so that tests can turn it by hand.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where an engine reads the time of its leases from.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    System(Instant),
    Manual(ManualClock),
}

impl Clock {
    /// The machine's monotonic clock.
    pub fn system() -> Self {
        Clock(Kind::System(Instant::now()))
    }

    /// Time since some fixed moment.
    pub(crate) fn now(&self) -> Duration {
        match &self.0 {
            Kind::System(origin) => origin.elapsed(),
            Kind::Manual(clock) => clock.lock().now,
        }
    }

    /// How long to sleep for `left` to pass: for ever on a clock turned by hand,
    /// which wakes its sleepers itself.
    pub(crate) fn sleep(&self, left: Duration) -> Option<Duration> {
        match &self.0 {
            Kind::System(_) => Some(left),
            Kind::Manual(_) => None,
        }
    }

    /// Calls `wake` whenever the clock is turned by hand, until it returns false.
    pub(crate) fn on_turn(&self, wake: impl Fn() -> bool + Send + 'static) {
        if let Kind::Manual(clock) = &self.0 {
            clock.lock().sleepers.push(Box::new(wake));
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::system()
    }
}

type Sleeper = Box<dyn Fn() -> bool + Send>;

#[derive(Default)]
struct Hands {
    now: Duration,
    sleepers: Vec<Sleeper>,
}

/// A clock that only moves when told to. For tests.
#[derive(Clone, Default)]
pub struct ManualClock(Arc<Mutex<Hands>>);

impl ManualClock {
    /// A clock that stands still.
    pub fn new() -> Self {
        ManualClock::default()
    }

    /// The same clock as an engine takes it.
    pub fn clock(&self) -> Clock {
        Clock(Kind::Manual(self.clone()))
    }

    /// Moves the time on. Leases whose end it passes are ended by the engine's
    /// own thread: wait for the events, not for this call.
    pub fn advance(&self, by: Duration) {
        // Sleepers take their own lock and read the time, so ours must be free.
        let mut sleepers = {
            let mut hands = self.lock();
            hands.now += by;
            std::mem::take(&mut hands.sleepers)
        };
        sleepers.retain(|wake| wake());
        self.lock().sleepers.append(&mut sleepers);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Hands> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ManualClock")
            .field(&self.lock().now)
            .finish()
    }
}
