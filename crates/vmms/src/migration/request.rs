//! What is asked for.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::machine::Vm;

/// The kinds of moves; the numbers are those of the documented MigrationType.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MigrationKind {
    /// 32768: the memory; both hosts see the same files.
    Live,
    /// 32769: the disks, on this host.
    Storage,
    /// 32770: a planned machine is made at the destination.
    Staged,
    /// 32771: everything, nothing is shared.
    LiveAndStorage,
    /// 32772: only looks whether the disks could be moved.
    StorageCheck,
}

impl MigrationKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [MigrationKind; 5] = [
        MigrationKind::Live,
        MigrationKind::Storage,
        MigrationKind::Staged,
        MigrationKind::LiveAndStorage,
        MigrationKind::StorageCheck,
    ];

    /// Its MigrationType.
    pub fn number(self) -> u16 {
        match self {
            MigrationKind::Live => 32768,
            MigrationKind::Storage => 32769,
            MigrationKind::Staged => 32770,
            MigrationKind::LiveAndStorage => 32771,
            MigrationKind::StorageCheck => 32772,
        }
    }

    /// The kind with that MigrationType.
    pub fn of(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// In words.
    pub fn word(self) -> &'static str {
        match self {
            MigrationKind::Live => "memory over shared storage",
            MigrationKind::Storage => "storage on this host",
            MigrationKind::Staged => "a planned machine at the destination",
            MigrationKind::LiveAndStorage => "memory and storage",
            MigrationKind::StorageCheck => "a check of the storage",
        }
    }

    /// JobType of the job that only looks.
    pub fn look_job_type(self) -> u16 {
        match self {
            MigrationKind::Live | MigrationKind::Staged => 301,
            MigrationKind::LiveAndStorage => 302,
            MigrationKind::Storage => 303,
            MigrationKind::StorageCheck => 304,
        }
    }

    /// JobType of its job.
    pub fn job_type(self) -> u16 {
        match self {
            MigrationKind::Staged => 300,
            MigrationKind::StorageCheck => 304,
            MigrationKind::Live => 305,
            MigrationKind::LiveAndStorage => 306,
            MigrationKind::Storage => 307,
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The machine.
    pub vm: Uuid,
    /// Where to: the name or the address of a trusted host. Empty only with [`MigrationKind::Storage`].
    pub destination: String,
    /// How.
    pub kind: MigrationKind,
    /// What else is wished.
    #[serde(default)]
    pub options: MoveOptions,
}

/// What is wished of a move.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MoveOptions {
    /// Addresses of the destination, tried in turn; none: that of the trusted host.
    pub addresses: Vec<String>,
    /// Pack what is sent.
    pub compression: bool,
    /// Most bytes per second of memory and of each mirror.
    pub bandwidth: Option<u64>,
    /// Kept and shown.
    pub priority: u16,
    /// Fail rather than let the guest stand still longer than `downtime_ms`.
    pub cancel_if_blackout: bool,
    /// How long the guest may stand still for the last of the memory, in milliseconds; 300 where nothing is said.
    pub downtime_ms: Option<u64>,
    /// The files at the source stay.
    pub retain_vhds: bool,
    /// Files of the same names at the destination are replaced.
    pub allow_overwrite: bool,
    /// The directory at the destination that all images go to; `None`: where they are here.
    pub disk_root: Option<PathBuf>,
    /// An image here, and where it goes there.
    pub disk_locations: Vec<(PathBuf, PathBuf)>,
    /// The planned machine at the destination that this one becomes.
    pub planned: Option<Uuid>,
    /// The machine as it is to be there. Paths of disks in it count for nothing.
    pub changed: Option<Box<Vm>>,
    /// Over SMB; refused.
    pub smb: bool,
    /// Files that belong to no machine, and where they go; refused.
    pub unmanaged: Vec<(PathBuf, PathBuf)>,
    /// Told again by the job.
    pub shown: Shown,
}

/// Texts of a client that are passed through to the job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shown {
    /// NewSystemSettingData.
    pub system: Option<String>,
    /// NewResourceSettingData.
    pub resources: Vec<String>,
}
