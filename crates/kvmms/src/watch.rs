//! Following jobs: progress on a terminal as a bar, elsewhere as a line every few seconds.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use cim::{Instance, Path};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use msvm::class;

use crate::error::{Error, Result};
use crate::inspect::{number, some_text, text, texts};
use crate::moving;
use crate::report::Link;
use crate::session::{NAMESPACE, Session, is_lost};
use crate::size::{Size, span};
use crate::vendor;

/// How often a job is asked for, at first and later.
const SOON: Duration = Duration::from_millis(100);
const LATER: Duration = Duration::from_millis(500);
/// How often a line is printed where there is no terminal.
const LINES: Duration = Duration::from_secs(5);
/// How long a service that went away may take to come back: jobs survive its restart.
const PATIENCE: Duration = Duration::from_secs(60);

/// CIM's numbers of job states.
pub(crate) mod state {
    pub(crate) const SUSPENDED: u64 = 5;
    pub(crate) const COMPLETED: u64 = 7;
    pub(crate) const TERMINATED: u64 = 8;
    pub(crate) const KILLED: u64 = 9;
    pub(crate) const EXCEPTION: u64 = 10;
    pub(crate) const COMPLETED_WITH_WARNINGS: u64 = 32768;
}

/// A job's state in a word.
pub(crate) fn state_word(state: u64) -> String {
    match state {
        2 | 3 => "starting",
        4 => "running",
        state::SUSPENDED => "suspended",
        6 => "ending",
        state::COMPLETED => "completed",
        state::TERMINATED => "cancelled",
        state::KILLED => "killed",
        state::EXCEPTION => "failed",
        state::COMPLETED_WITH_WARNINGS => "completed with warnings",
        other => return format!("state {other}"),
    }
    .to_owned()
}

/// Whether a job in that state has ended.
pub(crate) fn is_final(state: u64) -> bool {
    (state::COMPLETED..=state::EXCEPTION).contains(&state)
        || state == state::COMPLETED_WITH_WARNINGS
}

/// A job's id.
pub(crate) fn id(job: &Path) -> String {
    job.get_str("InstanceID").unwrap_or_default().to_owned()
}

/// How far a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Progress {
    percent: u64,
    /// Bytes done and to do, where they are known.
    bytes: Option<(u64, u64)>,
}

impl Progress {
    fn of(job: &Instance, record: Option<&Instance>) -> Self {
        let bytes = record.and_then(|r| {
            let total = number(r, "BytesTotal").filter(|t| *t > 0)?;
            Some((number(r, "BytesDone")?.min(total), total))
        });
        Progress {
            percent: number(job, "PercentComplete").unwrap_or(0).min(100),
            bytes,
        }
    }
}

/// What the rate since the first sight of a job says about its end.
fn pace(first: Progress, now: Progress, passed: Duration) -> (Option<u64>, Option<Duration>) {
    let seconds = passed.as_secs_f64();
    if seconds < 0.5 {
        return (None, None);
    }
    let (gained, left, in_bytes) = match (first.bytes, now.bytes) {
        (Some((from, _)), Some((done, total))) => (
            done.saturating_sub(from) as f64,
            total.saturating_sub(done) as f64,
            true,
        ),
        _ => (
            now.percent.saturating_sub(first.percent) as f64,
            100u64.saturating_sub(now.percent) as f64,
            false,
        ),
    };
    if gained <= 0.0 {
        return (None, None);
    }
    let rate = in_bytes.then_some((gained / seconds) as u64);
    let left = Duration::try_from_secs_f64(left * seconds / gained).ok();
    (rate, left)
}

fn line(now: Progress, rate: Option<u64>, left: Option<Duration>) -> String {
    let mut out = String::new();
    if let Some((done, total)) = now.bytes {
        out.push_str(&format!("{} of {}", Size(done), Size(total)));
        if let Some(rate) = rate {
            out.push_str(&format!(", {}/s", Size(rate)));
        }
    }
    if let Some(left) = left.filter(|_| now.percent < 100) {
        let before = if out.is_empty() { "" } else { ", " };
        out.push_str(&format!("{before}{} left", span(left)));
    }
    out
}

/// Shows progress.
struct Display {
    bar: Option<ProgressBar>,
    /// When the last line was printed, where there is no terminal.
    printed: Instant,
    shown: bool,
    first: Option<(Instant, Progress)>,
}

impl Display {
    fn new(session: &Session) -> Self {
        let shown = session.progress && !session.output.is_json();
        let terminal = shown && io::stderr().is_terminal();
        Display {
            bar: terminal.then(|| {
                let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::stderr());
                let style = ProgressStyle::with_template("{prefix} {bar:28} {percent:>3}%  {msg}");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar
            }),
            printed: Instant::now(),
            shown,
            first: None,
        }
    }

    fn update(&mut self, job: &Instance, record: Option<&Instance>, moving: Option<&Instance>) {
        let now = Progress::of(job, record);
        let (since, first) = self.first.get_or_insert((Instant::now(), now));
        if let (None, Some((_, total))) = (first.bytes, now.bytes) {
            // The job had not begun to count yet.
            first.bytes = Some((0, total));
        }
        let (since, first) = (*since, *first);
        let (rate, left) = pace(first, now, since.elapsed());
        let state = number(job, "JobState").unwrap_or(0);
        let mut words = match moving {
            Some(detail) => moving::words(detail),
            None => line(now, rate, left),
        };
        if state == state::SUSPENDED {
            words = format!("suspended; {words}");
        }
        if let Some(bar) = &self.bar {
            bar.set_prefix(title(job));
            bar.set_position(now.percent);
            bar.set_message(words);
        } else if self.shown && self.printed.elapsed() >= LINES {
            self.printed = Instant::now();
            let space = if words.is_empty() { "" } else { "  " };
            eprintln!("{}: {}%{space}{words}", title(job), now.percent);
        }
    }

    fn say(&self, words: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{words}")),
            None if self.shown => eprintln!("{words}"),
            None => {}
        }
    }

    fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What a job does, in its own words.
pub(crate) fn title(job: &Instance) -> String {
    ["ElementName", "Caption", "Description"]
        .into_iter()
        .find_map(|p| some_text(job, p))
        .unwrap_or_else(|| job.class.to_string())
}

/// The record of a job, which outlives the job.
pub(crate) async fn record(session: &Session, id: &str) -> Result<Option<Instance>> {
    if !session.is_kvmms() {
        return Ok(None);
    }
    let path = Path::class(vendor::JOB_RECORD)
        .in_namespace(NAMESPACE)
        .key("InstanceID", id);
    match session.client.get(&path).await {
        Ok(record) => Ok(Some(record)),
        Err(error) if error.fault().is_some_and(|f| f.is_not_found()) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The errors a record tells: lines, causes further in, each with its id at the end.
pub(crate) fn record_errors(record: &Instance) -> Vec<Instance> {
    let lines = texts(record, "ErrorText");
    let mut errors: Vec<_> = lines
        .iter()
        .map(|line| {
            let line = line.trim();
            let split = line.strip_suffix(']').and_then(|l| l.rsplit_once(" ["));
            let error = Instance::new(class::MSVM_ERROR);
            match split {
                Some((message, id)) => error.with("Message", message).with("MessageID", id),
                None => error.with("Message", line),
            }
        })
        .collect();
    if let Some(first) = errors.first_mut() {
        first.set("RecommendedActions", texts(record, "RecommendedActions"));
    }
    errors
}

/// Follows a job to its end. An end without success is an error with the job's chain.
pub(crate) async fn to_the_end(session: &Session, job: &Path) -> Result<Instance> {
    let job = &job
        .clone()
        .in_namespace(job.namespace.as_deref().unwrap_or(NAMESPACE));
    let mut display = Display::new(session);
    let ended = tokio::select! {
        ended = poll(session, job, &mut display) => ended,
        pressed = tokio::signal::ctrl_c() => match pressed {
            Ok(()) => Err(Error::Interrupted { job: id(job) }),
            Err(source) => Err(Error::io("listen for", "Ctrl-C", source)),
        },
    };
    display.end();
    let ended = ended?;
    match number(&ended, "JobState").unwrap_or(0) {
        state::COMPLETED | state::COMPLETED_WITH_WARNINGS => {
            // A job may have succeeded and still have something to say.
            let warnings = session.job_errors(job).await?;
            if !warnings.is_empty() {
                let links: Vec<_> = warnings.iter().map(Link::of).collect();
                session.output.warnings(&links);
            }
            Ok(ended)
        }
        state => Err(failure(session, job, &ended, state).await?),
    }
}

/// Why a job did not succeed.
pub(crate) async fn failure(
    session: &Session,
    job: &Path,
    ended: &Instance,
    state: u64,
) -> Result<Error> {
    let mut chain = session.job_errors(job).await?;
    if chain.is_empty() {
        chain = match record(session, &id(job)).await? {
            Some(record) => record_errors(&record),
            None => Vec::new(),
        };
    }
    Ok(Error::Job {
        id: id(job),
        title: title(ended),
        outcome: match state {
            state::TERMINATED => "cancelled",
            state::KILLED => "killed",
            _ => "failed",
        },
        description: some_text(ended, "ErrorDescription")
            .or_else(|| some_text(ended, "ErrorSummaryDescription")),
        chain,
    })
}

async fn poll(session: &Session, job: &Path, display: &mut Display) -> Result<Instance> {
    let started = Instant::now();
    let mut lost: Option<Instant> = None;
    loop {
        match session.client.get(job).await {
            Ok(now) => {
                if lost.take().is_some() {
                    display.say("The service is back.");
                }
                if is_final(number(&now, "JobState").unwrap_or(0)) {
                    return Ok(now);
                }
                let record = match display.shown {
                    true => record(session, &id(job)).await.unwrap_or_default(),
                    false => None,
                };
                let move_detail = match display.shown && now.class.is(class::MSVM_MIGRATION_JOB) {
                    true => moving::detail(session, &id(job)).await.unwrap_or_default(),
                    false => None,
                };
                display.update(&now, record.as_ref(), move_detail.as_ref());
            }
            Err(error) if is_lost(&error) => {
                let since = *lost.get_or_insert_with(|| {
                    display.say(&format!(
                        "{error}; jobs survive a restart of the service, waiting for it."
                    ));
                    Instant::now()
                });
                if since.elapsed() > PATIENCE {
                    return Err(error.into());
                }
            }
            Err(error) if error.fault().is_some_and(|f| f.is_not_found()) => {
                // Jobs go some minutes after their end; their record stays.
                return match record(session, &id(job)).await? {
                    Some(record) => Ok(record),
                    None => Err(gone(&id(job))),
                };
            }
            Err(error) => return Err(error.into()),
        }
        let young = started.elapsed() < Duration::from_secs(2);
        tokio::time::sleep(if young { SOON } else { LATER }).await;
    }
}

fn gone(id: &str) -> Error {
    Error::NotFound {
        kind: "job",
        text: id.to_owned(),
        hint: "Jobs vanish some minutes after their end; kvmms job list --all shows them all."
            .to_owned(),
    }
}

/// The text a job's state and errors amount to, for lists.
pub(crate) fn outcome(job: &Instance) -> String {
    match number(job, "JobState") {
        Some(state) => state_word(state),
        None => text(job, "JobStatus"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(percent: u64, bytes: Option<(u64, u64)>) -> Progress {
        Progress { percent, bytes }
    }

    #[test]
    fn bytes_tell_rate_and_time_left() {
        let first = at(0, Some((0, 100 << 20)));
        let now = at(25, Some((25 << 20, 100 << 20)));
        let (rate, left) = pace(first, now, Duration::from_secs(5));
        assert_eq!(rate, Some(5 << 20));
        assert_eq!(left, Some(Duration::from_secs(15)));
        assert_eq!(
            line(now, rate, left),
            "25 MiB of 100 MiB, 5 MiB/s, 15.0s left"
        );
    }

    #[test]
    fn percent_alone_tells_the_time_left() {
        let (rate, left) = pace(at(10, None), at(20, None), Duration::from_secs(10));
        assert_eq!((rate, left), (None, Some(Duration::from_secs(80))));
        assert_eq!(line(at(20, None), rate, left), "1m20s left");
    }

    #[test]
    fn percent_is_never_taken_for_bytes() {
        let now = at(99, Some((700 << 20, 700 << 20)));
        let (rate, _) = pace(at(0, None), now, Duration::from_secs(1));
        assert_eq!(rate, None);
    }

    #[test]
    fn nothing_is_foretold_before_anything_moved() {
        let now = at(10, Some((5, 10)));
        assert_eq!(pace(now, now, Duration::from_secs(9)), (None, None));
        assert_eq!(
            pace(at(0, None), now, Duration::from_millis(100)),
            (None, None)
        );
    }

    #[test]
    fn a_record_gives_the_bytes_and_never_more_than_all() {
        let job = Instance::new("J").with("PercentComplete", 30u16);
        let record = Instance::new("R")
            .with("BytesDone", "12")
            .with("BytesTotal", "10");
        let bytes = Progress::of(&job, Some(&record)).bytes;
        assert_eq!(bytes, Some((10, 10)));
        let none = Instance::new("R")
            .with("BytesDone", "0")
            .with("BytesTotal", "0");
        assert_eq!(Progress::of(&job, Some(&none)), at(30, None));
    }

    #[test]
    fn a_record_tells_its_errors_with_ids_and_remedies() {
        let record = Instance::new("R")
            .with(
                "ErrorText",
                vec!["No [x] room. [KVMMS-0042]".to_owned(), "  plain".to_owned()],
            )
            .with("RecommendedActions", vec!["Make room.".to_owned()]);
        let errors = record_errors(&record);
        let told: Vec<_> = errors
            .iter()
            .map(|e| (text(e, "Message"), text(e, "MessageID")))
            .collect();
        let expected = [("No [x] room.", "KVMMS-0042"), ("plain", "")];
        assert_eq!(told, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(texts(&errors[0], "RecommendedActions"), ["Make room."]);
        assert!(record_errors(&Instance::new("R")).is_empty());
    }

    #[test]
    fn only_ended_states_are_final() {
        let ended: Vec<u64> = (0..20).filter(|s| is_final(*s)).collect();
        assert_eq!(ended, [7, 8, 9, 10]);
        assert!(is_final(32768));
    }
}
