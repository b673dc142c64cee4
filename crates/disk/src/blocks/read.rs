//! Reading a list.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use blake3::{Hash, Hasher};

use super::{
    BlockHash, BlockListError, BlockRun, MAGIC, Runs, TAG_END, TAG_HASHES, TAG_ZEROS, VERSION,
};
use crate::error::{Error, Result};
use crate::map::ChangeMap;
use crate::open;
use crate::zero::{BLOCK_SIZE, block_count};

/// Largest change map accepted inside a list (16 million ranges).
const MAX_MAP_BYTES: u64 = 256 << 20;

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

impl BlockListReader {
    /// Opens a list and reads its head.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::BlockList`] when it is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_file(path, open::regular(path)?)
    }

    /// A list that is open already; `path` is for messages.
    pub(crate) fn from_file(path: &Path, file: File) -> Result<Self> {
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

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
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

    /// The number of blocks told so far.
    pub(crate) fn listed(&self) -> u64 {
        self.listed
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
    check_list(BlockListReader::open(path)?)
}

/// The same of a list that is open.
pub(crate) fn check_list(mut reader: BlockListReader) -> Result<(Hash, u64)> {
    while reader.next_run()?.is_some() {}
    Ok((reader.file_hash(), reader.listed))
}

impl<R: Read> Runs for BlockListReader<R> {
    fn next_run(&mut self) -> Result<Option<BlockRun>> {
        Self::next_run(self)
    }
}
