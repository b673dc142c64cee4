//! The three messages.

use crate::Refused;
use crate::av::AvPairs;
use crate::fields::{Builder, SIGNATURE, array, place, pointed, text, u32_at};

/// The flags of messages.
pub(crate) mod flag {
    pub(crate) const UNICODE: u32 = 1;
    pub(crate) const REQUEST_TARGET: u32 = 1 << 2;
    pub(crate) const SIGN: u32 = 1 << 4;
    pub(crate) const SEAL: u32 = 1 << 5;
    pub(crate) const NTLM: u32 = 1 << 9;
    pub(crate) const ANONYMOUS: u32 = 1 << 11;
    pub(crate) const ALWAYS_SIGN: u32 = 1 << 15;
    pub(crate) const TARGET_IS_SERVER: u32 = 1 << 17;
    pub(crate) const EXTENDED: u32 = 1 << 19;
    pub(crate) const TARGET_INFO: u32 = 1 << 23;
    pub(crate) const VERSION: u32 = 1 << 25;
    pub(crate) const KEY_128: u32 = 1 << 29;
    pub(crate) const KEY_EXCHANGE: u32 = 1 << 30;
    pub(crate) const KEY_56: u32 = 1 << 31;
}

/// The longest of a handshake's messages. Names and the attributes of both sides fit many times over.
pub(crate) const MAX_MESSAGE: usize = 8 * 1024;

/// The version told where one is asked for; it means nothing but the layout of the messages (`NTLMSSP_REVISION_W2K3`).
const VERSION: [u8; 8] = [10, 0, 0, 0, 0, 0, 0, 15];

/// The kind of a message that is one at all.
fn kind(bytes: &[u8]) -> Result<u32, Refused> {
    if bytes.len() > MAX_MESSAGE {
        return Err(Refused::Malformed("a message that is too long"));
    }
    if !bytes.starts_with(SIGNATURE) {
        return Err(Refused::Malformed("no message of NTLM"));
    }
    u32_at(bytes, 8)
}

fn expect(bytes: &[u8], wanted: u32) -> Result<(), Refused> {
    match kind(bytes)? {
        found if found == wanted => Ok(()),
        1..=3 => Err(Refused::OutOfTurn("another message was expected")),
        _ => Err(Refused::Malformed("no kind of message")),
    }
}

/// What the initiator offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Negotiate {
    pub(crate) flags: u32,
}

impl Negotiate {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Refused> {
        expect(bytes, 1)?;
        // Names of domain and workstation may follow: nobody asks for them.
        Ok(Negotiate {
            flags: u32_at(bytes, 12)?,
        })
    }

    pub(crate) fn write(self) -> Result<Vec<u8>, Refused> {
        let built = Builder::new(1, 40).fixed(&self.flags.to_le_bytes());
        Ok(built.piece(&[])?.piece(&[])?.fixed(&VERSION).build())
    }
}

/// What the acceptor takes of the offer, and its challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) flags: u32,
    pub(crate) challenge: [u8; 8],
    pub(crate) target: String,
    pub(crate) info: AvPairs,
}

impl Challenge {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Refused> {
        expect(bytes, 2)?;
        let flags = u32_at(bytes, 20)?;
        let target = match flags & flag::UNICODE {
            0 => return Err(Refused::Missing("Unicode")),
            _ => text(pointed(bytes, 12, 32)?)?,
        };
        let info = match flags & flag::TARGET_INFO {
            0 => AvPairs::default(),
            _ => AvPairs::read(pointed(bytes, 40, 48)?)?,
        };
        Ok(Challenge {
            flags,
            challenge: array(bytes, 24)?,
            target,
            info,
        })
    }

    pub(crate) fn write(&self) -> Result<Vec<u8>, Refused> {
        let target = crate::primitives::utf16(&self.target);
        let built = Builder::new(2, 56)
            .piece(&target)?
            .fixed(&self.flags.to_le_bytes())
            .fixed(&self.challenge)
            .fixed(&[0; 8])
            .piece(&self.info.write()?)?;
        Ok(match self.flags & flag::VERSION {
            0 => built.build(),
            _ => built.fixed(&VERSION).build(),
        })
    }
}

/// Who the initiator is, and its proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authenticate {
    pub(crate) flags: u32,
    pub(crate) domain: String,
    pub(crate) user: String,
    pub(crate) workstation: String,
    pub(crate) lm: Vec<u8>,
    pub(crate) nt: Vec<u8>,
    pub(crate) session_key: Vec<u8>,
    /// Whether the pieces leave room for the integrity code; older clients have none.
    pub(crate) mic: Option<[u8; 16]>,
}

/// Where the integrity code stands, and what follows it.
pub(crate) const MIC: std::ops::Range<usize> = 72..88;

impl Authenticate {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Refused> {
        expect(bytes, 3)?;
        let flags = u32_at(bytes, 60)?;
        if flags & flag::UNICODE == 0 {
            return Err(Refused::Missing("Unicode"));
        }
        let mut first = usize::MAX;
        let mut piece = |at| -> Result<&[u8], Refused> {
            let place = place(bytes, at, 64)?;
            if !place.is_empty() {
                first = first.min(place.start);
            }
            Ok(bytes.get(place).unwrap_or_default())
        };
        let (lm, nt, key) = (piece(12)?, piece(20)?, piece(52)?);
        let (domain, user, workstation) = (piece(28)?, piece(36)?, piece(44)?);
        let mic = match first >= MIC.end {
            true => array(bytes, MIC.start).ok(),
            false => None,
        };
        Ok(Authenticate {
            flags,
            domain: text(domain)?,
            user: text(user)?,
            workstation: text(workstation)?,
            lm: lm.to_vec(),
            nt: nt.to_vec(),
            session_key: key.to_vec(),
            mic,
        })
    }

    /// With room for the integrity code, which is zero.
    pub(crate) fn write(&self) -> Result<Vec<u8>, Refused> {
        let utf16 = crate::primitives::utf16;
        let built = Builder::new(3, MIC.end)
            .piece(&self.lm)?
            .piece(&self.nt)?
            .piece(&utf16(&self.domain))?
            .piece(&utf16(&self.user))?
            .piece(&utf16(&self.workstation))?
            .piece(&self.session_key)?
            .fixed(&self.flags.to_le_bytes())
            .fixed(&VERSION)
            .fixed(&self.mic.unwrap_or_default());
        Ok(built.build())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_survive_writing_and_reading(
            flags in any::<u32>(), challenge in any::<[u8; 8]>(), target in "\\PC{0,20}",
            user in "\\PC{0,20}", domain in "\\PC{0,20}", nt in proptest::collection::vec(any::<u8>(), 0..200),
            pairs in proptest::collection::btree_map(1u16..12, proptest::collection::vec(any::<u8>(), 0..40), 0..8),
        ) {
            let offer = Negotiate { flags };
            prop_assert_eq!(Negotiate::read(&offer.write().expect("written")), Ok(offer));
            let flags = flags | flag::UNICODE | flag::TARGET_INFO;
            let given = Challenge { flags, challenge, target, info: AvPairs(pairs.into_iter().collect()) };
            prop_assert_eq!(Challenge::read(&given.write().expect("written")), Ok(given));
            let given = Authenticate {
                flags, domain, user, workstation: String::new(), lm: Vec::new(), nt, session_key: vec![1; 16], mic: Some([7; 16]),
            };
            prop_assert_eq!(Authenticate::read(&given.write().expect("written")), Ok(given));
        }

        #[test]
        fn any_bytes_are_a_message_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 1u8..4) {
            let fixed = [SIGNATURE.as_slice(), &[kind, 0, 0, 0]].concat();
            let at = fixed.len().min(bytes.len());
            bytes.splice(..at, fixed);
            let _ = (Negotiate::read(&bytes), Challenge::read(&bytes), Authenticate::read(&bytes));
        }
    }

    #[test]
    fn a_message_in_another_place_is_out_of_turn_and_rubbish_is_malformed() {
        let offer = Negotiate { flags: 1 }.write().expect("written");
        assert!(matches!(
            Authenticate::read(&offer),
            Err(Refused::OutOfTurn(_))
        ));
        for rubbish in [
            b"".as_slice(),
            b"NTLMSSP\0",
            b"NTLMSSP\0\x09\0\0\0",
            b"NTLMSSQ\0\x01\0\0\0\0\0\0\0",
        ] {
            assert!(matches!(
                Negotiate::read(rubbish),
                Err(Refused::Malformed(_))
            ));
        }
        let long = [SIGNATURE.as_slice(), &[1; MAX_MESSAGE]].concat();
        assert!(matches!(Negotiate::read(&long), Err(Refused::Malformed(_))));
    }
}
