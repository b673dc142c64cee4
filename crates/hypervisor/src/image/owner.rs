//! Who may read a layer: whoever may read the image beneath it, and nobody else.

use std::fs::{Metadata, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use super::NewImage;
use crate::confine::acl::plain_mode;
use crate::error::{Error, Result};

/// Gives a new overlay the owner and the mode of the image beneath it. What cannot be had of that is left private.
pub(super) fn take_after(image: &NewImage) -> Result<()> {
    let Some((below, _)) = &image.backing else {
        return Ok(());
    };
    let dir = image.path.parent().unwrap_or(Path::new("/"));
    let below = dir.join(below);
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| Error::io(action, &path, source)
    };
    let base = match std::fs::metadata(&below) {
        Ok(found) => found,
        // Whoever opens the layer will say so.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("look at", &below, e)),
    };
    let own = std::fs::symlink_metadata(&image.path).map_err(io("look at", &image.path))?;
    let same = |m: &Metadata| (m.uid(), m.gid());
    let given =
        same(&base) == same(&own) || chown(&image.path, Some(base.uid()), Some(base.gid())).is_ok();
    // A device has the mode of devices.
    let mode = match given && base.is_file() {
        true => plain_mode(&below).map_err(io("look at", &below))? & 0o666,
        false => 0o600,
    };
    std::fs::set_permissions(&image.path, Permissions::from_mode(mode))
        .map_err(io("set the mode of", &image.path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageFormat;

    #[test]
    fn a_layer_is_as_open_as_its_base_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let (base, layer) = (dir.path().join("base"), dir.path().join("layer"));
        let image = NewImage::overlay(&layer, "base", ImageFormat::Raw, 512);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        for (bits, expected) in [
            (0o600, 0o600),
            (0o644, 0o644),
            (0o755, 0o644),
            (0o660, 0o660),
        ] {
            std::fs::write(&base, "x").unwrap();
            std::fs::write(&layer, "x").unwrap();
            std::fs::set_permissions(&base, Permissions::from_mode(bits)).unwrap();
            take_after(&image).unwrap();
            assert_eq!(mode(&layer), expected, "{bits:o}");
        }
        if !rustix::process::geteuid().is_root() {
            return;
        }
        chown(&base, Some(4321), Some(4322)).unwrap();
        take_after(&image).unwrap();
        let found = std::fs::metadata(&layer).unwrap();
        assert_eq!((found.uid(), found.gid()), (4321, 4322));
    }
}
