//! The host: where files may lie and whose they are, what is checked and cleaned, and what a host runs.

pub mod check;
pub mod owner;
mod places;
pub(crate) mod production;
pub mod recover;
#[cfg(feature = "in-memory")]
pub(crate) mod scripted;

pub use places::{Places, Use};
