//! The words of layers, commits and exports, shared by the real machine and the fake.
//!
//! Marking a point: [`PreparedLayers`] are made while the guest runs (files created, nodes added), then one monitor
//! transaction puts all of them on top at one instant. Each step finds out what an earlier attempt left behind, so it
//! can be repeated after the service died anywhere in between.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::cancel::Cancel;
use crate::config::ImageFormat;

/// A new layer to be put on top of a drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewOverlay {
    /// The drive.
    pub drive_id: String,
    /// The new file; it lies beside its backing file or anywhere on the same host.
    pub overlay_path: PathBuf,
    /// Node name of the new layer.
    pub overlay_node: String,
    /// Virtual size in bytes; `None` takes the size of the layer beneath.
    pub size: Option<u64>,
    /// What the file records as its backing file (relative name); `None` takes the name of the layer beneath,
    /// relative to the new file's directory where both lie in the same one.
    pub backing_name: Option<String>,
    /// A line for the new file's header that says whose it is.
    #[serde(default)]
    pub owner: Option<String>,
}

/// Layers that are ready to be put on top.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PreparedLayers {
    /// What was asked for.
    pub overlays: Vec<NewOverlay>,
    /// Node that was active under each overlay, in the same order: the one that freezes.
    pub frozen: Vec<String>,
    /// All overlays were already on top when this was prepared: an earlier attempt had reached its end.
    pub already_marked: bool,
}

/// What a mark did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeReport {
    /// How long the guest's disks stood still: the transaction, or stop to continue around it.
    pub paused_for: Duration,
    /// The instant. Where an earlier attempt made the mark ([`FreezeReport::already`]), the new layer's creation time.
    pub instant: SystemTime,
    /// The mark had been made before, by an attempt whose answer was lost.
    pub already: bool,
}

/// A machine's answer to being stopped for a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quiesced {
    /// It ran before, so `release` continues it.
    pub was_running: bool,
    /// When it stood still.
    pub at: SystemTime,
}

/// Which layers to fold into which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitSpec {
    /// The drive.
    pub drive_id: String,
    /// Uppermost layer that goes. If it is the active one, the base becomes active.
    pub top_node: String,
    /// Layer that takes the data; everything above it up to `top_node` goes.
    pub base_node: String,
    /// What the layer above `top_node` records as its backing file afterwards (the base's name, relative).
    /// Unused when `top_node` is the active layer.
    pub backing_name: Option<String>,
}

/// How a commit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommitOutcome {
    /// The data moved now.
    Committed,
    /// The layer was no longer in the chain: an earlier attempt had finished. Left-overs were cleaned up.
    AlreadyDone,
}

/// What QEMU holds of a machine's disks, asked from QEMU itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BlockState {
    /// Drives with their layers.
    pub drives: Vec<DriveState>,
    /// Named format nodes that belong to no drive: prepared layers never marked, or left-overs.
    pub loose_nodes: Vec<NodeState>,
    /// Block and other jobs.
    pub jobs: Vec<JobState>,
    /// NBD exports.
    pub exports: Vec<ExportState>,
}

impl BlockState {
    /// The drive of that id.
    #[must_use]
    pub fn drive(&self, id: &str) -> Option<&DriveState> {
        self.drives.iter().find(|drive| drive.id == id)
    }
}

/// One drive as QEMU has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveState {
    /// Drive id.
    pub id: String,
    /// Layers, base first, active last; empty when there is no medium.
    pub chain: Vec<NodeState>,
    /// DVD tray open.
    pub tray_open: bool,
}

impl DriveState {
    /// The topmost layer.
    #[must_use]
    pub fn active(&self) -> Option<&NodeState> {
        self.chain.last()
    }
}

/// One layer as QEMU has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// Node name.
    pub node_name: String,
    /// Its file, where QEMU tells one.
    pub path: Option<PathBuf>,
    /// Format, where it is one of ours.
    pub format: Option<ImageFormat>,
    /// Virtual size in bytes.
    pub size: u64,
    /// Whether it is open read-only: frozen.
    pub read_only: bool,
}

/// One job as QEMU has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobState {
    /// Job id.
    pub id: String,
    /// QEMU's job type: `commit`, `mirror`, …
    pub kind: String,
    /// QEMU's status: `running`, `ready`, `concluded`, …
    pub status: String,
    /// Done, in the job's unit (bytes for block jobs).
    pub done: u64,
    /// Total, likewise; may grow.
    pub total: u64,
    /// Why it failed, once concluded.
    pub error: Option<String>,
}

/// One NBD export as QEMU has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportState {
    /// Export id.
    pub id: String,
    /// Exported node.
    pub node_name: String,
    /// QEMU is removing it.
    pub shutting_down: bool,
}

/// Where the active layer of a drive can be read, with its allocation (`qemu:allocation-depth`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NbdExport {
    /// Unix socket.
    pub socket: PathBuf,
    /// Export name.
    pub name: String,
    /// The node that is exported: the active layer when it was opened.
    pub node_name: String,
}

/// Progress of a block job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in total; may grow while a guest writes.
    pub total: u64,
}

/// The caller's handle on a running block job: read progress, cancel.
#[derive(Debug)]
pub struct JobControl {
    done: AtomicU64,
    total: AtomicU64,
    cancel: Cancel,
}

impl Default for JobControl {
    fn default() -> Self {
        Self::new()
    }
}

impl JobControl {
    /// A fresh handle.
    #[must_use]
    pub fn new() -> Self {
        Self {
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            cancel: Cancel::new(),
        }
    }

    /// Asks the job to stop; it then ends with [`crate::Error::Cancelled`], unless it was past its last step.
    pub fn cancel(&self) {
        self.cancel.ask();
    }

    /// Whether it was asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_asked()
    }

    /// Waits until it is asked to stop.
    pub async fn cancelled(&self) {
        self.cancel.asked().await;
    }

    /// Progress so far.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            done: self.done.load(Ordering::Relaxed),
            total: self.total.load(Ordering::Relaxed),
        }
    }

    /// Records progress; for implementations of [`crate::Machine`].
    pub fn report(&self, progress: Progress) {
        self.done.store(progress.done, Ordering::Relaxed);
        self.total.store(progress.total, Ordering::Relaxed);
    }
}
