//! Jobs over the life of the service: taken up when it starts, tended while it runs, parked when it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use crate::live::Live;
use crate::run::Course;
use crate::{Domain, Engine, Host as _, Job, JobState, Recovery, Task as _, guid};

/// The progress of running jobs becomes durable this often, at least.
const KEEP: Duration = Duration::from_secs(10);
impl<D: Domain> Engine<D> {
    /// The service ends: nothing new begins, jobs that the next start goes on with stop where they are, and what is under way otherwise has
    /// until `within`. What has not ended by then is taken up as after a `kill -9`.
    pub async fn park(host: &D::Host, within: Duration) {
        host.engine().ending.store(true, Ordering::Relaxed);
        let all: Vec<Arc<Live>> = host.engine().running().values().cloned().collect();
        for live in &all {
            live.park();
        }
        let ended = async {
            for live in &all {
                let mut ended = live.ended.subscribe();
                // The sender lives in `live`.
                let _ = ended.wait_for(|ended| *ended).await;
            }
        };
        if tokio::time::timeout(within, ended).await.is_err() {
            for live in host.engine().running().values() {
                tracing::warn!(job = %guid(live.id), "a job is still under way; the next start takes it up");
            }
        }
    }

    /// At the start of the service: goes on with jobs that can go on, undoes the others.
    pub fn recover(host: &Arc<D::Host>) {
        for job in host.db().all::<Job<D>>() {
            Self::pick_up(host, job.id);
        }
    }

    /// Goes on with a job that nothing runs, or undoes it.
    pub fn pick_up(host: &Arc<D::Host>, id: Uuid) {
        let job = host.db().get::<Job<D>>(id).ok();
        let Some(job) = job.filter(|j| !j.is_over() && !Self::is_driven(host, id)) else {
            return;
        };
        let course = if job.state.is_final() {
            Course::Left
        } else if job.stop.is_some() {
            Course::Stopped
        } else if job.task.traits().recovery == Recovery::Undo {
            Course::Interrupted
        } else {
            Course::Resume
        };
        tracing::info!(job = %guid(job.id), title = job.title, ?course, "picking up a job");
        Self::launch(host, &job, course);
    }

    /// What comes round: undos that failed are tried again, and progress becomes durable.
    pub async fn tend(host: &Arc<D::Host>) {
        if host.engine().ending.load(Ordering::Relaxed) {
            return;
        }
        let now = SystemTime::now();
        for job in Self::open(host) {
            match host.engine().live(job.id) {
                None if job.undo.is_some() && host.engine().may_try(job.id) => {
                    Self::pick_up(host, job.id)
                }
                Some(live) if job.state == JobState::Running && job.stale(now) => {
                    Self::note(host, job.id, |job| {
                        live.show(job);
                        job.seen = Some(now);
                    })
                    .await;
                }
                _ => {}
            }
        }
    }

    /// Whether something runs this job.
    pub fn is_driven(host: &D::Host, id: Uuid) -> bool {
        host.engine().live(id).is_some()
    }

    /// Lets jobs vanish from view whose time has passed.
    pub async fn retire(host: &D::Host, now: SystemTime) {
        for job in host.db().all::<Job<D>>() {
            if job.vanishes().is_some_and(|at| at <= now)
                && let Err(error) = host.db().retire::<D>(job.id).await
            {
                tracing::warn!(job = %guid(job.id), %error, "a job could not be moved to the history");
            }
        }
    }
}

impl<D: Domain> Job<D> {
    /// Whether it was seen last a while ago.
    fn stale(&self, now: SystemTime) -> bool {
        let seen = self.seen.unwrap_or(self.changed);
        now.duration_since(seen).is_ok_and(|since| since >= KEEP)
    }
}
