//! The worker: runs one input after the other until its time is over or an input ends it.

use crate::coverage::{self, Reached};
use crate::mutate::{Random, mutate};
use crate::{Target, inputs};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An input that runs longer than this is a finding.
pub const SLOW: Duration = Duration::from_secs(5);
/// Stack of the thread that runs inputs: what a worker thread of the service has.
const STACK: usize = 2 * 1024 * 1024;
/// Memory of the process; the corpus itself needs a small part of it.
const MEMORY: u64 = 2 * 1024 * 1024 * 1024;

/// What a worker is to do.
#[derive(Clone, Debug)]
pub struct Orders {
    /// Where random numbers start.
    pub seed: u64,
    /// How long to go on.
    pub time: Duration,
    /// Longest input.
    pub limit: usize,
    /// Directories whose inputs are the start; new ones go into the last.
    pub corpora: Vec<PathBuf>,
    /// Where findings go.
    pub findings_in: PathBuf,
    /// Where the running input is written.
    pub current: PathBuf,
}

/// A name from the content, so that the same input has the same file.
pub fn name_of(input: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Writes a finding and says where.
pub fn keep(directory: &Path, kind: &str, input: &[u8]) -> Result<PathBuf> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let path = directory.join(format!("{kind}-{}", name_of(input)));
    std::fs::write(&path, input).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Runs on a thread with a stack of its own. Returns the number of findings.
pub fn run(target: &'static Target, orders: Orders) -> Result<usize> {
    // As far as the process may have it at all.
    let allowed = rustix::process::getrlimit(rustix::process::Resource::As).maximum;
    let limit = rustix::process::Rlimit {
        current: Some(allowed.map_or(MEMORY, |most| most.min(MEMORY))),
        maximum: allowed,
    };
    rustix::process::setrlimit(rustix::process::Resource::As, limit)
        .context("cannot limit the memory")?;
    let started = Arc::new(AtomicU64::new(0));
    watch_time(Arc::clone(&started))?;
    let thread = std::thread::Builder::new()
        .name("input".to_owned())
        .stack_size(STACK)
        .spawn(move || Worker::new(target, orders, started)?.run())
        .context("cannot start a thread")?;
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn now() -> u64 {
    static ORIGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    // Never 0: that says that no input runs.
    ORIGIN.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

/// Ends the process when an input runs too long; the one who looks on keeps the input.
fn watch_time(started: Arc<AtomicU64>) -> Result<()> {
    std::thread::Builder::new()
        .name("time".to_owned())
        .spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(200));
                let since = started.load(Ordering::Relaxed);
                if since != 0 && now().saturating_sub(since) > SLOW.as_millis() as u64 {
                    eprintln!("an input runs for more than {} s", SLOW.as_secs());
                    std::process::abort();
                }
            }
        })
        .map(drop)
        .context("cannot start a thread")
}

struct Worker {
    target: &'static Target,
    orders: Orders,
    started: Arc<AtomicU64>,
    current: File,
    reached: Reached,
    corpus: Vec<Vec<u8>>,
    runs: u64,
    slowest: Duration,
    /// Where it panicked last, told by the hook.
    place: Arc<Mutex<String>>,
    /// One finding per place.
    findings: BTreeMap<String, PathBuf>,
}

impl Worker {
    fn new(target: &'static Target, orders: Orders, started: Arc<AtomicU64>) -> Result<Self> {
        let current = File::create(&orders.current)
            .with_context(|| format!("cannot create {}", orders.current.display()))?;
        let place = Arc::new(Mutex::new(String::new()));
        let told = Arc::clone(&place);
        std::panic::set_hook(Box::new(move |info| {
            let mut place = told.lock().unwrap_or_else(PoisonError::into_inner);
            *place = info.location().map(ToString::to_string).unwrap_or_default();
        }));
        Ok(Worker {
            target,
            orders,
            started,
            current,
            reached: Reached::default(),
            corpus: Vec::new(),
            runs: 0,
            slowest: Duration::ZERO,
            place,
            findings: BTreeMap::new(),
        })
    }

    fn run(mut self) -> Result<usize> {
        let mut known = HashSet::new();
        for directory in self.orders.corpora.clone() {
            let found = inputs(&directory)
                .with_context(|| format!("cannot read {}", directory.display()))?;
            for (_, input) in found {
                if known.insert(name_of(&input)) && self.try_input(&input)? {
                    self.corpus.push(input);
                }
            }
        }
        if self.corpus.is_empty() {
            self.corpus.push(Vec::new());
        }
        self.report("starts");
        let begin = Instant::now();
        let mut told = Instant::now();
        let mut random = Random::new(self.orders.seed);
        while begin.elapsed() < self.orders.time {
            let mut input = self.choose(&mut random);
            let other = self.choose(&mut random);
            let limit = self.orders.limit;
            mutate(
                &mut input,
                &other,
                self.target.dictionary,
                limit,
                &mut random,
            );
            if self.try_input(&input)? {
                if let Some(directory) = self.orders.corpora.last()
                    && known.insert(name_of(&input))
                {
                    std::fs::create_dir_all(directory).context("cannot keep an input")?;
                    std::fs::write(directory.join(name_of(&input)), &input)
                        .context("cannot keep an input")?;
                }
                self.corpus.push(input);
            }
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                self.report("runs");
            }
        }
        self.report("ends");
        Ok(self.findings.len())
    }

    /// Every second time one of the newest: they lead on.
    fn choose(&self, random: &mut Random) -> Vec<u8> {
        let all = self.corpus.len();
        let at = match random.below(2) {
            0 => random.below(all),
            _ => all - 1 - random.below(all.min(16)),
        };
        self.corpus.get(at).cloned().unwrap_or_default()
    }

    /// Whether it reached something new.
    fn try_input(&mut self, input: &[u8]) -> Result<bool> {
        self.current
            .set_len(0)
            .and_then(|()| self.current.write_all_at(input, 0))
            .context("cannot write the running input")?;
        coverage::reset();
        let begin = Instant::now();
        self.started.store(now(), Ordering::Relaxed);
        let result = catch_unwind(AssertUnwindSafe(|| (self.target.run)(input)));
        self.started.store(0, Ordering::Relaxed);
        self.slowest = self.slowest.max(begin.elapsed());
        self.runs += 1;
        let new = self.reached.add();
        if result.is_err() {
            let place = self
                .place
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            if !self.findings.contains_key(&place) {
                let path = keep(&self.orders.findings_in, "panic", input)?;
                println!(
                    "{}: panics at {place}: {}",
                    self.target.name,
                    path.display()
                );
                self.findings.insert(place, path);
            }
            return Ok(false);
        }
        Ok(new)
    }

    fn report(&self, what: &str) {
        println!(
            "{}: {what}: {} runs, {} inputs, {} edges, slowest {:.1} ms, {} findings",
            self.target.name,
            self.runs,
            self.corpus.len(),
            self.reached.edges(),
            self.slowest.as_secs_f64() * 1000.0,
            self.findings.len()
        );
    }
}

/// Few of `rest` that reach, together with `given`, what all reach: always the one that adds most, the
/// shorter one of equals.
pub fn smallest_set(target: &Target, given: &[Vec<u8>], mut rest: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let edges = |input: &Vec<u8>| {
        coverage::reset();
        let fine = catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_ok();
        if fine { coverage::edges() } else { Vec::new() }
    };
    let mut reached: HashSet<usize> = given.iter().flat_map(edges).collect();
    rest.sort_by_key(Vec::len);
    let mut open: Vec<(Vec<u8>, Vec<usize>)> = rest
        .into_iter()
        .map(|input| {
            let edges = edges(&input);
            (input, edges)
        })
        .collect();
    let mut kept = Vec::new();
    loop {
        for (_, edges) in &mut open {
            edges.retain(|edge| !reached.contains(edge));
        }
        open.retain(|(_, edges)| !edges.is_empty());
        let most = open.iter().map(|(_, edges)| edges.len()).max();
        let Some(at) = open.iter().position(|(_, edges)| Some(edges.len()) == most) else {
            return kept;
        };
        let (input, edges) = open.remove(at);
        reached.extend(edges);
        kept.push(input);
    }
}
