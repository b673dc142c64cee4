//! What can go wrong between the service and a machine.
//!
//! `Display` says what failed and never repeats its source; the OS or QEMU text beneath stays reachable through
//! [`std::error::Error::source`] or the `desc`, `stderr` and `log_tail` fields.

use std::path::PathBuf;
use std::time::Duration;

use crate::migration::Side;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of a machine, of its monitor, of its guest agent or of an image tool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// QEMU answered a monitor command with an error.
    #[error("QEMU refused `{command}`: {desc}")]
    Qmp {
        /// The monitor command.
        command: String,
        /// QEMU's error class, for example `GenericError`.
        class: String,
        /// QEMU's own words.
        desc: String,
    },
    /// No answer within the deadline. The command may still take effect: look at the state before trying again.
    #[error("no answer to `{command}` within {after:?}")]
    Timeout {
        /// What was waited for.
        command: String,
        /// The deadline.
        after: Duration,
    },
    /// The QEMU process or its monitor connection ended.
    #[error("the machine's process is gone")]
    ProcessGone {
        /// The last lines QEMU wrote.
        log_tail: String,
    },
    /// A program could not be started at all.
    #[error("cannot start {}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The OS error.
        #[source]
        source: std::io::Error,
    },
    /// QEMU started but ended before its monitor was usable.
    #[error("QEMU ended while starting ({status})")]
    StartFailed {
        /// Exit status in words.
        status: String,
        /// The last lines QEMU wrote.
        log_tail: String,
    },
    /// There is already a live process for this machine.
    #[error("the machine is already running as process {pid}")]
    AlreadyRunning {
        /// Its process id.
        pid: i32,
    },
    /// The peer on the monitor or agent socket did not speak its protocol.
    #[error("{peer} broke its protocol: {detail}")]
    Protocol {
        /// `QMP` or `guest agent`.
        peer: &'static str,
        /// What was wrong.
        detail: String,
    },
    /// The guest agent does not answer: not installed, not started yet, or stuck.
    #[error("the guest agent does not answer within {after:?}")]
    AgentAbsent {
        /// How long was waited.
        after: Duration,
    },
    /// The guest agent refused a command.
    #[error("the guest agent refused `{command}`: {desc}")]
    Agent {
        /// The agent command.
        command: String,
        /// The agent's error class.
        class: String,
        /// The agent's own words.
        desc: String,
    },
    /// An image tool failed.
    #[error("`{command}` failed ({status})")]
    Image {
        /// The command line, for people.
        command: String,
        /// Exit status in words.
        status: String,
        /// What the tool wrote on its error stream.
        stderr: String,
    },
    /// A file or socket operation failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// The verb: `read`, `create`, `connect to`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The OS error.
        #[source]
        source: std::io::Error,
    },
    /// The configuration asks for something that cannot be built.
    #[error("the machine's configuration cannot be used: {what}")]
    Config {
        /// What, and what to do instead.
        what: String,
    },
    /// This host or this QEMU lacks something.
    #[error("not available here: {what}")]
    Unsupported {
        /// What is missing.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// A drive, node, job or export of that name does not exist.
    #[error("there is no {what}")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// The machine or a file is in a state that forbids the request.
    #[error("{what}")]
    Conflict {
        /// What is in the way.
        what: String,
    },
    /// A block job ended with an error.
    #[error("block job `{job}` failed: {desc}")]
    Job {
        /// Job id.
        job: String,
        /// QEMU's own words.
        desc: String,
    },
    /// A move failed. The source goes on unless it said that it had handed over.
    #[error("the {side} of the move failed: {desc}")]
    Migration {
        /// Whose QEMU says so.
        side: Side,
        /// QEMU's own words. A source often knows no more than that the connection broke.
        desc: String,
        /// The last lines QEMU wrote. The reason why a destination refused is often only there.
        log_tail: String,
    },
    /// The caller cancelled the work, and it was undone.
    #[error("cancelled")]
    Cancelled,
}

/// Coarse classes for callers that map errors to return codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// QEMU, a block job or an image tool refused or failed.
    Refused,
    /// A deadline passed; the outcome is unknown.
    Timeout,
    /// The process is not there (any more).
    Gone,
    /// A program could not be started, or ended while starting.
    Start,
    /// Guest agent absent or refusing.
    Agent,
    /// OS error on a file or socket.
    Io,
    /// The request itself is wrong.
    Invalid,
    /// Missing on this host.
    Unsupported,
    /// The named thing does not exist.
    NotFound,
    /// Wrong state.
    Conflict,
    /// Cancelled by the caller.
    Cancelled,
}

impl Error {
    /// The coarse class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Qmp { .. }
            | Self::Image { .. }
            | Self::Job { .. }
            | Self::Migration { .. }
            | Self::Protocol { .. } => ErrorKind::Refused,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::ProcessGone { .. } => ErrorKind::Gone,
            Self::Spawn { .. } | Self::StartFailed { .. } => ErrorKind::Start,
            Self::AgentAbsent { .. } | Self::Agent { .. } => ErrorKind::Agent,
            Self::Io { .. } => ErrorKind::Io,
            Self::Config { .. } => ErrorKind::Invalid,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Conflict { .. } | Self::AlreadyRunning { .. } => ErrorKind::Conflict,
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }

    /// The text beneath, where the error carries one: QEMU's log tail, a tool's error stream, a remedy.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        let text = match self {
            Self::ProcessGone { log_tail }
            | Self::StartFailed { log_tail, .. }
            | Self::Migration { log_tail, .. } => log_tail,
            Self::Image { stderr, .. } => stderr,
            Self::Unsupported { remedy, .. } => remedy,
            _ => return None,
        };
        Some(text.as_str()).filter(|text| !text.is_empty())
    }

    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            what,
            path: path.into(),
            source,
        }
    }

    pub(crate) fn config(what: impl Into<String>) -> Self {
        Self::Config { what: what.into() }
    }

    pub(crate) fn conflict(what: impl Into<String>) -> Self {
        Self::Conflict { what: what.into() }
    }

    pub(crate) fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }
}
