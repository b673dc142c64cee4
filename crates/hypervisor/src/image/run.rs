//! One run of the tool: arguments that cannot be misunderstood, output, errors.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::process::{Child, ChildStdout, Command};

use crate::error::{Error, Result};
use crate::probe::find_program;

/// A started tool; dropping it ends it.
pub(super) struct Running {
    program: PathBuf,
    command: String,
    child: Child,
}

impl Running {
    pub(super) fn start(program: &Path, args: Args) -> Result<Self> {
        let program = find_program(program).ok_or_else(|| Error::Unsupported {
            what: format!("{} is not installed", program.display()),
            remedy: "install QEMU's image tools (Debian: apt-get install qemu-utils)".into(),
        })?;
        let child = Command::new(&program)
            .args(&args.list)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| Error::Spawn {
                program: program.clone(),
                source,
            })?;
        Ok(Self {
            program,
            command: args.for_people(),
            child,
        })
    }

    /// Its output so far unread.
    pub(super) fn stdout(&mut self) -> Option<&mut ChildStdout> {
        self.child.stdout.as_mut()
    }

    /// Ends it and waits until it is gone, and its locks on files with it.
    pub(super) async fn end(mut self) -> Result<()> {
        self.child.kill().await.map_err(|source| Error::Spawn {
            program: self.program.clone(),
            source,
        })
    }

    pub(super) async fn finish(self) -> Result<Output> {
        let Self {
            program,
            command,
            child,
        } = self;
        let output = child
            .wait_with_output()
            .await
            .map_err(|source| Error::Spawn { program, source })?;
        Ok(Output {
            command,
            code: output.status.code(),
            status: output.status.to_string(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr)
                .trim_end()
                .to_owned(),
        })
    }
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
fn file_argument(path: &Path) -> Result<OsString> {
    if path.is_absolute() {
        return Ok(path.as_os_str().to_owned());
    }
    Err(Error::config(format!(
        "{} is not an absolute path",
        path.display()
    )))
}
