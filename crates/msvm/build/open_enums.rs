//! Value maps as open enums: a number with named constants, any other number being allowed.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use cim::{Class, Declaration, Literal, Qualifier, qualifier};

use crate::{Outcome, line, rust_type, snake};

/// The Rust name, and where the value map stands: `Class.Property` or `Class.Method.Parameter`.
const ENUMS: &[(&str, &str)] = &[
    (
        "AutomaticRecoveryAction",
        "Msvm_VirtualSystemSettingData.AutomaticRecoveryAction",
    ),
    (
        "AutomaticShutdownAction",
        "Msvm_VirtualSystemSettingData.AutomaticShutdownAction",
    ),
    (
        "AutomaticStartupAction",
        "Msvm_VirtualSystemSettingData.AutomaticStartupAction",
    ),
    (
        "BackupIntent",
        "Msvm_VirtualSystemExportSettingData.BackupIntent",
    ),
    (
        "CaptureLiveState",
        "Msvm_VirtualSystemExportSettingData.CaptureLiveState",
    ),
    ("CimStatusCode", "CIM_Error.CIMStatusCode"),
    (
        "CollectionBackupIntent",
        "Msvm_CollectionSnapshotExportSettingData.BackupIntent",
    ),
    (
        "CollectionSnapshotType",
        "Msvm_CollectionSnapshotService.CreateSnapshot.SnapshotType",
    ),
    (
        "CollectionType",
        "Msvm_CollectionManagementService.DefineCollection.Type",
    ),
    (
        "ConsistencyLevel",
        "Msvm_ReferencePointCollection.ConsistencyLevel",
    ),
    (
        "CopySnapshotConfiguration",
        "Msvm_VirtualSystemExportSettingData.CopySnapshotConfiguration",
    ),
    (
        "CriterionType",
        "Msvm_ImageManagementService.FindMountedStorageImageInstance.CriterionType",
    ),
    ("ElementEffects", "CIM_AffectedJobElement.ElementEffects"),
    ("EnabledState", "Msvm_ComputerSystem.EnabledState"),
    ("ErrorSourceFormat", "CIM_Error.ErrorSourceFormat"),
    ("ErrorType", "CIM_Error.ErrorType"),
    (
        "GuestBackupType",
        "Msvm_VirtualSystemSnapshotSettingData.GuestBackupType",
    ),
    ("HealthState", "CIM_ManagedSystemElement.HealthState"),
    (
        "JobRequest",
        "Msvm_ConcreteJob.RequestStateChange.RequestedState",
    ),
    ("JobState", "CIM_ConcreteJob.JobState"),
    ("JobType", "Msvm_ConcreteJob.JobType"),
    ("LocalOrUtcTime", "CIM_Job.LocalOrUtcTime"),
    ("MachineStatus", "Msvm_ComputerSystem.OperationalStatus"),
    ("MigrationJobType", "Msvm_MigrationJob.JobType"),
    (
        "MigrationType",
        "Msvm_VirtualSystemMigrationSettingData.MigrationType",
    ),
    (
        "OperationalStatus",
        "CIM_ManagedSystemElement.OperationalStatus",
    ),
    ("PerceivedSeverity", "CIM_Error.PerceivedSeverity"),
    ("ProbableCause", "CIM_Error.ProbableCause"),
    ("RecoveryAction", "CIM_Job.RecoveryAction"),
    (
        "ReferencePointType",
        "Msvm_ReferencePointCollection.ReferencePointType",
    ),
    ("ReplicationMode", "Msvm_ComputerSystem.ReplicationMode"),
    ("ReplicationState", "Msvm_ComputerSystem.ReplicationState"),
    (
        "RequestedState",
        "Msvm_ComputerSystem.RequestStateChange.RequestedState",
    ),
    (
        "ResourceType",
        "CIM_ResourceAllocationSettingData.ResourceType",
    ),
    (
        "SnapshotType",
        "Msvm_VirtualSystemSnapshotService.CreateSnapshot.SnapshotType",
    ),
    ("StorageJobType", "Msvm_StorageJob.JobType"),
    (
        "SummaryRequest",
        "Msvm_VirtualSystemManagementService.GetSummaryInformation.RequestedInformation",
    ),
    (
        "TransportType",
        "Msvm_VirtualSystemMigrationSettingData.TransportType",
    ),
    (
        "UserSnapshotType",
        "Msvm_VirtualSystemSettingData.UserSnapshotType",
    ),
    ("ValueRange", "CIM_SettingsDefineCapabilities.ValueRange"),
    ("ValueRole", "CIM_SettingsDefineCapabilities.ValueRole"),
    (
        "VirtualHardDiskFormat",
        "Msvm_VirtualHardDiskSettingData.Format",
    ),
    (
        "VirtualHardDiskType",
        "Msvm_VirtualHardDiskSettingData.Type",
    ),
];

pub(crate) fn write(code: &mut String, classes: &[&Class]) -> Outcome<()> {
    writeln!(
        code,
        "/// Numbers with names, from the schema's value maps. Any other number is allowed: the maps grow.\npub mod value {{\nuse crate::open_enum::open_enum;\n"
    )?;
    for (rust, place) in ENUMS {
        let (declared, maps) = find(classes, place).ok_or_else(|| format!("{place} is missing"))?;
        let labelled = labels(maps).ok_or_else(|| format!("{place} has no value map"))?;
        writeln!(
            code,
            "open_enum! {{\n    /// Values of `{place}`.\n    {rust}({}) {{",
            rust_type(declared.ty)
        )?;
        let mut used = BTreeSet::new();
        for (number, label) in labelled {
            let mut constant = constant(&label);
            if !used.insert(constant.clone()) {
                constant = format!("{constant}_{number}");
            }
            writeln!(code, "        {constant} = {number}, {label:?};")?;
        }
        writeln!(code, "    }}\n}}")?;
    }
    writeln!(code, "}}\n")?;
    Ok(())
}

/// The declaration and the qualifiers with its value map, which may stand on an ancestor.
fn find<'a>(classes: &[&'a Class], place: &str) -> Option<(&'a Declaration, &'a [Qualifier])> {
    let mut parts = place.split('.');
    let class = classes
        .iter()
        .find(|c| Some(c.name.as_str()) == parts.clone().next())?;
    parts.next();
    let (member, parameter) = (parts.next()?, parts.next());
    let mut at = line(classes, class)
        .into_iter()
        .filter_map(|c| match parameter {
            None => c.property(member),
            Some(parameter) => c
                .method(member)?
                .parameters
                .iter()
                .find(|p| p.name.is(parameter)),
        });
    let nearest = at.clone().next()?;
    let mapped = at.find(|d| qualifier(&d.qualifiers, "ValueMap").is_some())?;
    Some((nearest, &mapped.qualifiers))
}

/// Single numbers and their labels; ranges have no constant.
fn labels(qualifiers: &[Qualifier]) -> Option<Vec<(i128, String)>> {
    let texts = |name| match qualifier(qualifiers, name) {
        Some(Literal::List(items)) => Some(items.iter().filter_map(Literal::as_text)),
        _ => None,
    };
    Some(
        texts("ValueMap")?
            .zip(texts("Values")?)
            .filter_map(|(number, label)| Some((number.parse().ok()?, label.to_owned())))
            .collect(),
    )
}

/// `Degraded/Warning` as `DEGRADED_WARNING`, `StorageDeepCheck` as `STORAGE_DEEP_CHECK`.
fn constant(label: &str) -> String {
    let words: Vec<String> = label
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '\'')
        .filter(|word| !word.is_empty())
        .map(|word| snake(&word.replace('\'', "")).to_uppercase())
        .collect();
    let out = words.join("_");
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        format!("N{out}")
    } else {
        out
    }
}
