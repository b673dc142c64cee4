//! What jobs do, with their parameters as they are stored.

use std::path::PathBuf;

use hypervisor::ImageFormat;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{JobClass, Service};
use crate::point::{Consistency, PointType};

/// The work of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Task {
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
    },
    /// Proves an export against its manifest.
    Verify {
        /// The machine directory of the export (the one with the manifest).
        directory: PathBuf,
    },
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

/// What a task works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A machine.
    Vm(Uuid),
    /// A reference point, and with it its machine.
    Point(Uuid),
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
    /// The machine or the point whose machine it works on.
    pub fn subject(&self) -> Option<Subject> {
        match self {
            Task::ChangeState { vm, .. }
            | Task::DestroyVm { vm }
            | Task::CreatePoint { vm, .. }
            | Task::Tidy { vm }
            | Task::Import { vm, .. } => Some(Subject::Vm(*vm)),
            Task::DestroyPoint { point }
            | Task::RemoveData { point }
            | Task::ExportPoint { point, .. } => Some(Subject::Point(*point)),
            Task::CreateImage(_)
            | Task::ResizeImage { .. }
            | Task::ConvertImage { .. }
            | Task::ValidateImage { .. }
            | Task::Verify { .. } => None,
        }
    }

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
            Task::Verify { .. } => {
                concrete(Service::Management, 0, "Verifying an export", true, Undo)
            }
        }
    }
}
