//! Instants of a machine's disks: reference points and snapshots, and how a guest is frozen for one.

pub mod audit;
pub(crate) mod freeze;
pub mod point;
pub(crate) mod record;
pub mod snapshot;
