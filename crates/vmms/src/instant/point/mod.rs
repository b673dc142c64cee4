//! Reference points: taking, exporting, dropping them, and the layers beneath.
//!
//! ```text
//!  create (freeze) ─────┐
//!  release, destroy ────┼── the layers beneath: `crate::merge`
//!  exports, changes ────┘   trust: files that something else changed
//! ```
//!
//! # Model
//! A point names one node in the layer tree of each of its disks. While it *holds content* (a log-based point until its data is
//! removed, an RCT point until its hold ends, any point while an export reads it) the files below its nodes stay
//! apart; otherwise they are merged downwards, and only the change maps stay.
//!
//! # Order of writes
//! Every change of files is announced in the tree ([`crate::disk_tree::Pending`]), done, and then recorded in one
//! transaction; a file is deleted only after the record that does not name it any more is durable. `merge::reconcile` resolves an
//! announcement after a crash. All of it is safe to repeat.
//!
//! # Concurrency
//! Whoever changes layers holds the machine's lock. Merging copies without the lock, but makes way for
//! whoever needs the layers to stand still (`crate::merge`).

pub(crate) mod changes;
pub(crate) mod create;
pub(crate) mod destroy;
pub(crate) mod files;
pub(crate) mod maps;
mod record;
pub(crate) mod release;
mod saved;
mod trust;

pub use crate::instant::record::{Consistency, Decision, Instant, PointDisk};
pub use changes::{Changes, changes};
pub(crate) use create::hold;
pub use create::{CreatePoint, create_point};
pub(crate) use destroy::drop_all;
pub use destroy::{DestroyPoint, destroy_point};
pub use files::disk_id_text;
pub(crate) use files::{
    CONFIG_FORMAT, FIRMWARE_VARS, SavedConfig, blocks_path, check_chain, check_formats, layer_path,
    load_config, make_dir, map_path, open_chain, open_present, point_dir, remove, save_config,
    stamp, sync,
};
pub(crate) use maps::{between, keep as keep_map};
pub use record::{Hold, Point, PointType};
pub use release::{RemoveData, remove_data};
pub(crate) use saved::forget_memories;
pub(crate) use trust::distrust;
pub use trust::{Problems, problems};
