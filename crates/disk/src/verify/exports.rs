//! Export directories that stand on each other.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use blake3::Hash;

use crate::atomic::AtomicFile;
use crate::cancel::CancelFlag;
use crate::error::{Error, Result};
use crate::manifest::{DiskEntry, Manifest, PlainFile, RelativePath};
use crate::open;
use crate::source::LayerSpec;

/// One export directory with its manifest.
#[derive(Debug, Clone)]
pub struct Export {
    /// The directory.
    pub dir: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// The hash of the manifest's file.
    pub hash: Hash,
}

/// Reads the manifests of a chain, base FIRST, and checks that they belong together.
///
/// # Errors
/// [`Error::Unfinished`], [`Error::Manifest`], [`Error::Io`] from reading; [`Error::Invalid`] for an empty list, or exports that do
/// not stand on each other.
pub fn open_exports(dirs: &[PathBuf]) -> Result<Vec<Export>> {
    let mut chain: Vec<Export> = Vec::with_capacity(dirs.len());
    for dir in dirs {
        let (manifest, hash) = Manifest::load(dir)?;
        let shown = dir.display();
        match (chain.last(), &manifest.point.base_id) {
            (None, None) => {}
            (None, Some(base)) => {
                return Err(Error::invalid(format!(
                    "the export in {shown} stands on point {base}, whose export was not given"
                )));
            }
            (Some(below), base) => {
                let below_id = &below.manifest.point.id;
                if base.as_ref() != Some(below_id) {
                    return Err(Error::invalid(format!(
                        "the export in {shown} does not stand on point {below_id}"
                    )));
                }
                if below.manifest.machine.id != manifest.machine.id {
                    return Err(Error::invalid(format!(
                        "the export in {shown} is of another machine than its base"
                    )));
                }
                if manifest
                    .point
                    .base_manifest
                    .is_some_and(|h| h.0 != below.hash)
                {
                    return Err(Error::invalid(format!(
                        "the export in {shown} was made over another export of point {below_id}"
                    )));
                }
            }
        }
        chain.push(Export {
            dir: dir.clone(),
            manifest,
            hash,
        });
    }
    if chain.is_empty() {
        return Err(Error::invalid("no export directory was given"));
    }
    Ok(chain)
}

/// A file of an export, opened through no link.
pub(super) fn open_inside(dir: &Path, file: &RelativePath) -> Result<(PathBuf, File)> {
    Ok((dir.join(file), open::below(dir, file)?))
}

impl Export {
    /// The small file of that role, where there is one.
    #[must_use]
    pub fn file(&self, role: &str) -> Option<&PlainFile> {
        self.manifest.files.iter().find(|f| f.role == role)
    }

    /// The content of a small file, proven against the manifest.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Refused`], [`Error::TooLarge`] beyond `most` bytes, [`Error::Altered`].
    pub fn read(&self, file: &PlainFile, most: u64) -> Result<Vec<u8>> {
        let (path, handle) = open_inside(&self.dir, &file.path)?;
        let bytes = open::whole(handle, &path, most)?;
        if bytes.len() as u64 != file.bytes || blake3::hash(&bytes) != file.blake3.0 {
            return Err(altered(path));
        }
        Ok(bytes)
    }

    /// Copies a file of any size to `target`, which must not exist, and proves it on the way; a copy of something else is not left.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Refused`], [`Error::Altered`], [`Error::Cancelled`].
    pub fn copy(&self, file: &PlainFile, target: &Path, cancel: &CancelFlag) -> Result<()> {
        let to = AtomicFile::create(target)?;
        self.stream(file, cancel, &mut |part| {
            let mut out = to.file();
            out.write_all(part)
                .map_err(|e| Error::io("write", to.path(), e))
        })?;
        to.commit()
    }

    /// Proves a file of any size against the manifest.
    ///
    /// # Errors
    /// As [`Export::copy`].
    pub fn prove(&self, file: &PlainFile, cancel: &CancelFlag) -> Result<()> {
        self.stream(file, cancel, &mut |_| Ok(()))
    }

    fn stream(
        &self,
        file: &PlainFile,
        cancel: &CancelFlag,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let (path, mut from) = open_inside(&self.dir, &file.path)?;
        let mut hasher = blake3::Hasher::new();
        let (mut buffer, mut left) = (vec![0u8; 1 << 20], file.bytes);
        loop {
            cancel.check()?;
            let count = from
                .read(&mut buffer)
                .map_err(|e| Error::io("read", &path, e))?;
            if count == 0 {
                break;
            }
            let part = buffer.get(..count).unwrap_or_default();
            // Never more than the manifest announces, whatever comes.
            left = left
                .checked_sub(count as u64)
                .ok_or_else(|| altered(path.clone()))?;
            hasher.update(part);
            each(part)?;
        }
        if left != 0 || hasher.finalize() != file.blake3.0 {
            return Err(altered(path));
        }
        Ok(())
    }
}

fn altered(path: PathBuf) -> Error {
    let why = "it does not have the length and the hash its manifest gives";
    Error::Altered { path, why }
}

/// The entries of a disk in the exports that make it up, base first: back to its last full image.
pub(super) fn disk_entries<'a>(
    chain: &'a [Export],
    instance_id: &str,
) -> Result<Vec<(&'a Export, &'a DiskEntry)>> {
    let mut entries = Vec::new();
    for export in chain.iter().rev() {
        let entry = export
            .manifest
            .disks
            .iter()
            .find(|d| d.instance_id == instance_id);
        let entry = entry.ok_or_else(|| {
            Error::invalid(format!(
                "the export in {} does not hold the disk {instance_id}",
                export.dir.display()
            ))
        })?;
        entries.push((export, entry));
        if entry.base_file.is_none() {
            entries.reverse();
            return Ok(entries);
        }
    }
    Err(Error::invalid(format!(
        "no full export of the disk {instance_id} was given"
    )))
}

/// The files that make up one disk at the last point of a chain, base FIRST.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFiles {
    /// The images, for [`crate::Chain::open`].
    pub layers: Vec<LayerSpec>,
    /// The block lists, for [`crate::blocks::Merged::open`] or the next export's base lists.
    pub lists: Vec<PathBuf>,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
}

/// Finds the files of a disk in a chain of exports (as [`open_exports`] gives it), back to its last full image.
///
/// # Errors
/// [`Error::Invalid`] when an export of the chain lacks the disk or a file leads out of its directory; [`Error::Io`].
pub fn disk_files(chain: &[Export], instance_id: &str) -> Result<DiskFiles> {
    let mut files = DiskFiles {
        layers: Vec::new(),
        lists: Vec::new(),
        virtual_size: 0,
    };
    for (export, entry) in disk_entries(chain, instance_id)? {
        files.virtual_size = entry.virtual_size;
        let layer = LayerSpec::inside(&export.dir, &entry.file);
        // Said now, not when it is needed.
        open::below(&export.dir, &entry.file)?;
        files.layers.push(layer);
        let (list, _) = open_inside(&export.dir, &entry.block_list.file)?;
        files.lists.push(list);
    }
    Ok(files)
}
