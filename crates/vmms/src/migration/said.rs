//! What hosts say to each other, all of it.

use std::path::PathBuf;

use hypervisor::migration::{Hardware, Terms};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::MigrationKind;
use super::cargo::Cargo;
use crate::Fault;

/// What a source asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Could this machine come? Nothing is changed.
    Look(Box<Proposal>),
    /// This machine comes. Asked again, it tells how far its files are.
    Prepare(Box<Proposal>),
    /// What follows on this link is this file, from this byte on: [`super::copy`].
    File {
        /// The move.
        id: Uuid,
        /// The file's name in the cargo.
        name: String,
        /// The first byte that is sent.
        from: u64,
    },
    /// The file's content is there already, with this hash.
    Same {
        /// The move.
        id: Uuid,
        /// The file's name in the cargo.
        name: String,
        /// The hash at the source.
        digest: String,
    },
    /// All files are there.
    Settle(Uuid),
    /// A process is to wait for the memory of this machine, as its guest sees it.
    Launch {
        /// The move.
        id: Uuid,
        /// The machine at the source.
        hardware: Box<Hardware>,
    },
    /// What follows on this link is for that process, and nobody's message.
    Channel {
        /// The move.
        id: Uuid,
        /// What of it.
        way: Way,
    },
    /// Everything was sent: is it loaded?
    Arrived(Uuid),
    /// Are you there?
    Beat(Uuid),
    /// The machine is yours.
    Grant(Uuid),
    /// It does not come. `keep`: another try will.
    Abort {
        /// The move.
        id: Uuid,
        /// What arrived is kept for a while.
        keep: bool,
        /// Why.
        why: Option<Box<Fault>>,
    },
}

/// What a destination answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It was done.
    Done,
    /// It can come; with what is risky about it, and what would be sent.
    Fits {
        /// Sentences for people.
        risks: Vec<String>,
        /// Bytes of files that are not there yet.
        bytes: u64,
    },
    /// The process waits; with what is risky about it.
    Launched(Vec<String>),
    /// How far each file is.
    Prepared(Vec<(String, Standing)>),
    /// There are as many moves as may be: ask again.
    Wait,
    /// It is this host's now.
    Mine,
    /// It never will be this host's.
    Ended(Box<Fault>),
    /// It could not be done.
    Failed(Box<Fault>),
}

/// What goes to a process that waits for a machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Way {
    /// A disk, of the drive of that name.
    Disk(String),
    /// The memory, on these terms.
    Memory(Terms),
}

/// How far a file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Standing {
    /// Nothing of it is there.
    Missing,
    /// So many bytes of it may be there.
    Part(u64),
    /// All of it is there, with this hash.
    Whole(String),
}

/// A machine that is to come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Proposal {
    /// The move: the identifier of the source's job.
    pub(crate) id: Uuid,
    /// Of which kind.
    pub(crate) kind: MigrationKind,
    /// The machine with everything that belongs to it.
    pub(crate) cargo: Cargo,
    /// Where all images go.
    pub(crate) disk_root: Option<PathBuf>,
    /// Where single images go.
    pub(crate) disk_locations: Vec<(PathBuf, PathBuf)>,
    /// Files of the same names are replaced.
    pub(crate) allow_overwrite: bool,
    /// It runs: its active layers and its memory come by themselves.
    pub(crate) live: bool,
}
