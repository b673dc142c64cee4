//! What can go wrong.

use std::io;
use std::path::Path;

use cim::Instance;
use wbem::client::ClientError;

/// Why a verb did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The server could not be asked, or answered with a fault.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A method answered with a return code.
    #[error("{method} was refused: {} ({code})", label(*.code))]
    Refused {
        /// The method.
        method: String,
        /// Its return value.
        code: u32,
        /// What can be told beyond the code.
        hint: Option<String>,
        /// The `Msvm_Error` chain, where the server could tell it.
        chain: Vec<Instance>,
    },
    /// A job ended without success.
    #[error("{title}: {outcome}")]
    Job {
        /// Its id.
        id: String,
        /// What it did.
        title: String,
        /// How it ended: failed, cancelled.
        outcome: &'static str,
        /// What the job itself says, in case there is no chain.
        description: Option<String>,
        /// The `Msvm_Error` chain.
        chain: Vec<Instance>,
    },
    /// A name that names nothing.
    #[error("there is no {kind} {text:?}")]
    NotFound {
        /// The kind of thing.
        kind: &'static str,
        /// What was given.
        text: String,
        /// How to find what there is.
        hint: String,
    },
    /// A name that names several things.
    #[error("{text:?} names more than one {kind}")]
    Ambiguous {
        /// The kind of thing.
        kind: &'static str,
        /// What was given.
        text: String,
        /// The things it names.
        candidates: Vec<String>,
    },
    /// The request makes no sense, or cannot be carried out here.
    #[error("{0}")]
    Usage(String),
    /// A file or the terminal.
    #[error("cannot {action} {what}")]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With what.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The server's answer lacks something it must have.
    #[error("the answer of {0} makes no sense: {1}")]
    Answer(String, String),
    /// A check found something; what it is was printed already.
    #[error("{0} findings; what can be cleaned is cleaned with --clean KIND or --clean all")]
    Findings(usize),
    /// Nobody reads our output any more.
    #[error("the output was closed")]
    Closed,
    /// Ctrl-C while a job was followed; the job goes on.
    #[error("interrupted; job {job} goes on")]
    Interrupted {
        /// The job.
        job: String,
    },
}

/// What functions of this crate return.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

fn label(code: u32) -> &'static str {
    msvm::code::label(code).unwrap_or("a code without a name")
}

impl Error {
    /// A request that makes no sense.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Error::Usage(text.into())
    }

    /// A failure of the operating system.
    pub(crate) fn io(action: &'static str, what: impl Into<String>, source: io::Error) -> Self {
        Error::Io {
            action,
            what: what.into(),
            source,
        }
    }

    /// The same about a file.
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Error::io(action, path.display().to_string(), source)
    }

    /// 1 for a failure, 2 for a request that makes no sense, 130 after Ctrl-C.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Interrupted { .. } => 130,
            Error::Closed => 0,
            _ => 1,
        }
    }
}
