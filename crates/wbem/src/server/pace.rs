//! How long a connection may take for what it is doing: a head has to come within seconds, one that is known may be idle for minutes,
//! a request that is being answered takes the time it takes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// What a connection is doing, with the moment it has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing: the next byte begins a head, an answer may still be on its way out.
    Idle { until: Instant, limit: Duration },
    /// A head is coming.
    Head { until: Instant },
    /// A request is being answered; other limits hold.
    Busy,
}

/// The pace of one connection.
pub(super) struct Pace {
    head: Duration,
    idle: Duration,
    phase: Mutex<Phase>,
    changed: Notify,
}

impl Pace {
    /// A connection just made: its first head is due.
    pub(super) fn new(head: Duration, idle: Duration) -> Self {
        Pace {
            head,
            idle,
            phase: Mutex::new(Phase::Head {
                until: Instant::now() + head,
            }),
            changed: Notify::new(),
        }
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        // No code that can panic runs under this lock.
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, phase: Phase) {
        *self.phase() = phase;
        self.changed.notify_one();
    }

    /// Bytes came.
    pub(super) fn came(&self) {
        let mut phase = self.phase();
        if let Phase::Idle { .. } = *phase {
            *phase = Phase::Head {
                until: Instant::now() + self.head,
            };
            drop(phase);
            self.changed.notify_one();
        }
    }

    /// Bytes of an answer went.
    pub(super) fn went(&self) {
        // Later only, so nobody has to wake.
        if let Phase::Idle { until, limit } = &mut *self.phase() {
            *until = Instant::now() + *limit;
        }
    }

    /// A head is there.
    pub(super) fn begun(&self) {
        self.set(Phase::Busy);
    }

    /// A request is answered. Whoever is not known has no more time for the next than for the first.
    pub(super) fn answered(&self, known: bool) {
        let limit = if known { self.idle } else { self.head };
        self.set(Phase::Idle {
            until: Instant::now() + limit,
            limit,
        });
    }

    /// Ends when the connection is too slow.
    pub(super) async fn too_slow(&self) {
        loop {
            let until = match *self.phase() {
                Phase::Busy => None,
                Phase::Idle { until, .. } | Phase::Head { until } => Some(until),
            };
            match until {
                None => self.changed.notified().await,
                Some(until) if until <= Instant::now() => return,
                Some(until) => tokio::select! {
                    () = tokio::time::sleep_until(until) => {}
                    () = self.changed.notified() => {}
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(120);

    async fn ends_within(pace: &Pace, limit: Duration) -> bool {
        tokio::time::timeout(limit + Duration::from_secs(1), pace.too_slow())
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_ends_after_the_time_for_a_head() {
        let pace = Pace::new(HEAD, IDLE);
        assert!(!ends_within(&pace, HEAD / 2).await);
        pace.came();
        assert!(ends_within(&pace, HEAD / 2).await, "bytes buy no time");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_known_may_be_idle_and_then_has_the_time_for_a_head() {
        let pace = Pace::new(HEAD, IDLE);
        pace.begun();
        assert!(!ends_within(&pace, IDLE * 10).await, "being answered");
        pace.answered(true);
        assert!(!ends_within(&pace, IDLE / 2).await);
        pace.went();
        assert!(!ends_within(&pace, IDLE / 2).await, "the answer still goes");
        pace.came();
        assert!(ends_within(&pace, HEAD).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_known_may_not_be_idle_for_long() {
        let pace = Pace::new(HEAD, IDLE);
        pace.begun();
        pace.answered(false);
        assert!(ends_within(&pace, HEAD).await);
    }
}
