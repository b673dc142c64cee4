//! Writing a qcow2 image once, front to back.
//!
//! Version 3, clusters of 64 KiB, 16-bit reference counts. Clusters are handed out one after the other: the L1 table, data, and each L2
//! table as soon as the guest range it covers is done, or at a mark; then the reference counts (every cluster of such a file has
//! exactly one owner, so they need no memory), and last the header. Until the header stands the file is no image, and until the
//! rename it has no name. Memory: one L2 table and the L1 table (8 bytes per 512 MiB of disk).
//!
//! At a mark (`Qcow2Writer::mark`) tables and data are durable, and what is needed to go on from there after a crash is small.
//!
//! Data may be written by several threads at once ([`DataArea`]); the mapping is
//! set by one ([`Mapping`]), in ascending order.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::atomic::{AtomicFile, Slot};
use crate::error::{Error, Result};
use crate::manifest::HexHash;
use crate::qcow2::{COPIED, EXT_BACKING_FORMAT, MAGIC, ZERO};
use crate::zero::{BLOCK, BLOCK_SIZE, block_count};

/// Entries of one L2 table.
pub(crate) const L2_ENTRIES: u64 = BLOCK_SIZE / 8;
/// 16-bit counts in one cluster.
const REFCOUNTS: u64 = BLOCK_SIZE / 2;
/// Largest L1 table of the format as QEMU reads it, in entries.
const MAX_L1_ENTRIES: u64 = (32 << 20) / 8;
const HEADER_LEN: usize = 104;
/// Longest backing file name of the format.
const MAX_BACKING_NAME: usize = 1023;

/// The image a differential one stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// File name, relative to the directory of the new image.
    pub file: String,
    /// `qcow2` or `raw`.
    pub format: String,
}

/// What a block of the new image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockState {
    /// The content of this cluster, which [`DataArea::reserve`] handed out.
    Data(u64),
    /// Zeros, whatever the backing image holds there.
    Zero,
}

/// The part of a writer that several threads share: space and content.
#[derive(Debug)]
pub struct DataArea {
    file: AtomicFile,
    next: AtomicU64,
}

impl DataArea {
    /// Hands out `count` clusters in a row; returns the number of the first.
    pub fn reserve(&self, count: u64) -> u64 {
        self.next.fetch_add(count, Ordering::Relaxed)
    }

    /// Writes bytes from the start of a cluster on.
    ///
    /// # Errors
    /// [`Error::Io`], with the path and the offset.
    pub fn write(&self, cluster: u64, bytes: &[u8]) -> Result<()> {
        let offset = cluster * BLOCK_SIZE;
        self.file
            .file()
            .write_all_at(bytes, offset)
            .map_err(|e| Error::io_at("write", self.file.path(), offset, e))
    }
}

/// A qcow2 image under construction. Dropped before [`Qcow2Writer::finish`], it leaves no file.
#[derive(Debug)]
pub struct Qcow2Writer {
    area: DataArea,
    tables: Tables,
    virtual_size: u64,
    backing: Option<Backing>,
}

/// What is needed, beside the file, to go on with an unfinished image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMark {
    /// Clusters handed out.
    clusters: u64,
    /// The lowest block that may still be set.
    least: u64,
    /// The L2 table under construction, and where it was written.
    open: Option<(usize, u64)>,
    /// Hash of the tables as they were written.
    tables: HexHash,
}

/// The L1 table lies right behind the header.
const L1_AT: u64 = 1;

impl Qcow2Writer {
    /// Creates `<target>.partial`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a disk too large for the format (2 PiB) or an unusable backing name; [`Error::Io`], also when the
    /// target exists already.
    pub fn create(target: &Path, virtual_size: u64, backing: Option<Backing>) -> Result<Self> {
        Self::start(&target.into(), virtual_size, backing)
    }

    /// As [`Qcow2Writer::create`], in a slot.
    ///
    /// # Errors
    /// As [`Qcow2Writer::create`].
    pub fn start(slot: &Slot, virtual_size: u64, backing: Option<Backing>) -> Result<Self> {
        let tables = Tables::new(virtual_size, backing.as_ref())?;
        let l1_clusters = tables.l1_clusters();
        Ok(Self {
            area: DataArea {
                file: AtomicFile::start(slot)?,
                // Cluster 0 is the header's.
                next: AtomicU64::new(L1_AT + l1_clusters),
            },
            tables,
            virtual_size,
            backing,
        })
    }

    /// Goes on with an image where a mark was set; `None` where the file is not what it was then.
    ///
    /// # Errors
    /// As [`Qcow2Writer::create`].
    pub(crate) fn go_on(
        slot: &Slot,
        virtual_size: u64,
        backing: Option<Backing>,
        mark: &ImageMark,
    ) -> Result<Option<Self>> {
        let mut tables = Tables::new(virtual_size, backing.as_ref())?;
        let Some(file) = AtomicFile::go_on(slot) else {
            return Ok(None);
        };
        let io = |action, e| Error::io(action, file.path(), e);
        let length = mark.clusters.saturating_mul(BLOCK_SIZE);
        let found = file.file().metadata().map_err(|e| io("look at", e))?.len();
        if found < length || !tables.read(file.file(), mark) {
            return Ok(None);
        }
        file.file().set_len(length).map_err(|e| io("cut", e))?;
        Ok(Some(Self {
            area: DataArea {
                file,
                next: AtomicU64::new(mark.clusters),
            },
            tables,
            virtual_size,
            backing,
        }))
    }

    /// Makes what was written and set so far durable. No thread may be writing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn mark(&mut self) -> Result<ImageMark> {
        let area = &self.area;
        let open = self.tables.write_open(area)?;
        area.write(L1_AT, &be_bytes(&self.tables.l1))?;
        let file = area.file.file();
        let length = area.reserve(0) * BLOCK_SIZE;
        // Also where the last table is shorter than its cluster.
        file.set_len(length)
            .map_err(|e| Error::io("extend", area.file.path(), e))?;
        file.sync_data()
            .map_err(|e| Error::io("sync", area.file.path(), e))?;
        Ok(ImageMark {
            clusters: area.reserve(0),
            least: self.tables.least,
            open,
            tables: HexHash(self.tables.hash()),
        })
    }

    /// The two halves: the shared one for content, and the one that sets the mapping.
    pub fn split(&mut self) -> (&DataArea, Mapping<'_>) {
        (
            &self.area,
            Mapping {
                area: &self.area,
                tables: &mut self.tables,
            },
        )
    }

    /// Writes tables, counts and header, makes everything durable, and gives the file its name. Returns its length in bytes.
    ///
    /// # Errors
    /// [`Error::Io`]; no file is left then.
    pub fn finish(mut self) -> Result<u64> {
        self.tables.flush(&self.area)?;
        let area = &self.area;
        area.write(L1_AT, &be_bytes(&self.tables.l1))?;

        let before = area.reserve(0);
        let (blocks, tables) = count_clusters(before);
        let total = before + blocks + tables;
        let table_at = area.reserve(tables);
        let first_block = area.reserve(blocks);
        let mut counts = vec![0u8; BLOCK];
        for index in 0..blocks {
            let used = (total - index * REFCOUNTS).min(REFCOUNTS) as usize;
            for (at, count) in counts.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                *count = u16::from(at < used).to_be_bytes();
            }
            area.write(first_block + index, &counts)?;
        }
        let mut table: Vec<u64> = (0..blocks)
            .map(|i| (first_block + i) * BLOCK_SIZE)
            .collect();
        table.resize((tables * L2_ENTRIES) as usize, 0);
        area.write(table_at, &be_bytes(&table))?;

        // Everything the header speaks of must be on disk before it.
        let length = total * BLOCK_SIZE;
        let file = area.file.file();
        file.set_len(length)
            .map_err(|e| Error::io("extend", area.file.path(), e))?;
        file.sync_data()
            .map_err(|e| Error::io("sync", area.file.path(), e))?;
        area.write(0, &self.header(table_at, tables))?;
        self.area.file.commit()?;
        Ok(length)
    }

    fn header(&self, table_at: u64, tables: u64) -> Vec<u8> {
        let mut h = Vec::with_capacity(2048);
        let mut extensions = Vec::new();
        let mut backing_at = 0u64;
        let name = self.backing.as_ref().map_or("", |b| b.file.as_str());
        if let Some(backing) = &self.backing {
            extensions.extend(EXT_BACKING_FORMAT.to_be_bytes());
            extensions.extend((backing.format.len() as u32).to_be_bytes());
            extensions.extend(backing.format.as_bytes());
            extensions.resize(extensions.len().next_multiple_of(8), 0);
        }
        extensions.extend([0u8; 8]);
        if self.backing.is_some() {
            backing_at = (HEADER_LEN + extensions.len()) as u64;
        }
        h.extend(MAGIC.to_be_bytes());
        h.extend(3u32.to_be_bytes());
        h.extend(backing_at.to_be_bytes());
        h.extend((name.len() as u32).to_be_bytes());
        h.extend(BLOCK_SIZE.trailing_zeros().to_be_bytes());
        h.extend(self.virtual_size.to_be_bytes());
        h.extend(0u32.to_be_bytes()); // not encrypted
        h.extend((self.tables.l1.len() as u32).to_be_bytes());
        h.extend((L1_AT * BLOCK_SIZE).to_be_bytes());
        h.extend((table_at * BLOCK_SIZE).to_be_bytes());
        h.extend((tables as u32).to_be_bytes());
        h.extend(0u32.to_be_bytes()); // no internal snapshots
        h.extend(0u64.to_be_bytes());
        h.extend([0u8; 24]); // no feature bits
        h.extend(4u32.to_be_bytes()); // counts of 2^4 bits
        h.extend((HEADER_LEN as u32).to_be_bytes());
        h.extend(extensions);
        h.extend(name.as_bytes());
        h.resize(BLOCK, 0);
        h
    }
}

/// The mapping of an image under construction.
#[derive(Debug)]
pub struct Mapping<'a> {
    area: &'a DataArea,
    tables: &'a mut Tables,
}

impl Mapping<'_> {
    /// Says what `count` blocks from `first` on hold; data clusters follow each other. Blocks never mentioned stay open: the
    /// backing image shows through, or zeros where there is none.
    ///
    /// # Errors
    /// [`Error::Invalid`] when blocks come out of order or lie outside the disk; [`Error::Io`] from writing a finished table.
    pub fn set(&mut self, first: u64, count: u64, state: BlockState) -> Result<()> {
        let end = first.checked_add(count);
        if first < self.tables.least || end.is_none_or(|end| end > self.tables.blocks) {
            return Err(Error::invalid(format!(
                "blocks {first} to {first}+{count} are out of order or outside the image"
            )));
        }
        for step in 0..count {
            let block = first + step;
            let index = (block / L2_ENTRIES) as usize;
            if index != self.tables.index {
                self.tables.flush(self.area)?;
                self.tables.index = index;
            }
            let word = match state {
                BlockState::Data(cluster) => ((cluster + step) * BLOCK_SIZE) | COPIED,
                BlockState::Zero => ZERO,
            };
            if let Some(entry) = self.tables.table.get_mut((block % L2_ENTRIES) as usize) {
                *entry = word;
            }
            self.tables.used = true;
        }
        self.tables.least = first + count;
        Ok(())
    }
}

#[derive(Debug)]
struct Tables {
    l1: Vec<u64>,
    /// The L2 table under construction.
    table: Vec<u64>,
    used: bool,
    /// Where it was written at a mark.
    place: Option<u64>,
    index: usize,
    /// The lowest block that may still be set.
    least: u64,
    blocks: u64,
}

impl Tables {
    /// Empty ones, for an image that the format can hold.
    fn new(virtual_size: u64, backing: Option<&Backing>) -> Result<Self> {
        let l1_entries = virtual_size.div_ceil(BLOCK_SIZE * L2_ENTRIES);
        if l1_entries > MAX_L1_ENTRIES {
            return Err(Error::invalid(format!(
                "a disk of {virtual_size} bytes is too large for a qcow2 image"
            )));
        }
        if let Some(Backing { file, format }) = backing {
            if file.is_empty() || file.len() > MAX_BACKING_NAME || file.contains('\0') {
                return Err(Error::invalid(format!(
                    "a backing file name has 1 to {MAX_BACKING_NAME} bytes, this one {}",
                    file.len()
                )));
            }
            if Path::new(file).is_absolute() || file.contains(':') {
                return Err(Error::invalid(format!(
                    "the backing file name {file:?} is not a relative path"
                )));
            }
            if !matches!(format.as_str(), "qcow2" | "raw") {
                return Err(Error::invalid(format!(
                    "backing format {format:?} is not served"
                )));
            }
        }
        Ok(Self {
            l1: vec![0; l1_entries.max(1) as usize],
            table: vec![0; L2_ENTRIES as usize],
            used: false,
            place: None,
            index: 0,
            least: 0,
            blocks: block_count(virtual_size),
        })
    }

    fn l1_clusters(&self) -> u64 {
        (self.l1.len() as u64 * 8).div_ceil(BLOCK_SIZE)
    }

    fn flush(&mut self, area: &DataArea) -> Result<()> {
        self.write_open(area)?;
        self.table.fill(0);
        self.used = false;
        self.place = None;
        Ok(())
    }

    /// Writes the table under construction; returns its index and place, where there is one.
    fn write_open(&mut self, area: &DataArea) -> Result<Option<(usize, u64)>> {
        if !self.used {
            return Ok(None);
        }
        let cluster = *self.place.get_or_insert_with(|| area.reserve(1));
        area.write(cluster, &be_bytes(&self.table))?;
        if let Some(entry) = self.l1.get_mut(self.index) {
            *entry = (cluster * BLOCK_SIZE) | COPIED;
        }
        Ok(Some((self.index, cluster)))
    }

    fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&be_bytes(&self.l1));
        hasher.update(&be_bytes(&self.table));
        hasher.finalize()
    }

    /// Takes the tables from a file; whether they are those of the mark.
    fn read(&mut self, file: &File, mark: &ImageMark) -> bool {
        let words = |at: u64, words: &mut [u64]| {
            let mut bytes = vec![0; words.len() * 8];
            let there = file.read_exact_at(&mut bytes, at * BLOCK_SIZE).is_ok();
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *word = u64::from_be_bytes(*bytes);
            }
            there
        };
        let mut there = words(L1_AT, &mut self.l1);
        if let Some((index, place)) = mark.open {
            there &= words(place, &mut self.table);
            (self.index, self.place, self.used) = (index, Some(place), true);
        }
        self.least = mark.least;
        there && self.hash() == mark.tables.0
    }
}

/// How many clusters of reference counts, and of the table that finds them, a file of `before` other clusters needs. They count
/// themselves too: a few rounds settle it.
fn count_clusters(before: u64) -> (u64, u64) {
    let (mut blocks, mut tables) = (0u64, 0u64);
    loop {
        let need_blocks = (before + blocks + tables).div_ceil(REFCOUNTS);
        let need_tables = need_blocks.div_ceil(L2_ENTRIES);
        if (need_blocks, need_tables) == (blocks, tables) {
            return (blocks, tables);
        }
        (blocks, tables) = (need_blocks, need_tables);
    }
}

fn be_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_counts_cover_every_cluster_and_none_is_wasted(
            multiple in 1u64..20_000, near in 0u64..40_000, small in 1u64..100_000
        ) {
            for before in [small, (multiple * REFCOUNTS + near).saturating_sub(20_000).max(1)] {
                let (blocks, tables) = count_clusters(before);
                prop_assert!(blocks * REFCOUNTS >= before + blocks + tables);
                prop_assert!(tables * L2_ENTRIES >= blocks);
                prop_assert!((blocks - 1) * REFCOUNTS < before + blocks + tables);
            }
        }
    }

    #[test]
    fn blocks_out_of_order_or_outside_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut writer = Qcow2Writer::create(&path, 10 * BLOCK_SIZE, None).unwrap();
        let (_, mut mapping) = writer.split();
        mapping.set(3, 2, BlockState::Zero).unwrap();
        assert!(mapping.set(4, 1, BlockState::Zero).is_err());
        assert!(mapping.set(9, 2, BlockState::Zero).is_err());
        assert!(mapping.set(u64::MAX, 2, BlockState::Zero).is_err());
        mapping.set(5, 5, BlockState::Zero).unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
