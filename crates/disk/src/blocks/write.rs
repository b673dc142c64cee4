//! Writing a list.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use blake3::{Hash, Hasher};
use serde::{Deserialize, Serialize};

use super::{BlockHash, BlockListInfo, MAGIC, TAG_END, TAG_HASHES, TAG_ZEROS, VERSION};
use crate::atomic::{AtomicFile, Slot};
use crate::error::{Error, Result};
use crate::manifest::HexHash;
use crate::map::ChangeMap;
use crate::zero::{BLOCK_SIZE, block_count};

/// Hashes gathered before a run is written: 128 KiB.
const RUN: usize = 4096;

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

/// What is needed, beside the file, to go on with an unfinished list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListMark {
    bytes: u64,
    hash: HexHash,
    next: u64,
    listed: u64,
}

impl BlockListWriter {
    /// Starts the list of a disk of `disk_size` bytes; `changes` are the bytes a differential export speaks of.
    ///
    /// # Errors
    /// [`Error::Io`], also when the target exists already.
    pub fn create(target: &Path, disk_size: u64, changes: Option<&ChangeMap>) -> Result<Self> {
        Self::start(&target.into(), disk_size, changes)
    }

    /// As [`BlockListWriter::create`], in a slot.
    ///
    /// # Errors
    /// As [`BlockListWriter::create`].
    pub fn start(slot: &Slot, disk_size: u64, changes: Option<&ChangeMap>) -> Result<Self> {
        let mut this = Self::over(AtomicFile::start(slot)?, slot, disk_size)?;
        let map = changes.map(|map| map.encode(disk_size)).unwrap_or_default();
        this.put(MAGIC)?;
        this.put(&VERSION.to_le_bytes())?;
        this.put(&(BLOCK_SIZE as u32).to_le_bytes())?;
        this.put(&disk_size.to_le_bytes())?;
        this.put(&(map.len() as u64).to_le_bytes())?;
        this.put(&map)?;
        Ok(this)
    }

    /// Goes on with a list where a mark was set; `None` where the file is not what it was then.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn go_on(slot: &Slot, disk_size: u64, mark: &ListMark) -> Result<Option<Self>> {
        let Some(file) = AtomicFile::go_on(slot) else {
            return Ok(None);
        };
        let mut this = Self::over(file, slot, disk_size)?;
        let mut handle = this.file.file();
        let io = |action, e| Error::io(action, slot.target(), e);
        let mut left = mark.bytes;
        let mut buffer = vec![0; 128 << 10];
        while left > 0 {
            let most = left.min(buffer.len() as u64) as usize;
            let part = buffer.get_mut(..most).unwrap_or_default();
            let read = handle.read(part).map_err(|e| io("read", e))?;
            if read == 0 {
                return Ok(None);
            }
            this.hasher.update(part.get(..read).unwrap_or_default());
            left -= read as u64;
        }
        if this.hasher.finalize() != mark.hash.0 {
            return Ok(None);
        }
        handle.set_len(mark.bytes).map_err(|e| io("cut", e))?;
        this.bytes = mark.bytes;
        (this.next, this.listed) = (mark.next, mark.listed);
        Ok(Some(this))
    }

    /// Makes what was listed so far durable.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn mark(&mut self) -> Result<ListMark> {
        self.close_run()?;
        let io = |action, e| Error::io(action, self.file.path(), e);
        self.out.flush().map_err(|e| io("write", e))?;
        let file = self.file.file();
        file.sync_data().map_err(|e| io("sync", e))?;
        Ok(ListMark {
            bytes: self.bytes,
            hash: HexHash(self.hasher.finalize()),
            next: self.next,
            listed: self.listed,
        })
    }

    /// An empty one, to be written from the start of the file on.
    fn over(file: AtomicFile, slot: &Slot, disk_size: u64) -> Result<Self> {
        let mut handle = file
            .file()
            .try_clone()
            .map_err(|e| Error::io("open", file.path(), e))?;
        // Another handle of the file may have moved where it is written.
        handle
            .seek(SeekFrom::Start(0))
            .map_err(|e| Error::io("write", file.path(), e))?;
        Ok(Self {
            target: slot.target().to_owned(),
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
        })
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
