//! What is stored of collections and of their reference points.

use std::ops::{Deref, DerefMut};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::db::Draft;
use crate::point::{Consistency, PointType};
use crate::snapshot::SnapshotKind;

/// What a collection collects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CollectionKind {
    /// Machines (Msvm_VirtualSystemCollection).
    Machines,
    /// Other collections (Msvm_ManagementCollection).
    Management,
}

/// A collection as it is stored under `group/<guid>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Collection {
    /// Its GUID.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// What it collects.
    pub kind: CollectionKind,
    /// Machines or collections, in the order they were added.
    pub members: Vec<Uuid>,
    /// The snapshot of the collection that was applied last.
    #[serde(default)]
    pub last_apply: Option<LastApply>,
}

/// What is known of the last time a snapshot was applied to a collection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastApply {
    /// When.
    pub at: SystemTime,
    /// How consistent the snapshot is.
    pub consistency: Consistency,
    /// The machines that were brought back.
    pub vms: Vec<Uuid>,
}

/// One instant of all machines of a collection, whether a point or a snapshot names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CollectionInstant {
    /// Its GUID. A snapshot and the point it is converted to have the same one.
    pub id: Uuid,
    /// The collection.
    #[serde(rename = "group")]
    pub collection: Uuid,
    /// Name for people.
    pub name: String,
    /// The least any running member reached.
    pub consistency: Consistency,
    /// When the last running member stood still, or when the files of stopped ones were marked.
    pub instant: SystemTime,
    /// Counts up within a collection, points and snapshots together.
    pub sequence: u64,
    /// Whether it is finished; one that is not is undone at the next start.
    pub complete: bool,
    /// The members, in the order of their machines' GUIDs.
    pub members: Vec<MemberPoint>,
    /// From the first answer that a guest stands still to the last such answer, in microseconds. All disks were marked while all
    /// members stood still, so that the marks themselves have no skew; this is how far apart the guests stopped, as the
    /// service saw it.
    pub skew_us: u64,
    /// From the first request to stand still to the last answer, in microseconds: no two guests can have stopped
    /// further apart, however late the service saw their answers.
    #[serde(default)]
    pub skew_limit_us: u64,
}

impl CollectionInstant {
    /// The point or snapshot of a machine.
    pub fn part_of(&self, vm: Uuid) -> Option<Uuid> {
        self.members.iter().find(|m| m.vm == vm).map(|m| m.point)
    }
}

/// A reference point of a collection as it is stored under `group-point/<guid>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CollectionPoint {
    /// The instant it names.
    #[serde(flatten)]
    pub at: CollectionInstant,
    /// Which kind.
    pub kind: PointType,
}

/// A snapshot of a collection as it is stored under `group-snapshot/<guid>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CollectionSnapshot {
    /// The instant it names; each member's `point` is its snapshot.
    #[serde(flatten)]
    pub at: CollectionInstant,
    /// Which kind.
    pub kind: SnapshotKind,
}

macro_rules! names_an_instant {
    ($($record:ty),*) => {
        $(impl Deref for $record {
            type Target = CollectionInstant;

            fn deref(&self) -> &CollectionInstant {
                &self.at
            }
        }

        impl DerefMut for $record {
            fn deref_mut(&mut self) -> &mut CollectionInstant {
                &mut self.at
            }
        })*
    };
}

names_an_instant!(CollectionPoint, CollectionSnapshot);

/// One machine's part of an instant of a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberPoint {
    /// The machine.
    pub vm: Uuid,
    /// Its own point or snapshot.
    pub point: Uuid,
    /// How long its guest stood still, from the request to stop to the answer that it goes on, in microseconds; 0 where it was
    /// not running.
    pub pause_us: u64,
    /// Whether it was running.
    pub running: bool,
}

/// The number of the next point or snapshot of a collection: both count together.
pub(super) fn next_sequence(draft: &mut Draft<'_>, collection: Uuid) -> u64 {
    let points = draft.all::<CollectionPoint>();
    let snapshots = draft.all::<CollectionSnapshot>();
    let of_points = points.iter().filter(|p| p.collection == collection);
    let of_snapshots = snapshots.iter().filter(|s| s.collection == collection);
    let numbers = of_points
        .map(|p| p.sequence)
        .chain(of_snapshots.map(|s| s.sequence));
    numbers.max().unwrap_or(0) + 1
}

impl store::Versioned for CollectionSnapshot {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}

impl store::Versioned for Collection {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}

impl store::Versioned for CollectionPoint {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}
