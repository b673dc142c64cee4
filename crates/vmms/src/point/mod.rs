//! Reference points: taking, exporting, dropping them, and the layers beneath.
//!
//! ```text
//!  create ── freeze ──┐
//!  release, destroy ──┼── tidy ── merge      settle: what a crash left half done, decided by what
//!  sweep (holds end) ─┘                      QEMU or the files say
//!                                            trust: files that something else changed
//! ```
//!
//! # Model
//! A point names one node in the layer tree of each of its disks. While it *holds content* (a log-based point until its data is
//! removed, an RCT point until its hold ends, any point while an export reads it) the files below its nodes stay
//! apart; otherwise `tidy` merges them downwards, and only the change maps stay.
//!
//! # Order of writes
//! Every change of files is announced in the tree ([`crate::layer::Pending`]), done, and then recorded in one
//! transaction; a file is deleted only after the record that does not name it any more is durable. `settle` resolves an
//! announcement after a crash. All of it is safe to repeat.
//!
//! # Concurrency
//! Whoever changes layers holds the machine's lock. Merging copies without the lock, but makes way for
//! whoever needs the layers to stand still ([`Memory`]).

pub(crate) mod adopt;
pub(crate) mod audit;
mod changes;
pub(crate) mod create;
pub(crate) mod destroy;
mod files;
pub(crate) mod freeze;
mod maps;
mod memory;
mod record;
pub(crate) mod release;
mod saved;
mod settle;
mod sweep;
pub(crate) mod tidy;
mod trust;

pub use adopt::{AdoptPoint, adopt_point};
pub use audit::{Audit, AuditPoint, DiskAudit, Proof, audit_point};
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
pub use memory::Memory;
pub(crate) use memory::{Quiet, quiet};
pub use record::{Consistency, Decision, Hold, Point, PointDisk, PointType};
pub use release::{RemoveData, remove_data};
pub(crate) use saved::forget_memories;
pub(crate) use settle::{next_sequence, recover, recover_vm, settle};
pub(crate) use sweep::{end_hold, sweep};
pub use tidy::Tidy;
pub(crate) use trust::distrust;
pub use trust::{Problems, problems};
