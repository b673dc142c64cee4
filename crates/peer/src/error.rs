//! What goes wrong between hosts.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::Fingerprint;

/// A failure of a link.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody answers at that address.
    #[error("{address} cannot be reached")]
    Unreachable {
        /// The address.
        address: String,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("no answer within {within:?} ({what})")]
    Silent {
        /// What was waited for.
        what: &'static str,
        /// How long.
        within: Duration,
    },
    /// Another host than the pinned one answers there.
    #[error("its fingerprint is {found}, not {expected}")]
    Stranger {
        /// The pinned one.
        expected: Fingerprint,
        /// That of whoever answers.
        found: Fingerprint,
    },
    /// The other host does not trust this one.
    #[error("it does not trust this host")]
    Distrusted,
    /// It has as many connections as it may have.
    #[error("it has as many connections as it takes")]
    Busy,
    /// It lets nobody in at that address.
    #[error("it lets nobody in at this address: {0}")]
    Closed(String),
    /// The connection ended.
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    /// What came cannot be a message.
    #[error("what came is no message: {0}")]
    Garbled(String),
    /// The other side speaks another version.
    #[error("it speaks version {0} of the link, this host version {VERSION}", VERSION = crate::VERSION)]
    Version(u8),
    /// Key or certificate of this host cannot be made or used.
    #[error("{what} {}", path.display())]
    Key {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It cannot be listened there.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: String,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
}

/// What every fallible function here returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether asking again later may help, with nothing changed by a person.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Silent { .. } | Self::Busy | Self::Broken(_)
        )
    }
}
