//! The block data plane: everything kvmms does with the bytes of disks, and nothing else. No QMP, no CIM, no async.
//!
//! # Model
//! A disk is a chain of frozen layers ([`Chain`]: qcow2 files and at most one raw base, topmost last). What a layer itself defines
//! is its [`ChangeMap`]; the union of maps between two points is the difference of the disk between them. An export copies a
//! [`Source`] (a chain, or an NBD export for what is not frozen) into a qcow2 image of its own, with the BLAKE3 hash of every 64 KiB
//! block in a block list beside it; a [`Manifest`](manifest::Manifest) ties the files of one point together, and
//! [`verify`](verify::verify) proves them.
//!
//! ```text
//!   qcow2 ┐                       ┌ zero test, BLAKE3 ┐          ┌ writer  (image: data, tables, header last)
//!   raw   ┼─ source::Chain ─ plan ┤  reader threads   ├ in order ┼ blocks  (the .map sidecar)
//!   NBD   ┘                       └ buffers of 1 MiB  ┘          └ digest
//! ```
//!
//! # Trust
//! Images may come from anyone. Names inside them are never followed, formats are never guessed, every size and offset is
//! checked before memory is taken or a byte is read. [`fuzz`] has the entry points that prove it.
//!
//! # Errors
//! One type, [`Error`]: what was tried, on which path, at which offset, with the cause as source; [`Error::kind`] classes it. A format's
//! own complaints are enums beside its reader.
//!
//! # Concurrency
//! Plain threads and blocking calls; async callers use `spawn_blocking`. Long work takes a [`CancelFlag`] (suspend, resume, cancel)
//! and reports progress from its worker threads. Memory is bounded by the number of threads and layers, never by the size of a disk.
//!
//! # Durability
//! Every file is written under a temporary name (`.partial`), synced, renamed, and its directory synced. What has no final
//! name is unfinished. Where others may own directories, everything goes through [`confined`].

pub mod atomic;
pub mod blocks;
mod cancel;
pub mod confined;
mod error;
pub mod export;
#[doc(hidden)]
pub mod fuzz;
pub mod look;
pub mod manifest;
mod map;
pub mod nbd;
pub mod open;
mod ordered;
pub mod qcow2;
mod source;
pub mod target;
pub mod verify;
pub mod writer;
mod zero;

pub use cancel::{CancelFlag, Working};
pub use error::{Error, ErrorKind, Result};
pub use export::{
    DiskReport, ExportPlan, Mark, Marks, Progress, export_disk, flatten, import_disk,
};
pub use map::{ChangeMap, MapError, Page};
pub use nbd::{NbdAddress, NbdClient, NbdSource};
pub use qcow2::Qcow2Layer;
pub use source::{Chain, LayerFormat, LayerSpec, RawLayer, Source, SourceExtent};
pub use verify::verify;
pub use writer::Backing;
pub use zero::{BLOCK_SIZE, block_count, block_len, is_zero, zero_hash};
