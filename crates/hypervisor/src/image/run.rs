//! One run of the tool: arguments that cannot be misunderstood, limits, output, errors.
//!
//! A tool reads what guests and strangers wrote. It dies with the service and ends at its time limit, has no network, no environment, and
//! bounded memory, descriptors and output.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Signal};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdout};
use tokio::time::Instant;

use crate::confine::spawner;
use crate::confine::steps::Steps;
use crate::error::{Error, Result};
use crate::probe::find_program;

/// Address space of a tool. Its own use was 60 to 250 MiB; threads and their stacks count whole.
const MEMORY: u64 = 1 << 30;
/// Descriptors of a tool: a chain of 200 layers, and its own.
const DESCRIPTORS: u64 = 256;
/// What is kept of a tool's answer; more is an error.
const ANSWER: u64 = 64 << 20;
/// What is kept of a tool's complaints.
const COMPLAINT: u64 = 64 << 10;

/// What a run may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Of the clock, and of processor time.
    pub(super) time: Duration,
    /// Address space in bytes.
    pub(super) memory: u64,
}

impl Limits {
    /// For what reads or writes headers and tables of one file only.
    pub(super) fn quick() -> Self {
        Self {
            time: Duration::from_secs(300),
            memory: MEMORY,
        }
    }

    /// For what goes through all tables of this file, and keeps a count of each cluster.
    pub(super) fn tables(path: &Path) -> Self {
        let length = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        Self {
            time: Duration::from_secs(600 + (length >> 24)),
            memory: MEMORY + (length >> 13),
        }
    }

    /// For what copies data: how much there is cannot be told before.
    pub(super) fn copying() -> Self {
        Self {
            time: Duration::from_secs(24 * 3600),
            memory: MEMORY,
        }
    }
}

/// A started tool; dropping it ends it and all it started.
pub(super) struct Running {
    program: PathBuf,
    command: String,
    limits: Limits,
    deadline: Instant,
    child: Child,
}

impl Running {
    pub(super) async fn start(program: &Path, args: Args, limits: Limits) -> Result<Self> {
        let program = find_program(program).ok_or_else(|| Error::Unsupported {
            what: format!("{} is not installed", program.display()),
            remedy: "install QEMU's image tools (Debian: apt-get install qemu-utils)".into(),
        })?;
        let mut command = Command::new(&program);
        command
            .args(&args.list)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        bare_environment(&mut command);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let steps = Steps {
            limits: vec![
                (Resource::As, limits.memory),
                (Resource::Core, 0),
                (Resource::Nofile, DESCRIPTORS),
                (Resource::Cpu, limits.time.as_secs().max(1)),
            ],
            no_new_privs: true,
            ..Steps::default()
        };
        let child = spawner::spawn(command, steps)
            .await
            .map_err(|source| Error::Spawn {
                program: program.clone(),
                source,
            })?;
        Ok(Self {
            program,
            command: args.for_people(),
            limits,
            deadline: Instant::now() + limits.time,
            child,
        })
    }

    /// Its output so far unread.
    pub(super) fn stdout(&mut self) -> Option<&mut ChildStdout> {
        self.child.stdout.as_mut()
    }

    /// When [`Running::finish`] stops waiting for it.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Ends it and waits until it is gone, and its locks on files with it.
    pub(super) async fn end(mut self) -> Result<()> {
        self.kill_group();
        self.child.kill().await.map_err(|source| Error::Spawn {
            program: self.program.clone(),
            source,
        })
    }

    pub(super) async fn finish(mut self) -> Result<Output> {
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let child = &mut self.child;
        let ended = tokio::time::timeout_at(self.deadline, async {
            // Its streams first: until it is waited for, its number cannot be another's.
            let (stdout, stderr) = tokio::try_join!(head(stdout, ANSWER), head(stderr, COMPLAINT))?;
            Ok((stdout, stderr, child.wait().await?))
        })
        .await;
        let Ok(ended) = ended else {
            let (command, limit) = (self.command.clone(), self.limits.time);
            self.end().await?;
            return Err(Error::Image {
                command,
                status: format!("ended at its time limit of {} s", limit.as_secs()),
                stderr: String::new(),
            });
        };
        let (stdout, stderr, status) = ended.map_err(|source| Error::Spawn {
            program: self.program.clone(),
            source,
        })?;
        let mut status_text = status.to_string();
        if status.code().is_none() {
            status_text.push_str(&format!(
                "; its limits are {} MiB of memory and {} s",
                self.limits.memory >> 20,
                self.limits.time.as_secs()
            ));
        }
        if stdout.cut {
            return Err(Error::Image {
                command: self.command.clone(),
                status: format!("its answer is longer than {} MiB", ANSWER >> 20),
                stderr: String::new(),
            });
        }
        Ok(Output {
            command: self.command.clone(),
            code: status.code(),
            status: status_text,
            stdout: stdout.bytes,
            stderr: String::from_utf8_lossy(&stderr.bytes).trim_end().to_owned(),
        })
    }

    fn kill_group(&self) {
        // Only while it is not reaped: its number may be another's afterwards.
        let group = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = group.and_then(Pid::from_raw)
            && let Err(error) = rustix::process::kill_process_group(group, Signal::KILL)
        {
            tracing::warn!(%error, command = self.command, "an image tool cannot be ended");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill_group();
    }
}

/// Nothing of the service's environment, secrets among it, reaches a tool.
fn bare_environment(command: &mut Command) {
    command.env_clear().env("LANG", "C.UTF-8");
    // Each arena of the allocator takes 64 MiB of address space, and the limit counts that.
    command.env("MALLOC_ARENA_MAX", "2");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
}

/// The beginning of a stream.
struct Head {
    bytes: Vec<u8>,
    cut: bool,
}

/// Reads to the end, so that the writer never waits, and keeps the first bytes.
async fn head(from: Option<impl AsyncRead + Unpin>, most: u64) -> std::io::Result<Head> {
    let mut bytes = Vec::new();
    let Some(from) = from else {
        return Ok(Head { bytes, cut: false });
    };
    let mut limited = from.take(most);
    limited.read_to_end(&mut bytes).await?;
    let mut rest = limited.into_inner();
    let cut = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await? > 0;
    Ok(Head { bytes, cut })
}

/// What an ended tool left.
pub(super) struct Output {
    command: String,
    pub(super) code: Option<i32>,
    status: String,
    stdout: Vec<u8>,
    stderr: String,
}

impl Output {
    pub(super) fn into_error(self) -> Error {
        Error::Image {
            command: self.command,
            status: self.status,
            stderr: self.stderr,
        }
    }

    pub(super) fn successful(self) -> Result<Self> {
        if self.code == Some(0) {
            Ok(self)
        } else {
            Err(self.into_error())
        }
    }

    pub(super) fn json(self) -> Result<Value> {
        serde_json::from_slice(&self.stdout).map_err(|error| Error::Image {
            command: self.command,
            status: self.status,
            stderr: format!("its answer is not JSON: {error}"),
        })
    }
}

/// The arguments of one call.
pub(super) struct Args {
    list: Vec<OsString>,
}

impl Args {
    pub(super) fn new(command: &str) -> Self {
        Self {
            list: vec![command.into()],
        }
    }

    pub(super) fn push(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.list.push(arg.as_ref().to_owned());
        self
    }

    pub(super) fn share(&mut self, share: bool) -> &mut Self {
        if share { self.push("-U") } else { self }
    }

    pub(super) fn file(&mut self, path: &Path) -> Result<&mut Self> {
        let argument = file_argument(path)?;
        Ok(self.push(argument))
    }

    fn for_people(&self) -> String {
        let words = self
            .list
            .iter()
            .map(|word| word.to_string_lossy().into_owned());
        std::iter::once("qemu-img".to_owned())
            .chain(words)
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// An absolute path can be taken neither for an option nor for a protocol (`nbd:…`), whatever its name contains.
pub(super) fn file_argument(path: &Path) -> Result<OsString> {
    if path.is_absolute() {
        return Ok(path.as_os_str().to_owned());
    }
    Err(Error::config(format!(
        "{} is not an absolute path",
        path.display()
    )))
}
