//! Reading a disk that is not frozen through an NBD server (QEMU's own), and asking it what is allocated where.
//!
//! Facts: the NBD protocol document (`doc/proto.md` of the NetworkBlockDevice project). Spoken: fixed newstyle handshake, `INFO`/`GO`,
//! structured replies, meta contexts, block status, reads with several requests in flight. `wire` turns bytes into values
//! and back without any I/O; [`NbdClient`] is one blocking connection; [`NbdSource`] a pool of them behind [`crate::Source`].
//!
//! A server is not trusted: lengths are bounded before memory is taken, each byte asked for must arrive exactly once, and
//! after the first violation a connection is used no more.

pub(crate) mod client;
mod handshake;
mod source;
mod status;
mod wire;

pub use client::NbdClient;
pub use source::NbdSource;
pub use status::StatusExtent;

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Context: data, holes and zeros.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Context of QEMU: in which layer of the chain a byte lies, 1 being the active one.
pub const QEMU_ALLOCATION_DEPTH: &str = "qemu:allocation-depth";

/// Where an export is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdAddress {
    /// A Unix socket.
    Unix {
        /// The socket.
        path: PathBuf,
        /// Name of the export.
        export: String,
    },
    /// A TCP port. Never encrypted here: for loopback only.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
        /// Name of the export.
        export: String,
    },
}

impl NbdAddress {
    pub(crate) fn export(&self) -> &str {
        match self {
            Self::Unix { export, .. } | Self::Tcp { export, .. } => export,
        }
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { path, export } => write!(f, "{export:?} at {}", path.display()),
            Self::Tcp { host, port, export } => write!(f, "{export:?} at {host}:{port}"),
        }
    }
}

/// Why talking to an NBD server failed.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The connection could not be made, broke, or the server did not answer in time.
    #[error("the connection failed")]
    Connection(#[source] io::Error),
    /// The server does not speak the fixed newstyle protocol.
    #[error("the peer is no NBD server of the newstyle protocol")]
    NotNbd,
    /// The server refused an option of the handshake.
    #[error("the server refused {option}: {reason}{}", Said(message))]
    Refused {
        /// Which one.
        option: &'static str,
        /// The reason, in words.
        reason: &'static str,
        /// What the server said about it.
        message: String,
    },
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(&'static str),
    /// The server could not do what was asked.
    #[error("the server failed to {action} at offset {offset}{}", Said(message))]
    Server {
        /// What was asked.
        action: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// What the server said about it.
        message: String,
        /// The error number it gave.
        #[source]
        source: io::Error,
    },
    /// The export does not offer a context that was asked for.
    #[error("the export does not offer the context {0}")]
    NoContext(String),
    /// The connection broke earlier and is used no more.
    #[error("the connection broke earlier")]
    Broken,
}

impl NbdError {
    /// Sending or receiving failed.
    pub(crate) fn io(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

/// Prints ": text" when the server said something.
struct Said<'a>(&'a String);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, ": {}", self.0)
        }
    }
}
