//! What is stored of every instant of a machine's disks, whether a reference point or a snapshot names it.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How consistent an instant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Consistency {
    /// The guest's file systems were frozen (1).
    Application,
    /// As after a power cut (2).
    Crash,
}

/// An instant of a machine's disks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instant {
    /// Its GUID. A snapshot and the point it is converted to have the same one, so that exports of the one are found as exports of
    /// the other.
    pub id: Uuid,
    /// The machine.
    pub vm: Uuid,
    /// Name for people.
    pub name: String,
    /// What was reached.
    pub consistency: Consistency,
    /// When.
    pub instant: SystemTime,
    /// How long the guest stood still for it, in microseconds; 0 where it was not running.
    #[serde(default)]
    pub pause_us: u64,
    /// Counts up within a machine, points and snapshots together: what is older has the lower number.
    pub sequence: u64,
    /// Whether it is finished; one that is not is undone at the next start.
    pub complete: bool,
    /// The disks, in the order of the machine's disks at that instant.
    pub disks: Vec<PointDisk>,
    /// The memory of that instant: of a machine that was saved, or in a full snapshot of one that ran.
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

/// A disk at an instant.
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

#[cfg(test)]
mod tests {
    use crate::collection::{CollectionPoint, CollectionSnapshot};
    use crate::point::Point;
    use crate::snapshot::Snapshot;
    use serde::{Serialize, de::DeserializeOwned};
    use serde_json::{Value, json};

    const ID: &str = "00000000-0000-0000-0000-000000000001";
    const VM: &str = "00000000-0000-0000-0000-000000000002";
    const WHOLE: &str = "00000000-0000-0000-0000-000000000003";

    fn same<R: DeserializeOwned + Serialize>(stored: &Value) -> R {
        let record: R =
            serde_json::from_value(stored.clone()).expect("a record of version 2222e35");
        assert_eq!(serde_json::to_value(&record).expect("json"), *stored);
        record
    }

    fn with(mut instant: Value, own: &Value) -> Value {
        let own = own.as_object().expect("an object").clone();
        instant.as_object_mut().expect("an object").extend(own);
        instant
    }

    /// As version 2222e35 stored them, before what they have in common became one type.
    #[test]
    fn records_of_instants_of_before_are_read_and_written_as_they_were() {
        let time = json!({"secs_since_epoch": 1000, "nanos_since_epoch": 7});
        let instant = json!({
            "id": ID, "vm": VM, "name": "n", "consistency": "Crash", "instant": time, "pause_us": 5, "sequence": 3,
            "complete": true, "config": "/c.json", "memory": null, "decisions": [{"what": "w", "reason": "r"}],
            "exports": ["/x"], "export_decisions": [],
            "disks": [{"uid": ID, "device": "d", "path": "/d.img", "node": VM, "size": 512, "blocks": null}],
        });
        let point = with(
            instant.clone(),
            &json!({"kind": "Rct", "has_data": false, "hold": {"until": time, "bytes": 9}, "group_point": WHOLE, "audit": null}),
        );
        let point: Point = same(&point);
        assert!(point.holds_content() && point.collection_point.is_some());
        let dirs = crate::Dirs {
            state: "/s".into(),
            run: "/r".into(),
        };
        let new = crate::machine::NewVm {
            id: None,
            name: "n".to_owned(),
            generation: 1,
            notes: Vec::new(),
            settings: crate::machine::Settings::default(),
        };
        let settings = crate::machine::new_vm(new, "here", &dirs);
        let settings = serde_json::to_value(settings).expect("json");
        let snapshot = with(
            instant,
            &json!({"notes": ["a"], "kind": "Disk", "parent": null, "group_snapshot": WHOLE, "settings": settings}),
        );
        let snapshot: Snapshot = same(&snapshot);
        assert_eq!(snapshot.as_point().at, point.at);
        let of_all = json!({
            "id": WHOLE, "group": ID, "name": "n", "consistency": "Application", "instant": time, "sequence": 3, "complete": true,
            "members": [{"vm": VM, "point": ID, "pause_us": 5, "running": true}], "skew_us": 1, "skew_limit_us": 2,
        });
        let point: CollectionPoint = same(&with(of_all.clone(), &json!({"kind": "Log"})));
        assert_eq!(point.part_of(snapshot.vm), Some(snapshot.id));
        same::<CollectionSnapshot>(&with(of_all, &json!({"kind": "Full"})));
    }
}
