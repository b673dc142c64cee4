//! What can go wrong, once for all engines.

use crate::{LeaseId, Revision};
use std::path::PathBuf;
use thiserror::Error;

/// The error of an engine's own library, kept as the cause.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A failed call. Except for [`StoreError::Indeterminate`], nothing was changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A condition of a transaction does not hold.
    #[error("the record {key:?} is not in the expected state")]
    Conflict {
        /// The key of the first condition that does not hold.
        key: String,
    },
    /// The key cannot be stored.
    #[error("the key \"{key}\" {why}")]
    InvalidKey {
        /// Its beginning, escaped.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The transaction breaks a rule of [`crate::Txn`].
    #[error("the transaction cannot be applied: {why}")]
    InvalidTxn {
        /// Which rule.
        why: String,
    },
    /// A lease shorter than one second or longer than a year.
    #[error("a lease of {milliseconds} ms is outside one second to one year")]
    InvalidTtl {
        /// What was asked for.
        milliseconds: u128,
    },
    /// The lease has ended, or never was.
    #[error("lease {id} has ended")]
    LeaseLost {
        /// Which one.
        id: LeaseId,
    },
    /// History no longer reaches back to where the watch wants to start or go on.
    #[error("history before revision {oldest} is gone, revision {requested} was asked for")]
    Compacted {
        /// Where the watch stands.
        requested: Revision,
        /// The oldest revision that can still be replayed.
        oldest: Revision,
    },
    /// A watch from a revision the store has not reached: it was replaced by an older one.
    #[error("revision {requested} was asked for, the newest is {newest}")]
    FutureRevision {
        /// Where the watch wants to start.
        requested: Revision,
        /// The newest revision.
        newest: Revision,
    },
    /// A record was written by a newer program.
    #[error("the record {key:?} has layout {stored}, this program knows up to {known}")]
    NewerSchema {
        /// Which record.
        key: String,
        /// Its layout.
        stored: u32,
        /// The newest layout this program knows.
        known: u32,
    },
    /// A record carries a layout number that this program never wrote, or has forgotten.
    #[error("the record {key:?} has the unknown layout {stored}")]
    UnknownSchema {
        /// Which record.
        key: String,
        /// Its layout.
        stored: u32,
    },
    /// A record's content does not fit its layout.
    #[error("the content of the record {key:?} does not fit layout {schema}")]
    Decode {
        /// Which record.
        key: String,
        /// The layout it is meant to have.
        schema: u32,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// A value could not be turned into JSON.
    #[error("a value for the record {key:?} cannot be written as JSON")]
    Encode {
        /// Which record.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Another process has the store open.
    #[error("the store {} is in use by {}", path.display(), owner(*pid))]
    InUse {
        /// The file.
        path: PathBuf,
        /// The process that holds it, when it told.
        pid: Option<u32>,
    },
    /// The file is not a store of ours, or of a newer program.
    #[error("{} cannot be used as a store: {why}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        why: String,
    },
    /// The file is damaged. Nothing is written to it any more.
    #[error("the store {} is damaged: {details}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the check found.
        details: String,
    },
    /// The file ends before what was acknowledged: its log was removed, it was cut, damaged or replaced by an older one.
    #[error(
        "the store {} ends at revision {found}; {known} were acknowledged",
        path.display()
    )]
    Behind {
        /// The file.
        path: PathBuf,
        /// The newest revision in it; 0 where there is none.
        found: u64,
        /// The newest revision that was acknowledged.
        known: u64,
    },
    /// The file is a whole store, but another one than was here.
    #[error(
        "the store {} is not the one that was here, of which {known} revisions were acknowledged",
        path.display()
    )]
    Exchanged {
        /// The file.
        path: PathBuf,
        /// The newest revision that was acknowledged of the other.
        known: u64,
    },
    /// Another program holds the engine's lock for too long.
    #[error("the store is locked by another program ({what})")]
    Busy {
        /// What was tried.
        what: &'static str,
        /// The engine's error.
        #[source]
        source: Cause,
    },
    /// No space is left where the store lives.
    #[error("no space is left for the store ({what})")]
    DiskFull {
        /// What was tried.
        what: &'static str,
        /// The engine's error.
        #[source]
        source: Cause,
    },
    /// Any other failure of the engine or of the disk beneath.
    #[error("the store failed ({what})")]
    Engine {
        /// What was tried.
        what: &'static str,
        /// The engine's error.
        #[source]
        source: Cause,
    },
    /// The disk failed while a commit was made durable: it may be there after a
    /// restart, or not. The store takes no more changes until it is opened again.
    #[error("whether the transaction was stored is not known")]
    Indeterminate {
        /// The engine's error.
        #[source]
        source: Cause,
    },
    /// The store has stopped taking changes after an earlier failure.
    #[error("the store takes no more changes: {why}")]
    ReadOnly {
        /// The earlier failure.
        why: String,
    },
    /// The store is being closed.
    #[error("the store is closed")]
    Closed,
    /// A failure made on purpose by [`crate::FlakyStore`].
    #[error("failure made on purpose at call {call}")]
    Injected {
        /// Which call, counted from 1.
        call: u64,
    },
}

fn owner(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    )
}

/// The cases a caller decides on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Somebody else was faster: read again and decide anew.
    Conflict,
    /// The caller's mistake; the same call will fail again.
    Invalid,
    /// The lease has ended.
    LeaseLost,
    /// The watch must begin again with a listing.
    Compacted,
    /// A record that this program cannot read.
    Unreadable,
    /// May succeed later without anybody doing anything.
    Busy,
    /// Somebody must make space.
    DiskFull,
    /// Another process owns the store.
    InUse,
    /// The store's file is damaged or not a store.
    Corrupt,
    /// The change may or may not have happened.
    Indeterminate,
    /// The store is gone, failed, or does not take changes.
    Unavailable,
}

impl StoreError {
    /// The case it belongs to.
    pub fn kind(&self) -> ErrorKind {
        match self {
            StoreError::Conflict { .. } => ErrorKind::Conflict,
            StoreError::InvalidKey { .. }
            | StoreError::InvalidTxn { .. }
            | StoreError::InvalidTtl { .. }
            | StoreError::Encode { .. } => ErrorKind::Invalid,
            StoreError::LeaseLost { .. } => ErrorKind::LeaseLost,
            StoreError::Compacted { .. } | StoreError::FutureRevision { .. } => {
                ErrorKind::Compacted
            }
            StoreError::NewerSchema { .. }
            | StoreError::UnknownSchema { .. }
            | StoreError::Decode { .. } => ErrorKind::Unreadable,
            StoreError::Busy { .. } => ErrorKind::Busy,
            StoreError::DiskFull { .. } => ErrorKind::DiskFull,
            StoreError::InUse { .. } => ErrorKind::InUse,
            StoreError::Foreign { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Behind { .. }
            | StoreError::Exchanged { .. } => ErrorKind::Corrupt,
            StoreError::Indeterminate { .. } => ErrorKind::Indeterminate,
            StoreError::Engine { .. }
            | StoreError::ReadOnly { .. }
            | StoreError::Closed
            | StoreError::Injected { .. } => ErrorKind::Unavailable,
        }
    }

    /// Whether a condition of the transaction did not hold.
    pub fn is_conflict(&self) -> bool {
        matches!(self, StoreError::Conflict { .. })
    }
}
