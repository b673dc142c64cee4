//! What only the service may read: its state, its users, its keys. Wrong modes are mended and told; what belongs to somebody else is
//! refused.

use std::fs::{DirBuilder, Metadata, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Files and directories that this process and what it starts create are their owner's alone.
pub(crate) fn umask() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

/// A directory only the service may enter, made where it is missing.
pub(crate) fn directory(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot create {}", dir.display()))?;
    // The directory may be reached by a link that the operator made; what it leads to counts.
    let found =
        std::fs::metadata(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    mend(dir, &found, 0o700)
}

/// A file only the service may read, where it is there.
pub(crate) fn file(path: &Path) -> Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("cannot look at {}", path.display())),
    };
    if !found.is_file() {
        bail!(
            "{} is no plain file: put the file itself there",
            path.display()
        );
    }
    mend(path, &found, 0o600)
}

/// A key that the operator keeps, perhaps for other programs too: nobody else may write it, and not everybody read it.
pub(crate) fn key(path: &Path) -> Result<()> {
    let found =
        std::fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    let mode = found.mode() & 0o7777;
    if mode & 0o027 != 0 {
        bail!(
            "{} has mode {mode:04o}, so others may read or change it: run chmod 0640 or 0600 on it",
            path.display()
        );
    }
    owned(path, &found)
}

fn owned(path: &Path, found: &Metadata) -> Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if found.uid() != own && found.uid() != 0 {
        bail!(
            "{} belongs to user {}, and the service runs as {own}: give it to that user with chown",
            path.display(),
            found.uid()
        );
    }
    Ok(())
}

fn mend(path: &Path, found: &Metadata, wanted: u32) -> Result<()> {
    owned(path, found)?;
    // Users of running machines may be on its list: they are no others, and a chmod would shut them out.
    let mode =
        vmms::plain_mode(path).with_context(|| format!("cannot look at {}", path.display()))?;
    let mode = mode & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    std::fs::set_permissions(path, Permissions::from_mode(wanted)).with_context(|| {
        format!(
            "{} has mode {mode:04o}, so others may read it, and that cannot be changed",
            path.display()
        )
    })?;
    tracing::warn!(
        path = %path.display(),
        "others could read this: its mode was {mode:04o} and is {wanted:04o} now; change what may have been read"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("metadata").mode() & 0o7777
    }

    fn set(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("a mode");
    }

    #[test]
    fn wrong_modes_are_mended() {
        let scratch = tempfile::tempdir().expect("a directory");
        let dir = scratch.path().join("state");
        directory(&dir).expect("made");
        assert_eq!(mode(&dir), 0o700);
        set(&dir, 0o755);
        directory(&dir).expect("mended");
        assert_eq!(mode(&dir), 0o700);
        let users = dir.join("users");
        file(&users).expect("none is fine");
        std::fs::write(&users, "x").expect("a file");
        set(&users, 0o644);
        file(&users).expect("mended");
        assert_eq!(mode(&users), 0o600);
        set(&users, 0o400);
        file(&users).expect("stricter is fine");
        assert_eq!(mode(&users), 0o400);
    }

    #[test]
    fn links_foreign_files_and_open_keys_are_refused() {
        let scratch = tempfile::tempdir().expect("a directory");
        let path = scratch.path().join("key");
        std::fs::write(&path, "x").expect("a file");
        for (bits, fine) in [(0o600, true), (0o640, true), (0o644, false), (0o660, false)] {
            set(&path, bits);
            assert_eq!(key(&path).is_ok(), fine, "{bits:o}");
        }
        let link = scratch.path().join("users");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert!(file(&link).is_err());
        if rustix::process::geteuid().is_root() {
            set(&path, 0o600);
            std::os::unix::fs::chown(&path, Some(4321), None).expect("another owner");
            assert!(file(&path).is_err());
            assert!(key(&path).is_err());
        }
    }
}
