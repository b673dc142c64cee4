//! `kvmms job`.

use cim::Instance;
use serde_json::json;
use uuid::Uuid;

use super::boot::{boots_text, evidence};
use super::vm::{elapsed, job_state};
use crate::cli::JobVerb;
use crate::error::{Error, Result};
use crate::find::{self, Candidate, Naming, job_path};
use crate::inspect::{boolean, instant, moment, number, some_text, text};
use crate::output::Row;
use crate::report::{Link, links_text};
use crate::session::{Session, parameters};
use crate::vendor;
use crate::watch::{self, is_final, state, state_word, title};

/// RequestedState of a job.
mod request {
    pub(super) const START: u16 = 2;
    pub(super) const SUSPEND: u16 = 3;
    pub(super) const TERMINATE: u16 = 4;
    pub(super) const KILL: u16 = 5;
}

/// Carries out a verb of `job`.
pub(super) async fn run(session: &Session, verb: JobVerb) -> Result<()> {
    match verb {
        JobVerb::List { all } => list(session, all).await,
        JobVerb::Show { job } => show(session, &job).await,
        JobVerb::Watch { job } => follow(session, &job).await,
        JobVerb::Cancel { job, kill } => {
            let to = if kill {
                request::KILL
            } else {
                request::TERMINATE
            };
            cancel(session, &job, to).await
        }
        JobVerb::Suspend { job } => ask(session, &job, request::SUSPEND, "suspended").await,
        JobVerb::Resume { job } => ask(session, &job, request::START, "going on").await,
        JobVerb::Errors { job } => errors(session, &job).await,
    }
}

fn row(job: &Instance) -> Row {
    let started = instant(job, "TimeSubmitted").map(moment);
    Row::new()
        .text("id", "Id", text(job, "InstanceID"))
        .text("title", "Job", title(job))
        .text("state", "State", job_state(job))
        .number("percent", "Percent", number(job, "PercentComplete"))
        .maybe("submitted", "Submitted", started)
        .text("elapsed", "Took", elapsed(job))
        .maybe("owner", "Owner", some_text(job, "Owner"))
        .hidden("class", json!(job.class.as_str()))
}

async fn list(session: &Session, all: bool) -> Result<()> {
    let mut jobs = if all {
        session.needs_kvmms("the history of jobs")?;
        session.client.enumerate(vendor::JOB_RECORD).await?
    } else {
        session.client.enumerate("CIM_ConcreteJob").await?
    };
    jobs.sort_by_key(|j| instant(j, "TimeSubmitted"));
    let cut = |job: &Instance| boolean(job, "OlderLeftOut") == Some(true);
    let shown = |job: &Instance| match cut(job) {
        true => row(job).hidden("older_left_out", json!(true)),
        false => row(job),
    };
    let rows: Vec<_> = jobs.iter().map(shown).collect();
    session
        .output
        .list(&rows, "No jobs. Past ones: kvmms job list --all")?;
    if jobs.iter().any(cut) {
        let remark = "Only the newest are listed; older ones are kept: kvmms job show ID.";
        session.output.remark(remark);
    }
    Ok(())
}

/// A job, or its record once the job has gone.
async fn any(session: &Session, wanted: &str, naming: Naming) -> Result<Instance> {
    let missing = match find::job(session, wanted, naming).await {
        Err(error @ Error::NotFound { .. }) => error,
        other => return other,
    };
    if !session.is_kvmms() {
        return Err(missing);
    }
    if let Ok(id) = Uuid::parse_str(wanted.trim().trim_matches(['{', '}'])) {
        let id = id.hyphenated().to_string().to_uppercase();
        return watch::record(session, &id).await?.ok_or(missing);
    }
    let mut records = session.client.enumerate(vendor::JOB_RECORD).await?;
    let candidates: Vec<_> = records
        .iter()
        .map(|r| Candidate {
            id: text(r, "InstanceID"),
            name: title(r),
        })
        .collect();
    let hint = "kvmms job list --all shows the history.";
    let at = find::pick("job", &candidates, wanted, naming, hint)?;
    Ok(records.swap_remove(at))
}

fn is_record(job: &Instance) -> bool {
    job.class.is(vendor::JOB_RECORD)
}

/// The errors of a job or of its record.
async fn chain(session: &Session, job: &Instance) -> Result<Vec<Instance>> {
    if is_record(job) {
        return Ok(watch::record_errors(job));
    }
    session.job_errors(&job_path(job)).await
}

async fn show(session: &Session, wanted: &str) -> Result<()> {
    let job = any(session, wanted, Naming::Beginning).await?;
    let chain = chain(session, &job).await?;
    let links: Vec<_> = chain.iter().map(Link::of).collect();
    let record = match is_record(&job) {
        true => Some(job.clone()),
        false => watch::record(session, &text(&job, "InstanceID")).await?,
    };
    let bytes = |property: &str| record.as_ref().and_then(|r| number(r, property));
    let told = links_text(&links);
    let files = record.as_ref().map(|r| crate::inspect::texts(r, "Files"));
    let report = record.as_ref().map(|r| crate::inspect::texts(r, "Report"));
    let boots = record.as_ref().map(evidence).unwrap_or_default();
    let row = row(&job)
        .yes("cancellable", "Cancellable", boolean(&job, "Cancellable"))
        .size("bytesDone", "Done", bytes("BytesDone").filter(|n| *n > 0))
        .size("bytesTotal", "Of", bytes("BytesTotal").filter(|n| *n > 0))
        .maybe("directory", "Directory", some_text(&job, "ExportDirectory"))
        .lines("files", "Files", files.unwrap_or_default())
        .lines("report", "Report", report.unwrap_or_default())
        .both("boots", "Booted", boots_text(&boots), json!(boots))
        .both(
            "errors",
            "Errors",
            below_title(&told),
            chain.iter().map(crate::inspect::json_instance).collect(),
        );
    session.output.one(&row)
}

/// A chain of causes as a value below its title, which brings an indent of its own.
fn below_title(chain: &str) -> String {
    let lines = chain.lines().map(|l| l.strip_prefix("  ").unwrap_or(l));
    // With an end of line even a single cause stands below.
    lines.fold(String::new(), |text, line| text + line + "\n")
}

async fn follow(session: &Session, wanted: &str) -> Result<()> {
    let job = any(session, wanted, Naming::Beginning).await?;
    let ended = match is_record(&job) {
        false => watch::to_the_end(session, &job_path(&job)).await?,
        true => job,
    };
    let last = number(&ended, "JobState").unwrap_or(0);
    if is_record(&ended) && !matches!(last, state::COMPLETED | state::COMPLETED_WITH_WARNINGS) {
        return Err(Error::Job {
            id: text(&ended, "InstanceID"),
            title: title(&ended),
            outcome: "failed",
            description: Some(state_word(last)),
            chain: watch::record_errors(&ended),
        });
    }
    let line = format!("{}: {}", title(&ended), state_word(last));
    session.output.done(&line, &row(&ended))
}

async fn request(session: &Session, job: &Instance, to: u16) -> Result<()> {
    let now = number(job, "JobState").unwrap_or(0);
    if is_record(job) || is_final(now) {
        return Err(Error::usage(format!(
            "the job has ended: {}",
            state_word(now)
        )));
    }
    session
        .call(
            &job_path(job),
            "RequestStateChange",
            &parameters([("RequestedState", to.into())]),
        )
        .await
        .map(drop)
}

async fn ask(session: &Session, wanted: &str, to: u16, done: &str) -> Result<()> {
    let job = any(session, wanted, Naming::Whole).await?;
    request(session, &job, to).await?;
    let now = session.client.get(&job_path(&job)).await?;
    let line = format!("{} is {done}", title(&now));
    session.output.done(&line, &row(&now))
}

/// Stops a job, and waits until it has ended. That it ended as cancelled is what was asked for.
async fn cancel(session: &Session, wanted: &str, to: u16) -> Result<()> {
    let job = any(session, wanted, Naming::Whole).await?;
    request(session, &job, to).await?;
    let path = job_path(&job);
    if !session.wait {
        return session.output.done(&watch::id(&path), &row(&job));
    }
    match watch::to_the_end(session, &path).await {
        Ok(ended) => session.output.done(
            &format!(
                "{} had come to its end before it could be stopped",
                title(&ended)
            ),
            &row(&ended),
        ),
        Err(Error::Job { outcome, title, .. }) if outcome != "failed" => {
            let ended = session.client.get(&path).await?;
            session
                .output
                .done(&format!("{title}: {outcome}"), &row(&ended))
        }
        Err(error) => Err(error),
    }
}

async fn errors(session: &Session, wanted: &str) -> Result<()> {
    let job = any(session, wanted, Naming::Beginning).await?;
    let chain = chain(session, &job).await?;
    if session.output.is_json() {
        let rows: Vec<_> = chain.iter().map(Row::instance).collect();
        return session.output.list(&rows, "");
    }
    let now = number(&job, "JobState").unwrap_or(0);
    let mut out = format!("{}: {}\n", title(&job), state_word(now));
    let links: Vec<_> = chain.iter().map(Link::of).collect();
    out.push_str(&links_text(&links));
    let mut told = Vec::new();
    for remedy in chain
        .iter()
        .flat_map(|e| crate::inspect::texts(e, "RecommendedActions"))
    {
        if !told.contains(&remedy) {
            told.push(remedy);
        }
    }
    if chain.is_empty() {
        out.push_str("  no errors\n");
    }
    if !told.is_empty() {
        out.push_str("what to do:\n");
    }
    for remedy in told {
        out.push_str(&format!("  - {remedy}\n"));
    }
    session.output.raw(out.as_bytes())
}
