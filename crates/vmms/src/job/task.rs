//! What jobs do, with their parameters as they are stored.

use std::path::PathBuf;

use hypervisor::ImageFormat;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{JobClass, Service};
use crate::Fault;
use crate::boot::BootOrder;
use crate::check::FindingKind;
use crate::export::SystemExport;
use crate::import_group::MemberImport;
use crate::point::{Consistency, PointType, Proof};
use crate::snapshot::{SnapshotImport, SnapshotKind};

/// The work of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Task {
    /// Tells why something that was asked for cannot be done: what was looked at when it was asked for did not allow it.
    Refuse {
        /// The class the job has.
        class: JobClass,
        /// The service it belongs to.
        service: Service,
        /// Its JobType.
        job_type: u16,
        /// Why.
        fault: Box<Fault>,
    },
    /// Brings a machine into another state.
    ChangeState {
        /// The machine.
        vm: Uuid,
        /// The state.
        to: StateChange,
    },
    /// Deletes a machine with its points; its disks are folded into plain files, which stay.
    DestroyVm {
        /// The machine.
        vm: Uuid,
    },
    /// Takes a reference point.
    CreatePoint {
        /// The machine.
        vm: Uuid,
        /// The new point's id.
        point: Uuid,
        /// Its kind.
        kind: PointType,
        /// What was asked for; `None`: application where it can be had, else crash.
        consistency: Option<Consistency>,
        /// Name for people.
        name: String,
    },
    /// Deletes a reference point.
    DestroyPoint {
        /// The point.
        point: Uuid,
    },
    /// Drops the data of a log-based point.
    RemoveData {
        /// The point.
        point: Uuid,
    },
    /// Exports a point.
    ExportPoint {
        /// The point.
        point: Uuid,
        /// The base of a differential export.
        base: Option<Uuid>,
        /// Where to.
        directory: PathBuf,
        /// The uids of the disks to export.
        disks: Vec<Uuid>,
    },
    /// Proves that the change map between two points missed nothing.
    AuditPoint {
        /// The newer point.
        point: Uuid,
        /// The older one.
        base: Uuid,
        /// What stands for the content of the older one.
        proof: Proof,
    },
    /// Takes a reference point of a collection: one point of each member, all of one instant.
    CreateGroupPoint {
        /// The collection.
        group: Uuid,
        /// The new collection point's id.
        point: Uuid,
        /// The members when it was asked for, by the GUIDs of their machines, with the ids of their new points.
        members: Vec<MemberTask>,
        /// Its kind.
        kind: PointType,
        /// What was asked for; `None`: application where it can be had, else crash.
        consistency: Option<Consistency>,
        /// Name for people.
        name: String,
    },
    /// Deletes a reference point of a collection with its members' points.
    DestroyGroupPoint {
        /// The collection point.
        point: Uuid,
        /// Its members.
        members: Vec<MemberTask>,
    },
    /// Drops the data of a log-based point of a collection.
    RemoveGroupData {
        /// The collection point.
        point: Uuid,
        /// Its members.
        members: Vec<MemberTask>,
    },
    /// Exports a point of a collection, one member after the other, all or none.
    ExportGroupPoint {
        /// The collection point.
        point: Uuid,
        /// The base of a differential export.
        base: Option<Uuid>,
        /// Where to.
        directory: PathBuf,
        /// What of which machine, by the GUIDs of the machines.
        members: Vec<MemberExport>,
    },
    /// Takes a snapshot.
    CreateSnapshot {
        /// The machine.
        vm: Uuid,
        /// The new snapshot's id.
        snapshot: Uuid,
        /// Its kind.
        kind: SnapshotKind,
        /// What was asked for; `None`: application where it can be had, else crash.
        consistency: Option<Consistency>,
        /// Name for people.
        name: String,
    },
    /// Brings a machine back to a snapshot.
    ApplySnapshot {
        /// The machine.
        vm: Uuid,
        /// The snapshot.
        snapshot: Uuid,
    },
    /// Deletes a snapshot, or it and everything below it.
    DestroySnapshot {
        /// The machine.
        vm: Uuid,
        /// The snapshot.
        snapshot: Uuid,
        /// Whether its descendants go too.
        tree: bool,
    },
    /// Drops the memory of a snapshot.
    ClearSnapshot {
        /// The machine.
        vm: Uuid,
        /// The snapshot.
        snapshot: Uuid,
    },
    /// Makes a reference point of a recovery snapshot.
    ConvertSnapshot {
        /// The machine.
        vm: Uuid,
        /// The snapshot.
        snapshot: Uuid,
    },
    /// Takes a snapshot of a collection: one snapshot of each member, all of one instant.
    CreateGroupSnapshot {
        /// The collection.
        group: Uuid,
        /// The new collection snapshot's id.
        snapshot: Uuid,
        /// The members when it was asked for, by the GUIDs of their machines; `point` is the id of the new snapshot.
        members: Vec<MemberTask>,
        /// Its kind.
        kind: SnapshotKind,
        /// What was asked for; `None`: application where it can be had, else crash.
        consistency: Option<Consistency>,
        /// Name for people.
        name: String,
    },
    /// Brings all machines of a snapshot of a collection back to it.
    ApplyGroupSnapshot {
        /// The collection's snapshot.
        snapshot: Uuid,
        /// Its members.
        members: Vec<MemberTask>,
    },
    /// Deletes a snapshot of a collection with its members' snapshots.
    DestroyGroupSnapshot {
        /// The collection's snapshot.
        snapshot: Uuid,
        /// Its members.
        members: Vec<MemberTask>,
    },
    /// Makes a reference point of a collection of its recovery snapshot.
    ConvertGroupSnapshot {
        /// The collection's snapshot.
        snapshot: Uuid,
        /// Its members.
        members: Vec<MemberTask>,
    },
    /// Exports a snapshot of a collection, one member after the other, all or none.
    ExportGroupSnapshot {
        /// The collection's snapshot.
        snapshot: Uuid,
        /// The point or snapshot of the collection whose export this one builds on.
        base: Option<Uuid>,
        /// Where to.
        directory: PathBuf,
        /// What of which machine, by the GUIDs of the machines; `point` is the member's snapshot.
        members: Vec<MemberExport>,
        /// Whether what would be differences to the base is written whole.
        merge: bool,
    },
    /// Exports a machine or one of its snapshots.
    ExportSystem {
        /// The machine.
        vm: Uuid,
        /// What and how.
        order: Box<SystemExport>,
    },
    /// Merges layers nobody needs, in the background.
    Tidy {
        /// The machine.
        vm: Uuid,
    },
    /// Makes a disk image.
    CreateImage(ImageSpec),
    /// Resizes a disk image, attached or not.
    ResizeImage {
        /// The image.
        path: PathBuf,
        /// Its new size in bytes.
        size: u64,
    },
    /// Copies an image into another format.
    ConvertImage {
        /// The image to read.
        source: PathBuf,
        /// The image to make.
        target: ImageSpec,
    },
    /// Checks an image.
    ValidateImage {
        /// The image.
        path: PathBuf,
    },
    /// Makes a machine of an export.
    Import {
        /// The machine directory of the export (the one with the manifest).
        directory: PathBuf,
        /// The new machine.
        vm: Uuid,
        /// Its name; `None` keeps the exported one.
        name: Option<String>,
        /// Where its disks go.
        disks: PathBuf,
        /// Whether it is to be a planned machine.
        #[serde(default)]
        planned: bool,
        /// Whether exported memory is taken over.
        #[serde(default)]
        memory: bool,
        /// Whether network addresses and automatic start are.
        #[serde(default)]
        keep_identity: bool,
    },
    /// Makes machines and a collection of the exports of a collection's point.
    ImportGroup {
        /// The new collection.
        group: Uuid,
        /// Its name.
        name: String,
        /// The machines.
        members: Vec<MemberImport>,
        /// Whether exported memory is taken over.
        #[serde(default)]
        memory: bool,
        /// Whether network addresses and automatic start are.
        #[serde(default)]
        keep_identity: bool,
    },
    /// Imports snapshots to a planned machine.
    ImportSnapshots {
        /// The machine.
        vm: Uuid,
        /// The folder that was named.
        folder: PathBuf,
        /// The snapshots, parents before children.
        snapshots: Vec<SnapshotImport>,
        /// Which of them the machine descends from.
        descends_from: Option<Uuid>,
    },
    /// Gives a restored machine the point it was restored from.
    AdoptPoint {
        /// The machine.
        vm: Uuid,
        /// The point.
        point: Uuid,
        /// The directory with the manifest.
        directory: PathBuf,
    },
    /// Checks whether a planned machine could be made real.
    ValidatePlanned {
        /// The machine.
        vm: Uuid,
    },
    /// Makes a planned machine real.
    Realize {
        /// The machine.
        vm: Uuid,
    },
    /// Boots throw-away machines from exports.
    BootExports(Box<BootOrder>),
    /// Cleans what nobody needs on the host.
    CleanHost {
        /// Findings of these kinds.
        kinds: Vec<FindingKind>,
    },
    /// Ends all machines because the host goes down.
    ShutDownGuests {
        /// Within how many seconds.
        seconds: u64,
    },
    /// Proves an export against its manifest.
    Verify {
        /// The machine directory of the export (the one with the manifest).
        directory: PathBuf,
    },
}

/// A machine's part of a task on a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberTask {
    /// The machine.
    pub vm: Uuid,
    /// Its point.
    pub point: Uuid,
}

/// What is exported of a machine of a collection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberExport {
    /// The machine.
    pub vm: Uuid,
    /// Its point.
    pub point: Uuid,
    /// Its point in the base.
    pub base: Option<Uuid>,
    /// The uids of the disks to export.
    pub disks: Vec<Uuid>,
}

/// A state a machine can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StateChange {
    /// Start it; from saved: restore it; from paused: go on.
    Start,
    /// Switch it off hard.
    Stop,
    /// Ask the guest to shut down.
    Shutdown,
    /// Pause the guest.
    Pause,
    /// Save memory to a file and end the process.
    Save,
    /// Ask the guest to reboot.
    Reboot,
    /// Reset it hard.
    Reset,
}

/// A disk image to make.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// Where.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Whether all space is taken at once.
    pub fixed: bool,
    /// Its size in bytes; `None` with a parent: the parent's.
    pub size: Option<u64>,
    /// The image it differs from.
    pub parent: Option<PathBuf>,
}

/// How a kind of task behaves as a job.
pub struct Traits {
    /// The CIM class.
    pub class: JobClass,
    /// JobType of that class.
    pub job_type: u16,
    /// The service it belongs to.
    pub service: Service,
    /// Whether a client may stop it.
    pub cancellable: bool,
    /// Whether a client may suspend it.
    pub suspendable: bool,
    /// What becomes of it when the service was restarted while it ran.
    pub recovery: Recovery,
    /// Its title.
    pub title: &'static str,
}

/// What becomes of a job whose service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// It is run again from its notes: its steps are idempotent.
    Resume,
    /// What it began is undone and it fails as interrupted.
    Undo,
}

impl Task {
    /// How this task behaves as a job.
    pub fn traits(&self) -> Traits {
        use Recovery::{Resume, Undo};
        let concrete = |service, job_type, title, cancellable, recovery| Traits {
            class: JobClass::Concrete,
            job_type,
            service,
            cancellable,
            suspendable: false,
            recovery,
            title,
        };
        let storage = |job_type, title, cancellable| Traits {
            class: JobClass::Storage,
            job_type,
            service: Service::Image,
            cancellable,
            suspendable: false,
            recovery: Undo,
            title,
        };
        match self {
            Task::Refuse {
                class,
                service,
                job_type,
                ..
            } => Traits {
                class: *class,
                ..concrete(
                    *service,
                    *job_type,
                    "Checking what was asked for",
                    false,
                    Resume,
                )
            },
            Task::ChangeState { to, .. } => {
                let (job_type, title) = match to {
                    StateChange::Start => (12, "Starting the virtual machine"),
                    StateChange::Stop => (13, "Turning the virtual machine off"),
                    StateChange::Save => (14, "Saving the virtual machine"),
                    StateChange::Shutdown => (16, "Shutting the guest down"),
                    StateChange::Pause => (26, "Pausing the virtual machine"),
                    StateChange::Reset => (28, "Resetting the virtual machine"),
                    StateChange::Reboot => (29, "Rebooting the guest"),
                };
                concrete(
                    Service::Management,
                    job_type,
                    title,
                    *to == StateChange::Shutdown,
                    Undo,
                )
            }
            Task::DestroyVm { .. } => concrete(
                Service::Management,
                3,
                "Deleting the virtual machine",
                false,
                Resume,
            ),
            Task::CreatePoint { .. } => concrete(
                Service::ReferencePoint,
                201,
                "Creating a reference point",
                true,
                Undo,
            ),
            Task::DestroyPoint { .. } => concrete(
                Service::ReferencePoint,
                202,
                "Deleting a reference point",
                false,
                Resume,
            ),
            Task::RemoveData { .. } => concrete(
                Service::ReferencePoint,
                204,
                "Removing the data of a reference point",
                true,
                Resume,
            ),
            Task::ExportPoint { .. } => Traits {
                class: JobClass::PointExport,
                job_type: 0,
                service: Service::ReferencePoint,
                cancellable: true,
                suspendable: true,
                recovery: Resume,
                title: "Exporting a reference point",
            },
            Task::AuditPoint { .. } => Traits {
                suspendable: true,
                ..concrete(
                    Service::ReferencePoint,
                    0,
                    "Auditing the change map of a reference point",
                    true,
                    Resume,
                )
            },
            Task::CreateGroupPoint { .. } => concrete(
                Service::CollectionReferencePoint,
                205,
                "Creating a reference point of a collection",
                true,
                Undo,
            ),
            Task::DestroyGroupPoint { .. } => concrete(
                Service::CollectionReferencePoint,
                208,
                "Deleting a reference point of a collection",
                false,
                Resume,
            ),
            Task::RemoveGroupData { .. } => concrete(
                Service::CollectionReferencePoint,
                207,
                "Removing the data of a reference point of a collection",
                true,
                Resume,
            ),
            Task::ExportGroupPoint { .. } => Traits {
                class: JobClass::GroupPointExport,
                job_type: 0,
                service: Service::CollectionReferencePoint,
                cancellable: true,
                suspendable: true,
                recovery: Resume,
                title: "Exporting a reference point of a collection",
            },
            Task::CreateSnapshot { .. } => {
                concrete(Service::Snapshot, 70, "Creating a snapshot", true, Undo)
            }
            Task::ApplySnapshot { .. } => {
                concrete(Service::Snapshot, 71, "Applying a snapshot", false, Undo)
            }
            Task::DestroySnapshot { .. } => {
                concrete(Service::Snapshot, 72, "Deleting a snapshot", false, Resume)
            }
            Task::ClearSnapshot { .. } => concrete(
                Service::Snapshot,
                73,
                "Dropping the memory of a snapshot",
                false,
                Resume,
            ),
            Task::ConvertSnapshot { .. } => concrete(
                Service::Snapshot,
                200,
                "Making a reference point of a snapshot",
                false,
                Resume,
            ),
            Task::CreateGroupSnapshot { .. } => concrete(
                Service::CollectionSnapshot,
                198,
                "Creating a snapshot of a collection",
                true,
                Undo,
            ),
            Task::ApplyGroupSnapshot { .. } => concrete(
                Service::CollectionSnapshot,
                71,
                "Applying a snapshot of a collection",
                false,
                Undo,
            ),
            Task::DestroyGroupSnapshot { .. } => concrete(
                Service::CollectionSnapshot,
                72,
                "Deleting a snapshot of a collection",
                false,
                Resume,
            ),
            Task::ConvertGroupSnapshot { .. } => concrete(
                Service::CollectionSnapshot,
                200,
                "Making a reference point of a snapshot of a collection",
                false,
                Resume,
            ),
            Task::ExportGroupSnapshot { .. } => Traits {
                suspendable: true,
                ..concrete(
                    Service::CollectionSnapshot,
                    62,
                    "Exporting a snapshot of a collection",
                    true,
                    Resume,
                )
            },
            Task::ExportSystem { .. } => Traits {
                suspendable: true,
                ..concrete(
                    Service::Management,
                    62,
                    "Exporting a virtual machine",
                    true,
                    Undo,
                )
            },
            Task::Tidy { .. } => {
                concrete(Service::Management, 50, "Merging disk layers", true, Resume)
            }
            Task::CreateImage(_) => storage(1, "Creating a virtual hard disk", true),
            Task::ResizeImage { .. } => storage(4, "Resizing a virtual hard disk", false),
            Task::ConvertImage { .. } => storage(6, "Converting a virtual hard disk", true),
            Task::ValidateImage { .. } => storage(9, "Validating a virtual hard disk", true),
            Task::Import { .. } => concrete(
                Service::Management,
                61,
                "Importing a virtual machine",
                true,
                Undo,
            ),
            Task::ImportGroup { .. } => concrete(
                Service::Management,
                61,
                "Importing the virtual machines of a collection",
                true,
                Undo,
            ),
            Task::ImportSnapshots { .. } => {
                concrete(Service::Management, 60, "Importing snapshots", true, Undo)
            }
            Task::AdoptPoint { .. } => concrete(
                Service::ReferencePoint,
                209,
                "Taking over a reference point",
                true,
                Undo,
            ),
            Task::ValidatePlanned { .. } => concrete(
                Service::Management,
                140,
                "Validating a planned virtual machine",
                true,
                Undo,
            ),
            Task::Realize { .. } => concrete(
                Service::Management,
                141,
                "Realizing a planned virtual machine",
                false,
                Resume,
            ),
            Task::BootExports(_) => concrete(
                Service::Management,
                0,
                "Booting restored machines",
                true,
                Undo,
            ),
            Task::CleanHost { .. } => {
                concrete(Service::Management, 0, "Cleaning the host", true, Resume)
            }
            Task::ShutDownGuests { .. } => concrete(
                Service::Management,
                0,
                "Ending machines because the host goes down",
                true,
                Undo,
            ),
            Task::Verify { .. } => {
                concrete(Service::Management, 0, "Verifying an export", true, Undo)
            }
        }
    }
}
