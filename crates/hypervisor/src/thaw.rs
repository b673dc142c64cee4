//! Frozen guests thaw, whatever becomes of the service.
//!
//! ```text
//!  service:   mark -> watchdog starts -> freeze ... thaw -> mark goes -> watchdog is dismissed
//!  watchdog:  waits on a pipe from the service
//!               a byte   the guest was thawed: it ends
//!               the end  the service is gone: it thaws
//!               nothing  until the deadline: the service hangs: it thaws
//! ```
//! The **mark** is a file in the machine's run directory that names the freeze. A service that starts thaws every guest whose mark it
//! finds; a watchdog acts only while the mark is the one it was started for, so that it never thaws a later freeze.
//!
//! The **watchdog** is a small process of the service's own program, in a process group of its own. While the service lives and works it
//! touches nothing, since the agent's socket takes one client; a client that died has left the socket free.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use uuid::Uuid;

use crate::agent::Agent;
use crate::error::{Error, Result};
use crate::names::RunFiles;
use crate::qmp::Qmp;
use crate::qmp::codec::text;

/// The subcommand of the service's program that stands watch; its arguments are run directory, mark, seconds.
pub const SUBCOMMAND: &str = "thaw-watchdog";

/// How often a watchdog tries, and how long each try and the pause after it take.
const TRIES: u32 = 120;
const TRY: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(1);

/// Names a freeze that is about to begin. It is there when this returns, also for whoever comes after a crash.
///
/// # Errors
/// [`Error::Io`].
pub fn mark(run_dir: &Path) -> Result<Uuid> {
    let (path, mark) = (RunFiles::new(run_dir).frozen(), Uuid::new_v4());
    std::fs::create_dir_all(run_dir).map_err(|e| Error::io("create", run_dir, e))?;
    std::fs::write(&path, mark.to_string()).map_err(|e| Error::io("write", &path, e))?;
    Ok(mark)
}

/// The freeze that was begun and of whose thaw nothing is known.
#[must_use]
pub fn marked(run_dir: &Path) -> Option<Uuid> {
    let text = std::fs::read_to_string(RunFiles::new(run_dir).frozen()).ok()?;
    // A mark that was cut by a crash is one all the same.
    Some(text.trim().parse().unwrap_or(Uuid::nil()))
}

/// The guest of that freeze was thawed. A later freeze keeps its mark.
pub fn unmark(run_dir: &Path, mark: Uuid) {
    if marked(run_dir) == Some(mark)
        && let Err(error) = std::fs::remove_file(RunFiles::new(run_dir).frozen())
    {
        tracing::warn!(dir = %run_dir.display(), %error, "the mark of a freeze stays; the guest will be thawed once more");
    }
}

/// The service's end of a watchdog. When it goes without [`Watchdog::dismiss`], the watchdog thaws.
#[derive(Debug)]
pub struct Watchdog {
    pipe: File,
}

impl Watchdog {
    /// Starts one: `program` with [`SUBCOMMAND`]. What it does is told in a log in the run directory.
    ///
    /// # Errors
    /// [`Error::Spawn`], [`Error::Io`].
    pub fn start(program: &Path, run_dir: &Path, mark: Uuid, within: Duration) -> Result<Self> {
        let log = RunFiles::new(run_dir).thaw_log();
        let told = File::options().append(true).create(true).open(&log);
        let told = told.map_err(|e| Error::io("open", &log, e))?;
        let failed = |source| Error::Spawn {
            program: program.to_owned(),
            source,
        };
        let mut child = Command::new(program)
            .arg(SUBCOMMAND)
            .arg(run_dir)
            .arg(mark.to_string())
            .arg(within.as_secs().max(1).to_string())
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(told)
            .kill_on_drop(false)
            .spawn()
            .map_err(failed)?;
        let closed = || failed(std::io::ErrorKind::BrokenPipe.into());
        let pipe = child.stdin.take().ok_or_else(closed)?;
        let pipe: OwnedFd = pipe.into_owned_fd().map_err(failed)?;
        Ok(Self { pipe: pipe.into() })
    }

    /// The guest was thawed: the watchdog ends.
    pub fn dismiss(mut self) {
        // One that has ended needs no word.
        let _ = self.pipe.write_all(b"t");
    }
}

/// What a watchdog was needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    Dismissed,
    ServiceGone,
    Deadline,
}

fn wait(mut from: impl Read + Send + 'static, within: Duration) -> Woken {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut byte = [0];
        let count = from.read(&mut byte).unwrap_or(0);
        // Nobody listens after the deadline.
        let _ = sender.send(count);
    });
    match receiver.recv_timeout(within) {
        Ok(0) | Err(RecvTimeoutError::Disconnected) => Woken::ServiceGone,
        Ok(_) => Woken::Dismissed,
        Err(RecvTimeoutError::Timeout) => Woken::Deadline,
    }
}

/// Stands watch, in a process of its own with the pipe on its standard input: returns when the guest was thawed, by whom ever, or cannot be.
/// Tells on standard error what it did.
///
/// # Errors
/// The last one, where the guest could not be thawed.
pub async fn stand_watch(run_dir: PathBuf, mark: Uuid, within: Duration) -> Result<()> {
    let woken = wait(std::io::stdin(), within);
    act(&run_dir, mark, woken).await
}

async fn act(run_dir: &Path, mark: Uuid, woken: Woken) -> Result<()> {
    let why = match woken {
        Woken::Dismissed => return Ok(()),
        Woken::ServiceGone => "the service is gone",
        Woken::Deadline => "the service took too long",
    };
    let files = RunFiles::new(run_dir);
    if woken == Woken::ServiceGone {
        // A guest of a collection may stand still for the common instant. Nobody else stops it meanwhile: the service that would do so
        // has just died, and was holding the machine's lock. While the service lives its instant is not disturbed.
        if let Err(error) = go_on(&files).await {
            tell(format_args!(
                "{mark}: whether the guest stands still is not known: {error}"
            ));
        }
    }
    let agent = Agent::new(files.agent());
    let mut last = None;
    for _ in 0..TRIES {
        if marked(run_dir) != Some(mark) {
            tell(format_args!("{mark}: {why}; the guest was thawed already"));
            return Ok(());
        }
        match thaw(&agent).await {
            Ok(count) => {
                unmark(run_dir, mark);
                tell(format_args!("{mark}: {why}; thawed {count} file systems"));
                return Ok(());
            }
            // Without its socket the machine is gone.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(());
            }
            Err(error) => {
                tell(format_args!("{mark}: {why}; not thawed yet: {error}"));
                last = Some(error);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    last.map_or(Ok(()), Err)
}

/// A late freeze may still lie in the channel: what counts is the state after the thaw.
async fn thaw(agent: &Agent) -> Result<u64> {
    let count = agent.thaw(TRY).await?;
    match agent.frozen(TRY).await? {
        false => Ok(count),
        true => Err(Error::Agent {
            command: "guest-fsfreeze-thaw".to_owned(),
            class: "GenericError".to_owned(),
            desc: "the file systems are still frozen".to_owned(),
        }),
    }
}

/// Lets a guest that stands still go on, by the second monitor.
async fn go_on(files: &RunFiles) -> Result<()> {
    let qmp = Qmp::connect(&files.monitor(), TRY).await?;
    let status = qmp.execute("query-status", Value::Null).await?;
    if text(&status, "status") == Some("paused") {
        qmp.execute("cont", Value::Null).await?;
    }
    Ok(())
}

fn tell(line: std::fmt::Arguments<'_>) {
    // Its standard error is a log file; nobody is left to tell where that fails.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_names_one_freeze_and_only_its_own_thaw_removes_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(marked(dir.path()), None);
        let first = mark(dir.path()).unwrap();
        let second = mark(dir.path()).unwrap();
        unmark(dir.path(), first);
        assert_eq!(marked(dir.path()), Some(second));
        unmark(dir.path(), second);
        assert_eq!(marked(dir.path()), None);
        std::fs::write(RunFiles::new(dir.path()).frozen(), "cut").unwrap();
        assert_eq!(marked(dir.path()), Some(Uuid::nil()), "half a mark is one");
    }

    #[test]
    fn a_byte_dismisses_the_end_and_the_deadline_wake() {
        let long = Duration::from_secs(600);
        assert_eq!(wait(&b"t"[..], long), Woken::Dismissed);
        assert_eq!(wait(&b""[..], long), Woken::ServiceGone);
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(wait(reader, Duration::from_millis(20)), Woken::Deadline);
    }
}
