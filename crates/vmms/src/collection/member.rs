//! A machine's part of a job on a collection.

use std::path::{Path, PathBuf};

use engine::{Access, Claims, Layers, Subject};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

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

/// The points of all.
pub(crate) fn instants(members: &[MemberTask]) -> Vec<Uuid> {
    members.iter().map(|m| m.point).collect()
}

/// What work on the members touches; `named` stands beside their points. Nothing of them is read, deleted or exported.
pub(crate) fn claims(
    members: &[MemberTask],
    access: Access,
    layers: Layers,
    named: &[Uuid],
) -> Claims {
    let machines = members.iter().map(|m| Subject::Vm(m.vm)).collect();
    let others = named.iter().copied().chain(instants(members));
    Claims::of(machines, access, layers, others)
}

/// The same of an export of an instant of the whole collection.
pub(crate) fn export_claims(
    whole: Uuid,
    base: Option<Uuid>,
    directory: &Path,
    members: &[MemberExport],
) -> Claims {
    let machines = members.iter().map(|m| Subject::Vm(m.vm)).collect();
    let disks = members.iter().flat_map(|m| m.disks.iter().copied());
    let others = disks.chain([whole]).chain(base);
    Claims {
        reads: members.iter().map(|m| m.point).collect(),
        builds_on: members.iter().filter_map(|m| m.base).collect(),
        writes_to: vec![PathBuf::from(directory)],
        ..Claims::of(machines, Access::Frozen, Layers::Kept, others)
    }
}
