//! What is stored of a snapshot.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::instant::record::Instant;
use crate::machine::Vm;
use crate::point::{Point, PointType};

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
    /// The instant it names.
    #[serde(flatten)]
    pub at: Instant,
    /// Free text.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Which kind.
    pub kind: SnapshotKind,
    /// The snapshot the machine descended from at the instant.
    #[serde(default)]
    pub parent: Option<Uuid>,
    /// The snapshot of a collection it belongs to.
    #[serde(default, rename = "group_snapshot")]
    pub collection_snapshot: Option<Uuid>,
    /// The machine at the instant, without the layers of disks that it wrote to: those are the machine's.
    pub settings: Box<Vm>,
}

impl Deref for Snapshot {
    type Target = Instant;

    fn deref(&self) -> &Instant {
        &self.at
    }
}

impl DerefMut for Snapshot {
    fn deref_mut(&mut self) -> &mut Instant {
        &mut self.at
    }
}

impl Snapshot {
    /// The snapshot of that kind of the instant that `point` names.
    pub(crate) fn of(
        point: &Point,
        kind: SnapshotKind,
        parent: Option<Uuid>,
        settings: Vm,
        memory: Option<PathBuf>,
    ) -> Self {
        Snapshot {
            at: Instant {
                memory,
                ..point.at.clone()
            },
            notes: Vec::new(),
            kind,
            parent,
            collection_snapshot: None,
            settings: kept(settings),
        }
    }

    /// The snapshot in the shape of an RCT point: what exports and comparisons take, and what it becomes when it is
    /// converted.
    pub fn as_point(&self) -> Point {
        Point {
            at: Instant {
                memory: None,
                ..self.at.clone()
            },
            kind: PointType::Rct,
            has_data: false,
            hold: None,
            collection_point: self.collection_snapshot,
            audit: None,
        }
    }
}

/// A machine as a snapshot keeps it.
pub(super) fn kept(mut settings: Vm) -> Box<Vm> {
    for (_, disk) in settings.disks_mut().filter(|(_, d)| !d.read_only) {
        disk.layers = disk.layers.bare();
    }
    Box::new(settings)
}

impl store::Versioned for Snapshot {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}
