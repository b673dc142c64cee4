//! The header and its extensions.

/// First four bytes of every qcow2 file.
pub(crate) const MAGIC: u32 = 0x5146_49fb;
/// Header extension: the format of the backing file, as text.
pub(crate) const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_FEATURE_NAMES: u32 = 0x6803_f857;
const EXT_DATA_FILE: u32 = 0x4441_5441;
/// Header extension of ours: a line that says whose a layer is.
const EXT_OWNER: u32 = 0x6b76_6d73;

const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const AUTOCLEAR_RAW_DATA: u64 = 1 << 1;

/// Largest active L1 table that is read, in bytes; QEMU has the same limit.
const MAX_L1_BYTES: u64 = 32 << 20;
/// Longest backing file name of the format, in bytes.
const MAX_BACKING_NAME: u32 = 1023;

/// Why a file is not a qcow2 image that can be read exactly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The file does not begin as qcow2 does.
    #[error("it does not begin with the mark of qcow2")]
    Magic,
    /// A version other than 2 and 3.
    #[error("it has version {0}; versions 2 and 3 are known")]
    Version(u32),
    /// A field of the header makes no sense.
    #[error("header field {field} is invalid: {value}")]
    Header {
        /// The field's name in the format's description.
        field: &'static str,
        /// The value found.
        value: u64,
    },
    /// The file ends before something it announces.
    #[error("it ends before its {0} does")]
    Truncated(&'static str),
    /// Encrypted images are not read.
    #[error("it is encrypted (method {0}); encrypted images are not supported")]
    Encrypted(u32),
    /// An incompatible feature that is not known here.
    #[error("it needs the unknown feature {0}")]
    Feature(String),
    /// QEMU marked the image as corrupt.
    #[error("it is marked corrupt; repair it with qemu-img check -r all first")]
    MarkedCorrupt,
    /// Its data is in another file, which the caller did not name.
    #[error("its data is in the external file {0:?}, which was not given")]
    DataFileMissing(String),
    /// A table entry contradicts the format.
    #[error("the table entry for guest offset {guest_offset} is invalid: {what}")]
    Entry {
        /// Offset in the virtual disk, in bytes.
        guest_offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A compressed cluster does not inflate to one cluster.
    #[error("the compressed cluster at guest offset {guest_offset} is damaged")]
    Compressed {
        /// Offset in the virtual disk, in bytes.
        guest_offset: u64,
    },
}

impl FormatError {
    /// True when the image may be fine, but uses what is not served here.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Self::Version(_) | Self::Encrypted(_) | Self::Feature(_) | Self::DataFileMissing(_)
        )
    }
}

/// How compressed clusters are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Raw deflate.
    Deflate,
    /// One zstd frame.
    Zstd,
}

/// A checked header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster size, 9 to 21.
    pub cluster_bits: u32,
    /// Size of the virtual disk in bytes.
    pub virtual_size: u64,
    /// Backing file name as it stands in the file; never followed by this crate.
    pub backing: Option<String>,
    /// Format of the backing file, where the file names one.
    pub backing_format: Option<String>,
    /// Name of the external data file as it stands in the file; empty when it has one without a name.
    pub data_file: Option<String>,
    /// The name of an external data file, also where the image does not use it (yet).
    pub named_data_file: Option<String>,
    /// The external data file is a valid raw image by itself.
    pub data_file_raw: bool,
    /// The line that says whose it is, where it has one.
    pub owner: Option<String>,
    /// Reference counts may be stale (the image was not closed); the mapping is not affected.
    pub dirty: bool,
    /// L2 entries carry subcluster bitmaps.
    pub extended_l2: bool,
    pub(crate) compression: Compression,
    pub(crate) l1_offset: u64,
    /// Entries of the L1 table that the virtual size needs.
    pub(crate) l1_entries: u64,
}

impl Header {
    /// Reads the header from the first bytes of a file: [`Header::PREFIX`] of them, or all when the file is shorter.
    ///
    /// # Errors
    /// [`FormatError`] for anything malformed or not served.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let short = || FormatError::Truncated("header");
        if be32(bytes, 0) != Some(MAGIC) {
            return Err(FormatError::Magic);
        }
        let version = be32(bytes, 4).ok_or_else(short)?;
        if !matches!(version, 2 | 3) {
            return Err(FormatError::Version(version));
        }
        let backing_offset = be64(bytes, 8).ok_or_else(short)?;
        let backing_len = be32(bytes, 16).ok_or_else(short)?;
        let cluster_bits = be32(bytes, 20).ok_or_else(short)?;
        let virtual_size = be64(bytes, 24).ok_or_else(short)?;
        let crypt_method = be32(bytes, 32).ok_or_else(short)?;
        let l1_size = be32(bytes, 36).ok_or_else(short)?;
        let l1_offset = be64(bytes, 40).ok_or_else(short)?;
        be64(bytes, 64).ok_or_else(short)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(invalid("cluster_bits", u64::from(cluster_bits)));
        }
        let cluster_size = 1u64 << cluster_bits;

        let mut incompatible = 0;
        let mut autoclear = 0;
        let mut header_len = 72;
        let mut compression = Compression::Deflate;
        if version == 3 {
            incompatible = be64(bytes, 72).ok_or_else(short)?;
            autoclear = be64(bytes, 88).ok_or_else(short)?;
            let refcount_order = be32(bytes, 96).ok_or_else(short)?;
            if refcount_order > 6 {
                return Err(invalid("refcount_order", u64::from(refcount_order)));
            }
            header_len = be32(bytes, 100).ok_or_else(short)?;
            if header_len < 104 || u64::from(header_len) > cluster_size || header_len % 8 != 0 {
                return Err(invalid("header_length", u64::from(header_len)));
            }
            let kind = if header_len > 104 {
                *bytes.get(104).ok_or_else(short)?
            } else {
                0
            };
            compression = match (kind, incompatible & INCOMPATIBLE_COMPRESSION != 0) {
                (0, false) => Compression::Deflate,
                (1, true) => Compression::Zstd,
                (other, true) if other > 1 => {
                    return Err(FormatError::Feature(format!("compression type {other}")));
                }
                (other, _) => return Err(invalid("compression_type", u64::from(other))),
            };
        }

        // Extensions end where the backing file name begins, and never leave the first cluster.
        let mut end = cluster_size;
        if backing_offset != 0 {
            if backing_len == 0 || backing_len > MAX_BACKING_NAME {
                return Err(invalid("backing_file_size", u64::from(backing_len)));
            }
            let name_end = backing_offset.checked_add(u64::from(backing_len));
            if backing_offset < u64::from(header_len) || name_end.is_none_or(|e| e > cluster_size) {
                return Err(invalid("backing_file_offset", backing_offset));
            }
            end = backing_offset;
        }
        let extensions = Extensions::parse(bytes, u64::from(header_len), end)?;

        let known = INCOMPATIBLE_DIRTY
            | INCOMPATIBLE_CORRUPT
            | INCOMPATIBLE_DATA_FILE
            | INCOMPATIBLE_COMPRESSION
            | INCOMPATIBLE_EXTENDED_L2;
        let unknown = incompatible & !known;
        if unknown != 0 {
            return Err(FormatError::Feature(
                extensions.feature_name(unknown.trailing_zeros()),
            ));
        }
        if crypt_method != 0 {
            return Err(FormatError::Encrypted(crypt_method));
        }
        if incompatible & INCOMPATIBLE_CORRUPT != 0 {
            return Err(FormatError::MarkedCorrupt);
        }
        let extended_l2 = incompatible & INCOMPATIBLE_EXTENDED_L2 != 0;
        if extended_l2 && cluster_bits < 14 {
            return Err(invalid("cluster_bits", u64::from(cluster_bits)));
        }
        let backing = match backing_offset {
            0 => None,
            at => Some(text(bytes, at, u64::from(backing_len)).ok_or_else(short)?),
        };
        let has_data_file = incompatible & INCOMPATIBLE_DATA_FILE != 0;

        let l2_entries = cluster_size / if extended_l2 { 16 } else { 8 };
        // At most 2^21 * 2^18, so this cannot overflow.
        let l1_entries = virtual_size.div_ceil(cluster_size * l2_entries);
        if virtual_size > i64::MAX as u64 || l1_entries * 8 > MAX_L1_BYTES {
            return Err(invalid("size", virtual_size));
        }
        if l1_entries > u64::from(l1_size) {
            return Err(invalid("l1_size", u64::from(l1_size)));
        }
        if l1_entries > 0 && (l1_offset == 0 || l1_offset % cluster_size != 0) {
            return Err(invalid("l1_table_offset", l1_offset));
        }
        Ok(Self {
            version,
            cluster_bits,
            virtual_size,
            backing,
            backing_format: extensions.backing_format,
            data_file: has_data_file.then(|| extensions.data_file.clone().unwrap_or_default()),
            named_data_file: extensions.data_file,
            data_file_raw: has_data_file && autoclear & AUTOCLEAR_RAW_DATA != 0,
            owner: extensions.owner,
            dirty: incompatible & INCOMPATIBLE_DIRTY != 0,
            extended_l2,
            compression,
            l1_offset,
            l1_entries,
        })
    }

    /// How many bytes of the file's start [`Header::parse`] looks at, at most: one cluster of the largest kind would be
    /// 2 MiB, but QEMU keeps everything it writes there far below this.
    pub const PREFIX: usize = 64 << 10;

    /// Size of a cluster in bytes.
    #[must_use]
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file: Option<String>,
    owner: Option<String>,
    feature_names: Vec<(u8, String)>,
}

impl Extensions {
    fn parse(bytes: &[u8], start: u64, end: u64) -> Result<Self, FormatError> {
        let mut out = Self::default();
        let mut at = start;
        // Each step moves on by at least eight bytes and stays below `end`, at most one cluster.
        while at + 8 <= end {
            let (Some(kind), Some(len)) = (be32(bytes, at), be32(bytes, at + 4)) else {
                // A file as short as its header has no extensions.
                return if at == start {
                    Ok(out)
                } else {
                    Err(FormatError::Truncated("header"))
                };
            };
            if kind == 0 {
                break;
            }
            at += 8;
            let len = u64::from(len);
            if len > end - at {
                return Err(invalid("header extension length", len));
            }
            match kind {
                EXT_BACKING_FORMAT => out.backing_format = Some(required(bytes, at, len)?),
                EXT_DATA_FILE => out.data_file = Some(required(bytes, at, len)?),
                EXT_OWNER => out.owner = Some(required(bytes, at, len)?),
                EXT_FEATURE_NAMES => out.read_feature_names(bytes, at, len)?,
                _ => {}
            }
            at += len.next_multiple_of(8);
        }
        Ok(out)
    }

    fn read_feature_names(&mut self, bytes: &[u8], at: u64, len: u64) -> Result<(), FormatError> {
        let table = slice(bytes, at, len).ok_or(FormatError::Truncated("header"))?;
        for row in table.as_chunks::<48>().0 {
            // Type 0 is the incompatible kind, the only one that can stop us.
            if let [0, bit, name @ ..] = row {
                let name = name.split(|b| *b == 0).next().unwrap_or_default();
                self.feature_names
                    .push((*bit, String::from_utf8_lossy(name).into_owned()));
            }
        }
        Ok(())
    }

    fn feature_name(&self, bit: u32) -> String {
        self.feature_names
            .iter()
            .find(|(b, _)| u32::from(*b) == bit)
            .map_or_else(
                || format!("bit {bit}"),
                |(_, name)| format!("\"{name}\" (bit {bit})"),
            )
    }
}

fn invalid(field: &'static str, value: u64) -> FormatError {
    FormatError::Header { field, value }
}

fn required(bytes: &[u8], at: u64, len: u64) -> Result<String, FormatError> {
    text(bytes, at, len).ok_or(FormatError::Truncated("header"))
}

fn text(bytes: &[u8], at: u64, len: u64) -> Option<String> {
    Some(String::from_utf8_lossy(slice(bytes, at, len)?).into_owned())
}

fn slice(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    bytes.get(at..at.checked_add(usize::try_from(len).ok()?)?)
}

fn be32(bytes: &[u8], at: u64) -> Option<u32> {
    Some(u32::from_be_bytes(slice(bytes, at, 4)?.try_into().ok()?))
}

fn be64(bytes: &[u8], at: u64) -> Option<u64> {
    Some(u64::from_be_bytes(slice(bytes, at, 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A minimal version 3 header with 64 KiB clusters and a disk of 1 MiB.
    fn header() -> Vec<u8> {
        let mut h = vec![0u8; 4096];
        h[0..4].copy_from_slice(&MAGIC.to_be_bytes());
        h[4..8].copy_from_slice(&3u32.to_be_bytes());
        h[20..24].copy_from_slice(&16u32.to_be_bytes());
        h[24..32].copy_from_slice(&(1u64 << 20).to_be_bytes());
        h[36..40].copy_from_slice(&1u32.to_be_bytes());
        h[40..48].copy_from_slice(&0x3_0000u64.to_be_bytes());
        h[96..100].copy_from_slice(&4u32.to_be_bytes());
        h[100..104].copy_from_slice(&104u32.to_be_bytes());
        h
    }

    fn with(edit: impl FnOnce(&mut Vec<u8>)) -> Result<Header, FormatError> {
        let mut h = header();
        edit(&mut h);
        Header::parse(&h)
    }

    #[test]
    fn a_plain_header_is_read() {
        let h = with(|_| ()).unwrap();
        assert_eq!(
            (h.version, h.cluster_size(), h.virtual_size),
            (3, 65536, 1 << 20)
        );
        assert_eq!((h.backing, h.data_file, h.dirty), (None, None, false));
    }

    #[test]
    fn an_unknown_feature_is_refused_by_its_name() {
        let named = with(|h| {
            h[79] = 1 << 6;
            h[104..108].copy_from_slice(&EXT_FEATURE_NAMES.to_be_bytes());
            h[108..112].copy_from_slice(&48u32.to_be_bytes());
            h[113] = 6;
            h[114..119].copy_from_slice(b"magic");
        });
        assert_eq!(named, Err(FormatError::Feature("\"magic\" (bit 6)".into())));
        let unnamed = with(|h| h[72] = 0x80);
        assert_eq!(unnamed, Err(FormatError::Feature("bit 63".into())));
        assert!(unnamed.unwrap_err().is_unsupported());
    }

    #[test]
    fn corrupt_and_encrypted_are_refused_and_dirty_is_told() {
        assert_eq!(with(|h| h[79] = 2), Err(FormatError::MarkedCorrupt));
        assert_eq!(with(|h| h[35] = 2), Err(FormatError::Encrypted(2)));
        assert!(with(|h| h[79] = 1).unwrap().dirty);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (edit, field) in [
            ((23usize, 8u8), "cluster_bits"),
            ((23, 22), "cluster_bits"),
            ((24, 0x80), "size"),
            ((25, 0x80), "size"),
            ((47, 1), "l1_table_offset"),
            ((39, 0), "l1_size"),
            ((99, 7), "refcount_order"),
            ((103, 103), "header_length"),
        ] {
            let found = with(|h| h[edit.0] = edit.1);
            assert!(
                matches!(found, Err(FormatError::Header { field: f, .. }) if f == field),
                "{field}: {found:?}"
            );
        }
    }

    #[test]
    fn a_backing_name_outside_the_first_cluster_is_refused() {
        let found = with(|h| {
            h[8..16].copy_from_slice(&65530u64.to_be_bytes());
            h[19] = 10;
        });
        assert!(matches!(
            found,
            Err(FormatError::Header {
                field: "backing_file_offset",
                ..
            })
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(edits in prop::collection::vec((0usize..256, any::<u8>()), 0..20), len in 0usize..4096) {
            let mut h = header();
            for (at, value) in edits {
                h[at] = value;
            }
            h.truncate(len);
            let _ = Header::parse(&h);
        }
    }
}
