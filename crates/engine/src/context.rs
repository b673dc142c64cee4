//! What a task sees of the job it runs in.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::live::{Live, Wish};
use crate::{Domain, Failure as _, Host as _, Job, JobState, Stop, Trouble};

/// The job a task runs in: its switches, its progress, and the record that survives.
pub struct JobContext<D: Domain> {
    pub(crate) host: Arc<D::Host>,
    pub(crate) live: Arc<Live>,
    /// Of the runtime that the job's tasks run in: progress is told from threads of its own.
    pub(crate) handle: tokio::runtime::Handle,
    /// Whether the work is a part of a larger whole.
    pub(crate) part: bool,
}

impl<D: Domain> Clone for JobContext<D> {
    fn clone(&self) -> Self {
        JobContext {
            host: Arc::clone(&self.host),
            live: Arc::clone(&self.live),
            handle: self.handle.clone(),
            part: self.part,
        }
    }
}

impl<D: Domain> JobContext<D> {
    /// The job's identifier.
    pub fn job(&self) -> Uuid {
        self.live.id
    }

    /// The same job for a part of its work that is a job elsewhere: what is the last step there is none here, and the
    /// whole can still be stopped.
    pub fn part(&self) -> Self {
        JobContext {
            part: true,
            ..self.clone()
        }
    }

    /// Between two steps: waits while the job is suspended; fails once it was asked to end.
    pub async fn checkpoint(&self) -> Result<(), D::Fault> {
        let mut wish = self.live.wish.subscribe();
        let wanted = wish.wait_for(|w| *w != Wish::Suspend).await.map(|w| *w);
        match wanted {
            Ok(Wish::Stop(_) | Wish::Park) => Err(self.stopped()),
            _ => Ok(()),
        }
    }

    /// Waits until the job is asked to end; for use beside long waits.
    pub async fn stop_asked(&self) -> D::Fault {
        let mut wish = self.live.wish.subscribe();
        // The sender lives as long as `self`.
        let _ = wish
            .wait_for(|w| matches!(w, Wish::Stop(_) | Wish::Park))
            .await;
        self.stopped()
    }

    fn stopped(&self) -> D::Fault {
        let job = self.host.db().get::<Job<D>>(self.live.id);
        job.map_or_else(|missing| missing, |job| job.stopped())
    }

    /// The switch for work on blocking threads; the engine suspends, resumes and cancels it.
    pub fn cancel_flag(&self) -> disk::CancelFlag {
        self.live.flag.clone()
    }

    /// Tells how much is done. Cheap; never goes backwards, for a job that goes on after a restart not even then.
    pub fn progress(&self, done: u64, total: u64) {
        let Some(percent) = self.live.progress(done, total) else {
            return;
        };
        let ctx = self.clone();
        self.handle.spawn(async move {
            let noted = ctx.change(|job| {
                if !job.state.is_final() {
                    job.percent = job.percent.max(percent);
                    ctx.live.show(job);
                }
            });
            if let Err(error) = noted.await {
                tracing::warn!(%error, "the progress of a job could not be stored");
            }
        });
    }

    /// What the task noted before, if it fits `T`.
    pub fn notes<T: DeserializeOwned>(&self) -> Option<T> {
        let job = self.host.db().get::<Job<D>>(self.live.id).ok()?;
        serde_json::from_value(job.notes.clone()).ok()
    }

    /// Replaces the notes, durably.
    pub async fn note(&self, notes: &impl Serialize) -> Result<(), D::Fault> {
        let notes = serde_json::to_value(notes)
            .map_err(|e| D::Fault::of(Trouble::Internal(&e.to_string())))?;
        self.change(|job| job.notes = notes).await
    }

    /// Adds an element the job affects; one that is there takes the new effect.
    pub async fn affect(&self, element: D::Element, effect: D::Effect) -> Result<(), D::Fault> {
        self.change(|job| {
            job.affected.retain(|(e, _)| *e != element);
            job.affected.push((element, effect));
        })
        .await
    }

    /// Changes what the job produced, durably.
    pub async fn output(&self, change: impl FnOnce(&mut D::Output) + Send) -> Result<(), D::Fault> {
        self.change(|job| change(&mut job.output)).await
    }

    /// Adds a warning: it does not fail the job, GetErrorEx shows it.
    pub async fn warn(&self, warning: D::Fault) -> Result<(), D::Fault> {
        self.change(|job| job.faults.push(warning)).await
    }

    /// As [`JobContext::warn`], unless the job has this warning already.
    pub async fn warn_once(&self, warning: D::Fault) -> Result<(), D::Fault> {
        self.change(|job| {
            if !job.faults.contains(&warning) {
                job.faults.push(warning);
            }
        })
        .await
    }

    /// From now on the job only goes forward: clients cannot stop it. Fails when one already did: whoever is on record first has
    /// won. In a part of a larger job it only looks whether the whole was stopped.
    pub async fn no_return(&self) -> Result<(), D::Fault> {
        loop {
            self.checkpoint().await?;
            if self.part {
                return Ok(());
            }
            let passed = self
                .change_if(|job| {
                    if job.stop.is_some() {
                        return Err(job.stopped());
                    }
                    // Suspended a moment ago: it waits there, where it can still be stopped.
                    if job.state == JobState::Suspended {
                        return Ok(false);
                    }
                    job.cancellable = false;
                    job.suspendable = false;
                    Ok(true)
                })
                .await?;
            if passed {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    }

    async fn change(&self, change: impl FnOnce(&mut Job<D>) + Send) -> Result<(), D::Fault> {
        self.change_if(|job| {
            change(job);
            Ok(())
        })
        .await
    }

    /// With each change the progress becomes durable, too: after a restart it does not go back behind what was noted.
    async fn change_if<R>(
        &self,
        change: impl FnOnce(&mut Job<D>) -> Result<R, D::Fault> + Send,
    ) -> Result<R, D::Fault> {
        self.host
            .db()
            .change(|draft| {
                let job = draft.get_mut::<Job<D>>(self.live.id)?;
                self.live.show(job);
                job.seen = Some(std::time::SystemTime::now());
                change(job)
            })
            .await
    }
}

impl<D: Domain> Job<D> {
    /// Why its work ends before its time.
    pub(crate) fn stopped(&self) -> D::Fault {
        let (word, by) = match self.stop {
            Some(Stop::Terminate) => ("terminated", self.stopped_by.as_deref()),
            Some(Stop::Kill) => ("killed", self.stopped_by.as_deref()),
            None => ("interrupted", None),
        };
        let by = by.filter(|by| !by.is_empty()).unwrap_or("the service");
        D::Fault::of(Trouble::Stopped(self.id, word, by))
    }
}
