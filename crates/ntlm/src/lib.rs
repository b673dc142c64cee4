//! NTLMv2 (MS-NLMP) within SPNEGO (RFC 4178, MS-SPNG) or by itself: both ends of the handshake, and messages signed and sealed
//! with the keys it leaves.
//!
//! # Model
//! Nothing here does I/O or knows a clock or a source of random numbers: the caller hands in bytes, the time and fresh random
//! values. [`Acceptor`] is the side that asks for a proof. It ends in a [`Claim`]: somebody says who they are, with a proof nobody has
//! looked at yet. Only [`Claim::prove`] with the [`NtHash`] of that user makes a [`Session`] of it, so there is no way to a session
//! that passes by the password. [`Initiator`] is the side that proves.
//!
//! # What is refused
//! Everything but NTLMv2 with extended session security in Unicode: no LM, no NTLMv1, nobody anonymous. A message integrity code
//! is checked whenever it was promised under the proof, and channel bindings whenever they were sent.
//!
//! # Errors
//! One [`Refused`]. What is told to the other side is for the caller to say, and should be the same for all of them.

mod acceptor;
mod av;
mod binding;
mod der;
mod fields;
mod framing;
pub mod fuzz;
mod initiator;
mod message;
mod primitives;
mod proof;
mod session;
mod spnego;

pub use acceptor::{Acceptor, Claim, Fresh, Names, Proved, Step};
pub use binding::ChannelBinding;
pub use initiator::{Finish, Initiator, Login, Random};
pub use primitives::NtHash;
pub use session::Session;

/// The longest token that is looked at, in bytes. A Kerberos ticket nobody here can use may come along in the first one.
pub const MAX_TOKEN: usize = 48 * 1024;

/// Why a handshake or a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is not what it should be.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// It comes at the wrong time: this step was not asked for.
    #[error("out of turn: {0}")]
    OutOfTurn(&'static str),
    /// The other side does not offer something without which there is no security.
    #[error("the other side does not offer {0}")]
    Missing(&'static str),
    /// The other side offers only mechanisms that are not spoken here.
    #[error("no mechanism in common")]
    Mechanism,
    /// Nobody says who they are.
    #[error("anonymous")]
    Anonymous,
    /// An answer of LM or NTLMv1.
    #[error("not NTLMv2")]
    Version,
    /// The proof was made with another password, for another challenge, or without any.
    #[error("the proof is wrong")]
    Proof,
    /// The handshake's messages were changed on their way.
    #[error("the integrity code is wrong")]
    Integrity,
    /// The handshake was meant for another TLS connection.
    #[error("the channel binding is of another connection")]
    Binding,
    /// A message is not what the other side signed, or not the next one.
    #[error("the signature is wrong")]
    Signature,
}
