//! Block lists: the hash of every block of an exported disk, in a file beside it (the `.map` sidecar).
//!
//! A list is written and read front to back, so that neither needs memory for a whole disk. Blocks of zeros are kept as runs, their
//! hash is known. A full export lists every block, a differential one only what it exports; [`Merged`] lays lists over each other,
//! base first, and gives the list of the whole disk.
//!
//! Little-endian: magic `KVMMSBLK`, u32 version (1), u32 block size, u64 disk size, u64 length of the change map that follows (0: a
//! full export; else [`crate::ChangeMap::encode`]), then runs: a tag byte, u64 first block, u64 number of blocks, and for tag 1 that many
//! hashes of 32 bytes (tag 2 are zeros); tag 0 ends the list, followed by u64 blocks listed and the BLAKE3 hash of all before it.

mod compare;
mod merged;
mod read;
mod write;

pub(crate) use compare::Compare;
pub use merged::Merged;
pub(crate) use read::check_list;
pub use read::{BlockListReader, check_block_list};
pub use write::{BlockListWriter, ListMark};

use std::path::PathBuf;

use blake3::{Hash, Hasher};

use crate::error::Result;
use crate::map::MapError;
use crate::zero::{BLOCK_SIZE, block_len, zero_hash};

const MAGIC: &[u8; 8] = b"KVMMSBLK";
const VERSION: u32 = 1;
const TAG_END: u8 = 0;
const TAG_HASHES: u8 = 1;
const TAG_ZEROS: u8 = 2;

/// Why bytes are not a block list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockListError {
    /// The file does not begin as a block list does.
    #[error("it does not begin with the mark of a block list")]
    Magic,
    /// A later version of the format.
    #[error("it has version {0}, only 1 is known")]
    Version(u32),
    /// A block size other than 64 KiB.
    #[error("its blocks have {0} bytes, only 65536 is served")]
    BlockSize(u32),
    /// The change map inside is damaged.
    #[error("the change map inside is damaged")]
    Map(#[source] MapError),
    /// Runs out of order, empty, or outside the disk.
    #[error("the run at block {0} is out of order or outside the disk")]
    Run(u64),
    /// The hash or the count at the end does not fit the content.
    #[error("its check sum does not match: the file was damaged or cut")]
    Checksum,
    /// The file ends early.
    #[error("it ends early")]
    Truncated,
    /// Lists laid over each other leave a block out.
    #[error("no list says anything about block {0}: the chain of exports is incomplete")]
    Missing(u64),
}

/// What is known about one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockHash {
    /// It is zero.
    Zero,
    /// The BLAKE3 hash of its bytes.
    Hash(Hash),
}

impl BlockHash {
    /// The hash, for a block of `len` bytes.
    #[must_use]
    pub fn hash(&self, len: u64) -> Hash {
        match self {
            Self::Zero => zero_hash(len),
            Self::Hash(hash) => *hash,
        }
    }
}

/// A run of blocks with one meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRun {
    /// First block.
    pub first: u64,
    /// Number of blocks; 1 for a hash.
    pub count: u64,
    /// What they hold.
    pub hash: BlockHash,
}

/// A finished list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockListInfo {
    /// The file.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// BLAKE3 hash of the file.
    pub hash: Hash,
    /// Number of blocks listed.
    pub blocks: u64,
}

/// Something that tells runs of blocks, ascending.
pub(crate) trait Runs {
    /// The next run; `None` at the proven end.
    fn next_run(&mut self) -> Result<Option<BlockRun>>;
}

/// Equal hashes fed to the digest at a time: 128 KiB.
const DIGEST_STEP: u64 = 4096;

/// The digest of a disk: BLAKE3 over the concatenated hashes of its blocks, in order.
#[derive(Debug, Clone)]
pub struct DiskDigest {
    hasher: Hasher,
    size: u64,
}

impl DiskDigest {
    /// The digest of a disk of `size` bytes, to be fed from its first block on.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            hasher: Hasher::new(),
            size,
        }
    }

    /// Adds a run of blocks, which must follow the last one.
    pub fn push(&mut self, first: u64, count: u64, hash: BlockHash) {
        let end = first.saturating_add(count);
        // Only the last block of a disk may be short; the others of a run are all alike.
        let short = end > 0 && block_len(end - 1, self.size) != BLOCK_SIZE;
        let mut whole = count - u64::from(short && count > 0);
        let one = hash.hash(BLOCK_SIZE);
        let mut many = Vec::new();
        while whole > 0 {
            let step = whole.min(DIGEST_STEP);
            if many.len() as u64 != step * 32 {
                many = one.as_bytes().repeat(step as usize);
            }
            self.hasher.update(&many);
            whole -= step;
        }
        if short && count > 0 {
            self.hasher
                .update(hash.hash(block_len(end - 1, self.size)).as_bytes());
        }
    }

    /// The digest.
    #[must_use]
    pub fn finish(&self) -> Hash {
        self.hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::path::Path;

    fn hash(n: u8) -> BlockHash {
        BlockHash::Hash(blake3::hash(&[n]))
    }

    fn write(path: &Path, size: u64, runs: &[(u64, u64, BlockHash)]) -> BlockListInfo {
        let mut list = BlockListWriter::create(path, size, None).unwrap();
        for (first, count, hash) in runs {
            list.push(*first, *count, *hash).unwrap();
        }
        list.finish().unwrap()
    }

    #[test]
    fn a_list_comes_back_and_knows_its_own_hash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.map");
        let size = 10 * BLOCK_SIZE - 100;
        let info = write(
            &path,
            size,
            &[(0, 1, hash(1)), (1, 3, BlockHash::Zero), (7, 1, hash(2))],
        );
        assert_eq!(info.bytes, std::fs::metadata(&path).unwrap().len());
        assert_eq!(info.hash, blake3::hash(&std::fs::read(&path).unwrap()));
        assert_eq!(check_block_list(&path).unwrap(), (info.hash, 5));
        let mut reader = BlockListReader::open(&path).unwrap();
        let mut seen = Vec::new();
        while let Some(run) = reader.next_run().unwrap() {
            seen.push((run.first, run.count, run.hash));
        }
        assert_eq!(
            seen,
            [(0, 1, hash(1)), (1, 3, BlockHash::Zero), (7, 1, hash(2))]
        );
    }

    #[test]
    fn damage_anywhere_in_a_list_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.map");
        write(
            &path,
            4 * BLOCK_SIZE,
            &[(0, 1, hash(1)), (1, 3, BlockHash::Zero)],
        );
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            std::fs::write(&path, &bad).unwrap();
            assert!(check_block_list(&path).is_err(), "flip at {at}");
            std::fs::write(&path, &bytes[..at]).unwrap();
            assert!(check_block_list(&path).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn upper_lists_win_block_by_block() {
        let dir = tempfile::tempdir().unwrap();
        let (base, mid, top) = (
            dir.path().join("0"),
            dir.path().join("1"),
            dir.path().join("2"),
        );
        let size = 6 * BLOCK_SIZE;
        write(&base, size, &[(0, 6, BlockHash::Zero)]);
        write(
            &mid,
            size,
            &[(1, 1, hash(1)), (2, 1, hash(2)), (5, 1, hash(5))],
        );
        write(&top, size, &[(2, 1, BlockHash::Zero), (3, 1, hash(3))]);
        let mut merged = Merged::open(&[base.clone(), mid, top]).unwrap();
        let mut all = Vec::new();
        while let Some(run) = merged.next_run().unwrap() {
            all.extend((0..run.count).map(|_| run.hash));
        }
        let z = BlockHash::Zero;
        assert_eq!(all, [z, hash(1), z, hash(3), z, hash(5)]);
    }

    #[test]
    fn a_block_no_list_knows_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0");
        write(&path, 3 * BLOCK_SIZE, &[(0, 1, hash(1)), (2, 1, hash(1))]);
        let result = Merged::open(&[path]).unwrap().digest();
        assert!(matches!(
            result,
            Err(Error::BlockList {
                source: BlockListError::Missing(1),
                ..
            })
        ));
    }

    #[test]
    fn the_digest_of_runs_is_that_of_their_blocks() {
        for size in [0, 512, BLOCK_SIZE, 10_000 * BLOCK_SIZE - 1, 5 * BLOCK_SIZE] {
            let blocks = crate::zero::block_count(size);
            let mut plain = Hasher::new();
            for block in 0..blocks {
                plain.update(zero_hash(block_len(block, size)).as_bytes());
            }
            let mut digest = DiskDigest::new(size);
            let first = blocks / 3;
            digest.push(0, first, BlockHash::Zero);
            digest.push(first, blocks - first, BlockHash::Zero);
            assert_eq!(digest.finish(), plain.finalize(), "{size}");
        }
    }
}
