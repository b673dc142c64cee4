//! Layers of ours that lie on an image and that no record of this service names: newer content, of which the image alone knows nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use disk::Qcow2Layer;
use uuid::Uuid;

use super::known::{Known, beneath, inode};
use super::layers::parts;
use super::{entries, is_dir, is_plain};
use crate::host::owner::Owner;
use crate::{Result, Vmms, fault};

/// Such a layer.
#[derive(Clone, Debug)]
pub(crate) struct Beside {
    /// Its file.
    pub(crate) path: PathBuf,
    /// Its identifier, from its name.
    pub(crate) layer: Uuid,
    /// What it lies on.
    pub(crate) on: PathBuf,
    /// What that is, by its header.
    pub(crate) on_format: Option<String>,
    /// The size of the disk in it.
    pub(crate) size: u64,
    /// Whose it says it is.
    pub(crate) owner: Option<Owner>,
}

/// The layers on an image that no record names, whatever their depth, those beneath others first.
pub(crate) fn unknown_above(vmms: &Vmms, image: &Path) -> Vec<Beside> {
    let Some(mut reached) = inode(image).map(|i| BTreeSet::from([i])) else {
        return Vec::new();
    };
    let here = image.canonicalize().unwrap_or_else(|_| image.to_owned());
    let mut dirs: BTreeSet<PathBuf> = here.parent().map(Path::to_owned).into_iter().collect();
    // The name's own directory too: a link may lead elsewhere, with the layers beside the link.
    dirs.extend(image.parent().map(Path::to_owned));
    let own = entries(&vmms.dirs.state.join("layers"));
    dirs.extend(own.into_iter().filter(|d| is_dir(d)));
    let known = Known::of(vmms);
    let mut rest: Vec<Beside> = Vec::new();
    for path in dirs.iter().flat_map(|dir| entries(dir)) {
        let Some((_, id)) = parts(&path).filter(|_| is_plain(&path)) else {
            continue;
        };
        if known.names(&path) || rest.iter().any(|b| inode(&b.path) == inode(&path)) {
            continue;
        }
        let (Ok(layer), Some(on)) = (Qcow2Layer::open(&path), beneath(&path)) else {
            continue;
        };
        rest.push(Beside {
            layer: id,
            on,
            on_format: layer.header().backing_format.clone(),
            size: layer.header().virtual_size,
            owner: Owner::of(&layer),
            path,
        });
    }
    let mut found = Vec::new();
    loop {
        let on = |b: &Beside| inode(&b.on).is_some_and(|i| reached.contains(&i));
        let (next, left): (Vec<_>, Vec<_>) = rest.into_iter().partition(on);
        if next.is_empty() {
            return found;
        }
        reached.extend(next.iter().filter_map(|b| inode(&b.path)));
        found.extend(next);
        rest = left;
    }
}

/// Refuses an image that is not the whole disk: newer layers lie on it.
pub(crate) fn refuse_layered(vmms: &Vmms, image: &Path) -> Result<()> {
    let found = unknown_above(vmms, image);
    if found.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = found.iter().map(|b| b.path.display().to_string()).collect();
    Err(fault!(NewerLayers, image.display(), shown.join(", ")))
}
