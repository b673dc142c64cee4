//! What one L2 entry says.

use super::header::{FormatError, Header};

/// Bits 9 to 55: a host offset.
pub(crate) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the cluster has one owner; with an external data file it also says that offset 0 is meant.
pub(crate) const COPIED: u64 = 1 << 63;
/// Bit 62: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a plain entry: the cluster reads as zeros.
pub(crate) const ZERO: u64 = 1;

/// A run of bytes inside one cluster with one meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Not in this layer.
    Unallocated,
    /// Reads as zeros.
    Zero,
    /// At this offset of the data file.
    Data(u64),
    /// Packed: offset in the file and stored length.
    Compressed { host_offset: u64, stored: u32 },
}

/// One L2 entry, with the bitmap of an extended one (0 otherwise).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) word: u64,
    pub(crate) bitmap: u64,
}

impl Entry {
    /// The meaning of the bytes from `within` (an offset inside the cluster) on, and how many bytes it holds for, up to the
    /// cluster's end.
    pub(crate) fn piece(
        self,
        header: &Header,
        guest_cluster: u64,
        within: u64,
    ) -> Result<(Piece, u64), FormatError> {
        let bad = |what| FormatError::Entry {
            guest_offset: guest_cluster,
            what,
        };
        let cluster_size = header.cluster_size();
        let rest = cluster_size - within;
        if self.word & COMPRESSED != 0 {
            if header.data_file.is_some() {
                return Err(bad("a compressed cluster beside an external data file"));
            }
            if self.bitmap != 0 {
                return Err(bad("a compressed cluster with a subcluster bitmap"));
            }
            return Ok((self.compressed(header), rest));
        }
        let host = self.word & OFFSET_MASK;
        if !host.is_multiple_of(cluster_size) {
            return Err(bad("a host offset that is no multiple of the cluster size"));
        }
        let has_host = host != 0 || (header.data_file.is_some() && self.word & COPIED != 0);
        if header.extended_l2 {
            return self
                .subclusters(header, has_host.then_some(host), within)
                .ok_or_else(|| bad("a subcluster bitmap that contradicts itself"));
        }
        // Version 2 has no zero flag; bit 0 is reserved there.
        let piece = if header.version >= 3 && self.word & ZERO != 0 {
            Piece::Zero
        } else if has_host {
            Piece::Data(host + within)
        } else {
            Piece::Unallocated
        };
        Ok((piece, rest))
    }

    fn compressed(self, header: &Header) -> Piece {
        // 62 - (cluster_bits - 8) bits of offset, the rest is the number of further 512-byte sectors.
        let shift = 70 - header.cluster_bits;
        let word = self.word & (COMPRESSED - 1);
        let host_offset = word & ((1 << shift) - 1);
        let sectors = (word >> shift) + 1;
        // At most 2^13 sectors, so the length fits.
        let stored = (sectors * 512 - host_offset % 512) as u32;
        Piece::Compressed {
            host_offset,
            stored,
        }
    }

    fn subclusters(self, header: &Header, host: Option<u64>, within: u64) -> Option<(Piece, u64)> {
        let sub_size = header.cluster_size() / 32;
        let allocated = self.bitmap as u32;
        let zero = (self.bitmap >> 32) as u32;
        if allocated & zero != 0 || (allocated != 0 && host.is_none()) {
            return None;
        }
        let index = (within / sub_size) as u32;
        let same = |bits: u32| (bits >> index).trailing_ones().min(32 - index);
        let (piece, count) = if allocated >> index & 1 != 0 {
            (Piece::Data(host? + within), same(allocated))
        } else if zero >> index & 1 != 0 {
            (Piece::Zero, same(zero))
        } else {
            (Piece::Unallocated, same(!(allocated | zero)))
        };
        Some((piece, u64::from(index + count) * sub_size - within))
    }
}
