//! The way back from an export: machines, points and collections made of it, and exports proven and booted.

pub mod adopt;
pub mod boot;
pub(crate) mod exported;
pub(crate) mod identity;
pub mod import;
pub mod import_collection;
pub(crate) mod pick;
pub mod verify;
