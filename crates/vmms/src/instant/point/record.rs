//! What is stored of a reference point.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::audit::Audit;

/// The two kinds of points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PointType {
    /// Keeps its data until RemoveAssociatedData (1).
    Log,
    /// Keeps the change map; its data only until its first export or the end of its hold (2).
    Rct,
}

/// How consistent a point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Consistency {
    /// The guest's file systems were frozen (1).
    Application,
    /// As after a power cut (2).
    Crash,
}

/// A reference point as it is stored under `point/<guid>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Its GUID.
    pub id: Uuid,
    /// The machine.
    pub vm: Uuid,
    /// Name for people.
    pub name: String,
    /// Which kind.
    pub kind: PointType,
    /// What was reached.
    pub consistency: Consistency,
    /// The instant.
    pub instant: SystemTime,
    /// How long the guest was paused for it, in microseconds; 0 where it was not running.
    #[serde(default)]
    pub pause_us: u64,
    /// Counts up within a machine: older points have lower numbers.
    pub sequence: u64,
    /// Whether it is finished; a point that is not is undone at the next start.
    pub complete: bool,
    /// Whether a log-based point still has its data.
    pub has_data: bool,
    /// For an RCT point: its content can be exported until then, or until its first export ended.
    #[serde(default)]
    pub hold: Option<Hold>,
    /// The disks, in the order of the machine's disks at that instant.
    pub disks: Vec<PointDisk>,
    /// The collection point it belongs to.
    #[serde(default)]
    pub collection_point: Option<Uuid>,
    /// The machine's configuration at that instant, for exports.
    pub config: PathBuf,
    /// The memory of a machine that was saved at that instant, for exports, while the point holds its content.
    #[serde(default)]
    pub memory: Option<PathBuf>,
    /// What the user was not asked about: each with its reason.
    #[serde(default)]
    pub decisions: Vec<Decision>,
    /// The directories of its exports that hold a manifest, the newest last.
    #[serde(default)]
    pub exports: Vec<PathBuf>,
    /// What was decided for its exports without asking.
    #[serde(default)]
    pub export_decisions: Vec<Decision>,
    /// The last proof that its change map missed nothing.
    #[serde(default)]
    pub audit: Option<Audit>,
}

/// The time an RCT point keeps its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Ends at.
    pub until: SystemTime,
    /// Ends when the layers above grow beyond, in bytes.
    pub bytes: u64,
}

/// A disk of a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PointDisk {
    /// The disk's uid.
    pub uid: Uuid,
    /// The resource id it had within the machine.
    pub device: String,
    /// The file the user attached.
    pub path: PathBuf,
    /// The instant in the disk's tree of layers: the change tracking identifier clients see.
    pub node: Uuid,
    /// Its size at that instant, in bytes.
    pub size: u64,
    /// The hashes of all its blocks, kept when it was exported: what a later disk is compared with where changes are not tracked.
    #[serde(default)]
    pub blocks: Option<PathBuf>,
}

/// A choice made without asking, told in the job, the point and the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// What was decided.
    pub what: String,
    /// Why.
    pub reason: String,
}

impl Point {
    /// Whether its content must stay readable, exports aside.
    pub fn holds_content(&self) -> bool {
        match self.kind {
            PointType::Log => self.has_data,
            PointType::Rct => self.hold.is_some(),
        }
    }
}

impl store::Versioned for Point {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}
