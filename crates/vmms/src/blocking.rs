//! Work that blocks, off the asynchronous threads.

use crate::{Result, fault};

/// Runs blocking work on a thread made for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Only a runtime that ends takes back what it was given. Who waits ends with it, and tells no client and no other host of a failure.
        Err(error) if error.is_cancelled() => std::future::pending().await,
        Err(error) => Err(fault!(Internal, error)),
    }
}
