//! How layers name the layers beneath them.

use std::path::Path;

use crate::block::NewOverlay;
use crate::config::path_text;
use crate::error::Result;

/// What a new layer records as its backing file: what the caller says, else the bare name of a neighbour, so that a
/// directory can move as a whole, else the absolute path.
pub(crate) fn backing_name(overlay: &NewOverlay, below: &Path) -> Result<String> {
    if let Some(name) = &overlay.backing_name {
        return Ok(name.clone());
    }
    let neighbour = overlay.overlay_path.parent() == below.parent();
    let name = below
        .file_name()
        .filter(|_| neighbour)
        .map_or(below, Path::new);
    path_text(name).map(str::to_owned)
}
