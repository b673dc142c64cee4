//! The file form of a change map.
//!
//! Little-endian: 8 bytes magic `KVMMSMAP`, u32 version (1), u32 reserved (0), u64 disk size, u64 number of ranges, then start and
//! end of each range as u64, then the BLAKE3 hash of everything before it.

use std::fs;
use std::path::Path;

use super::ChangeMap;
use crate::atomic::AtomicFile;
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"KVMMSMAP";
const VERSION: u32 = 1;
const HEAD: usize = 32;
const TRAILER: usize = 32;

/// Why bytes are not a change map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The file does not begin as a change map does.
    #[error("it does not begin with the mark of a change map")]
    Magic,
    /// A later version of the format.
    #[error("it has version {0}, only 1 is known")]
    Version(u32),
    /// The reserved word is not 0, so a later program meant something by it.
    #[error("its reserved word is {0} instead of 0")]
    Reserved(u32),
    /// Fewer or more bytes than the header announces.
    #[error("it holds {found} bytes where its header announces {announced}")]
    Length {
        /// Bytes the header asks for.
        announced: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The hash at the end does not fit the content.
    #[error("its check sum does not match: the file was damaged or cut")]
    Checksum,
    /// Ranges out of order, empty, touching, or beyond the disk.
    #[error("range {0} is out of order or outside the disk")]
    Range(u64),
}

impl ChangeMap {
    /// The file form, for a disk of `disk_size` bytes.
    #[must_use]
    pub fn encode(&self, disk_size: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + self.ranges.len() * 16 + TRAILER);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&disk_size.to_le_bytes());
        out.extend_from_slice(&(self.ranges.len() as u64).to_le_bytes());
        for range in &self.ranges {
            out.extend_from_slice(&range.start.to_le_bytes());
            out.extend_from_slice(&range.end.to_le_bytes());
        }
        let hash = blake3::hash(&out);
        out.extend_from_slice(hash.as_bytes());
        out
    }

    /// Reads the file form; returns the map and the size of its disk in bytes.
    ///
    /// # Errors
    /// [`MapError`] for anything that [`ChangeMap::encode`] would not have written.
    pub fn decode(bytes: &[u8]) -> std::result::Result<(Self, u64), MapError> {
        if bytes.get(..8) != Some(MAGIC) {
            return Err(MapError::Magic);
        }
        let found = bytes.len() as u64;
        let short = MapError::Length {
            announced: (HEAD + TRAILER) as u64,
            found,
        };
        let version = u32_at(bytes, 8).ok_or_else(|| short.clone())?;
        if version != VERSION {
            return Err(MapError::Version(version));
        }
        let reserved = u32_at(bytes, 12).ok_or_else(|| short.clone())?;
        if reserved != 0 {
            return Err(MapError::Reserved(reserved));
        }
        let disk_size = u64_at(bytes, 16).ok_or_else(|| short.clone())?;
        let count = u64_at(bytes, 24).ok_or(short)?;
        let announced = count
            .checked_mul(16)
            .and_then(|n| n.checked_add((HEAD + TRAILER) as u64))
            .unwrap_or(u64::MAX);
        let length = MapError::Length { announced, found };
        if announced != found {
            return Err(length);
        }
        let (body, trailer) = bytes
            .split_at_checked(bytes.len() - TRAILER)
            .ok_or(length)?;
        if blake3::hash(body) != *trailer {
            return Err(MapError::Checksum);
        }
        let mut map = Self {
            ranges: Vec::with_capacity(body.len() / 16),
        };
        let mut least = 0;
        let (pairs, _) = body.get(HEAD..).unwrap_or_default().as_chunks::<16>();
        for (index, pair) in pairs.iter().enumerate() {
            let bad = MapError::Range(index as u64);
            let start = u64_at(pair, 0).ok_or_else(|| bad.clone())?;
            let end = u64_at(pair, 8).ok_or_else(|| bad.clone())?;
            // Touching ranges would have been merged: equality with the last end is damage too.
            if start >= end || end > disk_size || (index > 0 && start <= least) {
                return Err(bad);
            }
            least = end;
            map.ranges.push(start..end);
        }
        Ok((map, disk_size))
    }

    /// Writes the file form atomically (temporary name, fsync, rename, fsync of the directory); an older file is replaced.
    ///
    /// # Errors
    /// [`Error::Io`]; the old file, if any, is then untouched. [`Error::Invalid`] when a range lies beyond the disk.
    pub fn save(&self, path: &Path, disk_size: u64) -> Result<()> {
        if self.end() > disk_size {
            return Err(Error::invalid(format!(
                "a change map that ends at {} does not fit a disk of {disk_size} bytes",
                self.end()
            )));
        }
        AtomicFile::replace(path, &self.encode(disk_size))
    }

    /// Reads a map file; returns the map and the size of its disk in bytes.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Map`] when it is damaged.
    pub fn load(path: &Path) -> Result<(Self, u64)> {
        let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
        Self::decode(&bytes).map_err(|source| Error::Map {
            path: path.to_owned(),
            source,
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_map_comes_back_as_it_was_saved(list in prop::collection::vec((0u64..1 << 40, 1u64..1 << 20), 0..50)) {
            let map: ChangeMap = list.into_iter().map(|(s, l)| s..s + l).collect();
            let size = map.end() + 7;
            prop_assert_eq!(ChangeMap::decode(&map.encode(size)), Ok((map, size)));
        }

        #[test]
        fn any_flipped_bit_is_noticed(at in 0usize..112, bit in 0u8..8) {
            let mut bytes = ChangeMap::from_ranges([1..5, 9..100, 4096..8192]).encode(10_000);
            prop_assert_eq!(bytes.len(), 112);
            bytes[at] ^= 1 << bit;
            prop_assert!(ChangeMap::decode(&bytes).is_err());
        }
    }

    #[test]
    fn a_cut_file_is_refused() {
        let bytes = ChangeMap::of(0..4096).encode(4096);
        for len in 0..bytes.len() {
            assert!(ChangeMap::decode(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_saved_file_replaces_the_older_one_and_loads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer.map");
        ChangeMap::of(0..1).save(&path, 10).unwrap();
        let map = ChangeMap::from_ranges([3..4, 6..9]);
        map.save(&path, 10).unwrap();
        assert_eq!(ChangeMap::load(&path).unwrap(), (map, 10));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_map_beyond_its_disk_is_not_saved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer.map");
        assert!(ChangeMap::of(0..11).save(&path, 10).is_err());
        assert!(!path.exists());
    }
}
