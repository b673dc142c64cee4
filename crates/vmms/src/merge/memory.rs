//! What is kept of points in memory only: who merges which machine's layers, maps just read, and when to try again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use disk::ChangeMap;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, watch};
use uuid::Uuid;

use crate::Vmms;

/// See the module.
#[derive(Default)]
pub(crate) struct Memory {
    merges: Mutex<HashMap<Uuid, Arc<Merging>>>,
    maps: Mutex<HashMap<(Uuid, Uuid), ReadMap>>,
    tries: Mutex<HashMap<Uuid, Try>>,
}

/// The right to copy between the layers of one machine.
///
/// It is taken under the machine's lock and kept after the lock was given back. Whoever needs the layers to
/// stand still takes the lock, asks the copy to stop, and waits for the right; the copier gives the right back before it asks for the
/// lock, so that the two cannot wait for each other.
pub(crate) struct Merging {
    /// How many need the layers to stand still.
    stop: watch::Sender<usize>,
    right: Arc<AsyncMutex<()>>,
}

impl Default for Merging {
    fn default() -> Self {
        Merging {
            stop: watch::Sender::new(0),
            right: Arc::default(),
        }
    }
}

impl Merging {
    /// Waits for the right to copy. The caller holds the machine's lock and has asked the copier to stop.
    async fn right(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.right).lock_owned().await
    }

    async fn pause(self: Arc<Self>) -> PausedMerges {
        let asked = Asked::of(&self);
        PausedMerges {
            _right: self.right().await,
            _asked: asked,
        }
    }

    /// The right to copy, if nobody has it. The caller holds the machine's lock.
    pub(crate) fn try_right(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.right).try_lock_owned().ok()
    }

    /// Waits until nobody has the right. The caller does not hold the machine's lock.
    pub(crate) async fn until_free(&self) {
        drop(self.right.lock().await);
    }

    /// Waits until the copy must stop.
    pub(crate) async fn asked_to_stop(&self) {
        let mut stop = self.stop.subscribe();
        // The sender lives in `self`.
        let _ = stop.wait_for(|needed| *needed > 0).await;
    }
}

/// As long as this lives, nobody copies between the layers of the machine.
pub(crate) struct PausedMerges {
    // In this order: the right is free before others may take it again.
    _right: OwnedMutexGuard<()>,
    _asked: Asked,
}

/// As long as this lives, a copy is asked to stop. Also where whoever asked goes away before the copy has stopped.
struct Asked(Arc<Merging>);

impl Asked {
    fn of(merging: &Arc<Merging>) -> Self {
        merging.stop.send_modify(|needed| *needed += 1);
        Asked(Arc::clone(merging))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0
            .stop
            .send_modify(|needed| *needed = needed.saturating_sub(1));
    }
}

/// Makes background merging of a machine's layers stop and keeps it stopped. The caller holds the machine's lock;
/// what the merge left half done is announced in the tree: [`crate::merge::reconcile`] next.
pub(crate) async fn pause_merges(vmms: &Vmms, vm: Uuid) -> PausedMerges {
    vmms.points.merging(vm).pause().await
}

/// The live map of an active layer, read a moment ago.
#[derive(Clone)]
pub(crate) struct ReadMap {
    /// Which layer.
    pub(crate) active: Uuid,
    /// When.
    pub(crate) at: Instant,
    /// What differs from the limit, and the size of the disk.
    pub(crate) map: Arc<ChangeMap>,
    /// Size of the disk in bytes.
    pub(crate) size: u64,
}

struct Try {
    failures: u32,
    not_before: Instant,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    pub(crate) fn merging(&self, vm: Uuid) -> Arc<Merging> {
        Arc::clone(locked(&self.merges).entry(vm).or_default())
    }

    pub(crate) fn keep_map(&self, disk: Uuid, limit: Uuid, map: ReadMap) {
        let mut maps = locked(&self.maps);
        maps.retain(|_, m| m.at.elapsed() < crate::point::changes::KEEP);
        maps.insert((disk, limit), map);
    }

    pub(crate) fn kept_map(&self, disk: Uuid, limit: Uuid) -> Option<ReadMap> {
        let maps = locked(&self.maps);
        let found = maps.get(&(disk, limit)).cloned();
        found.filter(|m| m.at.elapsed() < crate::point::changes::KEEP)
    }

    /// Whether background work on a machine may be tried now.
    pub(crate) fn may_try(&self, vm: Uuid) -> bool {
        locked(&self.tries)
            .get(&vm)
            .is_none_or(|t| t.not_before <= Instant::now())
    }

    /// Background work on a machine failed: it is left alone for a while, longer each time, an hour at most.
    pub(crate) fn failed(&self, vm: Uuid) {
        let mut tries = locked(&self.tries);
        let entry = tries.entry(vm).or_insert(Try {
            failures: 0,
            not_before: Instant::now(),
        });
        entry.failures = entry.failures.saturating_add(1);
        let seconds = 15_u64 << entry.failures.min(8);
        entry.not_before = Instant::now() + std::time::Duration::from_secs(seconds.min(3600));
    }

    /// Background work on a machine succeeded.
    pub(crate) fn succeeded(&self, vm: Uuid) {
        locked(&self.tries).remove(&vm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_goes_away_while_a_copy_stops_leaves_merging_able_to_go_on() {
        let merging = Arc::new(Merging::default());
        let copying = merging.try_right().expect("nobody copies");
        let waits = tokio::time::timeout(
            std::time::Duration::from_millis(20),
            Arc::clone(&merging).pause(),
        );
        assert!(waits.await.is_err(), "the copy has not stopped");
        assert_eq!(*merging.stop.borrow(), 0, "nobody needs it to stop");
        drop(copying);
        let paused = Arc::clone(&merging).pause().await;
        assert_eq!(*merging.stop.borrow(), 1);
        drop(paused);
        assert_eq!(*merging.stop.borrow(), 0);
        assert!(merging.try_right().is_some());
    }
}
