//! Where exports, images and imports may lie.

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use disk::confined::Dir;

use crate::{Dirs, Fault, Result, Vmms, fault};

/// System directories: nothing of ours belongs there unless the configuration names it.
const SYSTEM: [&str; 15] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/run",
    "/lost+found",
];
/// What lies in them and is meant for users' files.
const OPEN: [&str; 3] = ["/dev/shm", "/run/media", "/run/user"];

/// Below the state directory: where imported disks go by themselves, and where operators may keep images beside the state.
const IMAGES: [&str; 2] = ["disks", "images"];

/// The directories that are configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Where exports may go; none: anywhere but into system directories and the service's own.
    pub exports: Vec<PathBuf>,
    /// Where disk images may lie; none: likewise.
    pub images: Vec<PathBuf>,
    /// Where imports are read from, beside the roots of exports; none: likewise.
    pub imports: Vec<PathBuf>,
    /// Whether directories may be used in which others than root and the service's own user could exchange files.
    pub allow_foreign: bool,
}

/// What a directory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Exports go there.
    Export,
    /// Disk images and media lie there.
    Image,
    /// An export is read there: to import, prove, boot or take it over.
    Import,
}

impl Places {
    /// Whether a path may be used. It is real: absolute and without links, as [`disk::confined::Dir::path`] tells it.
    ///
    /// # Errors
    /// [`crate::Message::OutsideRoots`].
    pub fn check(&self, how: Use, real: &Path, dirs: &Dirs) -> Result<()> {
        let (roots, what, key) = match how {
            Use::Export => (&self.exports, "exports", "export_roots"),
            Use::Image => (&self.images, "images", "image_roots"),
            Use::Import => (&self.imports, "imports", "import_roots"),
        };
        let outside = |why: String| Err(fault!(OutsideRoots, real.display(), what, why));
        // Where the service itself puts images that nobody named a place for.
        let mut state = IMAGES.iter().map(|dir| resolved(&dirs.state).join(dir));
        if how == Use::Image && state.any(|dir| real.starts_with(dir)) {
            return Ok(());
        }
        if !roots.is_empty() {
            // What was exported here is read here.
            let exports = self.exports.iter().filter(|_| how == Use::Import);
            let mut within = roots.iter().chain(exports).map(|root| resolved(root));
            return match within.any(|root| real.starts_with(root)) {
                true => Ok(()),
                false => outside(format!("it is beneath none that {key} names")),
            };
        }
        let open = OPEN.iter().any(|dir| real.starts_with(dir));
        let system = SYSTEM.iter().find(|dir| real.starts_with(dir));
        if let Some(dir) = system.filter(|_| !open) {
            return outside(format!("{dir} is a system directory"));
        }
        if real == Path::new("/") {
            return outside("it is the root of the host".to_owned());
        }
        let own = [&dirs.state, &dirs.run];
        if own.iter().any(|dir| real.starts_with(resolved(dir))) {
            return outside("it is the service's own directory".to_owned());
        }
        Ok(())
    }
}

impl Vmms {
    /// Whether a path that somebody named may be used so. Nothing need be there yet.
    ///
    /// # Errors
    /// [`crate::Message::OutsideRoots`]; what keeps the path from being resolved.
    pub(crate) fn may_use(&self, how: Use, path: &Path) -> Result<()> {
        let places = &self.options.places;
        let real = real(path)?;
        // Disks of the host are handed to guests by their names below /dev.
        if how == Use::Image && places.images.is_empty() && is_device(&real) {
            return Ok(());
        }
        places.check(how, &real, &self.dirs)
    }

    /// Whether new files may be made at a path that somebody named: nor in a directory where others could exchange them.
    ///
    /// # Errors
    /// [`crate::Message::OutsideRoots`], [`crate::Message::PathRefused`]; what keeps the path from being resolved.
    pub(crate) fn may_make(&self, how: Use, path: &Path) -> Result<()> {
        self.may_use(how, path)?;
        if self.options.places.allow_foreign {
            return Ok(());
        }
        let (nearest, _) = Dir::open_nearest(path)?;
        Ok(nearest.check_owner()?)
    }
}

/// Whether it is a device: what is none that holds data is refused as that.
fn is_device(real: &Path) -> bool {
    let kind = real.metadata().map(|m| m.file_type());
    real.starts_with("/dev") && kind.is_ok_and(|k| k.is_block_device() || k.is_char_device())
}

/// A path without links, as far as it is there.
fn real(path: &Path) -> Result<PathBuf> {
    let mut missing = Vec::new();
    let mut at = path;
    loop {
        match at.canonicalize() {
            Ok(mut found) => {
                found.extend(missing.iter().rev());
                return Ok(found);
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(Fault::io("open", path, &e)),
        }
        let (Some(above), Some(name)) = (at.parent(), at.file_name()) else {
            let why = "it leads back out of a directory that is not there";
            return Err(fault!(PathNotUsable, path.display(), why));
        };
        missing.push(name);
        at = above;
    }
}

/// A configured directory without links; whoever configured it is trusted.
fn resolved(dir: &Path) -> PathBuf {
    dir.canonicalize().unwrap_or_else(|_| dir.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Message;

    fn dirs() -> Dirs {
        Dirs {
            state: "/var/lib/kvmms".into(),
            run: "/run/kvmms".into(),
        }
    }

    fn refused(places: &Places, how: Use, path: &str) -> bool {
        match places.check(how, Path::new(path), &dirs()) {
            Ok(()) => false,
            Err(fault) => {
                assert_eq!(fault.message, Message::OutsideRoots);
                true
            }
        }
    }

    #[test]
    fn without_roots_all_but_system_directories_and_our_own_are_fine() {
        let places = Places::default();
        for fine in [
            "/srv/backup",
            "/tmp/x",
            "/home/a/b",
            "/dev/shm/x",
            "/usrdata",
            "/var/lib/vm",
        ] {
            assert!(!refused(&places, Use::Export, fine), "{fine}");
        }
        for not in [
            "/",
            "/etc",
            "/etc/x",
            "/usr/share",
            "/run/kvmms",
            "/var/lib/kvmms/points",
            "/proc/1",
        ] {
            assert!(refused(&places, Use::Export, not), "{not}");
        }
        assert!(!refused(&places, Use::Image, "/var/lib/kvmms/images/a"));
        assert!(!refused(&places, Use::Image, "/var/lib/kvmms/disks/a/b"));
        assert!(refused(&places, Use::Image, "/var/lib/kvmms/disksmith"));
        assert!(refused(&places, Use::Image, "/etc/shadow"));
    }

    #[test]
    fn configured_roots_are_the_only_ones() {
        let places = Places {
            exports: vec!["/srv/backup".into()],
            ..Places::default()
        };
        assert!(!refused(&places, Use::Export, "/srv/backup/today"));
        assert!(refused(&places, Use::Export, "/srv/backups"));
        assert!(refused(&places, Use::Export, "/tmp"));
        assert!(!refused(&places, Use::Import, "/tmp"));
        let places = Places {
            imports: vec!["/srv/incoming".into()],
            ..places
        };
        assert!(!refused(&places, Use::Import, "/srv/incoming/a"));
        assert!(!refused(&places, Use::Import, "/srv/backup/today"));
        assert!(refused(&places, Use::Import, "/tmp"));
        assert!(refused(&places, Use::Export, "/srv/incoming"));
    }

    #[test]
    fn a_path_is_resolved_as_far_as_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        std::fs::create_dir(top.join("a")).unwrap();
        std::os::unix::fs::symlink("/etc", top.join("link")).unwrap();
        assert_eq!(real(&top.join("a/b/c")).unwrap(), top.join("a/b/c"));
        assert_eq!(
            real(&top.join("link/x")).unwrap(),
            Path::new("/etc/x"),
            "a link is where it leads"
        );
        assert_eq!(real(&top.join("a/../b")).unwrap(), top.join("b"));
        assert!(real(&top.join("none/../../x")).is_err());
    }
}
