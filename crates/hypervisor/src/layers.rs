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

/// How the file `from` names the file `to`: a neighbour by its bare name, so that a directory can move as a whole, else by the
/// absolute path. The bare name begins with `./`, since QEMU would read what stands before a colon as a protocol.
///
/// # Errors
/// [`crate::Error::Config`] where the path is not UTF-8.
pub fn relative_name(from: &Path, to: &Path) -> Result<String> {
    let neighbour = from.parent() == to.parent();
    let Some(name) = to.file_name().filter(|_| neighbour) else {
        return path_text(to).map(str::to_owned);
    };
    Ok(format!("./{}", path_text(Path::new(name))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_is_named_without_its_directory() {
        let name = |to: &str| relative_name(Path::new("/d/new"), Path::new(to)).unwrap();
        assert_eq!(name("/d/base.qcow2"), "./base.qcow2");
        assert_eq!(name("/d/nbd:base"), "./nbd:base");
        assert_eq!(name("/other/base.qcow2"), "/other/base.qcow2");
    }
}
