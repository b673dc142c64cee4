//! From guest offsets to extents.

use std::sync::Arc;

use super::Qcow2Layer;
use super::header::FormatError;
use super::layer::SLICE;
use super::table::{Entry, OFFSET_MASK, Piece};
use crate::error::Result;

/// Part of an L2 table.
pub(super) type SliceBytes = Arc<[u8]>;

/// What a layer says about some of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Stored plainly at this offset of the image (or of its external data file), in bytes.
    Data {
        /// Offset in the file, in bytes.
        host_offset: u64,
    },
    /// This layer says: zeros, whatever lies beneath.
    Zero,
    /// Packed; the extent lies inside one cluster.
    Compressed {
        /// Offset of the packed bytes in the file.
        host_offset: u64,
        /// Number of packed bytes (an upper bound: it is stored in sectors).
        stored: u32,
    },
    /// This layer says nothing: what lies beneath shows through.
    Unallocated,
}

/// A run of bytes with one meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, at least 1.
    pub len: u64,
    /// The meaning.
    pub kind: ExtentKind,
}

impl Extent {
    /// Appends `next`, when it goes on where this one ends. True when it did.
    pub(super) fn absorb(&mut self, next: Extent) -> bool {
        let goes_on = match (self.kind, next.kind) {
            (ExtentKind::Data { host_offset: a }, ExtentKind::Data { host_offset: b }) => {
                a.checked_add(self.len) == Some(b)
            }
            (ExtentKind::Zero, ExtentKind::Zero)
            | (ExtentKind::Unallocated, ExtentKind::Unallocated) => true,
            _ => false,
        };
        if goes_on {
            self.len += next.len;
        }
        goes_on
    }
}

/// A walk over the tables; holds the slice it stands in, so that the cache is asked once per slice.
pub(super) struct Walk<'a> {
    layer: &'a Qcow2Layer,
    pub(super) at: u64,
    end: u64,
    slice: Option<(u64, SliceBytes)>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(layer: &'a Qcow2Layer, at: u64, end: u64) -> Self {
        Self {
            layer,
            at,
            end,
            slice: None,
        }
    }

    /// The run at the current position (inside one cluster, or a whole missing L2 table), and moves behind it.
    pub(super) fn step(&mut self) -> Result<Extent> {
        let header = &self.layer.header;
        let entry_size: u64 = if header.extended_l2 { 16 } else { 8 };
        let cluster_size = header.cluster_size();
        let table_span = cluster_size * (cluster_size / entry_size);
        let l1_index = self.at / table_span;
        let cluster = self.at & !(cluster_size - 1);
        let bad = |what| {
            self.layer.bad(FormatError::Entry {
                guest_offset: cluster,
                what,
            })
        };

        let l1_entry = usize::try_from(l1_index)
            .ok()
            .and_then(|i| self.layer.l1.get(i))
            .copied();
        let table = l1_entry.unwrap_or(0) & OFFSET_MASK;
        if table == 0 {
            let len = (l1_index + 1).saturating_mul(table_span).min(self.end) - self.at;
            self.at += len;
            return Ok(Extent {
                len,
                kind: ExtentKind::Unallocated,
            });
        }
        if !table.is_multiple_of(cluster_size) {
            return Err(bad("an L2 table that is not aligned to clusters"));
        }
        let in_table = (self.at % table_span) / cluster_size * entry_size;
        let slice_len = SLICE.min(cluster_size);
        let slice_at = table + in_table / slice_len * slice_len;
        let bytes = match &self.slice {
            Some((at, bytes)) if *at == slice_at => Arc::clone(bytes),
            _ => {
                let bytes = self.layer.slice(slice_at, slice_len)?;
                self.slice = Some((slice_at, Arc::clone(&bytes)));
                bytes
            }
        };
        let at = (in_table % slice_len) as usize;
        let word = |at: usize| -> Option<u64> {
            Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
        };
        let missing = || self.layer.bad(FormatError::Truncated("L2 table"));
        let entry = Entry {
            word: word(at).ok_or_else(missing)?,
            bitmap: if header.extended_l2 {
                word(at + 8).ok_or_else(missing)?
            } else {
                0
            },
        };
        let (piece, run) = entry
            .piece(header, cluster, self.at - cluster)
            .map_err(|e| self.layer.bad(e))?;
        let len = run.min(self.end - self.at);
        let kind = match piece {
            Piece::Unallocated => ExtentKind::Unallocated,
            Piece::Zero => ExtentKind::Zero,
            Piece::Data(host_offset) => {
                // Only the last piece of a file may be cut short, and only inside its last unit.
                let unit = if header.extended_l2 {
                    cluster_size / 32
                } else {
                    cluster_size
                };
                let last = host_offset.saturating_add(len - 1) / unit * unit;
                let knows_data = self.layer.data.is_some() || header.data_file.is_none();
                if knows_data && last >= self.layer.data_len {
                    return Err(bad("data beyond the end of the file"));
                }
                ExtentKind::Data { host_offset }
            }
            Piece::Compressed {
                host_offset,
                stored,
            } => {
                if host_offset >= self.layer.data_len {
                    return Err(bad("packed data beyond the end of the file"));
                }
                ExtentKind::Compressed {
                    host_offset,
                    stored,
                }
            }
        };
        self.at += len;
        Ok(Extent { len, kind })
    }
}
