//! What an export tells of a snapshot besides its configuration and disks: a small file of its own, named in the manifest.

use std::time::SystemTime;

use disk::verify::Export;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Snapshot, SnapshotKind};
use crate::point::Consistency;
use crate::{Result, fault};

/// The mark of the file.
const FORMAT: &str = "kvmms-snapshot";
/// Largest file that is read.
const MOST: u64 = 1 << 20;
/// Longest text in it.
const MOST_TEXT: usize = 64 << 10;

/// A snapshot as it stands in an export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Definition {
    format: String,
    version: u32,
    /// Its GUID.
    pub(crate) id: Uuid,
    /// Whether the export is of the machine itself: the snapshot was only taken for it.
    pub(crate) present: bool,
    pub(crate) name: String,
    pub(crate) notes: Vec<String>,
    pub(crate) kind: SnapshotKind,
    pub(crate) consistency: Consistency,
    pub(crate) instant: SystemTime,
    pub(crate) pause_us: u64,
    /// Its place among the snapshots of the machine.
    pub(crate) sequence: u64,
    /// The snapshot it descends from.
    pub(crate) parent: Option<Uuid>,
}

impl Definition {
    /// Role of the file in a manifest.
    pub(crate) const ROLE: &str = "snapshot";

    pub(crate) fn of(snapshot: &Snapshot, present: bool) -> Self {
        Definition {
            format: FORMAT.to_owned(),
            version: 1,
            id: snapshot.id,
            present,
            name: snapshot.name.clone(),
            notes: snapshot.notes.clone(),
            kind: snapshot.kind,
            consistency: snapshot.consistency,
            instant: snapshot.instant,
            pause_us: snapshot.pause_us,
            sequence: snapshot.sequence,
            parent: snapshot.parent,
        }
    }

    /// The file of an export; `None` where the export is no snapshot's.
    pub(crate) fn read(export: &Export) -> Result<Option<Self>> {
        let Some(file) = export.file(Self::ROLE) else {
            return Ok(None);
        };
        let path = export.dir.join(&file.path);
        let text = export.read(file, MOST)?;
        let wrong = |why: String| fault!(WrongType, path.display(), why);
        let read: Definition = serde_json::from_slice(&text)
            .map_err(|e| wrong(format!("it is no definition of a snapshot: {e}")))?;
        if read.format != FORMAT || read.version != 1 {
            let what = format!("{} version {} is not known", read.format, read.version);
            return Err(wrong(what));
        }
        let odd = |text: &String| text.len() > MOST_TEXT || text.chars().any(|c| c == '\0');
        if read.notes.iter().chain([&read.name]).any(odd) {
            return Err(wrong("its texts are longer than any".to_owned()));
        }
        Ok(Some(read))
    }
}
