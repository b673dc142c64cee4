//! The classes kvmms adds to the documented schema: exports proven and imported, the history of jobs, the error
//! catalogue, the host, disks and points in detail.

mod catalogue;
mod check;
mod disk;
mod export;
mod history;
mod host;
mod migration;
mod point;

pub(crate) use catalogue::Catalogue;
pub(crate) use check::HostChecks;
pub(crate) use disk::Disks;
pub(crate) use export::{Exports, export_service};
pub(crate) use history::History;
pub(crate) use host::HostDetail;
pub(crate) use migration::{Hosts, Moves};
pub(crate) use point::PointDetails;
