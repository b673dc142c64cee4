//! Keeping the trees of layers small, and true after trouble.
//!
//! ```text
//!  sweep (comes round, holds end) ── due (what is needed) ── layers (the job that merges)
//!  reconcile: what a crash left half done, decided by what QEMU or the files say
//! ```
//!
//! # Concurrency
//! Whoever changes layers holds the machine's lock. Merging copies without the lock, but makes way for whoever needs the layers to
//! stand still ([`pause_merges`]).

mod due;
mod layers;
mod memory;
mod reconcile;
mod sweep;

pub(crate) use due::{goes_next, reads};
pub(crate) use layers::MergeLayers;
pub(crate) use layers::{Merged, merge, undo};
pub(crate) use memory::Memory;
pub(crate) use memory::{PausedMerges, ReadMap, pause_merges};
pub(crate) use reconcile::{next_sequence, points_of, reconcile, recover, recover_vm};
pub(crate) use sweep::{end_hold, sweep};
