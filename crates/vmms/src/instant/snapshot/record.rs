//! What is stored of a snapshot.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::machine::Vm;
use crate::point::{Consistency, Decision, Point, PointDisk, PointType};

/// The kinds of snapshots; the numbers are those of CreateSnapshot's SnapshotType.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SnapshotKind {
    /// 2: disks, settings, and the memory of a machine that has any.
    Full,
    /// 3: disks and settings.
    Disk,
    /// 32768: disks and settings, for the time of a backup; ends by becoming a reference point.
    Recovery,
}

/// A snapshot as it is stored under `snapshot/<guid>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its GUID. A reference point it is converted to has the same one, so that exports of the snapshot are
    /// found as exports of the point.
    pub id: Uuid,
    /// The machine.
    pub vm: Uuid,
    /// Name for people.
    pub name: String,
    /// Free text.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Which kind.
    pub kind: SnapshotKind,
    /// What was reached.
    pub consistency: Consistency,
    /// The instant.
    pub instant: SystemTime,
    /// How long the guest stood still for it, in microseconds; 0 where it was not running.
    #[serde(default)]
    pub pause_us: u64,
    /// Counts up within a machine, together with its reference points: what is older has the lower number.
    pub sequence: u64,
    /// Whether it is finished; a snapshot that is not is undone at the next start.
    pub complete: bool,
    /// The snapshot the machine descended from at the instant.
    #[serde(default)]
    pub parent: Option<Uuid>,
    /// The snapshot of a collection it belongs to.
    #[serde(default)]
    pub collection_snapshot: Option<Uuid>,
    /// The machine at the instant.
    pub settings: Box<Vm>,
    /// The disks, in the order of the machine's disks at that instant.
    pub disks: Vec<PointDisk>,
    /// The saved memory, in a full snapshot of a machine that had any.
    #[serde(default)]
    pub memory: Option<PathBuf>,
    /// The machine's configuration at that instant as a file, for exports.
    pub config: PathBuf,
    /// What the user was not asked about: each with its reason.
    #[serde(default)]
    pub decisions: Vec<Decision>,
    /// The directories of its exports that hold a manifest, the newest last.
    #[serde(default)]
    pub exports: Vec<PathBuf>,
    /// What was decided for its exports without asking.
    #[serde(default)]
    pub export_decisions: Vec<Decision>,
}

impl Snapshot {
    /// The snapshot of that kind whose instant and disks are those of `point`.
    pub(crate) fn of(
        point: &Point,
        kind: SnapshotKind,
        parent: Option<Uuid>,
        settings: Vm,
        memory: Option<PathBuf>,
    ) -> Self {
        Snapshot {
            id: point.id,
            vm: point.vm,
            name: point.name.clone(),
            notes: Vec::new(),
            kind,
            consistency: point.consistency,
            instant: point.instant,
            pause_us: point.pause_us,
            sequence: point.sequence,
            complete: point.complete,
            parent,
            collection_snapshot: None,
            settings: Box::new(settings),
            disks: point.disks.clone(),
            memory,
            config: point.config.clone(),
            decisions: point.decisions.clone(),
            exports: point.exports.clone(),
            export_decisions: point.export_decisions.clone(),
        }
    }

    /// The snapshot in the shape of an RCT point: what exports and comparisons take, and what it becomes when it is
    /// converted.
    pub fn as_point(&self) -> Point {
        Point {
            id: self.id,
            vm: self.vm,
            name: self.name.clone(),
            kind: PointType::Rct,
            consistency: self.consistency,
            instant: self.instant,
            pause_us: self.pause_us,
            sequence: self.sequence,
            complete: self.complete,
            has_data: false,
            hold: None,
            disks: self.disks.clone(),
            collection_point: self.collection_snapshot,
            config: self.config.clone(),
            memory: None,
            decisions: self.decisions.clone(),
            exports: self.exports.clone(),
            export_decisions: self.export_decisions.clone(),
            audit: None,
        }
    }
}

impl store::Versioned for Snapshot {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}
