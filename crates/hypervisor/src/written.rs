//! Files that QEMU or a tool writes to, made durable by us.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A file that another process writes to. Opened before it does: an error of writing back is told to those who had the file open then.
pub(crate) struct Written {
    path: PathBuf,
    file: File,
}

impl Written {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Makes it durable, on a thread of its own: it takes as long as the storage takes.
    pub(crate) async fn sync(&self) -> Result<()> {
        let failed = |source| Error::io("sync", &self.path, source);
        let file = self.file.try_clone().map_err(failed)?;
        let synced = tokio::task::spawn_blocking(move || file.sync_all()).await;
        synced
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(failed)
    }
}
