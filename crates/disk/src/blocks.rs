//! Block lists: the hash of every block of an exported disk, in a file beside it (the `.map` sidecar).
//!
//! A list is written and read front to back, so that neither needs memory for a whole disk. Blocks of zeros are kept as runs, their
//! hash is known. A full export lists every block, a differential one only what it exports; [`Merged`] lays lists over each other,
//! base first, and gives the list of the whole disk.
//!
//! Little-endian: magic `KVMMSBLK`, u32 version (1), u32 block size, u64 disk size, u64 length of the change map that follows (0: a
//! full export; else [`ChangeMap::encode`]), then runs: a tag byte, u64 first block, u64 number of blocks, and for tag 1 that many
//! hashes of 32 bytes (tag 2 are zeros); tag 0 ends the list, followed by u64 blocks listed and the BLAKE3 hash of all before it.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use blake3::{Hash, Hasher};

use crate::atomic::AtomicFile;
use crate::error::{Error, Result};
use crate::map::{ChangeMap, MapError};
use crate::zero::{BLOCK_SIZE, block_count, block_len, zero_hash};

const MAGIC: &[u8; 8] = b"KVMMSBLK";
const VERSION: u32 = 1;
const TAG_END: u8 = 0;
const TAG_HASHES: u8 = 1;
const TAG_ZEROS: u8 = 2;
/// Hashes gathered before a run is written: 128 KiB.
const RUN: usize = 4096;
/// Largest change map accepted inside a list (16 million ranges).
const MAX_MAP_BYTES: u64 = 256 << 20;

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

/// Writes a list, block by block, ascending. Dropped before [`BlockListWriter::finish`], it leaves no file.
pub struct BlockListWriter {
    target: PathBuf,
    file: AtomicFile,
    out: BufWriter<File>,
    hasher: Hasher,
    bytes: u64,
    pending: Vec<Hash>,
    /// First block of the open run, and the number of blocks in it when it is one of zeros.
    start: u64,
    zeros: u64,
    next: u64,
    listed: u64,
    limit: u64,
}

impl BlockListWriter {
    /// Starts the list of a disk of `disk_size` bytes; `changes` are the bytes a differential export speaks of.
    ///
    /// # Errors
    /// [`Error::Io`], also when the target exists already.
    pub fn create(target: &Path, disk_size: u64, changes: Option<&ChangeMap>) -> Result<Self> {
        let file = AtomicFile::create(target)?;
        let handle = file
            .file()
            .try_clone()
            .map_err(|e| Error::io("open", file.path(), e))?;
        let mut this = Self {
            target: target.to_owned(),
            file,
            out: BufWriter::with_capacity(128 << 10, handle),
            hasher: Hasher::new(),
            bytes: 0,
            pending: Vec::new(),
            start: 0,
            zeros: 0,
            next: 0,
            listed: 0,
            limit: block_count(disk_size),
        };
        let map = changes.map(|map| map.encode(disk_size)).unwrap_or_default();
        this.put(MAGIC)?;
        this.put(&VERSION.to_le_bytes())?;
        this.put(&(BLOCK_SIZE as u32).to_le_bytes())?;
        this.put(&disk_size.to_le_bytes())?;
        this.put(&(map.len() as u64).to_le_bytes())?;
        this.put(&map)?;
        Ok(this)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.out
            .write_all(bytes)
            .map_err(|e| Error::io_at("write", self.file.path(), self.bytes, e))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Adds `count` blocks from `first` on, all of the same kind (`count` is 1 for a hash).
    ///
    /// # Errors
    /// [`Error::Invalid`] when they are out of order or outside the disk, [`Error::Io`].
    pub fn push(&mut self, first: u64, count: u64, hash: BlockHash) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let end = first.checked_add(count).filter(|end| *end <= self.limit);
        let (Some(end), true) = (end, first >= self.next) else {
            return Err(Error::invalid(format!(
                "block {first} is out of order in a block list"
            )));
        };
        if first != self.next {
            self.close_run()?;
        }
        match hash {
            BlockHash::Zero => {
                if !self.pending.is_empty() {
                    self.close_run()?;
                }
                if self.zeros == 0 {
                    self.start = first;
                }
                self.zeros += count;
            }
            BlockHash::Hash(hash) => {
                if self.zeros > 0 || self.pending.len() >= RUN {
                    self.close_run()?;
                }
                if self.pending.is_empty() {
                    self.start = first;
                }
                self.pending.push(hash);
            }
        }
        self.next = end;
        self.listed += count;
        Ok(())
    }

    fn close_run(&mut self) -> Result<()> {
        if self.zeros > 0 {
            let (start, zeros) = (self.start, std::mem::take(&mut self.zeros));
            self.put(&[TAG_ZEROS])?;
            self.put(&start.to_le_bytes())?;
            self.put(&zeros.to_le_bytes())?;
        }
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            let start = self.start;
            self.put(&[TAG_HASHES])?;
            self.put(&start.to_le_bytes())?;
            self.put(&(pending.len() as u64).to_le_bytes())?;
            for hash in &pending {
                self.put(hash.as_bytes())?;
            }
            self.pending = pending;
            self.pending.clear();
        }
        Ok(())
    }

    /// Ends the list, makes it durable and gives it its name.
    ///
    /// # Errors
    /// [`Error::Io`]; no file is left then.
    pub fn finish(mut self) -> Result<BlockListInfo> {
        self.close_run()?;
        let listed = self.listed;
        self.put(&[TAG_END])?;
        self.put(&listed.to_le_bytes())?;
        let trailer = self.hasher.finalize();
        self.put(trailer.as_bytes())?;
        let hash = self.hasher.finalize();
        self.out
            .flush()
            .map_err(|e| Error::io_at("write", self.file.path(), self.bytes, e))?;
        self.file.commit()?;
        Ok(BlockListInfo {
            path: self.target,
            bytes: self.bytes,
            hash,
            blocks: listed,
        })
    }
}

/// Reads a list, block by block. The check sum is proven when the last block was read: use nothing before
/// [`BlockListReader::next_run`] has returned `None`, or call [`check_block_list`] first.
pub struct BlockListReader<R = BufReader<File>> {
    path: PathBuf,
    input: R,
    hasher: Hasher,
    disk_size: u64,
    changes: Option<ChangeMap>,
    next: u64,
    listed: u64,
    left: u64,
    ended: bool,
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

impl BlockListReader {
    /// Opens a list and reads its head.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::BlockList`] when it is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        Self::from_reader(path, BufReader::with_capacity(128 << 10, file))
    }
}

impl<R: Read> BlockListReader<R> {
    pub(crate) fn from_reader(path: &Path, input: R) -> Result<Self> {
        let mut this = Self {
            path: path.to_owned(),
            input,
            hasher: Hasher::new(),
            disk_size: 0,
            changes: None,
            next: 0,
            listed: 0,
            left: 0,
            ended: false,
        };
        if this.take::<8>()? != *MAGIC {
            return Err(this.bad(BlockListError::Magic));
        }
        let version = u32::from_le_bytes(this.take()?);
        if version != VERSION {
            return Err(this.bad(BlockListError::Version(version)));
        }
        let block_size = u32::from_le_bytes(this.take()?);
        if u64::from(block_size) != BLOCK_SIZE {
            return Err(this.bad(BlockListError::BlockSize(block_size)));
        }
        this.disk_size = u64::from_le_bytes(this.take()?);
        let map_len = u64::from_le_bytes(this.take()?);
        if map_len > MAX_MAP_BYTES {
            return Err(this.bad(BlockListError::Truncated));
        }
        if map_len > 0 {
            // Taken piece by piece, so that an announced length costs nothing the file does not hold.
            let mut map = Vec::new();
            let read = Read::take(&mut this.input, map_len).read_to_end(&mut map);
            read.map_err(|e| Error::io("read", &this.path, e))?;
            if map.len() as u64 != map_len {
                return Err(this.bad(BlockListError::Truncated));
            }
            this.hasher.update(&map);
            let (map, size) =
                ChangeMap::decode(&map).map_err(|e| this.bad(BlockListError::Map(e)))?;
            if size != this.disk_size {
                return Err(this.bad(BlockListError::Run(0)));
            }
            this.changes = Some(map);
        }
        Ok(this)
    }

    fn bad(&self, source: BlockListError) -> Error {
        Error::BlockList {
            path: self.path.clone(),
            source,
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0u8; N];
        self.input
            .read_exact(&mut bytes)
            .map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => self.bad(BlockListError::Truncated),
                _ => Error::io("read", &self.path, e),
            })?;
        self.hasher.update(&bytes);
        Ok(bytes)
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn disk_size(&self) -> u64 {
        self.disk_size
    }

    /// The changed bytes of a differential export; `None` for a full one.
    #[must_use]
    pub fn changes(&self) -> Option<&ChangeMap> {
        self.changes.as_ref()
    }

    /// The next run of blocks, ascending; `None` at the proven end.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::BlockList`] when the list is damaged.
    pub fn next_run(&mut self) -> Result<Option<BlockRun>> {
        if self.ended {
            return Ok(None);
        }
        if self.left == 0 {
            let [tag] = self.take()?;
            if tag == TAG_END {
                return self.end();
            }
            let first = u64::from_le_bytes(self.take()?);
            let count = u64::from_le_bytes(self.take()?);
            let end = first.checked_add(count);
            let fits = end.is_some_and(|end| end <= block_count(self.disk_size));
            if !matches!(tag, TAG_HASHES | TAG_ZEROS) || count == 0 || first < self.next || !fits {
                return Err(self.bad(BlockListError::Run(first)));
            }
            self.next = first;
            if tag == TAG_ZEROS {
                self.next += count;
                self.listed += count;
                return Ok(Some(BlockRun {
                    first,
                    count,
                    hash: BlockHash::Zero,
                }));
            }
            self.left = count;
        }
        let hash = BlockHash::Hash(Hash::from_bytes(self.take()?));
        let first = self.next;
        self.left -= 1;
        self.next += 1;
        self.listed += 1;
        Ok(Some(BlockRun {
            first,
            count: 1,
            hash,
        }))
    }

    fn end(&mut self) -> Result<Option<BlockRun>> {
        let listed = u64::from_le_bytes(self.take()?);
        let expected = self.hasher.finalize();
        let trailer = self.take::<32>()?;
        let mut more = [0u8; 1];
        let rest = self
            .input
            .read(&mut more)
            .map_err(|e| Error::io("read", &self.path, e))?;
        if expected != trailer || listed != self.listed || rest != 0 {
            return Err(self.bad(BlockListError::Checksum));
        }
        self.ended = true;
        Ok(None)
    }

    /// The BLAKE3 hash of the file; meaningful once the end was reached.
    #[must_use]
    pub fn file_hash(&self) -> Hash {
        self.hasher.finalize()
    }
}

/// Reads a list through and proves its check sum; returns the hash of the file and the number of blocks listed.
///
/// # Errors
/// [`Error::Io`], or [`Error::BlockList`] when it is damaged.
pub fn check_block_list(path: &Path) -> Result<(Hash, u64)> {
    let mut reader = BlockListReader::open(path)?;
    while reader.next_run()?.is_some() {}
    Ok((reader.file_hash(), reader.listed))
}

/// Several lists laid over each other: for each block of the topmost disk, what the topmost list that knows it says.
pub struct Merged {
    lists: Vec<(BlockListReader, Option<BlockRun>)>,
    size: u64,
    at: u64,
}

impl Merged {
    /// Opens the lists, base FIRST (a full one), topmost last.
    ///
    /// # Errors
    /// As [`BlockListReader::open`]; [`Error::Invalid`] for no list at all.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut lists = Vec::with_capacity(paths.len());
        let mut size = None;
        for path in paths {
            let mut reader = BlockListReader::open(path)?;
            size = Some(reader.disk_size());
            let run = reader.next_run()?;
            lists.push((reader, run));
        }
        let size = size.ok_or_else(|| Error::invalid("no block list was given"))?;
        Ok(Self { lists, size, at: 0 })
    }

    /// Size of the topmost disk in bytes.
    #[must_use]
    pub fn disk_size(&self) -> u64 {
        self.size
    }

    /// The next run of blocks, ascending and without gaps; `None` once every block was told and all check sums are proven.
    ///
    /// # Errors
    /// [`Error::BlockList`] for a damaged list, or when no list knows a block.
    pub fn next_run(&mut self) -> Result<Option<BlockRun>> {
        let blocks = block_count(self.size);
        let at = self.at;
        let mut found = None;
        let mut end = blocks;
        // Topmost first: the first list that covers the block decides; those above it bound how long that holds.
        for (reader, run) in self.lists.iter_mut().rev() {
            while let Some(current) = run {
                if current.first + current.count > at {
                    break;
                }
                *run = reader.next_run()?;
            }
            if let Some(current) = run
                && found.is_none()
            {
                if current.first <= at {
                    end = end.min(current.first + current.count);
                    found = Some(current.hash);
                } else {
                    end = end.min(current.first);
                }
            }
        }
        if at >= blocks {
            // A base may be longer than the disk on top: read it through for its check sum.
            for (reader, _) in &mut self.lists {
                while reader.next_run()?.is_some() {}
            }
            return Ok(None);
        }
        let Some(hash) = found else {
            let path = self
                .lists
                .last()
                .map(|(r, _)| r.path.clone())
                .unwrap_or_default();
            return Err(Error::BlockList {
                path,
                source: BlockListError::Missing(at),
            });
        };
        self.at = end;
        Ok(Some(BlockRun {
            first: at,
            count: end - at,
            hash,
        }))
    }

    /// The digest of the disk: [`DiskDigest`] over all its blocks.
    ///
    /// # Errors
    /// As [`Merged::next_run`].
    pub fn digest(mut self) -> Result<Hash> {
        let mut digest = DiskDigest::new(self.size);
        while let Some(run) = self.next_run()? {
            digest.push(run.first, run.count, run.hash);
        }
        Ok(digest.finish())
    }
}

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
        for block in first..first.saturating_add(count) {
            self.hasher
                .update(hash.hash(block_len(block, self.size)).as_bytes());
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
}
