//! The engine: submits jobs, runs them, stops them, and picks them up after a restart.
//!
//! ```text
//!  submit: record durable -> reply may leave -> task runs
//!  task Ok            -> 7 completed
//!  task Err           -> undo -> 10 failed          (8 terminated when a client asked)
//!  Kill               -> 9 killed at once, task dropped, undo afterwards
//!  service restarted  -> run again, or undo -> 10 failed (by kind of task)
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::task::JoinError;
use tracing::Instrument as _;
use uuid::Uuid;

use super::live::{Live, Wish};
use super::{Job, JobContext, JobState, Output, Recovery, Stop, Subject, Task, excludes};
use crate::point::Point;
use crate::vm::Vm;
use crate::{Effect, Element, Fault, Kind, Message, Result, Vmms, fault, guid, work};

/// The running jobs.
#[derive(Default)]
pub struct Engine {
    running: Mutex<HashMap<Uuid, Arc<Live>>>,
}

/// What surrounds a new job.
#[derive(Clone, Debug, Default)]
pub struct Submission {
    /// The user who asked; empty for the service itself.
    pub owner: String,
    /// What it affects from the start.
    pub affected: Vec<(Element, Effect)>,
    /// The user's key for idempotent retries.
    pub request_key: Option<String>,
    /// What is known of its output beforehand.
    pub output: Output,
}

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

impl Engine {
    fn live(&self, id: Uuid) -> Option<Arc<Live>> {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    fn add(&self, live: &Arc<Live>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(live.id, Arc::clone(live));
    }

    fn remove(&self, id: Uuid) {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
    }
}

impl Vmms {
    /// Starts a job. When this returns its record is durable and its associations can be seen. The same request key
    /// from the same user returns the job of the first time.
    pub async fn submit(self: &Arc<Self>, task: Task, submission: Submission) -> Result<Uuid> {
        let traits = task.traits();
        let now = SystemTime::now();
        let key = submission
            .request_key
            .map(|key| format!("{}\u{1f}{key}", submission.owner));
        let job = Job {
            id: Uuid::new_v4(),
            class: traits.class,
            job_type: traits.job_type,
            title: traits.title.to_owned(),
            task,
            notes: serde_json::Value::Null,
            state: JobState::Running,
            cancellable: traits.cancellable,
            suspendable: traits.suspendable,
            stop: None,
            percent: 0,
            done: 0,
            total: 0,
            submitted: now,
            changed: now,
            keep: self.options.job_keep,
            owner: submission.owner,
            host: self.host.clone(),
            service: traits.service,
            affected: submission.affected,
            faults: Vec::new(),
            output: submission.output,
            request_key: key,
        };
        let (id, fresh) = self
            .db
            .change(|draft| {
                if job.request_key.is_some() {
                    let earlier = draft
                        .all::<Job>()
                        .into_iter()
                        .find(|j| j.request_key == job.request_key);
                    if let Some(earlier) = earlier {
                        return Ok((earlier.id, false));
                    }
                }
                self.admit(&job.task)?;
                draft.put(job.clone());
                Ok((job.id, true))
            })
            .await?;
        if fresh {
            self.launch(&job, false);
        }
        Ok(id)
    }

    /// Refuses a task that cannot run beside one that runs on the same machine.
    fn admit(&self, task: &Task) -> Result<()> {
        let vms = self.vms_of(task);
        for job in self.db.all::<Job>().iter().filter(|j| !j.state.is_final()) {
            let common = self
                .vms_of(&job.task)
                .into_iter()
                .find(|vm| vms.contains(vm));
            let Some(vm) = common.filter(|_| excludes(&job.task, task)) else {
                continue;
            };
            let name = self
                .db
                .get::<Vm>(vm)
                .map_or_else(|_| guid(vm), |vm| vm.name.clone());
            let what = format!("job {} ({})", guid(job.id), job.title);
            return Err(fault!(VmBusy, name, what).about(Element::Vm(vm)));
        }
        Ok(())
    }

    /// The machines a task works on.
    fn vms_of(&self, task: &Task) -> Vec<Uuid> {
        let of = |subject| match subject {
            Subject::Vm(vm) => Some(vm),
            Subject::Point(point) => self.db.get::<Point>(point).ok().map(|p| p.vm),
        };
        task.subjects().into_iter().filter_map(of).collect()
    }

    fn launch(self: &Arc<Self>, job: &Job, undo_only: bool) {
        let live = Arc::new(Live::new(job));
        self.engine.add(&live);
        if let Some(stop) = job.stop {
            live.wish(Wish::Stop(stop));
        } else if job.state == JobState::Suspended {
            live.wish(Wish::Suspend);
        }
        let (vmms, task) = (Arc::clone(self), job.task.clone());
        tokio::spawn(async move { vmms.drive(live, task, undo_only).await });
    }

    async fn drive(self: Arc<Self>, live: Arc<Live>, task: Task, undo_only: bool) {
        let id = live.id;
        let context = || JobContext {
            vmms: Arc::clone(&self),
            live: Arc::clone(&live),
            handle: tokio::runtime::Handle::current(),
        };
        let result = if undo_only {
            Err(fault!(HostInterrupted, format!("job {}", guid(id))).about(Element::Job(id)))
        } else {
            let (vmms, ctx, task) = (Arc::clone(&self), context(), task.clone());
            let work = async move { work::run(&vmms, &ctx, &task).await };
            // Every line in the log that comes from this work names the job.
            let mut run = tokio::spawn(work.instrument(tracing::info_span!("job", id = %guid(id))));
            let mut wish = live.wish.subscribe();
            let killed = async { drop(wish.wait_for(|w| *w == Wish::Stop(Stop::Kill)).await) };
            tokio::select! {
                result = &mut run => flat(result),
                () = killed => {
                    run.abort();
                    // A finished task wins over a late Kill.
                    match run.await {
                        Ok(result) => result,
                        Err(_) => Err(fault!(Cancelled, "killed", "a client").about(Element::Job(id))),
                    }
                }
            }
        };
        let stop = live.stop();
        if let Err(failure) = result {
            let cancelled = failure.kind() == Kind::Cancelled;
            let state = match stop {
                Some(Stop::Kill) if cancelled => JobState::Killed,
                Some(Stop::Terminate) if cancelled => JobState::Terminated,
                _ => JobState::Exception,
            };
            if state == JobState::Killed {
                // Kill answers at once; what remains to be undone is undone behind it.
                self.finish(&live, state, Some(failure)).await;
                let undone = self.undo(context(), &task).await;
                if let Err(error) = undone {
                    tracing::error!(job = %guid(id), %error, "undoing a killed job failed");
                }
            } else {
                let mut failure = failure;
                if let Err(error) = self.undo(context(), &task).await {
                    failure = failure.caused_by(error);
                }
                self.finish(&live, state, Some(failure)).await;
            }
        } else {
            self.finish(&live, JobState::Completed, None).await;
        }
        self.engine.remove(id);
        live.ended.send_replace(true);
    }

    async fn undo(self: &Arc<Self>, ctx: JobContext, task: &Task) -> Result<()> {
        let (vmms, task) = (Arc::clone(self), task.clone());
        let span = tracing::info_span!("undo", id = %guid(ctx.job()));
        let work = async move { work::undo(&vmms, &ctx, &task).await };
        flat(tokio::spawn(work.instrument(span)).await)
    }

    async fn finish(&self, live: &Live, state: JobState, failure: Option<Fault>) {
        if let Some(failure) = &failure {
            tracing::warn!(job = %guid(live.id), state = state.word(), error = %failure, "job ended");
        }
        let finished = self
            .db
            .change(|draft| {
                let job = draft.get_mut::<Job>(live.id)?;
                live.show(job);
                job.state = state;
                job.changed = SystemTime::now();
                job.cancellable = false;
                job.suspendable = false;
                if state == JobState::Completed {
                    job.percent = 100;
                    job.done = job.total;
                } else {
                    // What a failed job would have made is not there.
                    job.affected.retain(|(_, effect)| *effect != Effect::Create);
                }
                if let Some(failure) = failure {
                    job.faults.insert(0, failure);
                }
                Ok(())
            })
            .await;
        if let Err(error) = finished {
            // The record still says "running": the next start undoes or repeats the job.
            tracing::error!(job = %guid(live.id), %error, "the end of a job could not be stored");
        }
    }

    /// A job with its present progress.
    pub fn job(&self, id: Uuid) -> Result<Job> {
        let mut job = (*self.db.get::<Job>(id)?).clone();
        if let Some(live) = self.engine.live(id) {
            live.show(&mut job);
        }
        Ok(job)
    }

    /// The visible jobs, the newest first.
    pub fn jobs(&self) -> Vec<Job> {
        let mut jobs: Vec<Job> = self.db.all::<Job>().iter().map(|j| (**j).clone()).collect();
        for job in &mut jobs {
            if let Some(live) = self.engine.live(job.id) {
                live.show(job);
            }
        }
        jobs.sort_by(|a, b| b.submitted.cmp(&a.submitted).then(a.id.cmp(&b.id)));
        jobs
    }

    /// Asks a job to suspend, go on or end. Returns once the wish is durable and the job knows it; `Kill` and `Terminate` of a
    /// job in its final state, or past its last cancellable step, are refused.
    pub async fn request_job_state(&self, id: Uuid, request: JobRequest) -> Result<()> {
        let wish = self
            .db
            .change(|draft| {
                let job = draft.get_mut::<Job>(id)?;
                let shown = guid(id);
                if job.state.is_final() {
                    return Err(fault!(JobFinal, shown, job.state.word()).about(Element::Job(id)));
                }
                let wish = match request {
                    JobRequest::Start | JobRequest::Suspend if !job.suspendable => {
                        let word = if request == JobRequest::Start {
                            "started"
                        } else {
                            "suspended"
                        };
                        return Err(fault!(JobTransition, shown, word).about(Element::Job(id)));
                    }
                    JobRequest::Start => {
                        job.state = JobState::Running;
                        Wish::Run
                    }
                    JobRequest::Suspend => {
                        job.state = JobState::Suspended;
                        Wish::Suspend
                    }
                    JobRequest::Terminate | JobRequest::Kill if !job.cancellable => {
                        return Err(fault!(JobNotCancellable, shown).about(Element::Job(id)));
                    }
                    JobRequest::Terminate | JobRequest::Kill => {
                        let stop = if request == JobRequest::Kill {
                            Stop::Kill
                        } else {
                            Stop::Terminate
                        };
                        job.stop = Some(stop);
                        job.state = JobState::ShuttingDown;
                        Wish::Stop(stop)
                    }
                };
                job.changed = SystemTime::now();
                Ok(wish)
            })
            .await?;
        if let Some(live) = self.engine.live(id) {
            live.wish(wish);
        }
        Ok(())
    }

    /// Waits until a job has ended and returns it. For the service's own use and for tests.
    pub async fn wait(&self, id: Uuid) -> Result<Job> {
        if let Some(live) = self.engine.live(id) {
            let mut ended = live.ended.subscribe();
            let _ = ended.wait_for(|ended| *ended).await;
        }
        self.job(id)
    }

    /// At the start of the service: goes on with jobs that can go on, undoes the others.
    pub(crate) fn recover_jobs(self: &Arc<Self>) {
        for job in self.db.all::<Job>() {
            self.pick_up(job.id);
        }
    }

    /// Goes on with a job that nothing runs, or undoes it.
    pub(crate) fn pick_up(self: &Arc<Self>, id: Uuid) {
        let job = self.db.get::<Job>(id).ok();
        let Some(job) = job.filter(|j| !j.state.is_final() && !self.is_driven(id)) else {
            return;
        };
        let undo = job.task.traits().recovery == Recovery::Undo;
        tracing::info!(job = %guid(job.id), title = job.title, undo, "picking up a job");
        self.launch(&job, undo && job.stop.is_none());
    }

    /// Whether something runs this job.
    pub(crate) fn is_driven(&self, id: Uuid) -> bool {
        self.engine.live(id).is_some()
    }

    /// Lets jobs vanish from view whose time has passed.
    pub(crate) async fn retire_old_jobs(&self, now: SystemTime) {
        for job in self.db.all::<Job>() {
            if job.vanishes().is_some_and(|at| at <= now)
                && let Err(error) = self.db.retire(job.id).await
            {
                tracing::warn!(job = %guid(job.id), %error, "a job could not be moved to the history");
            }
        }
    }
}

fn flat(result: Result<Result<()>, JoinError>) -> Result<()> {
    match result {
        Ok(result) => result,
        Err(error) => Err(Fault::new(Message::Internal, [error])),
    }
}
