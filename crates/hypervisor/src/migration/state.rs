//! How far a move is, as one of its two processes shows.

use serde::{Deserialize, Serialize};

use super::transfer::MemoryProgress;
use crate::machine::MachineStatus;

/// The two ends of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Side {
    /// Where the machine comes from.
    Source,
    /// Where it goes.
    Destination,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MovePhase {
    /// No part in a move: never had one, it was ended and cleaned up, or the machine was taken over or back. May run.
    None,

    /// Source: disks are mirrored, no memory is sent. The guest runs as before.
    Mirroring,
    /// Source: memory is sent; the guest runs as before (or stands still as before).
    Sending,
    /// Source: being cancelled.
    Cancelling,
    /// Source: the guest stands still for the hand-over, which was not begun. Stays so for ever, even if the destination dies.
    ReadyToSwitch,
    /// Source: the hand-over is under way; ends by itself unless the destination is silent. If it fails the guest goes on here.
    Switching,
    /// Source: handed over. Stands still until it quits or is taken back.
    HandedOver,
    /// Source: sending failed or was cancelled; the guest went on by itself. [`super::Migrate::abandon`] cleans up.
    SendEnded,

    /// Destination: waits for a machine, nothing was received.
    Waiting,
    /// Destination: is being received, or waits on a channel.
    Receiving,
    /// Destination: loaded, stands still, not taken over. It must never run without the grant.
    Arrived,
    /// Destination: loading failed; the process is good for nothing.
    ReceiveFailed,
}

impl MovePhase {
    /// Which end this is; `None` for a process without a part in a move.
    #[must_use]
    pub fn side(self) -> Option<Side> {
        match self {
            Self::None => None,
            Self::Mirroring
            | Self::Sending
            | Self::Cancelling
            | Self::ReadyToSwitch
            | Self::Switching
            | Self::HandedOver
            | Self::SendEnded => Some(Side::Source),
            Self::Waiting | Self::Receiving | Self::Arrived | Self::ReceiveFailed => {
                Some(Side::Destination)
            }
        }
    }

    /// Whether [`crate::Machine::resume`] is refused: running now could make two of one machine, or none of it exact.
    #[must_use]
    pub fn forbids_running(self) -> bool {
        matches!(
            self,
            Self::ReadyToSwitch
                | Self::Switching
                | Self::HandedOver
                | Self::Waiting
                | Self::Receiving
                | Self::Arrived
                | Self::ReceiveFailed
        )
    }
}

/// What a process shows of a move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MoveState {
    /// How far it is.
    pub phase: MovePhase,
    /// What the machine is doing.
    pub guest: MachineStatus,
    /// Why sending or receiving failed, in QEMU's words where it has any.
    pub error: Option<String>,
    /// Memory, at a source.
    pub memory: MemoryProgress,
    /// Mirrors, at a source.
    pub mirrors: Vec<MirrorState>,
    /// Drives that are open for a mirror, at a destination.
    pub offered: Vec<String>,
}

/// One mirror.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorState {
    /// The drive.
    pub drive_id: String,
    /// How far it is.
    pub phase: MirrorPhase,
    /// Bytes copied.
    pub done: u64,
    /// Bytes in total; grows while the guest writes.
    pub total: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// How far a mirror is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MirrorPhase {
    /// Copies what was there.
    Copying,
    /// Has been equal once and follows the guest.
    Following,
    /// Ended: the other side was exactly this disk at that moment.
    Ended,
    /// Failed or cancelled: what the other side has is worthless.
    Failed,
}
