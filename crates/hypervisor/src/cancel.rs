//! Asking something that takes long to stop.

use tokio::sync::watch;

/// A wish to stop: asked for once, seen by whoever does the work.
#[derive(Debug)]
pub(crate) struct Cancel(watch::Sender<bool>);

impl Cancel {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    pub(crate) fn ask(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn is_asked(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is asked for.
    pub(crate) async fn asked(&self) {
        let mut receiver = self.0.subscribe();
        // The sender lives in `self`, so this cannot end with "closed".
        let _ = receiver.wait_for(|asked| *asked).await;
    }
}
