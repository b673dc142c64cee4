//! A running job in memory: its progress and the switches by which clients stop it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use disk::CancelFlag;
use tokio::sync::watch;
use uuid::Uuid;

use crate::{Domain, Job, JobState, Recovery, Stop, Task as _};

/// What a client wants of a running job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Run,
    Suspend,
    Stop(Stop),
    /// The service ends: stop where you are, nothing is undone.
    Park,
}

/// The part of a job that changes too often to be stored.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) id: Uuid,
    pub(crate) flag: CancelFlag,
    /// Whether a restart goes on with it.
    resumable: bool,
    pub(crate) wish: watch::Sender<Wish>,
    /// Ticks when the job has reached its final state.
    pub(crate) ended: watch::Sender<bool>,
    done: AtomicU64,
    total: AtomicU64,
    /// For a job that goes on after a restart: the percent that were handed on to be stored. Only what is stored is shown, so that
    /// it never goes back.
    noted: Option<AtomicU8>,
}

impl Live {
    pub(crate) fn new<D: Domain>(job: &Job<D>) -> Self {
        let traits = job.task.traits();
        Live {
            id: job.id,
            flag: CancelFlag::new(),
            resumable: traits.recovery == Recovery::Resume,
            wish: watch::Sender::new(Wish::Run),
            ended: watch::Sender::new(false),
            done: AtomicU64::new(job.done),
            total: AtomicU64::new(job.total),
            noted: traits.suspendable.then(|| AtomicU8::new(job.percent)),
        }
    }

    /// Takes what is done; returns the percent that are to be stored, when they grew.
    pub(crate) fn progress(&self, done: u64, total: u64) -> Option<u8> {
        self.total.fetch_max(total, Ordering::Relaxed);
        let done = self.done.fetch_max(done, Ordering::Relaxed).max(done);
        let noted = self.noted.as_ref()?;
        let percent = percent(done, self.total.load(Ordering::Relaxed));
        (noted.fetch_max(percent, Ordering::Relaxed) < percent).then_some(percent)
    }

    /// Puts the progress into a copy of the record. Below 100 until the job has ended.
    pub(crate) fn show<D: Domain>(&self, job: &mut Job<D>) {
        job.total = self.total.load(Ordering::Relaxed).max(job.total);
        job.done = self
            .done
            .load(Ordering::Relaxed)
            .max(job.done)
            .min(job.total);
        if !job.state.is_final() && self.noted.is_none() {
            job.percent = job.percent.max(percent(job.done, job.total));
        }
    }

    /// How it was asked to end.
    pub(crate) fn stop(&self) -> Option<Stop> {
        match *self.wish.borrow() {
            Wish::Stop(stop) => Some(stop),
            Wish::Run | Wish::Suspend | Wish::Park => None,
        }
    }

    /// Takes over what the record says clients want. The caller has just read it.
    pub(crate) fn follow<D: Domain>(&self, job: &Job<D>) {
        self.wish(match (job.stop, job.state) {
            (Some(stop), _) => Wish::Stop(stop),
            (None, JobState::Suspended) => Wish::Suspend,
            (None, _) => Wish::Run,
        });
    }

    /// The service ends. A job that goes on at the next start stops where it is; whatever else is under way may use the time there is.
    pub(crate) fn park(&self) {
        if self.resumable {
            self.wish(Wish::Park);
        }
    }

    pub(crate) fn is_parked(&self) -> bool {
        *self.wish.borrow() == Wish::Park
    }

    fn wish(&self, wish: Wish) {
        // The wish first: a task that the flag stops may end at once, and why must be known by then.
        let taken = self.wish.send_if_modified(|now| {
            let settled = matches!((*now, wish), (Wish::Park, _) | (Wish::Stop(_), Wish::Park));
            let changes = !settled && *now != wish;
            if changes {
                *now = wish;
            }
            changes
        });
        if !taken {
            return;
        }
        match wish {
            Wish::Run => self.flag.resume(),
            Wish::Suspend => self.flag.suspend(),
            Wish::Stop(_) | Wish::Park => self.flag.cancel(),
        }
    }
}

/// Below 100, which is for what has ended.
fn percent(done: u64, total: u64) -> u8 {
    let share = u128::from(done.min(total)) * 100 / u128::from(total.max(1));
    u8::try_from(share.min(99)).unwrap_or(99)
}
