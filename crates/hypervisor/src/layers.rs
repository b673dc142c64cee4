//! How layers name the layers beneath them.

use std::path::Path;

use crate::block::NewOverlay;
use crate::config::path_text;
use crate::error::Result;

/// What a new layer records as its backing file: what the caller says, else its name as seen from the new file.
pub(crate) fn backing_name(overlay: &NewOverlay, below: &Path) -> Result<String> {
    match &overlay.backing_name {
        Some(name) => Ok(name.clone()),
        None => relative_name(&overlay.overlay_path, below),
    }
}

/// The bare name of a neighbour, so that a directory can move as a whole, else the absolute path.
pub(crate) fn relative_name(from: &Path, to: &Path) -> Result<String> {
    let neighbour = from.parent() == to.parent();
    let Some(name) = to.file_name().filter(|_| neighbour) else {
        return path_text(to).map(str::to_owned);
    };
    let name = path_text(Path::new(name))?;
    // A colon would make QEMU read the part before it as a protocol.
    Ok(if name.contains(':') {
        format!("./{name}")
    } else {
        name.to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_is_named_without_its_directory() {
        let name = |to: &str| relative_name(Path::new("/d/new"), Path::new(to)).unwrap();
        assert_eq!(name("/d/base.qcow2"), "base.qcow2");
        assert_eq!(name("/d/nbd:base"), "./nbd:base");
        assert_eq!(name("/other/base.qcow2"), "/other/base.qcow2");
    }
}
