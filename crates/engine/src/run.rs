//! The engine: submits jobs, runs them, stops them, and picks them up after a restart. How a job ends is told in the head of the crate.
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
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinError;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::live::{Live, Wish};
use crate::record::{BY_REQUEST, BY_STATE, OPEN};
use crate::{
    Claims, Domain, Failure, Host, Job, JobContext, JobState, Stop, Task as _, Trouble, UndoLeft,
    excludes, guid,
};

/// An undo that failed is tried again after this, then after twice as long, and so on.
const AGAIN: Duration = Duration::from_secs(15);
/// At the latest after this.
const AGAIN_LATEST: Duration = Duration::from_secs(1800);

/// The running jobs.
pub struct Engine<D> {
    domain: PhantomData<fn() -> D>,
    running: Mutex<HashMap<Uuid, Arc<Live>>>,
    /// Undos that failed: how often, and when they are tried again.
    again: Mutex<HashMap<Uuid, (u32, Instant)>>,
    /// The service ends: nothing new begins.
    pub(crate) ending: AtomicBool,
}

/// What has to be done about a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
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
enum Ended<F> {
    Done,
    Parked,
    Failed { failure: F, undone: Result<(), F> },
}

impl<D> Default for Engine<D> {
    fn default() -> Self {
        Engine {
            domain: PhantomData,
            running: Mutex::default(),
            again: Mutex::default(),
            ending: AtomicBool::new(false),
        }
    }
}

/// What surrounds a new job.
#[derive(Clone, Debug)]
pub struct Submission<D: Domain> {
    /// The user who asked; empty for the service itself.
    pub owner: String,
    /// What it affects from the start.
    pub affected: Vec<(D::Element, D::Effect)>,
    /// The user's key for idempotent retries.
    pub request_key: Option<String>,
    /// What is known of its output beforehand.
    pub output: D::Output,
}

impl<D: Domain> Default for Submission<D> {
    fn default() -> Self {
        Submission {
            owner: String::new(),
            affected: Vec::new(),
            request_key: None,
            output: D::Output::default(),
        }
    }
}

impl<D> Engine<D> {
    pub(crate) fn running(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Live>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn again(&self) -> MutexGuard<'_, HashMap<Uuid, (u32, Instant)>> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn live(&self, id: Uuid) -> Option<Arc<Live>> {
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

    pub(crate) fn may_try(&self, id: Uuid) -> bool {
        let again = self.again();
        again
            .get(&id)
            .is_none_or(|(_, when)| *when <= Instant::now())
    }
}

impl<D: Domain> Engine<D> {
    /// Starts a job. When this returns its record is durable and its associations can be seen. The same request key
    /// from the same user returns the job of the first time.
    pub async fn submit(
        host: &Arc<D::Host>,
        task: D::Task,
        submission: Submission<D>,
    ) -> Result<Uuid, D::Fault> {
        if host.engine().ending.load(Ordering::Relaxed) {
            return Err(D::Fault::of(Trouble::Ending));
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
            keep: host.policy().keep,
            owner: submission.owner,
            host: host.policy().host.to_owned(),
            service: traits.service,
            affected: submission.affected,
            faults: Vec::new(),
            output: submission.output,
            request_key: key,
        };
        let (id, fresh) = host
            .db()
            .change(|draft| {
                if let Some(key) = &job.request_key
                    && let Some(earlier) = draft.by::<Job<D>>(BY_REQUEST, key).first()
                {
                    return Ok((earlier.id, false));
                }
                Self::admit(host, &job.task)?;
                draft.put(job.clone());
                Ok((job.id, true))
            })
            .await?;
        if fresh {
            Self::launch(host, &job, Course::Begin);
        }
        Ok(id)
    }

    /// Refuses a task that cannot run beside one that runs on the same machine, or is not taken back yet.
    fn admit(host: &D::Host, task: &D::Task) -> Result<(), D::Fault> {
        let new = task.claims();
        let wanted = machines(host, &new);
        for job in Self::open(host) {
            let claims = job.claims();
            let taken = machines(host, &claims);
            let common = taken.into_iter().find(|m| wanted.contains(m));
            if let Some(machine) = common.filter(|_| excludes(&claims, &new)) {
                return Err(host.busy(machine, job.id, &job.title));
            }
        }
        Ok(())
    }

    /// The jobs of which something is left to be done or taken back.
    pub fn open(host: &D::Host) -> Vec<Arc<Job<D>>> {
        host.db().by(BY_STATE, OPEN)
    }

    pub(crate) fn launch(host: &Arc<D::Host>, job: &Job<D>, course: Course) {
        let live = Arc::new(Live::new(job));
        host.engine().add(&live);
        Self::follow(host, &live);
        if host.engine().ending.load(Ordering::Relaxed) {
            live.park();
        }
        let (host, task) = (Arc::clone(host), job.task.clone());
        tokio::spawn(async move { Self::drive(&host, live, task, course).await });
    }

    /// Tells a job what its record says. Two that ask at once are told apart by the record, not by who comes first here.
    pub(crate) fn follow(host: &D::Host, live: &Live) {
        let _one_at_a_time = host.engine().running();
        if let Ok(job) = host.db().get::<Job<D>>(live.id) {
            live.follow(&job);
        }
    }

    async fn drive(host: &Arc<D::Host>, live: Arc<Live>, task: D::Task, course: Course) {
        let id = live.id;
        if !matches!(course, Course::Begin | Course::Left) {
            Self::note(host, id, |job| job.taken_up(SystemTime::now())).await;
        }
        // Whether the state is final before the undo is done.
        let mut shown = course == Course::Left;
        let mut work = Box::pin(Self::work(host, &live, &task, course));
        let ended = tokio::select! {
            ended = &mut work => ended,
            () = Self::too_slow(host, &live), if !shown => {
                let stopped = host.db().get::<Job<D>>(id).map_or_else(|e| e, |job| job.stopped());
                Self::finish(host, &live, JobState::Killed, Some(stopped), Some(UndoLeft::Underway)).await;
                shown = true;
                work.await
            }
        };
        match ended {
            Ended::Parked => {
                Self::note(host, id, |job| {
                    live.show(job);
                    job.stand_still(SystemTime::now());
                })
                .await;
            }
            Ended::Done if !shown => {
                Self::finish(host, &live, JobState::Completed, None, None).await
            }
            // It ended well after it had been shown as killed.
            Ended::Done => {
                let undone = Self::undo(host, &live, &task).await;
                Self::undone(host, &live, &task, undone).await;
            }
            Ended::Failed { undone, .. } if shown => Self::undone(host, &live, &task, undone).await,
            Ended::Failed { failure, undone } => {
                let cancelled = failure.is_cancelled();
                let (state, failure) = match (live.stop(), host.db().get::<Job<D>>(id)) {
                    (Some(stop), Ok(job)) if cancelled => {
                        let state = match stop {
                            Stop::Kill => JobState::Killed,
                            Stop::Terminate => JobState::Terminated,
                        };
                        (state, job.stopped())
                    }
                    _ => (JobState::Exception, failure),
                };
                let left = Self::left(host, id, &task, &undone);
                let mut failure = failure;
                if let Err(error) = undone {
                    failure.add_cause(error);
                }
                Self::finish(host, &live, state, Some(failure), left).await;
            }
        }
        host.engine().remove(id);
        live.ended.send_replace(true);
    }

    /// The work of a job up to the end of its undo. Nobody drops it.
    async fn work(
        host: &Arc<D::Host>,
        live: &Arc<Live>,
        task: &D::Task,
        course: Course,
    ) -> Ended<D::Fault> {
        let result = match course {
            Course::Begin | Course::Resume => Self::run(host, live, task).await,
            Course::Interrupted => Err(D::Fault::of(Trouble::Interrupted(live.id))),
            Course::Stopped | Course::Left => Err(host
                .db()
                .get::<Job<D>>(live.id)
                .map_or_else(|e| e, |job| job.stopped())),
        };
        match result {
            Ok(()) => Ended::Done,
            Err(failure) if live.is_parked() && failure.is_cancelled() => Ended::Parked,
            Err(failure) => Ended::Failed {
                failure,
                undone: Self::undo(host, live, task).await,
            },
        }
    }

    fn context(host: &Arc<D::Host>, live: &Arc<Live>) -> JobContext<D> {
        JobContext {
            host: Arc::clone(host),
            live: Arc::clone(live),
            handle: tokio::runtime::Handle::current(),
            part: false,
        }
    }

    async fn run(host: &Arc<D::Host>, live: &Arc<Live>, task: &D::Task) -> Result<(), D::Fault> {
        let (host, ctx, task) = (Arc::clone(host), Self::context(host, live), task.clone());
        let work = async move { task.work().run(&host, &ctx).await };
        // Every line in the log that comes from this work names the job. A panic in it is a failure of the job.
        let span = tracing::info_span!("job", id = %guid(live.id));
        flat::<D::Fault>(tokio::spawn(work.instrument(span)).await)
    }

    async fn undo(host: &Arc<D::Host>, live: &Arc<Live>, task: &D::Task) -> Result<(), D::Fault> {
        let (host, ctx, task) = (Arc::clone(host), Self::context(host, live), task.clone());
        let work = async move { task.work().undo(&host, &ctx).await };
        let span = tracing::info_span!("undo", id = %guid(live.id));
        flat::<D::Fault>(tokio::spawn(work.instrument(span)).await)
    }

    /// Ready when a job was told to be killed and the time for it is over.
    async fn too_slow(host: &D::Host, live: &Live) {
        let mut wish = live.wish.subscribe();
        // The sender lives in `live`.
        let _ = wish.wait_for(|w| *w == Wish::Stop(Stop::Kill)).await;
        tokio::time::sleep(host.policy().kill_deadline).await;
    }

    /// What remains of a job whose undo ended so. Files of an export are tried again. What remains on a machine's layers is
    /// announced in their trees, and settled by whoever touches them next: an undo of long ago would work on a machine that has
    /// gone on.
    fn left(
        host: &D::Host,
        id: Uuid,
        task: &D::Task,
        undone: &Result<(), D::Fault>,
    ) -> Option<UndoLeft> {
        let left = undone.is_err() && !task.claims().writes_to.is_empty();
        host.engine().tried(id, left);
        left.then_some(UndoLeft::Failed)
    }

    /// The undo of a job in its final state has ended.
    async fn undone(host: &D::Host, live: &Live, task: &D::Task, undone: Result<(), D::Fault>) {
        let left = Self::left(host, live.id, task, &undone);
        if let Err(error) = &undone {
            tracing::error!(job = %guid(live.id), %error, "undoing a job failed");
        }
        Self::note(host, live.id, |job| {
            job.undo = left;
            let first = job.faults.first_mut();
            if let (Err(error), Some(first)) = (undone, first) {
                first.add_cause(error);
            }
        })
        .await;
    }

    /// Changes a job's record; where that fails the record is as a service that is killed would leave it.
    pub(crate) async fn note(host: &D::Host, id: Uuid, change: impl FnOnce(&mut Job<D>)) {
        let noted = host
            .db()
            .change(|draft| {
                change(draft.get_mut::<Job<D>>(id)?);
                Ok(())
            })
            .await;
        if let Err(error) = noted {
            tracing::error!(job = %guid(id), %error, "a change of a job could not be stored");
        }
    }

    async fn finish(
        host: &D::Host,
        live: &Live,
        state: JobState,
        failure: Option<D::Fault>,
        undo: Option<UndoLeft>,
    ) {
        if let Some(failure) = &failure {
            tracing::warn!(job = %guid(live.id), state = state.word(), error = %failure, "job ended");
        }
        // Where this cannot be stored the record still says "running": the next start undoes or repeats the job.
        Self::note(host, live.id, |job| {
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
                job.affected.retain(|(_, effect)| !D::creates(effect));
            }
            if let Some(failure) = failure {
                job.faults.insert(0, failure);
            }
        })
        .await;
    }

    /// A job with its present progress.
    pub fn job(host: &D::Host, id: Uuid) -> Result<Job<D>, D::Fault> {
        let mut job = (*host.db().get::<Job<D>>(id)?).clone();
        if let Some(live) = host.engine().live(id) {
            live.show(&mut job);
        }
        Ok(job)
    }

    /// The visible jobs, the newest first.
    pub fn jobs(host: &D::Host) -> Vec<Job<D>> {
        let mut jobs: Vec<Job<D>> = host
            .db()
            .all::<Job<D>>()
            .iter()
            .map(|j| (**j).clone())
            .collect();
        for job in &mut jobs {
            if let Some(live) = host.engine().live(job.id) {
                live.show(job);
            }
        }
        jobs.sort_by(|a, b| b.submitted.cmp(&a.submitted).then(a.id.cmp(&b.id)));
        jobs
    }

    /// Waits until a job has ended and returns it. For the service's own use and for tests.
    pub async fn wait(host: &D::Host, id: Uuid) -> Result<Job<D>, D::Fault> {
        if let Some(live) = host.engine().live(id) {
            let mut ended = live.ended.subscribe();
            let _ = ended.wait_for(|ended| *ended).await;
        }
        Self::job(host, id)
    }
}

fn flat<F: Failure>(result: Result<Result<(), F>, JoinError>) -> Result<(), F> {
    match result {
        Ok(result) => result,
        Err(error) => Err(F::of(Trouble::Internal(&error.to_string()))),
    }
}

/// The machines that are claimed.
fn machines<H: Host>(host: &H, claims: &Claims) -> Vec<Uuid> {
    let of = |subject| host.machine_of(subject);
    claims.machines.iter().filter_map(of).collect()
}
