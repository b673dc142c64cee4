//! Collections of machines, and their reference points of one instant.
//!
//! # Model
//! A [`Collection`] names machines, or other collections. A [`CollectionPoint`] names one ordinary point of each member,
//! all of one instant: every running member stands still while the disks of all are marked. Members keep their own
//! points; they go with the collection's. A [`CollectionSnapshot`] is the same of snapshots: applied, converted, exported and
//! deleted as one.
//!
//! # Errors
//! All or nothing: a member that cannot take part fails the whole, each such member with a failure of its own
//! beneath the summary, and everything is taken back.
//!
//! # Concurrency
//! The locks of all members are taken in the order of their GUIDs, so that two collections with common members cannot wait
//! for each other.

pub(crate) mod create;
pub(crate) mod discard;
pub(crate) mod export;
mod instant;
pub mod manage;
pub(crate) mod member;
mod record;
mod recover;
pub(crate) mod snapshot;
mod together;

pub use create::{CreateCollectionPoint, create_point};
pub use discard::{DestroyCollectionPoint, RemoveCollectionData, destroy_point, remove_data};
pub use export::{ExportCollectionPoint, MachineDisks, export_point};
pub(crate) use recover::{leave, leave_snapshot, recover, release_all};

pub use member::{MemberExport, MemberTask};
pub use record::{
    Collection, CollectionInstant, CollectionKind, CollectionPoint, CollectionSnapshot, LastApply,
    MemberPoint,
};
pub use snapshot::{
    ApplyCollectionSnapshot, ConvertCollectionSnapshot, CreateCollectionSnapshot,
    DestroyCollectionSnapshot, ExportCollectionSnapshot, apply_snapshot, convert_snapshot,
    create_snapshot, destroy_snapshot, export_snapshot,
};
