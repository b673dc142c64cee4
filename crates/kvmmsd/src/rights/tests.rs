//! The table against what was, and against the rule of paths.

use cim::{Method, Schema as _};
use msvm::Namespace;

use super::*;

/// All methods of a namespace with the class they were looked up by, abstract ones among them.
fn methods(
    namespace: &'static Namespace,
) -> impl Iterator<Item = (&'static Name, &'static Method)> {
    let classes = namespace.classes().iter();
    classes.flat_map(|c| c.methods.iter().map(|m| (&c.name, m)))
}

/// What viewers could call when roles were told from names.
const VIEWER: [&str; 11] = [
    "CheckHost",
    "FormatError",
    "GetCurrentWwpnFromGenerator",
    "GetError",
    "GetErrorEx",
    "GetSizeOfSystemFiles",
    "GetSummaryInformation",
    "GetSystemCertificates",
    "GetSystemCompatibilityInfo",
    "GetSystemCompatibilityVectors",
    "GetVirtualSystemThumbnailImage",
];

/// What operators could call beyond that; all else was an administrator's.
const OPERATOR: [&str; 20] = [
    "AuditReferencePoint",
    "ConvertToReferencePoint",
    "CreateReferencePoint",
    "CreateSnapshot",
    "DestroyReferencePoint",
    "ExportReferencePoint",
    "ExportSnapshot",
    "ExportSystemDefinition",
    "FindMountedStorageImageInstance",
    "GetDefinitionFileSummaryInformation",
    "GetVHDSetInformation",
    "GetVHDSnapshotInformation",
    "GetVirtualDiskChanges",
    "GetVirtualHardDiskSettingData",
    "GetVirtualHardDiskState",
    "InitiateShutdown",
    "RemoveAssociatedData",
    "RequestStateChange",
    "ValidateVirtualHardDisk",
    "VerifyExport",
];

#[test]
fn every_method_needs_the_role_it_needed_before_there_was_a_table() {
    let mut looked_at = 0;
    for namespace in msvm::namespaces() {
        for (class, method) in methods(namespace) {
            if namespace.concrete(class.as_str()).next().is_none() {
                continue;
            }
            let name = method.name.as_str();
            let was = if VIEWER.contains(&name) {
                Role::Viewer
            } else if OPERATOR.contains(&name) {
                Role::Operator
            } else {
                Role::Admin
            };
            assert_eq!(
                needed(namespace, class, &method.name),
                was,
                "{class}.{name}"
            );
            looked_at += 1;
        }
    }
    assert!(looked_at > 600, "{looked_at}");
}

#[test]
fn the_table_knows_every_method_of_the_schema() {
    let mut missing = Vec::new();
    for namespace in msvm::namespaces() {
        for (class, method) in methods(namespace) {
            let concrete = namespace
                .class(class.as_str())
                .is_some_and(|c| !c.is_abstract());
            if concrete && Any::of(class.as_str(), method.name.as_str()).is_none() {
                missing.push(format!("{class}.{}", method.name));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
    let unlike = |m: &Any| Any::of(&m.class().to_uppercase(), &m.name().to_lowercase()) != Some(*m);
    assert_eq!(Any::all().into_iter().find(unlike), None);
}

#[test]
fn viewers_call_nothing_that_opens_a_path() {
    let words = ["path", "director", "file", "folder", "criterion"];
    let mut viewed = Vec::new();
    for namespace in msvm::namespaces() {
        for (class, method) in methods(namespace) {
            if needed(namespace, class, &method.name) > Role::Viewer {
                continue;
            }
            let named = method.parameters.iter().filter(|p| p.is_in());
            viewed.extend(named.map(|p| format!("{}.{}", method.name, p.name)));
        }
    }
    viewed.sort();
    viewed.dedup();
    let parameter = |v: &String| v.rsplit('.').next().unwrap_or_default().to_lowercase();
    let opens = |v: &&String| words.iter().any(|word| parameter(v).contains(word));
    assert_eq!(viewed.iter().find(opens), None);
    // Each new one is a decision: none of these is a file of the caller's choice.
    let known = [
        "FormatError.Errors",
        "GetSizeOfSystemFiles.Vssd",
        "GetSummaryInformation.RequestedInformation",
        "GetSummaryInformation.SettingData",
        "GetSystemCompatibilityInfo.ComputerSystem",
        "GetSystemCompatibilityVectors.ComputerSystem",
        "GetVirtualSystemThumbnailImage.HeightPixels",
        "GetVirtualSystemThumbnailImage.TargetSystem",
        "GetVirtualSystemThumbnailImage.WidthPixels",
    ];
    assert_eq!(viewed, known);
}
