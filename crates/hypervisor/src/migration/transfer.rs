//! The caller's handle on memory that is being sent, and how it ended.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::cancel::Cancel;

/// Memory on its way, as QEMU's `query-migrate` tells.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MemoryProgress {
    /// Bytes of the guest's memory.
    pub total: u64,
    /// Bytes still to be sent. Jumps up whenever a new round finds what the guest changed meanwhile: show the rounds too.
    pub remaining: u64,
    /// Bytes on the wire so far.
    pub transferred: u64,
    /// Rounds over the memory that have begun.
    pub rounds: u64,
    /// Pages per second that the guest changes, as of the last round.
    pub dirty_pages_per_second: u64,
    /// Bytes of a page.
    pub page_size: u64,
    /// Bytes per second on the wire.
    pub bytes_per_second: u64,
    /// How long the guest would stand still if it stopped now.
    pub expected_downtime: Option<Duration>,
    /// Percent of the processors' time taken from the guest so that it changes less (`auto-converge`).
    pub throttle_percent: Option<u8>,
    /// Since the beginning.
    pub elapsed: Duration,
}

impl MemoryProgress {
    /// Bytes per second that the guest changes.
    #[must_use]
    pub fn dirty_bytes_per_second(&self) -> u64 {
        self.dirty_pages_per_second.saturating_mul(self.page_size)
    }

    /// The guest changes memory at least as fast as it is sent: the sending will not end unless the guest is slowed down, the
    /// bandwidth or the limit of the downtime is raised. Known from the second round on.
    #[must_use]
    pub fn outrun(&self) -> bool {
        self.rounds > 1
            && self.dirty_pages_per_second > 0
            && self.dirty_bytes_per_second() >= self.bytes_per_second
    }
}

/// How a move ended at the source, as QEMU measured it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// From the stop of the guest to the hand-over, the caller's own time in between included. What the destination takes to
    /// run comes on top. `None` where QEMU did not tell.
    pub downtime: Option<Duration>,
    /// From the beginning of the sending.
    pub total: Duration,
    /// Of that, to set up.
    pub setup: Duration,
    /// Bytes on the wire.
    pub transferred: u64,
    /// Rounds over the memory.
    pub rounds: u64,
}

/// Reads the progress of a sending and cancels it.
#[derive(Debug)]
pub struct Transfer {
    progress: watch::Sender<MemoryProgress>,
    cancel: Cancel,
}

impl Default for Transfer {
    fn default() -> Self {
        Self::new()
    }
}

impl Transfer {
    /// A fresh handle.
    #[must_use]
    pub fn new() -> Self {
        Self {
            progress: watch::Sender::new(MemoryProgress::default()),
            cancel: Cancel::new(),
        }
    }

    /// Asks the sending to stop; it ends with [`crate::Error::Cancelled`], unless the guest stood still for the hand-over before.
    pub fn cancel(&self) {
        self.cancel.ask();
    }

    /// Whether it was asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_asked()
    }

    /// Waits until it is asked to stop.
    pub async fn cancelled(&self) {
        self.cancel.asked().await;
    }

    /// Progress so far.
    #[must_use]
    pub fn progress(&self) -> MemoryProgress {
        self.progress.borrow().clone()
    }

    /// Progress as it changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<MemoryProgress> {
        self.progress.subscribe()
    }

    /// Records progress; for implementations of [`super::Migrate`].
    pub fn report(&self, progress: MemoryProgress) {
        self.progress.send_if_modified(|known| {
            let changed = *known != progress;
            *known = progress;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_changes_more_than_is_sent_is_told_from_the_second_round_on() {
        let mut progress = MemoryProgress {
            page_size: 4096,
            dirty_pages_per_second: 1000,
            bytes_per_second: 1 << 20,
            rounds: 1,
            ..MemoryProgress::default()
        };
        assert!(!progress.outrun());
        progress.rounds = 2;
        assert!(progress.outrun());
        progress.bytes_per_second = 1 << 23;
        assert!(!progress.outrun());
    }
}
