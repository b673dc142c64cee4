//! What is stored of a reference point.

use std::ops::{Deref, DerefMut};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::audit::Audit;
use crate::instant::record::Instant;

/// The two kinds of points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PointType {
    /// Keeps its data until RemoveAssociatedData (1).
    Log,
    /// Keeps the change map; its data only until its first export or the end of its hold (2).
    Rct,
}

/// A reference point as it is stored under `point/<guid>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The instant it names.
    #[serde(flatten)]
    pub at: Instant,
    /// Which kind.
    pub kind: PointType,
    /// Whether a log-based point still has its data.
    pub has_data: bool,
    /// For an RCT point: its content can be exported until then, or until its first export ended.
    #[serde(default)]
    pub hold: Option<Hold>,
    /// The collection point it belongs to.
    #[serde(default, rename = "group_point")]
    pub collection_point: Option<Uuid>,
    /// The last proof that its change map missed nothing.
    #[serde(default)]
    pub audit: Option<Audit>,
}

impl Deref for Point {
    type Target = Instant;

    fn deref(&self) -> &Instant {
        &self.at
    }
}

impl DerefMut for Point {
    fn deref_mut(&mut self) -> &mut Instant {
        &mut self.at
    }
}

/// The time an RCT point keeps its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Ends at.
    pub until: SystemTime,
    /// Ends when the layers above grow beyond, in bytes.
    pub bytes: u64,
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
