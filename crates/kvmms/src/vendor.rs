//! What only kvmms has: names of classes, in one place. All are in `root/virtualization/v2`.

/// The vendor a kvmms server tells in Identify.
pub(crate) const VENDOR: &str = "kvmms";

/// The singleton whose methods verify and import exports.
pub(crate) const EXPORT_SERVICE: &str = "Kvmms_ExportService";
/// The singleton whose methods check and clean the host.
pub(crate) const HOST_SERVICE: &str = "Kvmms_HostService";
/// The singleton whose methods trust other hosts, and tell what a move would do.
pub(crate) const MIGRATION_SERVICE: &str = "Kvmms_MigrationService";
/// This host and those it trusts for moves; key `Name`.
pub(crate) const TRUSTED_HOST: &str = "Kvmms_TrustedHost";
/// How far moves are; key `InstanceID`, that of the job.
pub(crate) const MIGRATION_DETAIL: &str = "Kvmms_MigrationDetail";
/// Machines that are being moved away, and who may run them.
pub(crate) const MIGRATION_PERMIT: &str = "Kvmms_MigrationPermit";
/// The history of jobs, beyond the life of the job instances; key `InstanceID`.
pub(crate) const JOB_RECORD: &str = "Kvmms_JobRecord";
/// Every error the service can report; key `MessageID`.
pub(crate) const ERROR_CATALOGUE: &str = "Kvmms_ErrorCatalogue";
/// What the host is and can do.
pub(crate) const HOST: &str = "Kvmms_Host";
/// The disks of machines as they lie on the host: true format, layers, warnings.
pub(crate) const DISK: &str = "Kvmms_Disk";
/// What is known of a point beyond its standard properties; key `InstanceID`, that of the point.
pub(crate) const POINT_DETAIL: &str = "Kvmms_ReferencePointDetail";
/// What is known of a collection's point beyond its standard properties.
pub(crate) const GROUP_POINT_DETAIL: &str = "Kvmms_ReferencePointCollectionDetail";
/// What is known of a collection's snapshot beyond its standard properties.
pub(crate) const GROUP_SNAPSHOT_DETAIL: &str = "Kvmms_SnapshotCollectionDetail";

/// The out parameter a kvmms adds to a refused method for clients that send a request key: the `Msvm_Error`
/// chain that a return code has no place for.
pub(crate) const ERRORS: &str = "KvmmsErrors";
