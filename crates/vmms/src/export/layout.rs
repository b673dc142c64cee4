//! Where the files of an export are.

use std::path::{Component, Path, PathBuf};

use disk::manifest::{MANIFEST_NAME, Manifest, RelativePath};
use uuid::Uuid;

use crate::point::PointDisk;
use crate::{Result, guid};

/// Directory of the configuration.
pub(crate) const MACHINES: &str = "Virtual Machines";
/// Directory of the snapshots exported with a machine.
pub(crate) const SNAPSHOTS: &str = "Snapshots";
/// Directory of the disks.
pub(crate) const DISKS: &str = "Virtual Hard Disks";

/// The directory of a machine in an export directory.
pub(super) fn machine_dir(directory: &Path, vm: Uuid) -> PathBuf {
    directory.join(guid(vm))
}

/// The directory of a further point of a machine whose first export took the machine's own directory.
pub(super) fn point_dir(directory: &Path, vm: Uuid, point: Uuid) -> PathBuf {
    machine_dir(directory, vm).join(guid(point))
}

/// The image of a disk, relative to the directory with the manifest.
pub(super) fn image(disk: &PointDisk, point: Uuid) -> Result<RelativePath> {
    Ok(RelativePath::new(format!(
        "{DISKS}/{}",
        image_name(disk, point)
    ))?)
}

/// The block list of a disk, likewise.
pub(super) fn block_list(disk: &PointDisk, point: Uuid) -> Result<RelativePath> {
    Ok(RelativePath::new(format!(
        "{DISKS}/{}-{}.map",
        stem(disk),
        guid(point)
    ))?)
}

/// The plain name of a disk's image.
pub(super) fn image_name(disk: &PointDisk, point: Uuid) -> String {
    format!("{}-{}.qcow2", stem(disk), guid(point))
}

/// What a disk is called in file names: the name of its image, and enough of its identifier to tell two with the same
/// name apart.
fn stem(disk: &PointDisk) -> String {
    let name = disk.path.file_stem().unwrap_or_default().to_string_lossy();
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '_'
        }
    };
    let name: String = name.chars().take(48).map(plain).collect();
    let id: String = disk.uid.simple().to_string().chars().take(8).collect();
    format!("{}-{id}", name.trim_start_matches('.'))
}

/// The directories that may hold exports of a machine in an export directory.
pub(crate) fn exports_in(directory: &Path, vm: Uuid) -> Vec<PathBuf> {
    let own = machine_dir(directory, vm);
    let mut out = vec![own.clone()];
    // Exports of whole machines may lie in the directory itself, without one for the machine.
    for dir in [own.as_path(), directory] {
        if let Ok(list) = std::fs::read_dir(dir) {
            let mut dirs: Vec<PathBuf> = list.filter_map(|e| e.ok().map(|e| e.path())).collect();
            dirs.sort();
            out.extend(dirs);
        }
    }
    out.push(directory.to_owned());
    out.retain(|dir| dir.join(MANIFEST_NAME).is_file());
    out
}

/// The export of a point among directories that may hold one.
pub(crate) fn find(
    dirs: impl IntoIterator<Item = PathBuf>,
    machine: &str,
    point: &str,
) -> Option<PathBuf> {
    dirs.into_iter().find(|dir| {
        Manifest::load(dir).is_ok_and(|(m, _)| {
            m.point.id.eq_ignore_ascii_case(point) && m.machine.id.eq_ignore_ascii_case(machine)
        })
    })
}

/// `target` as seen from the directory `from`; both absolute.
pub(super) fn relative(from: &Path, target: &Path) -> PathBuf {
    let parts = |p: &Path| -> Vec<std::ffi::OsString> {
        p.components()
            .filter(|c| matches!(c, Component::Normal(_)))
            .map(|c| c.as_os_str().to_owned())
            .collect()
    };
    let (a, b) = (parts(from), parts(target));
    let common = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let up = std::iter::repeat_n(std::ffi::OsString::from(".."), a.len() - common);
    up.chain(b.into_iter().skip(common)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_seen_from_another_directory() {
        let seen = |from: &str, to: &str| {
            relative(Path::new(from), Path::new(to))
                .display()
                .to_string()
        };
        assert_eq!(seen("/x/a/b", "/x/a/b/f"), "f");
        assert_eq!(seen("/x/a/b", "/x/c/f"), "../../c/f");
        assert_eq!(seen("/", "/f"), "f");
    }

    #[test]
    fn names_are_plain_and_two_disks_of_one_name_differ() {
        let disk = |uid: u128| PointDisk {
            uid: Uuid::from_u128(uid << 96),
            device: String::new(),
            path: "/x/.we ird/na\\me.img".into(),
            node: Uuid::nil(),
            size: 0,
            blocks: None,
        };
        let (one, other) = (image(&disk(1), Uuid::nil()), image(&disk(2), Uuid::nil()));
        assert!(one.is_ok());
        assert_ne!(one.ok(), other.ok());
    }
}
