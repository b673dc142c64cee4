//! Layers that lie beside disks and that no machine is read through.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use disk::Qcow2Layer;
use uuid::Uuid;

use super::known::{Known, Opened, beneath, inode};
use super::{Finding, FindingKind, entries, is_dir, is_plain, name_of};
use crate::Vmms;
use crate::host::owner::Owner;

/// What is before the identifier in a layer's name.
const MARK: &str = "kvmms-";
/// What a qcow2 image begins with.
const QCOW2: &[u8] = b"QFI\xfb";

/// The files of a directory that has, or had, layers.
pub(super) struct Listed {
    files: Vec<PathBuf>,
}

/// The directories of all disks, and those we make disks in ourselves.
pub(super) fn list(vmms: &Vmms) -> Vec<Listed> {
    let mut dirs = Known::of(vmms).disk_dirs();
    for own in ["layers", "disks", "images"] {
        let below = entries(&vmms.dirs.state.join(own));
        dirs.extend(below.into_iter().filter(|d| is_dir(d)));
    }
    let dirs: BTreeSet<PathBuf> = dirs.iter().filter_map(|d| d.canonicalize().ok()).collect();
    let files = dirs.into_iter().map(|dir| Listed {
        files: entries(&dir).into_iter().filter(|f| is_plain(f)).collect(),
    });
    files.collect()
}

/// The image a layer's name belongs to (empty for one that has a directory of its own), and the layer's identifier.
pub(super) fn parts(path: &Path) -> Option<(&str, Uuid)> {
    let name = name_of(path).strip_suffix(".qcow2")?;
    let at = name.rfind(MARK)?;
    let (image, id) = (name.get(..at)?, name.get(at + MARK.len()..)?);
    let id: Uuid = id.parse().ok().filter(|u: &Uuid| u.to_string() == id)?;
    match image {
        "" => Some(("", id)),
        _ => Some((image.strip_suffix('.')?, id)),
    }
}

pub(super) fn judge(
    vmms: &Vmms,
    listed: &[Listed],
    known: &Known,
    opened: &Opened,
) -> Vec<Finding> {
    let mut out = Vec::new();
    for dir in listed {
        let mut candidates = Vec::new();
        for path in &dir.files {
            let Some((image, id)) = parts(path) else {
                continue;
            };
            if !known.names(path) && !known.is_spoken_of(id) && path.exists() {
                candidates.push((path, image, id));
            }
        }
        if candidates.is_empty() {
            continue;
        }
        let users = users(&dir.files);
        let orphans: BTreeSet<&Path> = candidates.iter().map(|(p, _, _)| p.as_path()).collect();
        for (path, image, id) in &candidates {
            out.push(layer(vmms, path, image, *id, known, opened, &|path| {
                let above = inode(path).and_then(|i| users.get(&i))?;
                // A chain of orphans goes from above: what only orphans lie on is one as well, but not yet.
                Some((above.clone(), orphans.contains(above.as_path())))
            }));
        }
    }
    out
}

fn layer(
    vmms: &Vmms,
    path: &Path,
    image: &str,
    id: Uuid,
    known: &Known,
    opened: &Opened,
    above: &dyn Fn(&Path) -> Option<(PathBuf, bool)>,
) -> Finding {
    let found = |why: &str| {
        Finding::new(FindingKind::Layer, path.display(), why).bytes(super::allocated(path))
    };
    if !is_ours(path, image) {
        return found("it has the name of a layer, but not the content of one: it is not ours")
            .left_to("Look what it is; kvmms never touches it.");
    }
    let owner = Qcow2Layer::open(path).ok().and_then(|l| Owner::of(&l));
    match owner {
        Some(owner) if owner.state == vmms.identity => {}
        Some(owner) => {
            let why = format!(
                "no record here names it; it belongs to machine {} of another state directory ({})",
                crate::guid(owner.vm),
                owner.state
            );
            return found(&why).left_to(
                "Ask the service of that directory. Where that is gone: kvmms disk adopt-layers, or delete it by hand.",
            );
        }
        None => {
            return found("no record here names it, and it does not say whose it is: another service may run on it")
                .left_to(
                    "Where no other service has it: kvmms disk adopt-layers, or delete it by hand.",
                );
        }
    }
    if known.layers.contains(&id) {
        return found("it is a copy of a layer that a machine uses")
            .left_to("Delete it by hand if it is not wanted.");
    }
    match above(path) {
        Some((other, false)) => {
            let why = format!("no record names it, but {} is built on it", other.display());
            found(&why).left_to("Rebase or delete what is built on it first.")
        }
        Some((other, true)) => {
            let why = format!(
                "no record names it; {}, which is an orphan too, lies on it",
                other.display()
            );
            found(&why).left_to("Cleaning the layer on top of it first makes this one safe.")
        }
        None => found("no machine, point or snapshot is read through it").files(
            vec![path.to_owned()],
            Vec::new(),
            opened,
        ),
    }
}

/// A layer of ours is a qcow2 image that lies on the image it is named after, or on another layer of that.
fn is_ours(path: &Path, image: &str) -> bool {
    let Ok(layer) = Qcow2Layer::open(path) else {
        return false;
    };
    let Some(backing) = layer.backing().map(Path::new) else {
        return false;
    };
    let below = name_of(backing);
    match image {
        "" => true,
        _ => {
            below == image
                || below
                    .strip_prefix(image)
                    .is_some_and(|r| r.starts_with(".kvmms-"))
        }
    }
}

/// Which images of a directory name which file beneath them.
fn users(files: &[PathBuf]) -> BTreeMap<(u64, u64), PathBuf> {
    let mut out = BTreeMap::new();
    for file in files.iter().filter(|f| super::begins_with(f, QCOW2)) {
        if let Some(below) = beneath(file).as_deref().and_then(inode) {
            out.insert(below, file.clone());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_exact_spelling_is_the_name_of_a_layer() {
        let id = Uuid::from_u128(7);
        let named = |name: String| parts(Path::new(&name)).map(|(i, u)| (i.to_owned(), u));
        assert_eq!(
            named(format!("/d/a.img.kvmms-{id}.qcow2")),
            Some(("a.img".to_owned(), id))
        );
        assert_eq!(
            named(format!("kvmms-{id}.qcow2")),
            Some((String::new(), id))
        );
        for other in [
            format!("a.img.kvmms-{id}.img"),
            format!("a.img-kvmms-{id}.qcow2"),
            format!("a.img.kvmms-{}.qcow2", crate::guid(id)).replace("0007", "000G"),
            "a.img.kvmms-1.qcow2".to_owned(),
            "a.qcow2".to_owned(),
        ] {
            assert_eq!(named(other.clone()), None, "{other}");
        }
    }
}
