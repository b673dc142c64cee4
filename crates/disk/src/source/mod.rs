//! Where the bytes of a disk come from: a chain of frozen layers, or an NBD export.

mod chain;
mod raw;

pub use chain::{Chain, LayerFormat, LayerSpec};
pub use raw::RawLayer;

use std::ops::Range;

use crate::error::{Error, Result};

/// A run of bytes that is known to be zero, or not known to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceExtent {
    /// First byte, in the disk.
    pub start: u64,
    /// Length in bytes, at least 1.
    pub len: u64,
    /// True when every byte reads as zero; false says nothing.
    pub zero: bool,
}

impl SourceExtent {
    /// One past the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// A disk that does not change while it is read. Used from several threads at once.
pub trait Source: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Reads exactly `buf.len()` bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] outside the disk, else what lies beneath.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// The runs of a range: ascending, without gaps, together exactly the range; neighbours may have the same kind.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] outside the disk, else what lies beneath.
    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>>;
}

/// Refuses ranges that are reversed or leave the disk.
pub(crate) fn check_range(offset: u64, len: u64, size: u64) -> Result<()> {
    if offset.checked_add(len).is_none_or(|end| end > size) {
        return Err(Error::OutOfRange { offset, len, size });
    }
    Ok(())
}

/// Appends a run, merging it with the last one where they have the same kind.
pub(crate) fn push_extent(list: &mut Vec<SourceExtent>, next: SourceExtent) {
    match list.last_mut() {
        Some(last) if last.zero == next.zero && last.end() == next.start => last.len += next.len,
        _ => list.push(next),
    }
}
