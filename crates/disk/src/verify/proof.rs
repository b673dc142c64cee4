//! Proving a disk while it is read: block by block, in order, against the block lists of its exports.

use std::path::PathBuf;

use blake3::Hash;

use super::exports::{Export, disk_entries, open_inside};
use crate::blocks::{BlockHash, BlockListReader, Compare, DiskDigest, Merged};
use crate::error::{Error, Result};
use crate::export::Run;
use crate::zero::{BLOCK, BLOCK_SIZE, block_len, is_zero};

/// The hashes a disk must have, in step with reading it. What was read counts only when [`DiskProof::finish`] has said so: the lists themselves are
/// proven at their ends.
pub struct DiskProof {
    what: String,
    expected: Compare<Merged>,
    /// What each list must hash to, and how many blocks it names.
    lists: Vec<(PathBuf, Hash, u64)>,
    digest: DiskDigest,
    /// The digest of the disk, where the manifest gives it.
    whole: Option<Hash>,
    size: u64,
    next: u64,
}

impl DiskProof {
    /// Opens the lists of a disk at the last point of a chain, base FIRST.
    ///
    /// # Errors
    /// As [`super::disk_files`]; [`Error::BlockList`] for a damaged list, [`Error::Altered`] for one of another disk.
    pub fn open(chain: &[Export], instance_id: &str) -> Result<Self> {
        let entries = disk_entries(chain, instance_id)?;
        let (mut readers, mut lists) = (Vec::new(), Vec::new());
        let mut last = None;
        for (export, entry) in &entries {
            let (path, file) = open_inside(&export.dir, &entry.block_list.file)?;
            let length = file
                .metadata()
                .map_err(|e| Error::io("look at", &path, e))?;
            let reader = BlockListReader::from_file(&path, file)?;
            if reader.disk_size() != entry.virtual_size || length.len() != entry.block_list.bytes {
                let why = "it is not the block list its manifest speaks of";
                return Err(Error::Altered { path, why });
            }
            readers.push(reader);
            lists.push((path, entry.block_list.blake3.0, entry.block_list.blocks));
            last = Some(*entry);
        }
        let last = last.ok_or_else(|| Error::invalid("a disk without exports"))?;
        let size = last.virtual_size;
        Ok(Self {
            what: last.file.as_str().to_owned(),
            expected: Compare::new(Merged::of(readers)?, size),
            lists,
            digest: DiskDigest::new(size),
            whole: last.digest.map(|d| d.0),
            size,
            next: 0,
        })
    }

    /// The next blocks, as the copy pump tells them.
    pub(crate) fn run(&mut self, run: &Run) -> Result<()> {
        if let Some(bad) = self.expected.differences(run)?.first() {
            return Err(Error::Differs {
                what: self.what.clone(),
                offset: bad.start * BLOCK_SIZE,
            });
        }
        match run {
            Run::Zero { first, count } => {
                self.digest.push(*first, *count, BlockHash::Zero);
                self.next = first + count;
            }
            Run::Data { first, hashes, .. } => {
                for (block, hash) in (*first..).zip(hashes) {
                    self.digest.push(block, 1, BlockHash::Hash(*hash));
                    self.next = block + 1;
                }
            }
        }
        Ok(())
    }

    /// The next bytes: whole blocks, but for the end of the disk.
    ///
    /// # Errors
    /// [`Error::Differs`] at the first block that is not what was exported; [`Error::BlockList`] for a damaged list.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        for part in bytes.chunks(BLOCK) {
            if part.len() as u64 != block_len(self.next, self.size) {
                return Err(Error::invalid("a disk is proven in whole blocks"));
            }
            let first = self.next;
            self.run(&match is_zero(part) {
                true => Run::Zero { first, count: 1 },
                false => Run::Data {
                    first,
                    place: 0,
                    hashes: vec![blake3::hash(part)],
                },
            })?;
        }
        Ok(())
    }

    /// To be asked when the whole disk was read: whether the lists are those of the manifests, and make up the disk of the last one.
    ///
    /// # Errors
    /// [`Error::BlockList`], [`Error::Altered`].
    pub fn finish(self) -> Result<()> {
        if self.next != self.size.div_ceil(BLOCK_SIZE) {
            return Err(Error::invalid("a disk was not read to its end"));
        }
        let merged = self.expected.finish()?;
        for ((hash, blocks), (path, wanted, named)) in merged.proven().zip(&self.lists) {
            if hash != *wanted || blocks != *named {
                return Err(Error::Altered {
                    path: path.clone(),
                    why: "it does not have the hash its manifest gives",
                });
            }
        }
        if self
            .whole
            .is_some_and(|wanted| wanted != self.digest.finish())
        {
            return Err(Error::Altered {
                path: self.what.into(),
                why: "its blocks do not make up the disk its manifest speaks of",
            });
        }
        Ok(())
    }
}
