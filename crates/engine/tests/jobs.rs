//! Jobs of a toy domain: what holds for every kind of work, without a machine anywhere.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod toy;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use engine::{JobRequest, JobState, Stop, Submission, UndoLeft};
use store::Store;
use toy::{Job, Jobs, Shop, Task, open, store};
use uuid::Uuid;

fn task(steps: usize) -> Task {
    Task {
        machine: Uuid::from_u128(7),
        steps,
        resumes: true,
        bad_undos: 0,
        writes: false,
    }
}

async fn submit(shop: &Arc<Shop>, task: Task) -> Uuid {
    Jobs::submit(shop, task, Submission::default())
        .await
        .unwrap()
}

async fn ask(shop: &Shop, job: Uuid, request: JobRequest) {
    Jobs::request(shop, job, request, "me").await.unwrap();
}

/// Waits until a job's record is as wanted.
async fn until(shop: &Shop, job: Uuid, wanted: impl Fn(&Job) -> bool) {
    let mut changes = shop.db.changes();
    while !shop.db.get::<Job>(job).is_ok_and(|j| wanted(&j)) {
        changes.changed().await.unwrap();
    }
}

#[tokio::test]
async fn work_is_done_step_by_step_and_ends_at_a_hundred_percent() {
    let shop = open(&store()).await;
    let job = submit(&shop, task(3)).await;
    shop.steps.add_permits(3);
    let done = Jobs::wait(&shop, job).await.unwrap();
    assert_eq!((done.state, done.percent), (JobState::Completed, 100));
    assert_eq!(shop.undone.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn what_excludes_each_other_is_refused_with_the_job_that_is_in_the_way() {
    let shop = open(&store()).await;
    let first = submit(&shop, task(1)).await;
    let refused = Jobs::submit(&shop, task(1), Submission::default()).await;
    assert!(refused.unwrap_err().text.contains(&first.to_string()));
    let elsewhere = Task {
        machine: Uuid::from_u128(8),
        ..task(0)
    };
    submit(&shop, elsewhere).await;
    shop.steps.add_permits(1);
    Jobs::wait(&shop, first).await.unwrap();
    submit(&shop, task(0)).await;
}

#[tokio::test]
async fn a_request_with_a_key_is_carried_out_once() {
    let shop = open(&store()).await;
    let keyed = || Submission {
        owner: "me".to_owned(),
        request_key: Some("k".to_owned()),
        ..Submission::default()
    };
    let first = Jobs::submit(&shop, task(1), keyed()).await.unwrap();
    assert_eq!(Jobs::submit(&shop, task(1), keyed()).await.unwrap(), first);
    let other = Submission {
        owner: "you".to_owned(),
        ..keyed()
    };
    assert!(Jobs::submit(&shop, task(1), other).await.is_err());
}

#[tokio::test]
async fn a_job_that_is_terminated_is_undone_and_says_who_asked() {
    let shop = open(&store()).await;
    let job = submit(&shop, task(2)).await;
    ask(&shop, job, JobRequest::Terminate).await;
    let ended = Jobs::wait(&shop, job).await.unwrap();
    assert_eq!(ended.state, JobState::Terminated);
    assert_eq!(ended.stopped_by.as_deref(), Some("me"));
    assert!(ended.faults[0].text.contains("terminated") && ended.faults[0].text.contains("me"));
    assert_eq!(shop.undone.load(Ordering::Relaxed), 1);
    let late = Jobs::request(&*shop, job, JobRequest::Kill, "me").await;
    assert!(late.unwrap_err().text.starts_with("Final"));
}

#[tokio::test]
async fn a_suspended_job_waits_and_goes_on() {
    let shop = open(&store()).await;
    let job = submit(&shop, task(3)).await;
    shop.steps.add_permits(1);
    until(&shop, job, |j| j.notes == 1).await;
    ask(&shop, job, JobRequest::Suspend).await;
    // One step may have been waited for already.
    shop.steps.add_permits(1);
    until(&shop, job, |j| j.notes == 2).await;
    shop.steps.add_permits(5);
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert_eq!(shop.counted.load(Ordering::Relaxed), 2);
    ask(&shop, job, JobRequest::Start).await;
    assert_eq!(
        Jobs::wait(&shop, job).await.unwrap().state,
        JobState::Completed
    );
}

#[tokio::test]
async fn an_undo_that_fails_is_on_record_and_tried_again_where_files_are_left() {
    let shop = open(&store()).await;
    let stubborn = Task {
        bad_undos: 1,
        writes: true,
        ..task(1)
    };
    let job = submit(&shop, stubborn).await;
    ask(&shop, job, JobRequest::Terminate).await;
    let ended = Jobs::wait(&shop, job).await.unwrap();
    assert_eq!(
        (ended.state, ended.undo),
        (JobState::Terminated, Some(UndoLeft::Failed))
    );
    assert_eq!(ended.faults[0].causes[0].text, "the undo failed");
    assert!(!ended.is_over() && !ended.claims().writes_to.is_empty());
    assert!(
        ended.vanishes().is_none(),
        "it stays in view until nothing is left"
    );
    Jobs::pick_up(&shop, job);
    let over = Jobs::wait(&shop, job).await.unwrap();
    assert_eq!((over.state, over.undo), (JobState::Terminated, None));
    assert!(over.is_over());
}

/// The service is gone without a word and starts again.
async fn again(store: &Arc<dyn Store>) -> Arc<Shop> {
    let shop = open(store).await;
    Jobs::recover(&shop);
    shop
}

#[tokio::test]
async fn after_a_restart_a_job_goes_on_from_its_notes_or_is_undone() {
    for resumes in [true, false] {
        let store = store();
        let shop = open(&store).await;
        let job = submit(&shop, Task { resumes, ..task(3) }).await;
        shop.steps.add_permits(2);
        until(&shop, job, |j| j.notes == 2).await;
        let next = again(&store).await;
        next.steps.add_permits(1);
        let ended = Jobs::wait(&next, job).await.unwrap();
        let (state, counted, undone) = match resumes {
            true => (JobState::Completed, 1, 0),
            false => (JobState::Exception, 0, 1),
        };
        assert_eq!(ended.state, state);
        assert_eq!(next.counted.load(Ordering::Relaxed), counted);
        assert_eq!(next.undone.load(Ordering::Relaxed), undone);
    }
}

#[tokio::test]
async fn a_restart_in_the_middle_of_ending_ends_as_it_was_asked() {
    let store = store();
    let shop = open(&store).await;
    let job = submit(&shop, task(1)).await;
    let told = shop.db.change(|draft| {
        let job = draft.get_mut::<Job>(job)?;
        (job.stop, job.state) = (Some(Stop::Kill), JobState::ShuttingDown);
        Ok(())
    });
    told.await.unwrap();
    let next = again(&store).await;
    let ended = Jobs::wait(&next, job).await.unwrap();
    assert_eq!(ended.state, JobState::Killed);
    assert_eq!(next.undone.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_service_that_ends_parks_what_goes_on_at_the_next_start_and_takes_nothing_new() {
    let store = store();
    let shop = open(&store).await;
    let job = submit(&shop, task(2)).await;
    shop.steps.add_permits(1);
    until(&shop, job, |j| j.notes == 1).await;
    Jobs::park(&shop, Duration::from_secs(5)).await;
    let parked = shop.db.get::<Job>(job).unwrap();
    assert!(parked.state == JobState::Running && parked.paused_since.is_some());
    assert_eq!(shop.undone.load(Ordering::Relaxed), 0);
    let refused = Jobs::submit(&shop, task(1), Submission::default()).await;
    assert_eq!(refused.unwrap_err().text, "Ending");
    let next = again(&store).await;
    next.steps.add_permits(1);
    assert_eq!(
        Jobs::wait(&next, job).await.unwrap().state,
        JobState::Completed
    );
}

#[tokio::test]
async fn jobs_whose_time_has_passed_move_to_the_history() {
    let shop = open(&store()).await;
    let job = submit(&shop, task(0)).await;
    Jobs::wait(&shop, job).await.unwrap();
    Jobs::retire(&shop, SystemTime::now() + Duration::from_secs(1)).await;
    assert!(shop.db.get::<Job>(job).is_err());
    let past: Job = shop.db.past_job(job).await.unwrap();
    assert_eq!(past.state, JobState::Completed);
    let newest: Vec<Job> = shop.db.newest_history(5).await.unwrap();
    assert_eq!(newest.len(), 1);
}

#[tokio::test]
async fn elapsed_time_counts_no_pauses_also_across_restarts() {
    let store = store();
    let shop = open(&store).await;
    let job = submit(&shop, task(1)).await;
    let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
    // It ran for 400 s, 100 s of them suspended; then the service was killed, 500 s ago.
    let told = shop.db.change(|draft| {
        let job = draft.get_mut::<Job>(job)?;
        (job.submitted, job.changed) = (ago(900), ago(900));
        job.paused = Duration::from_secs(100);
        job.seen = Some(ago(500));
        Ok(())
    });
    told.await.unwrap();
    let ran = |job: &Job| job.elapsed(SystemTime::now()).as_secs();
    assert!((795..=805).contains(&ran(&shop.db.get(job).unwrap())));
    let next = again(&store).await;
    until(&next, job, |j| j.paused > Duration::from_secs(200)).await;
    assert!((295..=310).contains(&ran(&next.db.get(job).unwrap())));
    // Suspended for 200 s.
    ask(&next, job, JobRequest::Suspend).await;
    let told = next.db.change(|draft| {
        let job = draft.get_mut::<Job>(job)?;
        assert!(job.paused_since.is_some());
        (job.submitted, job.paused_since) =
            (job.submitted - Duration::from_secs(200), Some(ago(200)));
        Ok(())
    });
    told.await.unwrap();
    assert!((295..=310).contains(&ran(&next.db.get(job).unwrap())));
    ask(&next, job, JobRequest::Start).await;
    next.steps.add_permits(1);
    let done = Jobs::wait(&next, job).await.unwrap();
    assert!((295..=310).contains(&ran(&done)));
}
