//! The engine: submits jobs, runs them, stops them, and picks them up after a restart. How a job ends is told in the head of [`super`].
//!
//! ```text
//!  submit: record durable -> reply may leave -> task runs
//!  task Ok            -> 7 completed
//!  task Err           -> undo -> 10 failed          (8 terminated, 9 killed when a client asked)
//!  Kill, not in time  -> 9 killed with its undo under way -> undo -> over
//!  service ends       -> parked: as it is
//!  service restarted  -> run again, or undo -> 10 failed (by kind of task); told to end before: undo -> 8, 9
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinError;
use tracing::Instrument as _;
use uuid::Uuid;

use super::live::{Live, Wish};
use super::{
    Claims, Job, JobContext, JobState, Output, Recovery, Stop, Subject, Task, UndoLeft, excludes,
};
use crate::point::Point;
use crate::vm::Vm;
use crate::{Effect, Element, Fault, Kind, Message, Result, Vmms, fault, guid, work};

/// The progress of running jobs becomes durable this often, at least.
const KEEP: Duration = Duration::from_secs(10);
/// An undo that failed is tried again after this, then after twice as long, and so on.
const AGAIN: Duration = Duration::from_secs(15);
/// At the latest after this.
const AGAIN_LATEST: Duration = Duration::from_secs(1800);

/// The running jobs.
#[derive(Default)]
pub struct Engine {
    running: Mutex<HashMap<Uuid, Arc<Live>>>,
    /// Undos that failed: how often, and when they are tried again.
    again: Mutex<HashMap<Uuid, (u32, Instant)>>,
    /// The service ends: nothing new begins.
    ending: AtomicBool,
}

/// What has to be done about a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    /// It is new.
    Begin,
    /// The service was restarted, and it goes on.
    Resume,
    /// The service was restarted, and it cannot go on.
    Interrupted,
    /// The service was restarted while it was being ended.
    Stopped,
    /// Its state is final; its undo is not done.
    Left,
}

/// How the work of a job ended.
enum Ended {
    Done,
    Parked,
    Failed { failure: Fault, undone: Result<()> },
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
    fn running(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Live>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn again(&self) -> MutexGuard<'_, HashMap<Uuid, (u32, Instant)>> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self, id: Uuid) -> Option<Arc<Live>> {
        self.running().get(&id).cloned()
    }

    fn add(&self, live: &Arc<Live>) {
        self.running().insert(live.id, Arc::clone(live));
    }

    fn remove(&self, id: Uuid) {
        self.running().remove(&id);
    }

    /// Notes how an undo went that is tried again until it succeeds.
    fn tried(&self, id: Uuid, failed: bool) {
        let mut again = self.again();
        if !failed {
            again.remove(&id);
            return;
        }
        let (times, when) = again.entry(id).or_insert((0, Instant::now()));
        let wait = AGAIN.saturating_mul(1 << (*times).min(10));
        *when = Instant::now() + wait.min(AGAIN_LATEST);
        *times += 1;
    }

    fn may_try(&self, id: Uuid) -> bool {
        let again = self.again();
        again
            .get(&id)
            .is_none_or(|(_, when)| *when <= Instant::now())
    }
}

impl Vmms {
    /// Starts a job. When this returns its record is durable and its associations can be seen. The same request key
    /// from the same user returns the job of the first time.
    pub async fn submit(self: &Arc<Self>, task: Task, submission: Submission) -> Result<Uuid> {
        if self.engine.ending.load(Ordering::Relaxed) {
            return Err(fault!(ServiceEnding));
        }
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
            stopped_by: None,
            undo: None,
            percent: 0,
            done: 0,
            total: 0,
            submitted: now,
            changed: now,
            paused: Duration::ZERO,
            paused_since: None,
            seen: Some(now),
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
            self.launch(&job, Course::Begin);
        }
        Ok(id)
    }

    /// Refuses a task that cannot run beside one that runs on the same machine, or is not taken back yet.
    fn admit(&self, task: &Task) -> Result<()> {
        let new = task.claims();
        let vms = self.vms_of(&new);
        for job in self.db.all::<Job>().iter().filter(|j| !j.is_over()) {
            let claims = job.claims();
            let common = self.vms_of(&claims).into_iter().find(|vm| vms.contains(vm));
            let Some(vm) = common.filter(|_| excludes(&claims, &new)) else {
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

    /// The machines that are claimed.
    fn vms_of(&self, claims: &Claims) -> Vec<Uuid> {
        let of = |subject: &Subject| match subject {
            Subject::Vm(vm) => Some(*vm),
            Subject::Point(point) => self.db.get::<Point>(*point).ok().map(|p| p.vm),
        };
        claims.machines.iter().filter_map(of).collect()
    }

    fn launch(self: &Arc<Self>, job: &Job, course: Course) {
        let live = Arc::new(Live::new(job));
        self.engine.add(&live);
        self.follow(&live);
        if self.engine.ending.load(Ordering::Relaxed) {
            live.park();
        }
        let (vmms, task) = (Arc::clone(self), job.task.clone());
        tokio::spawn(async move { vmms.drive(live, task, course).await });
    }

    /// Tells a job what its record says. Two that ask at once are told apart by the record, not by who comes first here.
    fn follow(&self, live: &Live) {
        let _one_at_a_time = self.engine.running();
        if let Ok(job) = self.db.get::<Job>(live.id) {
            live.follow(&job);
        }
    }

    async fn drive(self: Arc<Self>, live: Arc<Live>, task: Task, course: Course) {
        let id = live.id;
        if !matches!(course, Course::Begin | Course::Left) {
            self.note(id, |job| job.taken_up(SystemTime::now())).await;
        }
        // Whether the state is final before the undo is done.
        let mut shown = course == Course::Left;
        let mut work = Box::pin(self.work(&live, &task, course));
        let ended = tokio::select! {
            ended = &mut work => ended,
            () = self.too_slow(&live), if !shown => {
                let stopped = self.db.get::<Job>(id).map_or_else(|e| e, |job| job.stopped());
                self.finish(&live, JobState::Killed, Some(stopped), Some(UndoLeft::Underway)).await;
                shown = true;
                work.await
            }
        };
        match ended {
            Ended::Parked => {
                self.note(id, |job| {
                    live.show(job);
                    job.stand_still(SystemTime::now());
                })
                .await;
            }
            Ended::Done if !shown => self.finish(&live, JobState::Completed, None, None).await,
            // It ended well after it had been shown as killed.
            Ended::Done => {
                let undone = self.undo(&live, &task).await;
                self.undone(&live, &task, undone).await;
            }
            Ended::Failed { undone, .. } if shown => self.undone(&live, &task, undone).await,
            Ended::Failed { failure, undone } => {
                let cancelled = failure.kind() == Kind::Cancelled;
                let (state, failure) = match (live.stop(), self.db.get::<Job>(id)) {
                    (Some(stop), Ok(job)) if cancelled => {
                        let state = match stop {
                            Stop::Kill => JobState::Killed,
                            Stop::Terminate => JobState::Terminated,
                        };
                        (state, job.stopped())
                    }
                    _ => (JobState::Exception, failure),
                };
                let left = self.left(id, &task, &undone);
                let failure = match undone {
                    Err(error) => failure.caused_by(error),
                    Ok(()) => failure,
                };
                self.finish(&live, state, Some(failure), left).await;
            }
        }
        self.engine.remove(id);
        live.ended.send_replace(true);
    }

    /// The work of a job up to the end of its undo. Nobody drops it.
    async fn work(self: &Arc<Self>, live: &Arc<Live>, task: &Task, course: Course) -> Ended {
        let result = match course {
            Course::Begin | Course::Resume => self.run(live, task).await,
            Course::Interrupted => {
                let what = format!("job {}", guid(live.id));
                Err(fault!(HostInterrupted, what).about(Element::Job(live.id)))
            }
            Course::Stopped | Course::Left => Err(self
                .db
                .get::<Job>(live.id)
                .map_or_else(|e| e, |job| job.stopped())),
        };
        match result {
            Ok(()) => Ended::Done,
            Err(failure) if live.is_parked() && failure.kind() == Kind::Cancelled => Ended::Parked,
            Err(failure) => Ended::Failed {
                failure,
                undone: self.undo(live, task).await,
            },
        }
    }

    fn context(self: &Arc<Self>, live: &Arc<Live>) -> JobContext {
        JobContext {
            vmms: Arc::clone(self),
            live: Arc::clone(live),
            handle: tokio::runtime::Handle::current(),
            part: false,
        }
    }

    async fn run(self: &Arc<Self>, live: &Arc<Live>, task: &Task) -> Result<()> {
        let (vmms, ctx, task) = (Arc::clone(self), self.context(live), task.clone());
        let work = async move { work::run(&vmms, &ctx, &task).await };
        // Every line in the log that comes from this work names the job. A panic in it is a failure of the job.
        let span = tracing::info_span!("job", id = %guid(live.id));
        flat(tokio::spawn(work.instrument(span)).await)
    }

    async fn undo(self: &Arc<Self>, live: &Arc<Live>, task: &Task) -> Result<()> {
        let (vmms, ctx, task) = (Arc::clone(self), self.context(live), task.clone());
        let work = async move { work::undo(&vmms, &ctx, &task).await };
        let span = tracing::info_span!("undo", id = %guid(live.id));
        flat(tokio::spawn(work.instrument(span)).await)
    }

    /// Ready when a job was told to be killed and the time for it is over.
    async fn too_slow(&self, live: &Live) {
        let mut wish = live.wish.subscribe();
        // The sender lives in `live`.
        let _ = wish.wait_for(|w| *w == Wish::Stop(Stop::Kill)).await;
        tokio::time::sleep(self.options.kill_deadline).await;
    }

    /// What remains of a job whose undo ended so. Files of an export are tried again. What remains on a machine's layers is
    /// announced in their trees, and settled by whoever touches them next: an undo of long ago would work on a machine that has
    /// gone on.
    fn left(&self, id: Uuid, task: &Task, undone: &Result<()>) -> Option<UndoLeft> {
        let left = undone.is_err() && !task.claims().writes_to.is_empty();
        self.engine.tried(id, left);
        left.then_some(UndoLeft::Failed)
    }

    /// The undo of a job in its final state has ended.
    async fn undone(&self, live: &Live, task: &Task, undone: Result<()>) {
        let left = self.left(live.id, task, &undone);
        if let Err(error) = &undone {
            tracing::error!(job = %guid(live.id), %error, "undoing a job failed");
        }
        self.note(live.id, |job| {
            job.undo = left;
            let first = job.faults.first_mut();
            if let (Err(error), Some(first)) = (undone, first)
                && !first.causes.contains(&error)
            {
                first.causes.push(error);
            }
        })
        .await;
    }

    /// Changes a job's record; where that fails the record is as a service that is killed would leave it.
    async fn note(&self, id: Uuid, change: impl FnOnce(&mut Job)) {
        let noted = self
            .db
            .change(|draft| {
                change(draft.get_mut::<Job>(id)?);
                Ok(())
            })
            .await;
        if let Err(error) = noted {
            tracing::error!(job = %guid(id), %error, "a change of a job could not be stored");
        }
    }

    async fn finish(
        &self,
        live: &Live,
        state: JobState,
        failure: Option<Fault>,
        undo: Option<UndoLeft>,
    ) {
        if let Some(failure) = &failure {
            tracing::warn!(job = %guid(live.id), state = state.word(), error = %failure, "job ended");
        }
        // Where this cannot be stored the record still says "running": the next start undoes or repeats the job.
        self.note(live.id, |job| {
            live.show(job);
            job.go_on(SystemTime::now());
            job.state = state;
            job.undo = undo;
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
        })
        .await;
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

    /// As [`Vmms::request_job_state_as`], asked by the service itself.
    pub async fn request_job_state(&self, id: Uuid, request: JobRequest) -> Result<()> {
        self.request_job_state_as(id, request, "the service").await
    }

    /// Asks a job to suspend, go on or end. Returns once the wish is durable and the job knows it. Refused: anything of a job in its
    /// final state, `Kill` and `Terminate` past its last cancellable step, and everything but `Kill` of a job that was told to end.
    pub async fn request_job_state_as(
        &self,
        id: Uuid,
        request: JobRequest,
        by: &str,
    ) -> Result<()> {
        self.db
            .change(|draft| {
                let job = draft.get_mut::<Job>(id)?;
                let refused = |fault: Fault| Err(fault.about(Element::Job(id)));
                let (shown, now) = (guid(id), SystemTime::now());
                if job.state.is_final() {
                    return refused(fault!(JobFinal, shown, job.state.word()));
                }
                let word = match request {
                    JobRequest::Start => "started",
                    JobRequest::Suspend => "suspended",
                    JobRequest::Terminate => "terminated",
                    JobRequest::Kill => "killed",
                };
                if job.stop.is_some() && request != JobRequest::Kill {
                    return refused(fault!(JobEnding, shown, word));
                }
                match request {
                    JobRequest::Start | JobRequest::Suspend if !job.suspendable => {
                        return refused(fault!(JobTransition, shown, word));
                    }
                    JobRequest::Start => {
                        job.state = JobState::Running;
                        job.go_on(now);
                    }
                    JobRequest::Suspend => {
                        job.state = JobState::Suspended;
                        job.stand_still(now);
                    }
                    JobRequest::Terminate | JobRequest::Kill if !job.cancellable => {
                        return refused(fault!(JobNotCancellable, shown));
                    }
                    JobRequest::Terminate | JobRequest::Kill => {
                        let stop = match request {
                            JobRequest::Kill => Stop::Kill,
                            _ => Stop::Terminate,
                        };
                        // Whoever asked first for the same is named.
                        if job.stop != Some(stop) {
                            job.stop = Some(stop);
                            job.stopped_by = Some(by.to_owned());
                        }
                        job.state = JobState::ShuttingDown;
                        job.go_on(now);
                    }
                }
                job.changed = now;
                Ok(())
            })
            .await?;
        if let Some(live) = self.engine.live(id) {
            self.follow(&live);
        }
        Ok(())
    }

    /// The service ends: nothing new begins, jobs that the next start goes on with stop where they are, and what is under way otherwise has
    /// until `within`. What has not ended by then is taken up as after a `kill -9`.
    pub async fn park(&self, within: Duration) {
        self.engine.ending.store(true, Ordering::Relaxed);
        let all: Vec<Arc<Live>> = self.engine.running().values().cloned().collect();
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
            for live in self.engine.running().values() {
                tracing::warn!(job = %guid(live.id), "a job is still under way; the next start takes it up");
            }
        }
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
        let Some(job) = job.filter(|j| !j.is_over() && !self.is_driven(id)) else {
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
        self.launch(&job, course);
    }

    /// What comes round: undos that failed are tried again, and progress becomes durable.
    pub(crate) async fn tend_jobs(self: &Arc<Self>) {
        if self.engine.ending.load(Ordering::Relaxed) {
            return;
        }
        let now = SystemTime::now();
        for job in self.db.all::<Job>().iter().filter(|j| !j.is_over()) {
            match self.engine.live(job.id) {
                None if job.undo.is_some() && self.engine.may_try(job.id) => self.pick_up(job.id),
                Some(live) if job.state == JobState::Running && job.stale(now) => {
                    self.note(job.id, |job| {
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

impl Job {
    /// Whether it was seen last a while ago.
    fn stale(&self, now: SystemTime) -> bool {
        let seen = self.seen.unwrap_or(self.changed);
        now.duration_since(seen).is_ok_and(|since| since >= KEEP)
    }
}

fn flat(result: Result<Result<()>, JoinError>) -> Result<()> {
    match result {
        Ok(result) => result,
        Err(error) => Err(Fault::new(Message::Internal, [error])),
    }
}
