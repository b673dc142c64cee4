//! The one error type of this crate: where it happened (path, offset, server), with the cause kept as source.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::blocks::BlockListError;
use crate::confined::Refused;
use crate::manifest::ManifestError;
use crate::map::MapError;
use crate::nbd::NbdError;
use crate::qcow2::FormatError;

/// What every fallible function here returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on disks failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused a call on a file.
    #[error("cannot {action} {}{}", path.display(), At(*offset))]
    Io {
        /// What was tried, as a verb ("read", "create", "rename").
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The byte offset in that file, where there is one.
        offset: Option<u64>,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// A file or directory is not touched, for what it could stand for.
    #[error("{} is not used", path.display())]
    Refused {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Refused,
    },
    /// A qcow2 file cannot be used.
    #[error("{} cannot be read as qcow2", path.display())]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
    /// A change map file cannot be used.
    #[error("{} is not a usable change map", path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: MapError,
    },
    /// A block list (the `.map` sidecar of an exported disk) cannot be used.
    #[error("{} is not a usable block list", path.display())]
    BlockList {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: BlockListError,
    },
    /// A manifest cannot be used.
    #[error("{} is not a usable manifest", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// Something that is no file was named as one.
    #[error("{} is {found}, not a file", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// The content of a disk is not what was exported.
    #[error("{what} does not hold at byte {offset} of the disk what was exported")]
    Differs {
        /// The image, as its manifest names it.
        what: String,
        /// The first byte of the block.
        offset: u64,
    },
    /// A file of an export is not the one its manifest speaks of.
    #[error("{}: {why}", path.display())]
    Altered {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file is larger than any of its kind.
    #[error("{} has more than {most} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        most: u64,
    },
    /// An NBD server could not be reached or broke the protocol.
    #[error("NBD export {address}")]
    Nbd {
        /// Socket and export name.
        address: String,
        /// What went wrong.
        #[source]
        source: NbdError,
    },
    /// A read or write lies outside the disk.
    #[error("{len} bytes at offset {offset} lie outside a disk of {size} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Number of bytes asked for.
        len: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// The request contradicts itself.
    #[error("{reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// An export directory without a manifest.
    #[error("{} has no manifest: the export in it is unfinished", path.display())]
    Unfinished {
        /// The directory.
        path: PathBuf,
    },
    /// The caller cancelled.
    #[error("the operation was cancelled")]
    Cancelled,
}

/// A coarse class of an [`Error`], for callers that map errors to codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The file system or quota is full.
    NoSpace,
    /// Permission denied, or a read-only file system.
    Denied,
    /// A file or directory does not exist.
    NotFound,
    /// A file that would be created exists already.
    Exists,
    /// The device reported an input/output error.
    Device,
    /// Any other error of the operating system.
    System,
    /// Content is damaged or breaks its format.
    Damaged,
    /// Well formed, but uses something this crate does not serve (encryption, unknown features).
    Unsupported,
    /// An NBD peer failed or broke the protocol.
    Protocol,
    /// The request contradicts itself.
    Invalid,
    /// An export that was never finished.
    Unfinished,
    /// Cancelled by the caller.
    Cancelled,
}

impl Error {
    /// An input/output error on a path, without an offset.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            offset: None,
            source,
        }
    }

    /// An input/output error at an offset of a file.
    pub(crate) fn io_at(action: &'static str, path: &Path, offset: u64, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            offset: Some(offset),
            source,
        }
    }

    /// A name that is not used, for what it could stand for.
    pub(crate) fn refused(path: &Path, source: Refused) -> Self {
        Self::Refused {
            path: path.to_owned(),
            source,
        }
    }

    /// A request that contradicts itself.
    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid {
            reason: reason.into(),
        }
    }

    /// The coarse class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => io_kind(source),
            Self::Refused { .. } => ErrorKind::Denied,
            Self::Qcow2 { source, .. } if source.is_unsupported() => ErrorKind::Unsupported,
            Self::Manifest { source, .. } if source.is_unsupported() => ErrorKind::Unsupported,
            Self::Qcow2 { .. }
            | Self::Map { .. }
            | Self::BlockList { .. }
            | Self::TooLarge { .. }
            | Self::Differs { .. }
            | Self::Altered { .. }
            | Self::Manifest { .. } => ErrorKind::Damaged,
            Self::Nbd { .. } => ErrorKind::Protocol,
            Self::OutOfRange { .. } | Self::Invalid { .. } | Self::NotAFile { .. } => {
                ErrorKind::Invalid
            }
            Self::Unfinished { .. } => ErrorKind::Unfinished,
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }
}

fn io_kind(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ErrorKind::NoSpace
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => ErrorKind::Exists,
        _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            ErrorKind::Device
        }
        _ => ErrorKind::System,
    }
}

/// Prints " at offset N" when there is one.
struct At(Option<u64>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(offset) => write!(f, " at offset {offset}"),
            None => Ok(()),
        }
    }
}
