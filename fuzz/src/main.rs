//! `fuzz run NAME`: look for inputs that a decoder cannot stand.

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use fuzz::work::{Orders, keep, name_of, run, smallest_set};
use fuzz::{TARGETS, Target, coverage, home, inputs, target};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// Hostile input for every decoder.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Prints the names of all targets.
    List,
    /// Changes inputs at random until the time is over.
    Run {
        /// The target.
        name: String,
        /// How long, in seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Where random numbers start; the time of day when not given.
        #[arg(long)]
        seed: Option<u64>,
        /// Longest input, in bytes; the target's own when not given.
        #[arg(long)]
        limit: Option<usize>,
    },
    /// Runs these files, or the whole corpus.
    Replay {
        /// The target.
        name: String,
        /// The inputs.
        files: Vec<PathBuf>,
    },
    /// Adds what was found by runs to the corpus, as few inputs as reach the same.
    Keep {
        /// The target.
        name: String,
    },
    /// The process that runs inputs; started by `run`.
    #[command(hide = true)]
    Worker {
        name: String,
        seconds: u64,
        seed: u64,
        limit: usize,
    },
}

fn main() -> ExitCode {
    match start(Arguments::parse().what) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn find(name: &str) -> Result<&'static Target> {
    target(name).with_context(|| format!("no target {name}; `fuzz list` prints them"))
}

/// Longest input that goes into the repository without a name.
const KEPT: usize = 8192;
/// Most of them per target: the first few reach nearly everything, and a run soon finds the rest again.
const MOST: usize = 24;

/// What runs found lies beside the build, not in the repository.
fn found(name: &str) -> PathBuf {
    home().join("target/found").join(name)
}

fn orders(target: &Target, seconds: u64, seed: u64, limit: usize) -> Orders {
    let name = target.name;
    let mut corpora = target.corpora();
    corpora.push(found(name));
    Orders {
        seed,
        time: Duration::from_secs(seconds),
        limit,
        corpora,
        findings_in: home().join("target/findings").join(name),
        current: home().join("target").join(format!("{name}.current")),
    }
}

fn start(what: What) -> Result<bool> {
    match what {
        What::List => {
            TARGETS
                .iter()
                .for_each(|target| println!("{}", target.name));
            Ok(true)
        }
        What::Run {
            name,
            seconds,
            seed,
            limit,
        } => {
            let target = find(&name)?;
            look_on(target, seconds, seed, limit.unwrap_or(target.limit))
        }
        What::Worker {
            name,
            seconds,
            seed,
            limit,
        } => {
            let target = find(&name)?;
            Ok(run(target, orders(target, seconds, seed, limit))? == 0)
        }
        What::Replay { name, files } => {
            let target = find(&name)?;
            let mut count = 0;
            for corpus in target.corpora().iter().filter(|_| files.is_empty()) {
                for (_, input) in inputs(corpus)? {
                    (target.run)(&input);
                    count += 1;
                }
            }
            for file in files {
                let input = std::fs::read(&file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                (target.run)(&input);
                count += 1;
            }
            println!("{name}: {count} inputs, no finding");
            Ok(true)
        }
        What::Keep { name } => keep_found(find(&name)?),
    }
}

/// Starts workers until the time is over; keeps the input a worker died of.
fn look_on(target: &Target, seconds: u64, seed: Option<u64>, limit: usize) -> Result<bool> {
    if !coverage::is_built_in() {
        eprintln!("built without counters: inputs are changed blindly (use fuzz/run)");
    }
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let mut seed = seed.unwrap_or(time.map_or(0, |time| time.as_nanos() as u64));
    println!("{}: seed {seed}", target.name);
    let begin = Instant::now();
    let orders = orders(target, seconds, seed, limit);
    std::fs::create_dir_all(home().join("target")).context("cannot create fuzz/target")?;
    let mut fine = true;
    loop {
        let left = Duration::from_secs(seconds).saturating_sub(begin.elapsed());
        let status = Command::new(std::env::current_exe().context("which program is this?")?)
            .args(["worker", target.name, &left.as_secs().to_string()])
            .args([seed.to_string(), limit.to_string()])
            .status()
            .context("cannot start a worker")?;
        match status.code() {
            Some(0) => return Ok(fine),
            Some(1) => return Ok(false),
            Some(code) => bail!("the worker gave up with code {code}"),
            None => {
                fine = false;
                let input = std::fs::read(&orders.current).context("no running input")?;
                let path = keep(&orders.findings_in, "ends", &input)?;
                println!(
                    "{}: ends the process ({status}): {}",
                    target.name,
                    path.display()
                );
                seed = seed.wrapping_add(1);
            }
        }
        if left.is_zero() {
            return Ok(fine);
        }
    }
}

fn keep_found(target: &Target) -> Result<bool> {
    if !coverage::is_built_in() {
        bail!("built without counters: use fuzz/run --keep");
    }
    let corpus = home().join("corpus").join(target.name);
    let old = inputs(&corpus)?;
    let new = inputs(&found(target.name))?;
    let is_named = |name: &str| name.len() != 16 || !name.bytes().all(|b| b.is_ascii_hexdigit());
    // What a person named stays, whatever else reaches the same.
    let (named, others): (Vec<_>, Vec<_>) = old.into_iter().partition(|(name, _)| is_named(name));
    for (name, _) in &others {
        std::fs::remove_file(corpus.join(name)).context("cannot thin out the corpus")?;
    }
    let mut given: Vec<Vec<u8>> = named.into_iter().map(|(_, input)| input).collect();
    for also in target.corpora().iter().skip(1) {
        given.extend(inputs(also)?.into_iter().map(|(_, input)| input));
    }
    let rest = others
        .into_iter()
        .chain(new)
        .map(|(_, input)| input)
        .filter(|input| input.len() <= KEPT)
        .collect();
    let mut kept = smallest_set(target, &given, rest);
    kept.truncate(MOST);
    std::fs::create_dir_all(&corpus).context("cannot create the corpus")?;
    for input in &kept {
        std::fs::write(corpus.join(name_of(input)), input).context("cannot keep an input")?;
    }
    println!(
        "{}: {} given and {} found inputs",
        target.name,
        given.len(),
        kept.len()
    );
    Ok(true)
}
