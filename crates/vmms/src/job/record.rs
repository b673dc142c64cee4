//! What jobs of this domain are shown as, and what they produce.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Element;
use crate::restore::boot::BootEvidence;

/// The CIM class a job is shown as; the six differ only in data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum JobClass {
    /// Msvm_ConcreteJob
    Concrete,
    /// Msvm_StorageJob
    Storage,
    /// Msvm_MigrationJob
    Migration,
    /// Msvm_VirtualSystemReferencePointExportJob
    PointExport,
    /// Msvm_CollectionReferencePointExportJob
    #[serde(rename = "GroupPointExport")]
    CollectionPointExport,
    /// Msvm_CopyFileToGuestJob
    CopyFileToGuest,
}

/// Which service a job belongs to (Msvm_OwningJobElement).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Service {
    /// Msvm_VirtualSystemManagementService
    Management,
    /// Msvm_VirtualSystemReferencePointService
    ReferencePoint,
    /// Msvm_VirtualSystemSnapshotService
    Snapshot,
    /// Msvm_ImageManagementService
    Image,
    /// Msvm_VirtualSystemMigrationService
    Migration,
    /// Msvm_CollectionManagementService
    Collection,
    /// Msvm_CollectionReferencePointService
    CollectionReferencePoint,
    /// Msvm_CollectionSnapshotService
    CollectionSnapshot,
}

/// What a job produced; the properties of the export and storage job classes come from here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Output {
    /// The directory exported to.
    pub directory: Option<PathBuf>,
    /// The exported point, and the base it builds on.
    pub point: Option<Uuid>,
    /// See `point`.
    pub base: Option<Uuid>,
    /// The machine, or the collection for a collection's export.
    pub subject: Option<Uuid>,
    /// The machines, with their files in parallel.
    pub machines: Vec<ExportedMachine>,
    /// Disks and their files.
    pub disks: Vec<ExportedDisk>,
    /// An object the job made.
    pub created: Option<Element>,
    /// Bytes read and written by an export.
    pub bytes_read: u64,
    /// See `bytes_read`.
    pub bytes_written: u64,
    /// Free text for people, one line each.
    pub report: Vec<String>,
    /// What was done otherwise than asked, and why, one line each.
    pub decisions: Vec<String>,
    /// What machines showed that were booted from exports.
    pub boots: Vec<BootEvidence>,
    /// How far a move is.
    pub migration: Option<Box<crate::migration::Progress>>,
}

/// The files of one exported machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExportedMachine {
    /// The machine.
    pub vm: Uuid,
    /// Its configuration.
    pub config: Option<PathBuf>,
    /// Its runtime state.
    pub runtime: Option<PathBuf>,
    /// Its guest state.
    pub guest_state: Option<PathBuf>,
}

/// One exported disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportedDisk {
    /// The machine.
    pub vm: Uuid,
    /// The resource id within the machine.
    pub device: String,
    /// The file it went to.
    pub file: PathBuf,
}
