//! Reading qcow2 images, versions 2 and 3, without ever writing to them.
//!
//! Format facts: QEMU's `docs/interop/qcow2.txt`. Served: clusters of 512 bytes to 2 MiB, extended L2 entries (subclusters), zero
//! clusters, compressed clusters (deflate, zstd), external data files (opened only when the caller names them). Refused by name:
//! encryption, the corrupt mark, every incompatible feature not listed. All sizes and offsets of a file are checked before use, so
//! a hostile file costs a bounded amount of memory and never reads outside itself.

mod bytes;
mod header;
mod inflate;
mod layer;
mod table;
mod walk;

pub use header::{FormatError, Header};
pub use layer::Qcow2Layer;
pub use walk::{Extent, ExtentKind};

pub(crate) use bytes::ReadAt;
pub(crate) use header::{EXT_BACKING_FORMAT, MAGIC};
pub(crate) use inflate::inflate;
pub(crate) use table::{COPIED, ZERO};
