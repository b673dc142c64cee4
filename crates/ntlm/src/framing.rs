//! Whether the messages of a handshake come in tokens of SPNEGO, and what becomes of them there.

use crate::Refused;
use crate::fields::SIGNATURE;
use crate::spnego::{Init, Response};

/// How the other side packs its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// As they are.
    Bare,
    /// In tokens of SPNEGO.
    Spnego {
        /// The initiator's list of mechanisms.
        list: Vec<u8>,
        /// Whether NTLM is not the initiator's first choice, so that somebody could have taken the better ones away: then both sides
        /// sign the list.
        fallback: bool,
    },
}

/// A token, its message out of its packing.
pub(crate) enum Unpacked {
    Message(Vec<u8>),
    /// The first token of SPNEGO, whose message may be for another mechanism.
    Init(Init),
    Response(Response),
}

pub(crate) fn unpack(token: &[u8]) -> Result<Unpacked, Refused> {
    if token.len() > crate::MAX_TOKEN {
        return Err(Refused::Malformed("a token that is too long"));
    }
    if token.starts_with(SIGNATURE) {
        return Ok(Unpacked::Message(token.to_vec()));
    }
    if Init::is_one(token) {
        return Init::read(token).map(Unpacked::Init);
    }
    if Response::is_one(token) {
        return Response::read(token).map(Unpacked::Response);
    }
    Err(Refused::Mechanism)
}
