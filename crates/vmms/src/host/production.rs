//! The service on the embedded store and on QEMU: what a host runs.

use std::path::Path;
use std::sync::Arc;

use hypervisor::{ImageTool, QemuHypervisor};
use store::{Copies, SqliteOptions, SqliteStore, Store};

use crate::{Dirs, Fault, Options, Result, Vmms, fault};

/// Opens the embedded store at `path`, or makes it; copies of it are made as told.
pub async fn open_store(path: &Path, copies: Option<Copies>) -> Result<Arc<dyn Store>> {
    let path = path.to_owned();
    let options = SqliteOptions {
        copies,
        ..SqliteOptions::default()
    };
    let opened = tokio::task::spawn_blocking(move || SqliteStore::open(path, options)).await;
    let store = opened
        .map_err(|e| fault!(Internal, e))?
        .map_err(Fault::from)?;
    Ok(Arc::new(store))
}

/// Starts the service with QEMU and qemu-img as found on the path.
pub async fn start_qemu(
    store: Arc<dyn Store>,
    dirs: Dirs,
    mut options: Options,
    host: String,
) -> Result<Arc<Vmms>> {
    options.confinement = crate::machine::effective(options.confinement).await?;
    let hypervisor = Arc::new(QemuHypervisor::default());
    Vmms::start(store, hypervisor, ImageTool::default(), dirs, options, host).await
}
