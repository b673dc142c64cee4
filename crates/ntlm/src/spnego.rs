//! The tokens of SPNEGO (RFC 4178, and what MS-SPNG makes of them).

use crate::Refused;
use crate::der::{ENUMERATED, OCTETS, OID, Reader, SEQUENCE, element, only};

/// `1.3.6.1.5.5.2`.
const SPNEGO: &[u8] = b"\x2b\x06\x01\x05\x05\x02";
/// `1.3.6.1.4.1.311.2.2.10`.
const NTLM: &[u8] = b"\x2b\x06\x01\x04\x01\x82\x37\x02\x02\x0a";

/// More mechanisms than anybody has.
const MOST: usize = 16;

/// How far the acceptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Completed = 0,
    Incomplete = 1,
    Rejected = 2,
    WantsIntegrity = 3,
}

/// The first token, of the initiator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Init {
    /// The list of mechanisms as it came, for its signature.
    pub(crate) list: Vec<u8>,
    /// Where NTLM stands in it.
    pub(crate) ntlm: Option<usize>,
    /// Made for the first mechanism of the list.
    pub(crate) token: Option<Vec<u8>>,
}

/// Every other token, of both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) state: Option<State>,
    /// Whether NTLM is what was chosen; `None` where nothing is told.
    pub(crate) is_ntlm: Option<bool>,
    pub(crate) token: Option<Vec<u8>>,
    pub(crate) mic: Option<Vec<u8>>,
}

/// The one mechanism spoken here, as a list.
pub(crate) fn our_list() -> Vec<u8> {
    element(SEQUENCE, &[&element(OID, &[NTLM])])
}

impl Init {
    /// Whether a token begins as this one does.
    pub(crate) fn is_one(bytes: &[u8]) -> bool {
        bytes.first() == Some(&0x60)
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Refused> {
        let mut outer = Reader::new(only(bytes, 0x60)?);
        if outer.expect(OID)? != SPNEGO {
            return Err(Refused::Mechanism);
        }
        let mut fields = Reader::new(only(outer.expect(0xa0)?, SEQUENCE)?);
        let mut init = Init::default();
        while !fields.is_empty() {
            match fields.next()? {
                (0xa0, content) => {
                    let mut mechanisms = Reader::new(only(content, SEQUENCE)?);
                    let mut at = 0;
                    while !mechanisms.is_empty() {
                        if mechanisms.expect(OID)? == NTLM && init.ntlm.is_none() {
                            init.ntlm = Some(at);
                        }
                        at += 1;
                        if at > MOST {
                            return Err(Refused::Malformed("too many mechanisms"));
                        }
                    }
                    init.list = content.to_vec();
                }
                (0xa2, content) => init.token = Some(only(content, OCTETS)?.to_vec()),
                // Flags nobody uses, and a signature that nobody can make yet.
                (0xa1 | 0xa3 | 0xa4, _) => {}
                _ => return Err(Refused::Malformed("an unknown field of SPNEGO")),
            }
        }
        Ok(init)
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let token = self.token.as_ref().map_or_else(Vec::new, |token| {
            element(0xa2, &[&element(OCTETS, &[token])])
        });
        let fields = element(SEQUENCE, &[&element(0xa0, &[&self.list]), &token]);
        element(
            0x60,
            &[&element(OID, &[SPNEGO]), &element(0xa0, &[&fields])],
        )
    }
}

impl Response {
    /// Whether a token begins as these do.
    pub(crate) fn is_one(bytes: &[u8]) -> bool {
        bytes.first() == Some(&0xa1)
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Refused> {
        let mut fields = Reader::new(only(only(bytes, 0xa1)?, SEQUENCE)?);
        let mut response = Response::default();
        while !fields.is_empty() {
            match fields.next()? {
                (0xa0, content) => {
                    response.state = Some(match only(content, ENUMERATED)? {
                        [0] => State::Completed,
                        [1] => State::Incomplete,
                        [2] => State::Rejected,
                        [3] => State::WantsIntegrity,
                        _ => return Err(Refused::Malformed("an unknown state of SPNEGO")),
                    });
                }
                (0xa1, content) => response.is_ntlm = Some(only(content, OID)? == NTLM),
                (0xa2, content) => response.token = Some(only(content, OCTETS)?.to_vec()),
                (0xa3, content) => response.mic = Some(only(content, OCTETS)?.to_vec()),
                _ => return Err(Refused::Malformed("an unknown field of SPNEGO")),
            }
        }
        // Some repeat the token in the place of the signature.
        if response.token.is_some() && response.mic == response.token {
            response.mic = None;
        }
        Ok(response)
    }

    /// What says which mechanism was chosen says NTLM: there is no other.
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut fields = Vec::new();
        if let Some(state) = self.state {
            fields.extend(element(0xa0, &[&element(ENUMERATED, &[&[state as u8]])]));
        }
        if self.is_ntlm == Some(true) {
            fields.extend(element(0xa1, &[&element(OID, &[NTLM])]));
        }
        if let Some(token) = &self.token {
            fields.extend(element(0xa2, &[&element(OCTETS, &[token])]));
        }
        if let Some(mic) = &self.mic {
            fields.extend(element(0xa3, &[&element(OCTETS, &[mic])]));
        }
        element(0xa1, &[&element(SEQUENCE, &[&fields])])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KERBEROS: &[u8] = b"\x2a\x86\x48\x86\xf7\x12\x01\x02\x02";

    proptest! {
        #[test]
        fn tokens_survive(token in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..400)),
                          state in 0u8..4, named in any::<bool>(), signed in any::<bool>()) {
            let init = Init { list: our_list(), ntlm: Some(0), token: token.clone() };
            prop_assert_eq!(Init::read(&init.write()), Ok(init));
            let state = [State::Completed, State::Incomplete, State::Rejected, State::WantsIntegrity][usize::from(state)];
            let given = Response {
                state: Some(state), is_ntlm: named.then_some(true), token, mic: signed.then(|| vec![9; 16]),
            };
            prop_assert_eq!(Response::read(&given.write()), Ok(given));
        }

        #[test]
        fn any_bytes_are_a_token_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            bytes[0] = 0x60;
            let _ = Init::read(&bytes);
            bytes[0] = 0xa1;
            let _ = Response::read(&bytes);
        }
    }

    #[test]
    fn ntlm_is_found_behind_other_mechanisms() {
        let list = element(
            SEQUENCE,
            &[&element(OID, &[KERBEROS]), &element(OID, &[NTLM])],
        );
        let init = Init {
            list,
            ntlm: Some(1),
            token: Some(b"a ticket".to_vec()),
        };
        assert_eq!(Init::read(&init.write()), Ok(init));
        let alone = Init {
            list: element(SEQUENCE, &[&element(OID, &[KERBEROS])]),
            ..Init::default()
        };
        assert_eq!(Init::read(&alone.write()), Ok(alone));
    }
}
