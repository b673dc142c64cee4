//! Export directories that stand on each other.

use std::fs;
use std::path::{Path, PathBuf};

use blake3::Hash;

use crate::error::{Error, Result};
use crate::manifest::{Manifest, RelativePath};
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

/// A file of an export; links that lead out of its directory are refused.
pub(super) fn inside(dir: &Path, file: &RelativePath) -> Result<PathBuf> {
    let path = dir.join(file);
    let canonical = |p: &Path| fs::canonicalize(p).map_err(|e| Error::io("open", p, e));
    if canonical(&path)?.starts_with(canonical(dir)?) {
        Ok(path)
    } else {
        Err(Error::invalid(format!(
            "{} leads out of its export",
            path.display()
        )))
    }
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
        if files.layers.is_empty() {
            files.virtual_size = entry.virtual_size;
        }
        files
            .layers
            .insert(0, LayerSpec::qcow2(inside(&export.dir, &entry.file)?));
        files
            .lists
            .insert(0, inside(&export.dir, &entry.block_list.file)?);
        if entry.base_file.is_none() {
            return Ok(files);
        }
    }
    Err(Error::invalid(format!(
        "no full export of the disk {instance_id} was given"
    )))
}
