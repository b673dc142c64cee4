//! Every kind of long operation, by the name under which it is stored.

use engine::Work;
use serde::{Deserialize, Serialize};

use super::Machines;

macro_rules! tasks {
    ($($(#[$doc:meta])* $name:ident $(= $stored:literal)?: $work:path,)*) => {
        /// The work of a job, as it is stored.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub enum Task {
            $($(#[$doc])* $(#[serde(rename = $stored)])? $name(Box<$work>),)*
        }

        impl engine::Task<Machines> for Task {
            fn work(&self) -> &dyn Work<Machines> {
                match self {
                    $(Task::$name(work) => &**work,)*
                }
            }
        }

        $(impl From<$work> for Task {
            fn from(work: $work) -> Self {
                Task::$name(Box::new(work))
            }
        }

        impl Kind for $work {
            fn of(task: &Task) -> Option<&Self> {
                match task {
                    Task::$name(work) => Some(work),
                    _ => None,
                }
            }
        })*
    };
}

/// One kind of work among all.
pub trait Kind: Work<Machines> + Into<Task> {
    /// The work, where it is of this kind.
    fn of(task: &Task) -> Option<&Self>;
}

tasks! {
    /// Tells why something that was asked for cannot be done: what was looked at when it was asked for did not allow it.
    Refuse: super::refuse::Refuse,
    /// Brings a machine into another state.
    ChangeState: crate::machine::ChangeState,
    /// Deletes a machine with its points; its disks are folded into plain files, which stay.
    DestroyVm: crate::machine::DestroyVm,
    /// Takes a reference point.
    CreatePoint: crate::point::CreatePoint,
    /// Deletes a reference point.
    DestroyPoint: crate::point::DestroyPoint,
    /// Drops the data of a log-based point.
    RemoveData: crate::point::RemoveData,
    /// Exports a point.
    ExportPoint: crate::export::ExportPoint,
    /// Proves that the change map between two points missed nothing.
    AuditPoint: crate::audit::AuditPoint,
    /// Takes a reference point of a collection: one point of each member, all of one instant.
    CreateCollectionPoint = "CreateGroupPoint": crate::collection::CreateCollectionPoint,
    /// Deletes a reference point of a collection with its members' points.
    DestroyCollectionPoint = "DestroyGroupPoint": crate::collection::DestroyCollectionPoint,
    /// Drops the data of a log-based point of a collection.
    RemoveCollectionData = "RemoveGroupData": crate::collection::RemoveCollectionData,
    /// Exports a point of a collection, one member after the other, all or none.
    ExportCollectionPoint = "ExportGroupPoint": crate::collection::ExportCollectionPoint,
    /// Takes a snapshot.
    CreateSnapshot: crate::snapshot::CreateSnapshot,
    /// Brings a machine back to a snapshot.
    ApplySnapshot: crate::snapshot::ApplySnapshot,
    /// Deletes a snapshot, or it and everything below it.
    DestroySnapshot: crate::snapshot::DestroySnapshot,
    /// Drops the memory of a snapshot.
    ClearSnapshot: crate::snapshot::ClearSnapshot,
    /// Makes a reference point of a recovery snapshot.
    ConvertSnapshot: crate::snapshot::ConvertSnapshot,
    /// Takes a snapshot of a collection: one snapshot of each member, all of one instant.
    CreateCollectionSnapshot = "CreateGroupSnapshot": crate::collection::CreateCollectionSnapshot,
    /// Brings all machines of a snapshot of a collection back to it.
    ApplyCollectionSnapshot = "ApplyGroupSnapshot": crate::collection::ApplyCollectionSnapshot,
    /// Deletes a snapshot of a collection with its members' snapshots.
    DestroyCollectionSnapshot = "DestroyGroupSnapshot": crate::collection::DestroyCollectionSnapshot,
    /// Makes a reference point of a collection of its recovery snapshot.
    ConvertCollectionSnapshot = "ConvertGroupSnapshot": crate::collection::ConvertCollectionSnapshot,
    /// Exports a snapshot of a collection, one member after the other, all or none.
    ExportCollectionSnapshot = "ExportGroupSnapshot": crate::collection::ExportCollectionSnapshot,
    /// Exports a machine or one of its snapshots.
    ExportSystem: crate::export::ExportSystem,
    /// Merges layers nobody needs, in the background.
    MergeLayers = "Tidy": crate::merge::MergeLayers,
    /// Makes a disk image.
    CreateImage: crate::image::CreateImage,
    /// Resizes a disk image, attached or not.
    ResizeImage: crate::image::ResizeImage,
    /// Copies an image into another format.
    ConvertImage: crate::image::ConvertImage,
    /// Checks an image.
    ValidateImage: crate::image::ValidateImage,
    /// Makes a machine of an export.
    Import: crate::restore::import::Import,
    /// Makes machines and a collection of the exports of a collection's point.
    ImportCollection = "ImportGroup": crate::restore::import_collection::ImportCollection,
    /// Imports snapshots to a planned machine.
    ImportSnapshots: crate::snapshot::ImportSnapshots,
    /// Gives a restored machine the point it was restored from.
    AdoptPoint: crate::adopt::AdoptPoint,
    /// Checks whether a planned machine could be made real.
    ValidatePlanned: crate::machine::ValidatePlanned,
    /// Makes a planned machine real.
    Realize: crate::machine::Realize,
    /// Boots throw-away machines from exports.
    BootExports: crate::restore::boot::BootOrder,
    /// Cleans what nobody needs on the host.
    CleanHost: crate::host::check::CleanHost,
    /// Ends all machines because the host goes down.
    ShutDownGuests: crate::machine::ShutDownGuests,
    /// Proves an export against its manifest.
    Verify: crate::restore::verify::Verify,
    /// Moves a machine to another host.
    Depart: crate::migration::Depart,
    /// Receives a machine of another host.
    Receive: crate::migration::Receive,
    /// Looks whether a machine could move.
    LookAtMove: crate::migration::Look,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use engine::{JobState, Task as _, UndoLeft};
    use serde_json::Value;

    use super::*;
    use crate::job::Job;

    /// One task of each kind as the version before this crate's jobs became types of their own stored it.
    const OLD: &str = include_str!("../../tests/data/tasks-2222e35.jsonl");

    #[test]
    fn every_task_of_the_version_before_is_read_and_written_as_it_was() {
        let mut seen = BTreeSet::new();
        for line in OLD.lines() {
            let stored: Value = serde_json::from_str(line).expect("json");
            let task: Task = serde_json::from_str(line).expect(line);
            assert_eq!(serde_json::to_value(&task).expect("json"), stored);
            assert!(!task.traits().title.is_empty());
            seen.extend(stored.as_object().and_then(|o| o.keys().next()).cloned());
        }
        assert_eq!(seen.len(), 38);
    }

    /// A record of before claims, undo and pauses were kept.
    const JOB: &str = r#"{"id":"00000000-0000-0000-0000-000000000007","class":"PointExport","job_type":0,
        "title":"Exporting a reference point","task":{"ExportPoint":{"point":"00000000-0000-0000-0000-000000000001",
        "base":null,"directory":"/x","disks":[]}},"notes":null,"state":"ShuttingDown","cancellable":true,
        "suspendable":true,"stop":"Kill","percent":12,"done":12,"total":100,
        "submitted":{"secs_since_epoch":1000,"nanos_since_epoch":0},"changed":{"secs_since_epoch":1010,"nanos_since_epoch":0},
        "keep":{"secs":300,"nanos":0},"owner":"me","host":"here","service":"ReferencePoint","affected":[]}"#;

    #[test]
    fn jobs_of_before_load_and_claim_what_their_task_claims_until_nothing_is_left() {
        let mut job: Job = serde_json::from_str(JOB).expect("a job as version 6f3f60e stored it");
        assert_eq!((job.undo, job.stopped_by.as_deref()), (None, None));
        assert_eq!(job.claims(), job.task.claims());
        assert_eq!(job.claims().writes_to, [std::path::PathBuf::from("/x")]);
        job.state = JobState::Killed;
        job.undo = Some(UndoLeft::Underway);
        assert_eq!(job.claims(), job.task.claims());
        assert!(!job.is_over() && job.vanishes().is_none());
        job.undo = Some(UndoLeft::Failed);
        assert_eq!(job.claims().writes_to, [std::path::PathBuf::from("/x")]);
        assert!(job.claims().reads.is_empty());
        job.undo = None;
        assert!(job.claims().writes_to.is_empty() && job.is_over());
    }
}
