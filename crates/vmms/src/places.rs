//! Where exports, images and imports may lie.

use std::path::{Path, PathBuf};

use crate::{Dirs, Result, fault};

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

/// The directories that are configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Where exports may go; none: anywhere but into system directories and the service's own.
    pub exports: Vec<PathBuf>,
    /// Where disk images may lie; none: likewise.
    pub images: Vec<PathBuf>,
    /// Where imports are read from; none: likewise.
    pub imports: Vec<PathBuf>,
    /// Whether directories may be used in which others than root and the service's own user could exchange files.
    pub allow_foreign: bool,
}

/// What a directory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Exports go there.
    Export,
    /// Disk images lie there.
    Image,
    /// An import is read there.
    Import,
}

impl Places {
    /// Whether a path may be used. It is real: absolute and without links, as [`disk::confined::Dir::path`] tells it.
    pub fn check(&self, how: Use, real: &Path, dirs: &Dirs) -> Result<()> {
        let (roots, what, key) = match how {
            Use::Export => (&self.exports, "exports", "export_roots"),
            Use::Image => (&self.images, "images", "image_roots"),
            Use::Import => (&self.imports, "imports", "import_roots"),
        };
        let outside = |why: String| Err(fault!(OutsideRoots, real.display(), what, why));
        if !roots.is_empty() {
            let mut within = roots.iter().map(|root| resolved(root));
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
        // Its images may lie beside the state, in a directory of their own.
        let own = [&dirs.state, &dirs.run];
        let images = resolved(&dirs.state).join("images");
        let ours = own.iter().any(|dir| real.starts_with(resolved(dir)));
        if ours && !(how == Use::Image && real.starts_with(images)) {
            return outside("it is the service's own directory".to_owned());
        }
        Ok(())
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
    }
}
