//! Looking for what records and files do not agree on: records without files, files without records, holds and jobs that should
//! have ended, processes nobody knows; and cleaning what nobody needs.
//!
//! # Model
//! A [`Finding`] says what lies where, why it is thought orphaned, and whether cleaning it is safe. It is safe only where the name
//! *and* the content prove that we made it, a layer names this state directory as its owner, no record and no image header that we know of refers to it, and no process has it open.
//! Everything else is told and left alone.
//!
//! # Certainty
//! Files are listed before the records are read, what running jobs speak of is left out, and whatever is found is looked at a
//! second time: what a busy service creates or removes in between is no finding. Cleaning looks a third time, at each thing right
//! before it goes.

pub(crate) mod beside;
mod clean;
mod exports;
mod known;
mod layers;
mod quarantine;
mod records;
mod run_dirs;
mod state;

pub use clean::{CleanHost, clean_host};
pub(crate) use known::open_by;
pub(crate) use quarantine::expire;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::blocking;
use crate::{Fault, Result, Vmms, fault};
use known::{Known, Opened};

/// Between the two looks.
const PAUSE: Duration = Duration::from_millis(300);
/// So many past jobs are read at a time.
const HISTORY_PAGE: usize = 500;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $word:literal;)*) => {
        /// What kind of thing is amiss.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum FindingKind {
            $($(#[$doc])* $kind,)*
        }

        impl FindingKind {
            /// All kinds.
            pub const ALL: &'static [FindingKind] = &[$(FindingKind::$kind),*];

            /// Its name for clients.
            pub fn word(self) -> &'static str {
                match self {
                    $(FindingKind::$kind => $word,)*
                }
            }
        }
    };
}

kinds! {
    /// A machine, point or snapshot whose layers, maps or configuration are gone.
    Record = "record";
    /// A point or snapshot that was begun and neither finished nor taken back.
    Unfinished = "unfinished";
    /// A hold that is over and still keeps layers.
    Hold = "hold";
    /// A job that should run and does not.
    Job = "job";
    /// A QEMU process of ours that no record wants.
    Process = "process";
    /// A layer that no machine is read through.
    Layer = "layer";
    /// A change map of no instant.
    Map = "map";
    /// The directory of no point and no snapshot.
    PointFiles = "point-files";
    /// The state directory of no machine.
    MachineFiles = "machine-files";
    /// Files of an export that was never finished.
    Export = "export";
    /// A file under a temporary name that nobody writes any more.
    Temporary = "temporary";
    /// Sockets and notes of a process that is gone.
    Socket = "socket";
    /// What cleaning took away and a person can still take back.
    Quarantine = "quarantine";
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for FindingKind {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL
            .iter()
            .find(|k| k.word().eq_ignore_ascii_case(text.trim()));
        found.copied().ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|k| k.word()).collect();
            let why = format!("there are {}", known.join(", "));
            fault!(InvalidValue, "a kind of finding", text, why)
        })
    }
}

/// Something amiss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its kind.
    pub kind: FindingKind,
    /// The object, or the path.
    pub subject: String,
    /// What it takes on the host.
    pub bytes: u64,
    /// Why it is thought orphaned.
    pub why: String,
    /// Whether cleaning takes it away.
    pub safe: bool,
    /// What cleaning would do; where it is not safe, what a person can do.
    pub action: String,
    target: Target,
}

/// What cleaning works on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    /// Nothing: a person has to decide.
    Nothing,
    /// Files, and then these directories if nothing else is in them.
    Files(Vec<PathBuf>, Vec<PathBuf>),
    /// The hold of this point.
    Hold(Uuid),
    /// Points of this machine that were not finished.
    Unfinished(Uuid),
    /// A point whose machine is gone.
    Point(Uuid),
    /// A job that is to be picked up as at a start.
    Job(Uuid),
    /// The process of this run directory.
    Process(PathBuf),
}

impl Finding {
    fn new(kind: FindingKind, subject: impl fmt::Display, why: impl Into<String>) -> Self {
        Finding {
            kind,
            subject: subject.to_string(),
            bytes: 0,
            why: why.into(),
            safe: false,
            action: "Nothing is done by cleaning.".to_owned(),
            target: Target::Nothing,
        }
    }

    fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }

    /// Cleaning is safe, and does this.
    fn cleaned_by(mut self, target: Target, action: impl Into<String>) -> Self {
        self.safe = true;
        self.target = target;
        self.action = action.into();
        self
    }

    /// Cleaning would not be safe; a person can do this.
    fn left_to(mut self, action: impl Into<String>) -> Self {
        self.action = action.into();
        self
    }

    /// Files that go, unless a process has one of them open.
    fn files(self, files: Vec<PathBuf>, dirs: Vec<PathBuf>, opened: &Opened) -> Self {
        let bytes = files.iter().map(|f| allocated(f)).sum();
        let user = files.iter().find_map(|f| opened.by(f).map(|pid| (f, pid)));
        let found = self.bytes(bytes);
        if let Some((file, pid)) = user {
            let action = format!(
                "Process {pid} has {} open: look what it is, and end it.",
                file.display()
            );
            return found.left_to(action);
        }
        // Sockets and notes of a process that is gone are nothing anybody could want back.
        let does = match found.kind {
            FindingKind::Socket => "Deletes",
            _ => "Moves into quarantine beside:",
        };
        let action = match files.as_slice() {
            [one] => format!("{does} {}.", one.display()),
            several => format!("{does} {} files.", several.len()),
        };
        found.cleaned_by(Target::Files(files, dirs), action)
    }
}

/// What a file takes on the host.
fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).map_or(0, |m| m.blocks().saturating_mul(512))
}

/// The entries of a directory, sorted; none where it is not there.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let list = std::fs::read_dir(dir).into_iter().flatten();
    let mut out: Vec<PathBuf> = list.filter_map(|e| e.ok().map(|e| e.path())).collect();
    out.retain(|p| name_of(p) != quarantine::DIRECTORY);
    out.sort();
    out
}

fn name_of(path: &Path) -> &str {
    path.file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default()
}

/// Whether it is a plain file, and no link to one.
fn is_plain(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_file())
}

fn is_dir(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_dir())
}

/// The first bytes of a file.
fn begins_with(path: &Path, magic: &[u8]) -> bool {
    use std::io::Read;
    let mut head = vec![0; magic.len()];
    let read = std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut head));
    read.is_ok() && head == magic
}

/// Everything that is amiss on this host, what is safe to clean and what is not. Changes nothing.
pub async fn check_host(vmms: &Arc<Vmms>) -> Result<Vec<Finding>> {
    let first = look(vmms).await?;
    if first.is_empty() {
        return Ok(first);
    }
    tokio::time::sleep(PAUSE).await;
    let mut second = look(vmms).await?;
    second.retain(|found| {
        first
            .iter()
            .any(|f| (f.kind, &f.subject, &f.target) == (found.kind, &found.subject, &found.target))
    });
    Ok(second)
}

/// Where jobs exported to that vanished from view. The history is long: a page at a time is kept.
async fn places_of_past_jobs(vmms: &Vmms) -> Result<BTreeSet<PathBuf>> {
    let (mut out, mut after) = (BTreeSet::new(), None);
    loop {
        let page = vmms
            .db
            .history::<crate::job::Machines>(after, HISTORY_PAGE)
            .await?;
        for job in &page {
            exports::places_of(job, &mut out);
        }
        after = page.last().map(|job| job.id);
        if page.len() < HISTORY_PAGE {
            return Ok(out);
        }
    }
}

async fn look(vmms: &Arc<Vmms>) -> Result<Vec<Finding>> {
    // What is listed before the records are read is named by them, if anything names it.
    let mut found = run_dirs::look(vmms)?;
    let shared = Arc::clone(vmms);
    let past = places_of_past_jobs(vmms).await?;
    let more = blocking(move || {
        let listed = (
            state::list(&shared),
            layers::list(&shared),
            exports::list(&shared, past),
        );
        let known = Known::of(&shared);
        let opened = Opened::now();
        let mut out = records::look(&shared, &known);
        out.extend(quarantine::list(&shared));
        out.extend(layers::judge(&shared, &listed.1, &known, &opened));
        out.extend(state::judge(listed.0, &known, &opened));
        out.extend(exports::judge(listed.2, &known, &opened));
        Ok(out)
    })
    .await?;
    found.extend(more);
    found.sort_by(|a, b| (a.kind, &a.subject).cmp(&(b.kind, &b.subject)));
    Ok(found)
}
