//! What a job tells of a move.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{MigrationKind, Shown};

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Both hosts look whether it can work.
    Checking,
    /// The destination reserves what it needs.
    Preparing,
    /// Files are copied.
    CopyingFiles,
    /// The layers that guests write to are mirrored.
    Mirroring,
    /// Memory is sent.
    SendingMemory,
    /// The guest stands still.
    SwitchingOver,
    /// The machine is the destination's; its answer is awaited.
    Granted,
    /// What is left here is removed.
    Cleaning,
    /// It is there.
    Done,
}

impl Phase {
    /// In words.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Checking => "checking",
            Phase::Preparing => "preparing",
            Phase::CopyingFiles => "copying files",
            Phase::Mirroring => "mirroring disks",
            Phase::SendingMemory => "sending memory",
            Phase::SwitchingOver => "switching over",
            Phase::Granted => "handed over",
            Phase::Cleaning => "cleaning up",
            Phase::Done => "done",
        }
    }
}

/// What is known of a move; a part of its job's output from the first moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The kind.
    pub kind: MigrationKind,
    /// The job is the destination's.
    #[serde(default)]
    pub incoming: bool,
    /// The machine.
    pub vm: Uuid,
    /// Its name.
    pub vm_name: String,
    /// Where it comes from.
    pub source: String,
    /// Where it goes.
    pub destination: String,
    /// What the client wrote.
    #[serde(default)]
    pub shown: Shown,
    /// How far it is.
    pub phase: Phase,
    /// Bytes of files sent.
    #[serde(default)]
    pub file_bytes: u64,
    /// Bytes of all files, as long as they are.
    #[serde(default)]
    pub file_total: u64,
    /// Bytes of files that were there already, proven by their hash.
    #[serde(default)]
    pub file_skipped: u64,
    /// Bytes mirrored.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Bytes to mirror; grows while the guest writes.
    #[serde(default)]
    pub disk_total: u64,
    /// Bytes of memory on the wire.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Bytes of memory still to be sent.
    #[serde(default)]
    pub memory_remaining: u64,
    /// Bytes of memory.
    #[serde(default)]
    pub memory_total: u64,
    /// Rounds over the memory.
    #[serde(default)]
    pub rounds: u64,
    /// Bytes of memory that the guest changes in a second.
    #[serde(default)]
    pub dirty_bytes_per_second: u64,
    /// Bytes of memory sent in a second.
    #[serde(default)]
    pub bytes_per_second: u64,
    /// How long the guest would stand still now, in milliseconds.
    #[serde(default)]
    pub expected_downtime_ms: Option<u64>,
    /// How long it stood still, in milliseconds, as QEMU at the source measured.
    #[serde(default)]
    pub downtime_ms: Option<u64>,
    /// Percent of its processors' time taken from the guest so that it changes less.
    #[serde(default)]
    pub throttle_percent: Option<u8>,
    /// Nobody may run the machine until the other host answers, or a person decides.
    #[serde(default)]
    pub doubt: bool,
}

impl Progress {
    /// At the beginning.
    pub fn new(kind: MigrationKind, vm: Uuid, vm_name: &str) -> Self {
        Progress {
            kind,
            incoming: false,
            vm,
            vm_name: vm_name.to_owned(),
            source: String::new(),
            destination: String::new(),
            shown: Shown::default(),
            phase: Phase::Checking,
            file_bytes: 0,
            file_total: 0,
            file_skipped: 0,
            disk_bytes: 0,
            disk_total: 0,
            memory_bytes: 0,
            memory_remaining: 0,
            memory_total: 0,
            rounds: 0,
            dirty_bytes_per_second: 0,
            bytes_per_second: 0,
            expected_downtime_ms: None,
            downtime_ms: None,
            throttle_percent: None,
            doubt: false,
        }
    }
}
