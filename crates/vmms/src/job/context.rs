//! What a task sees of the job it runs in.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::live::{Live, Wish};
use super::{Job, JobState, Output, Stop};
use crate::{Effect, Element, Fault, Result, Vmms, fault};

/// The job a task runs in: its switches, its progress, and the record that survives.
#[derive(Clone)]
pub struct JobContext {
    pub(super) vmms: Arc<Vmms>,
    pub(super) live: Arc<Live>,
    /// Of the runtime that the job's tasks run in: progress is told from threads of its own.
    pub(super) handle: tokio::runtime::Handle,
    /// Whether the work is a part of a larger whole.
    pub(super) part: bool,
}

impl JobContext {
    /// The job's identifier.
    pub fn job(&self) -> Uuid {
        self.live.id
    }

    /// The same job for a part of its work that is a job elsewhere: what is the last step there is none here, and the
    /// whole can still be stopped.
    pub(crate) fn part(&self) -> Self {
        JobContext {
            part: true,
            ..self.clone()
        }
    }

    /// Between two steps: waits while the job is suspended; fails once it was asked to end.
    pub async fn checkpoint(&self) -> Result<()> {
        let mut wish = self.live.wish.subscribe();
        let wanted = wish.wait_for(|w| *w != Wish::Suspend).await.map(|w| *w);
        match wanted {
            Ok(Wish::Stop(_) | Wish::Park) => Err(self.stopped()),
            _ => Ok(()),
        }
    }

    /// Waits until the job is asked to end; for use beside long waits.
    pub async fn stop_asked(&self) -> Fault {
        let mut wish = self.live.wish.subscribe();
        // The sender lives as long as `self`.
        let _ = wish
            .wait_for(|w| matches!(w, Wish::Stop(_) | Wish::Park))
            .await;
        self.stopped()
    }

    fn stopped(&self) -> Fault {
        let job = self.vmms.db.get::<Job>(self.live.id);
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
        let job = self.vmms.db.get::<Job>(self.live.id).ok()?;
        serde_json::from_value(job.notes.clone()).ok()
    }

    /// Replaces the notes, durably.
    pub async fn note(&self, notes: &impl Serialize) -> Result<()> {
        let notes = serde_json::to_value(notes).map_err(|e| fault!(Internal, e))?;
        self.change(|job| job.notes = notes).await
    }

    /// Adds an element the job affects; one that is there takes the new effect.
    pub async fn affect(&self, element: Element, effect: Effect) -> Result<()> {
        self.change(|job| {
            job.affected.retain(|(e, _)| *e != element);
            job.affected.push((element, effect));
        })
        .await
    }

    /// Changes what the job produced, durably.
    pub async fn output(&self, change: impl FnOnce(&mut Output) + Send) -> Result<()> {
        self.change(|job| change(&mut job.output)).await
    }

    /// Adds a warning: it does not fail the job, GetErrorEx shows it.
    pub async fn warn(&self, warning: Fault) -> Result<()> {
        self.change(|job| job.faults.push(warning)).await
    }

    /// As [`JobContext::warn`], unless the job has this warning already.
    pub async fn warn_once(&self, warning: Fault) -> Result<()> {
        self.change(|job| {
            if !job.faults.contains(&warning) {
                job.faults.push(warning);
            }
        })
        .await
    }

    /// From now on the job only goes forward: clients cannot stop it. Fails when one already did: whoever is on record first has
    /// won. In a part of a larger job it only looks whether the whole was stopped.
    pub async fn no_return(&self) -> Result<()> {
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

    async fn change(&self, change: impl FnOnce(&mut Job) + Send) -> Result<()> {
        self.change_if(|job| {
            change(job);
            Ok(())
        })
        .await
    }

    /// With each change the progress becomes durable, too: after a restart it does not go back behind what was noted.
    async fn change_if<R>(&self, change: impl FnOnce(&mut Job) -> Result<R> + Send) -> Result<R> {
        self.vmms
            .db
            .change(|draft| {
                let job = draft.get_mut::<Job>(self.live.id)?;
                self.live.show(job);
                job.seen = Some(std::time::SystemTime::now());
                change(job)
            })
            .await
    }
}

impl Job {
    /// Why its work ends before its time.
    pub(super) fn stopped(&self) -> Fault {
        let (word, by) = match self.stop {
            Some(Stop::Terminate) => ("terminated", self.stopped_by.as_deref()),
            Some(Stop::Kill) => ("killed", self.stopped_by.as_deref()),
            None => ("interrupted", None),
        };
        let by = by.filter(|by| !by.is_empty()).unwrap_or("the service");
        fault!(Cancelled, word, by).about(Element::Job(self.id))
    }
}
