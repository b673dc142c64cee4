//! Refusals that a job tells: which job it is.

use vmms::Fault;
use vmms::job::{JobClass, Refuse, Service, Task};

/// The job that ends with `fault`, of the kind the method's own job would have been.
pub(crate) fn job(class: &str, method: &str, fault: &Fault) -> Task {
    let is = |name: &str| class.eq_ignore_ascii_case(name);
    let service = if is(msvm::class::MSVM_IMAGE_MANAGEMENT_SERVICE) {
        Service::Image
    } else if is(msvm::class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT_SERVICE) {
        Service::ReferencePoint
    } else if is(msvm::class::MSVM_VIRTUAL_SYSTEM_SNAPSHOT_SERVICE) {
        Service::Snapshot
    } else if is(msvm::class::MSVM_COLLECTION_REFERENCE_POINT_SERVICE) {
        Service::CollectionReferencePoint
    } else if is(msvm::class::MSVM_COLLECTION_SNAPSHOT_SERVICE) {
        Service::CollectionSnapshot
    } else if is(msvm::class::MSVM_COLLECTION_MANAGEMENT_SERVICE) {
        Service::Collection
    } else if is(msvm::class::MSVM_VIRTUAL_SYSTEM_MIGRATION_SERVICE) {
        Service::Migration
    } else {
        Service::Management
    };
    let exports = method == "ExportReferencePoint";
    let class = match service {
        Service::Image => JobClass::Storage,
        Service::ReferencePoint if exports => JobClass::PointExport,
        Service::CollectionReferencePoint if exports => JobClass::CollectionPointExport,
        _ => JobClass::Concrete,
    };
    Task::from(Refuse {
        class,
        service,
        job_type: job_type(class, method),
        fault: fault.clone(),
    })
}

/// JobType of the methods that look before they leap.
fn job_type(class: JobClass, method: &str) -> u16 {
    match (class, method) {
        (JobClass::Storage, "CreateVirtualHardDisk") => 1,
        (JobClass::Storage, "ResizeVirtualHardDisk") => 4,
        (JobClass::Storage, "ConvertVirtualHardDisk") => 6,
        (JobClass::Storage, "ValidateVirtualHardDisk") => 9,
        (JobClass::Storage, m) if m.starts_with("Get") => 8,
        (_, "AddResourceSettings") => 30,
        (_, "ModifyResourceSettings") => 31,
        (_, "DefineSystem") => 1,
        (_, "ImportSystemDefinition") => 61,
        (_, "ImportSnapshotDefinitions") => 60,
        (_, "ExportSystemDefinition" | "ExportSnapshot") => 62,
        (_, "ImportReferencePointMetadata") => 209,
        _ => 0,
    }
}
