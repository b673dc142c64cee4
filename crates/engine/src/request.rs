//! What clients ask of jobs: to wait, to go on, to end.

use std::time::SystemTime;

use uuid::Uuid;

use crate::{Domain, Engine, Failure as _, Host as _, Job, JobState, Stop, Trouble};

/// What a client asks of a job (RequestStateChange).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobRequest {
    /// Go on after Suspend.
    Start,
    /// Wait at the next safe place.
    Suspend,
    /// End and undo.
    Terminate,
    /// End at once.
    Kill,
}

impl JobRequest {
    /// What the job is then, in words.
    fn word(self) -> &'static str {
        match self {
            JobRequest::Start => "started",
            JobRequest::Suspend => "suspended",
            JobRequest::Terminate => "terminated",
            JobRequest::Kill => "killed",
        }
    }
}

impl<D: Domain> Engine<D> {
    /// Asks a job to suspend, go on or end. Returns once the wish is durable and the job knows it.
    ///
    /// # Errors
    /// Refused: anything of a job in its final state, `Kill` and `Terminate` past its last cancellable step, and everything but `Kill`
    /// of a job that was told to end.
    pub async fn request(
        host: &D::Host,
        id: Uuid,
        request: JobRequest,
        by: &str,
    ) -> Result<(), D::Fault> {
        let change = host.db().change(|draft| {
            let job = draft.get_mut::<Job<D>>(id)?;
            job.request(request, by, SystemTime::now())
                .map_err(D::Fault::of)
        });
        change.await?;
        if let Some(live) = host.engine().live(id) {
            Self::follow(host, &live);
        }
        Ok(())
    }
}

impl<D: Domain> Job<D> {
    fn request(
        &mut self,
        request: JobRequest,
        by: &str,
        now: SystemTime,
    ) -> Result<(), Trouble<'static>> {
        let word = request.word();
        if self.state.is_final() {
            return Err(Trouble::Final(self.id, self.state));
        }
        if self.stop.is_some() && request != JobRequest::Kill {
            return Err(Trouble::Leaving(self.id, word));
        }
        match request {
            JobRequest::Start | JobRequest::Suspend if !self.suspendable => {
                return Err(Trouble::Transition(self.id, word));
            }
            JobRequest::Start => {
                self.state = JobState::Running;
                self.go_on(now);
            }
            JobRequest::Suspend => {
                self.state = JobState::Suspended;
                self.stand_still(now);
            }
            JobRequest::Terminate | JobRequest::Kill if !self.cancellable => {
                return Err(Trouble::NotCancellable(self.id));
            }
            JobRequest::Terminate => self.end(Stop::Terminate, by, now),
            JobRequest::Kill => self.end(Stop::Kill, by, now),
        }
        self.changed = now;
        Ok(())
    }

    fn end(&mut self, stop: Stop, by: &str, now: SystemTime) {
        // Whoever asked first for the same is named.
        if self.stop != Some(stop) {
            self.stop = Some(stop);
            self.stopped_by = Some(by.to_owned());
        }
        self.state = JobState::ShuttingDown;
        self.go_on(now);
    }
}
