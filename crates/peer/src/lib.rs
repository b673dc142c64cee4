//! The link between two hosts that trust each other.
//!
//! ```text
//!  dial ── TLS 1.3, both sides prove their certificate ── Wire      messages, then perhaps a raw stream
//!  Listener ── the same ── is the fingerprint trusted? ── Wire      of which the service makes what it serves
//! ```
//!
//! **Trust** is a list of fingerprints ([`Fingerprint`], SHA-256 of the whole certificate), one of each host. No authority, no name and no
//! date counts: whoever has the key of a pinned certificate is that host. A stranger is told that it is one, and nothing
//! of what it says is read.
//!
//! **Messages** are JSON with the length before it ([`frame`]), bounded before memory is taken. Each direction of a link is one
//! sequence; who speaks when is the protocol's of the service.
//!
//! **Errors** say which side is at fault ([`Error`]): unreachable, silent, a stranger to us, or one that takes us for a stranger.
//!
//! **Limits**: connections at a time, and time for the handshake. Everything else is the service's own deadline.

mod dial;
mod error;
pub mod frame;
mod identity;
mod listener;
mod tls;
mod wire;

pub use dial::{dial, look_at};
pub use error::{Error, Result};
pub use identity::{Fingerprint, Identity, NotAFingerprint};
pub use listener::{Listener, Serve};
pub use wire::{Stream, Wire};

/// The version of what is said before anything else.
pub(crate) const VERSION: u8 = 1;
