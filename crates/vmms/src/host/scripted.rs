//! The service on scripted machines and without a store, for tests of what stands above.

use std::sync::Arc;

use hypervisor::ImageTool;
use hypervisor::fake::FakeHypervisor;
use store::MemoryStore;

use crate::{Dirs, Options, Result, Vmms};

/// A service that starts no process and stores nothing: records are in memory, machines are scripted ones whose layers
/// are real files made by qemu-img. For the tests of front ends and clients; its machines run no guest.
pub async fn in_memory(dirs: Dirs, host: String) -> Result<Arc<Vmms>> {
    let images = ImageTool::default();
    let hypervisor = Arc::new(FakeHypervisor::with_images(images.clone()));
    Vmms::start(
        Arc::new(MemoryStore::new()),
        hypervisor,
        images,
        dirs,
        Options::default(),
        host,
    )
    .await
}
