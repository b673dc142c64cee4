//! What a job affects and a failure is about: the domain's objects by their identifiers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// An object of the domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Element {
    /// A machine.
    Vm(Uuid),
    /// A resource of a machine: controller, drive, disk, adapter.
    Resource {
        /// The machine.
        vm: Uuid,
        /// The identifier within the machine.
        id: String,
    },
    /// A reference point.
    Point(Uuid),
    /// A collection of machines.
    #[serde(rename = "Group")]
    Collection(Uuid),
    /// A reference point of a collection.
    #[serde(rename = "GroupPoint")]
    CollectionPoint(Uuid),
    /// A snapshot of a machine.
    Snapshot(Uuid),
    /// A snapshot of a collection.
    #[serde(rename = "GroupSnapshot")]
    CollectionSnapshot(Uuid),
    /// A job.
    Job(Uuid),
    /// A disk image that may belong to no machine.
    Image(PathBuf),
    /// The host itself.
    Host,
    /// Another host, by its name.
    Peer(String),
}

/// What a job does to an element, after ElementEffects of CIM_AffectedJobElement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Effect {
    /// It uses or changes it.
    Other,
    /// Nobody else may use it meanwhile.
    ExclusiveUse,
    /// It is slower meanwhile.
    Performance,
    /// It creates it.
    Create,
}
