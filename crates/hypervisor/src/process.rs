//! The QEMU process: started in a session of its own so that it outlives the service, found again by pid file, start
//! time and command line, watched by a pidfd so that a reused pid can never be mistaken for it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::confine::steps::Steps;
use crate::error::{Error, Result};
use crate::host::boot_id;
use crate::machine::Exit;
use crate::names::RunFiles;

/// How much of the log an error carries.
const LOG_TAIL: u64 = 4096;

/// How long a killed process may take to be gone. The kernel may have to finish writes first.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// A live or ended QEMU process. Dropping it leaves the process alone.
#[derive(Debug, Clone)]
pub struct Process {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
    log: PathBuf,
    exit: watch::Receiver<Option<Exit>>,
}

/// What proves that a pid still is the process we started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    pid: i32,
    start_ticks: u64,
    boot_id: String,
}

impl Process {
    /// Starts QEMU. Its output goes to the log of `files`; the log of the time before is kept beside it.
    ///
    /// # Errors
    /// [`Error::Spawn`], [`Error::Io`].
    pub fn spawn(program: &Path, args: &[OsString], files: &RunFiles) -> Result<Self> {
        Self::spawn_confined(program, args, files, Steps::default())
    }

    /// The same, after the child has taken these steps.
    pub(crate) fn spawn_confined(
        program: &Path,
        args: &[OsString],
        files: &RunFiles,
        mut steps: Steps,
    ) -> Result<Self> {
        let log =
            File::create(files.log()).map_err(|source| Error::io("create", files.log(), source))?;
        let again = log
            .try_clone()
            .map_err(|source| Error::io("open", files.log(), source))?;
        // Written by the child itself: should the service die right now, the process is found all the same.
        let pid_file =
            File::create(files.pid()).map_err(|source| Error::io("create", files.pid(), source))?;
        steps.pid_file = Some(pid_file);
        // QEMU must not get the service's terminal signals, nor end with its session.
        steps.session = true;
        let mut command = std::process::Command::new(program);
        command
            .args(args)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(again)
            .env_clear()
            .env("LANG", "C.UTF-8")
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        steps.before(&mut command);
        let mut command = Command::from(command);
        command.kill_on_drop(false);
        let mut child = command.spawn().map_err(|source| Error::Spawn {
            program: program.to_owned(),
            source,
        })?;
        match Self::note(&child, files) {
            Ok((pid, pidfd)) => Ok(Self::watched(pid, pidfd, files.log(), Some(child))),
            Err(error) => {
                // Nobody could find it again.
                if let Err(kill) = child.start_kill() {
                    tracing::error!(error = %kill, "a process that cannot be noted was left behind");
                }
                Err(error)
            }
        }
    }

    /// Writes down who the child is.
    fn note(child: &Child, files: &RunFiles) -> Result<(Pid, OwnedFd)> {
        let gone = || Error::ProcessGone {
            log_tail: log_tail(&files.log()),
        };
        let pid = child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
            .ok_or_else(gone)?;
        // Our unreaped child cannot lose its pid, so this needs no second look.
        let pidfd = open_pidfd(pid)?;
        let (_, start_ticks) = stat_of(pid).ok_or_else(gone)?;
        let identity = Identity {
            pid: pid.as_raw_nonzero().get(),
            start_ticks,
            boot_id: boot_id(),
        };
        let text = serde_json::to_string(&identity).unwrap_or_default();
        std::fs::write(files.identity(), text)
            .map_err(|source| Error::io("write", files.identity(), source))?;
        Ok((pid, pidfd))
    }

    /// Finds the process again. `None`: it is not there (any more).
    ///
    /// # Errors
    /// [`Error::Io`] where `/proc` cannot be read.
    pub fn find(files: &RunFiles) -> Result<Option<Self>> {
        let Some(pid) = read_pid(files) else {
            return Ok(None);
        };
        let Ok(pidfd) = open_pidfd(pid) else {
            return Ok(None);
        };
        // Checked after the pidfd is open: from here on the pid cannot become another process unnoticed.
        if !is_ours(pid, files) {
            return Ok(None);
        }
        Ok(Some(Self::watched(pid, pidfd, files.log(), None)))
    }

    fn watched(pid: Pid, pidfd: OwnedFd, log: PathBuf, child: Option<Child>) -> Self {
        let pidfd = Arc::new(pidfd);
        let (sender, exit) = watch::channel(None);
        tokio::spawn(watch_exit(Arc::clone(&pidfd), child, log.clone(), sender));
        Self {
            pid,
            pidfd,
            log,
            exit,
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Whether it has ended, as far as we have noticed.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// Waits for its end.
    pub async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        if let Ok(exit) = exit.wait_for(Option::is_some).await {
            exit.clone()
        } else {
            None
        }
        .unwrap_or_else(|| Exit {
            code: None,
            signal: None,
            log_tail: self.log_tail(),
        })
    }

    /// The last lines of its output.
    #[must_use]
    pub fn log_tail(&self) -> String {
        log_tail(&self.log)
    }

    /// Who it runs as.
    #[must_use]
    pub fn user(&self) -> Option<u32> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// Kills it and waits until it is gone. Fine if it is gone already.
    ///
    /// # Errors
    /// [`Error::Io`] where the signal is refused, [`Error::Timeout`] where the kernel does not let it end.
    pub async fn kill(&self) -> Result<()> {
        match rustix::process::pidfd_send_signal(&*self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(Error::io("signal the process of", &self.log, errno.into())),
        }
        match tokio::time::timeout(KILL_DEADLINE, self.exited()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Timeout {
                command: "kill".into(),
                after: KILL_DEADLINE,
            }),
        }
    }
}

async fn watch_exit(
    pidfd: Arc<OwnedFd>,
    child: Option<Child>,
    log: PathBuf,
    sender: watch::Sender<Option<Exit>>,
) {
    let status: Option<ExitStatus> = match child {
        Some(mut child) => child.wait().await.ok(),
        None => {
            match ready_when_ended(pidfd) {
                Ok(fd) => drop(fd.readable().await.map(|mut ready| ready.retain_ready())),
                Err(error) => tracing::error!(%error, "cannot watch a process"),
            }
            None
        }
    };
    let exit = Exit {
        code: status.and_then(|status| status.code()),
        signal: status.and_then(|status| status.signal()),
        log_tail: log_tail(&log),
    };
    sender.send_replace(Some(exit));
}

/// A pidfd becomes readable when its process ends.
#[expect(
    unsafe_code,
    reason = "tokio wants the promise that the descriptor stays what it is"
)]
fn ready_when_ended(pidfd: Arc<OwnedFd>) -> std::io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the shared owner gives out the same open descriptor for as long as it lives, and it lives in the result.
    unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(Into::into)
}

fn open_pidfd(pid: Pid) -> Result<OwnedFd> {
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| {
        Error::io(
            "watch",
            format!("/proc/{}", pid.as_raw_nonzero()),
            errno.into(),
        )
    })
}

fn read_pid(files: &RunFiles) -> Option<Pid> {
    let written = std::fs::read_to_string(files.pid())
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let pid: i32 = match written {
        Some(pid) => pid,
        // Cut short, or by a version whose QEMU wrote it itself.
        None => read_identity(files)?.pid,
    };
    Pid::from_raw(pid).filter(|_| pid > 1)
}

fn read_identity(files: &RunFiles) -> Option<Identity> {
    serde_json::from_str(&std::fs::read_to_string(files.identity()).ok()?).ok()
}

/// The command line names our pid file, and the start time is the noted one where one was noted. Without a note (the
/// service died right after the start) the command line alone decides: nobody else uses this pid file.
fn is_ours(pid: Pid, files: &RunFiles) -> bool {
    let Ok(command_line) = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())) else {
        return false;
    };
    let wanted = files.pid();
    if !command_line
        .split(|&byte| byte == 0)
        .any(|arg| arg == wanted.as_os_str().as_bytes())
    {
        return false;
    }
    // A zombie is not alive: somebody else's child that has ended.
    let Some((_, ticks)) = stat_of(pid).filter(|(state, _)| !matches!(state, 'Z' | 'X')) else {
        return false;
    };
    match read_identity(files).filter(|identity| identity.pid == pid.as_raw_nonzero().get()) {
        Some(identity) => identity.boot_id == boot_id() && identity.start_ticks == ticks,
        None => true,
    }
}

/// Whether there is a process of that number that has not ended.
pub(crate) fn lives(pid: i32) -> bool {
    let state = Pid::from_raw(pid).and_then(stat_of);
    state.is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

fn stat_of(pid: Pid) -> Option<(char, u64)> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?)
}

/// State and start time; the command name before them may itself hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// The last lines of a log file; empty where there is none.
#[must_use]
pub fn log_tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut bytes = Vec::new();
        if length > LOG_TAIL {
            bytes.extend(b"[earlier output is left out] ");
        }
        file.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read()
        .map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_parentheses_does_not_shift_the_start_time() {
        let stat = "42 (q) emu (x)) S 1 42 42 0 -1 4 5 6 7 8 9 10 11 12 20 0 3 0 98765 1 2";
        assert_eq!(parse_stat(stat), Some(('S', 98765)));
        assert_eq!(parse_stat("nonsense"), None);
    }

    /// A process that never ends by itself and names the pid file on its command line, as QEMU does.
    fn endless(files: &RunFiles) -> Process {
        let args = [
            "-f".into(),
            "/dev/null".into(),
            files.pid().into_os_string(),
        ];
        Process::spawn(Path::new("/usr/bin/tail"), &args, files).unwrap()
    }

    #[tokio::test]
    async fn a_process_is_found_again_and_its_end_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let files = RunFiles::new(dir.path());
        let started = endless(&files);
        let found = Process::find(&files).unwrap().unwrap();
        assert_eq!(found.pid(), started.pid());
        found.kill().await.unwrap();
        assert_eq!(started.exited().await.signal, Some(9));
        assert!(Process::find(&files).unwrap().is_none());
    }

    #[tokio::test]
    async fn a_foreign_process_with_the_noted_pid_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let files = RunFiles::new(dir.path());
        let own_pid = std::process::id();
        std::fs::write(files.pid(), format!("{own_pid}\n")).unwrap();
        assert!(Process::find(&files).unwrap().is_none());
    }

    #[tokio::test]
    async fn a_pid_that_was_reused_is_told_by_its_start_time() {
        let dir = tempfile::tempdir().unwrap();
        let files = RunFiles::new(dir.path());
        let args = [
            "-c".into(),
            "sleep 600; exit $0".into(),
            files.pid().into_os_string(),
        ];
        let started = Process::spawn(Path::new("/bin/sh"), &args, &files).unwrap();
        let noted = std::fs::read_to_string(files.identity()).unwrap();
        let mut identity: Identity = serde_json::from_str(&noted).unwrap();
        identity.start_ticks += 1;
        std::fs::write(files.identity(), serde_json::to_string(&identity).unwrap()).unwrap();
        assert!(Process::find(&files).unwrap().is_none());
        started.kill().await.unwrap();
    }

    #[tokio::test]
    async fn the_end_of_a_process_carries_what_it_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let files = RunFiles::new(dir.path());
        let args = ["-c".into(), "echo no such machine >&2; exit 3".into()];
        let started = Process::spawn(Path::new("/bin/sh"), &args, &files).unwrap();
        let exit = started.exited().await;
        assert_eq!(
            (exit.code, exit.log_tail.as_str()),
            (Some(3), "no such machine")
        );
    }
}
