//! The service as the host of its jobs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::{Engine, Host, Policy, Subject, Trouble};
use uuid::Uuid;

use super::{Job, JobRequest, Kind, Machines, Submission, Task};
use crate::db::Db;
use crate::machine::Vm;
use crate::point::Point;
use crate::{Element, Fault, Kind as FaultKind, Result, Vmms, fault, guid};

type Jobs = Engine<Machines>;

impl Host for Vmms {
    type Domain = Machines;

    fn db(&self) -> &Db {
        &self.db
    }

    fn engine(&self) -> &Engine<Machines> {
        &self.engine
    }

    fn policy(&self) -> Policy<'_> {
        Policy {
            kill_deadline: self.options.kill_deadline,
            keep: self.options.job_keep,
            host: &self.host,
        }
    }

    fn machine_of(&self, subject: &Subject) -> Option<Uuid> {
        match subject {
            Subject::Vm(vm) => Some(*vm),
            Subject::Point(point) => self.db.get::<Point>(*point).ok().map(|p| p.vm),
        }
    }

    fn busy(&self, machine: Uuid, job: Uuid, title: &str) -> Fault {
        let vm = self.db.get::<Vm>(machine);
        let name = vm.map_or_else(|_| guid(machine), |vm| vm.name.clone());
        let what = format!("job {} ({title})", guid(job));
        fault!(VmBusy, name, what).about(Element::Vm(machine))
    }
}

impl engine::Failure for Fault {
    fn of(trouble: Trouble<'_>) -> Self {
        let about = |fault: Fault, job| fault.about(Element::Job(job));
        match trouble {
            Trouble::Ending => fault!(ServiceEnding),
            Trouble::NoJob(job) => fault!(JobNotFound, guid(job)),
            Trouble::Final(job, state) => about(fault!(JobFinal, guid(job), state.word()), job),
            Trouble::Leaving(job, word) => about(fault!(JobEnding, guid(job), word), job),
            Trouble::Transition(job, word) => about(fault!(JobTransition, guid(job), word), job),
            Trouble::NotCancellable(job) => about(fault!(JobNotCancellable, guid(job)), job),
            Trouble::Stopped(job, word, by) => about(fault!(Cancelled, word, by), job),
            Trouble::Interrupted(job) => {
                about(fault!(HostInterrupted, format!("job {}", guid(job))), job)
            }
            Trouble::Internal(why) => fault!(Internal, why),
        }
    }

    fn is_cancelled(&self) -> bool {
        self.kind() == FaultKind::Cancelled
    }

    fn add_cause(&mut self, cause: Self) {
        if !self.causes.contains(&cause) {
            self.causes.push(cause);
        }
    }
}

impl Vmms {
    /// Starts a job. When this returns its record is durable and its associations can be seen. The same request key
    /// from the same user returns the job of the first time.
    pub async fn submit(
        self: &Arc<Self>,
        task: impl Into<Task>,
        submission: Submission,
    ) -> Result<Uuid> {
        Jobs::submit(self, task.into(), submission).await
    }

    /// As [`Vmms::submit`]; returns the work of the job as well: that of the first time where the request was repeated.
    pub(crate) async fn submit_once<W: Kind + Clone>(
        self: &Arc<Self>,
        work: W,
        submission: Submission,
    ) -> Result<(W, Uuid)> {
        let job = self.submit(work.clone(), submission).await?;
        let first = self.job(job).ok();
        let first = first.and_then(|job| W::of(&job.task).cloned());
        Ok((first.unwrap_or(work), job))
    }

    /// A job with its present progress.
    pub fn job(&self, id: Uuid) -> Result<Job> {
        Jobs::job(self, id)
    }

    /// The visible jobs, the newest first.
    pub fn jobs(&self) -> Vec<Job> {
        Jobs::jobs(self)
    }

    /// The jobs of which something is left to be done or taken back.
    pub fn open_jobs(&self) -> Vec<Arc<Job>> {
        Jobs::open(self)
    }

    /// Asks a job to suspend, go on or end; see [`Engine::request`].
    pub async fn request_job_state(&self, id: Uuid, request: JobRequest) -> Result<()> {
        self.request_job_state_as(id, request, "the service").await
    }

    /// The same, asked by somebody.
    pub async fn request_job_state_as(
        &self,
        id: Uuid,
        request: JobRequest,
        by: &str,
    ) -> Result<()> {
        Jobs::request(self, id, request, by).await
    }

    /// Parks what goes on at the next start; see [`Engine::park`].
    pub async fn park(&self, within: Duration) {
        Jobs::park(self, within).await;
    }

    /// Waits until a job has ended and returns it. For the service's own use and for tests.
    pub async fn wait(&self, id: Uuid) -> Result<Job> {
        Jobs::wait(self, id).await
    }

    pub(crate) fn recover_jobs(self: &Arc<Self>) {
        Jobs::recover(self);
    }

    pub(crate) fn pick_up(self: &Arc<Self>, id: Uuid) {
        Jobs::pick_up(self, id);
    }

    pub(crate) fn is_driven(&self, id: Uuid) -> bool {
        Jobs::is_driven(self, id)
    }

    pub(crate) async fn tend_jobs(self: &Arc<Self>) {
        Jobs::tend(self).await;
        Jobs::retire(self, SystemTime::now()).await;
    }
}
