//! Lists of a chain of exports, laid over each other.

use std::path::PathBuf;

use blake3::Hash;

use super::{BlockListError, BlockListReader, BlockRun, DiskDigest, Runs};
use crate::error::{Error, Result};
use crate::zero::block_count;

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
        let readers = paths.iter().map(|path| BlockListReader::open(path));
        Self::of(readers.collect::<Result<_>>()?)
    }

    /// The same of lists that are open.
    pub(crate) fn of(readers: Vec<BlockListReader>) -> Result<Self> {
        let mut lists = Vec::with_capacity(readers.len());
        let mut size = None;
        for mut reader in readers {
            size = Some(reader.disk_size());
            let run = reader.next_run()?;
            lists.push((reader, run));
        }
        let size = size.ok_or_else(|| Error::invalid("no block list was given"))?;
        Ok(Self { lists, size, at: 0 })
    }

    /// The hash of each list's file and the number of blocks it names, base first; meaningful once all was told.
    pub(crate) fn proven(&self) -> impl Iterator<Item = (Hash, u64)> {
        self.lists
            .iter()
            .map(|(reader, _)| (reader.file_hash(), reader.listed()))
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
                .map(|(r, _)| r.path().to_owned())
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

impl Runs for Merged {
    fn next_run(&mut self) -> Result<Option<BlockRun>> {
        Self::next_run(self)
    }
}
