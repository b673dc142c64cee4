//! Messages signed and sealed with the keys of a handshake (MS-NLMP 3.4), each direction with its own and counted.

use hmac::Mac as _;
use rc4::{Rc4, StreamCipher as _};

use crate::Refused;
use crate::message::flag;
use crate::primitives::{Key, hmac, hmac_md5, md5, rc4};

/// The length of a signature.
pub(crate) const SIGNATURE: usize = 16;

/// One direction.
struct Way {
    sign: Key,
    seal: Key,
    stream: Rc4,
    next: u32,
    /// Whether the sum goes through the stream, too.
    covered: bool,
}

impl Way {
    fn new(session_key: &Key, from_initiator: bool, covered: bool) -> Result<Self, Refused> {
        let key = |what: &str| {
            let way = match from_initiator {
                true => "client-to-server",
                false => "server-to-client",
            };
            let text = format!("session key to {way} {what} key magic constant\0");
            md5(&[session_key, text.as_bytes()])
        };
        let seal = key("sealing");
        Ok(Way {
            sign: key("signing"),
            seal,
            stream: rc4(&seal)?,
            next: 0,
            covered,
        })
    }

    fn sign(&mut self, message: &[u8]) -> Result<[u8; SIGNATURE], Refused> {
        let number = self.next.to_le_bytes();
        self.next = self.next.checked_add(1).ok_or(Refused::Signature)?;
        let sum = hmac_md5(&self.sign, &[&number, message])?;
        let mut signature = [0; SIGNATURE];
        signature[0] = 1;
        signature[4..12].copy_from_slice(&sum[..8]);
        if self.covered {
            self.stream.apply_keystream(&mut signature[4..12]);
        }
        signature[12..].copy_from_slice(&number);
        Ok(signature)
    }

    fn check(&mut self, message: &[u8], signature: &[u8]) -> Result<(), Refused> {
        let signature: &[u8; SIGNATURE] = signature.try_into().map_err(|_| Refused::Signature)?;
        let number = self.next.to_le_bytes();
        self.next = self.next.checked_add(1).ok_or(Refused::Signature)?;
        let (version, rest) = signature.split_at(4);
        let (sum, told) = rest.split_at(8);
        let mut sum = sum.to_vec();
        if self.covered {
            self.stream.apply_keystream(&mut sum);
        }
        let right = hmac(&self.sign, &[&number, message])?
            .verify_truncated_left(&sum)
            .is_ok();
        if right && version == [1, 0, 0, 0] && told == number {
            Ok(())
        } else {
            Err(Refused::Signature)
        }
    }

    fn rewind(&mut self) -> Result<(), Refused> {
        self.stream = rc4(&self.seal)?;
        Ok(())
    }
}

/// The keys both sides have after a handshake. Messages have to be taken in the order in which they were sent.
pub struct Session {
    out: Way,
    back: Way,
    signs: bool,
    seals: bool,
    broken: bool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("seals", &self.seals)
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(session_key: &Key, flags: u32, initiator: bool) -> Result<Self, Refused> {
        let strong = flag::SEAL | flag::KEY_128 | flag::KEY_EXCHANGE;
        let covered = flags & flag::KEY_EXCHANGE != 0;
        Ok(Session {
            out: Way::new(session_key, initiator, covered)?,
            back: Way::new(session_key, !initiator, covered)?,
            // Shorter keys than these are not made here, so there is nothing to sign or seal with.
            signs: flags & (flag::SIGN | flag::SEAL) != 0 && flags & flag::KEY_128 != 0,
            seals: flags & strong == strong,
            broken: false,
        })
    }

    /// Whether both sides agreed to seal, with full keys made for this session only.
    pub fn can_seal(&self) -> bool {
        self.seals
    }

    pub(crate) fn can_sign(&self) -> bool {
        self.signs
    }

    /// Seals a message; the signature goes before or beside it.
    pub fn seal(&mut self, message: &[u8]) -> Result<([u8; SIGNATURE], Vec<u8>), Refused> {
        if !self.seals {
            return Err(Refused::Missing("sealing"));
        }
        let mut sealed = message.to_vec();
        self.out.stream.apply_keystream(&mut sealed);
        Ok((self.out.sign(message)?, sealed))
    }

    /// Opens the next message. After one that was wrong nothing more can be opened: nobody knows where the other side's stream is.
    pub fn open(&mut self, signature: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Refused> {
        if !self.seals {
            return Err(Refused::Missing("sealing"));
        }
        if self.broken {
            return Err(Refused::Signature);
        }
        let mut message = sealed.to_vec();
        self.back.stream.apply_keystream(&mut message);
        let checked = self.back.check(&message, signature);
        self.broken = checked.is_err();
        checked.map(|()| message)
    }

    /// Signs the list of mechanisms of SPNEGO. The stream begins anew behind it, the count goes on (MS-SPNG 3.3.5.1).
    pub(crate) fn sign_list(&mut self, list: &[u8]) -> Result<[u8; SIGNATURE], Refused> {
        let signature = self.out.sign(list)?;
        self.out.rewind()?;
        Ok(signature)
    }

    /// Checks the other side's.
    pub(crate) fn check_list(&mut self, list: &[u8], signature: &[u8]) -> Result<(), Refused> {
        self.back
            .check(list, signature)
            .map_err(|_| Refused::Integrity)?;
        self.back.rewind()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primitives::utf16;
    use proptest::prelude::*;

    const FLAGS: u32 =
        flag::SIGN | flag::SEAL | flag::KEY_128 | flag::KEY_EXCHANGE | flag::EXTENDED;

    fn pair() -> (Session, Session) {
        let made = |initiator| Session::new(&[0x55; 16], FLAGS, initiator).expect("a session");
        (made(true), made(false))
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_sealed_message_is_the_documented_one() {
        // MS-NLMP 4.2.4.4
        let (mut ours, _) = pair();
        assert_eq!(hex(&ours.out.sign), "4788dc861b4782f35d43fd98fe1a2d39");
        assert_eq!(hex(&ours.out.seal), "59f600973cc4960a25480a7c196e4c58");
        let (signature, sealed) = ours.seal(&utf16("Plaintext")).expect("sealed");
        assert_eq!(hex(&sealed), "54e50165bf1936dc996020c1811b0f06fb5f");
        assert_eq!(hex(&signature), "010000007fb38ec5c55d497600000000");
    }

    proptest! {
        #[test]
        fn messages_go_both_ways_in_order(messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 1..8)) {
            let (mut ours, mut theirs) = pair();
            for message in &messages {
                let (signature, sealed) = ours.seal(message).expect("sealed");
                prop_assert_eq!(&theirs.open(&signature, &sealed).expect("opened"), message);
                let (signature, sealed) = theirs.seal(message).expect("sealed");
                prop_assert_eq!(&ours.open(&signature, &sealed).expect("opened"), message);
            }
        }

        #[test]
        fn a_changed_message_or_signature_is_refused_and_ends_the_session(bit in 0usize..(16 + 40) * 8) {
            let (mut ours, mut theirs) = pair();
            let (signature, sealed) = ours.seal(&[7; 40]).expect("sealed");
            let mut whole = [signature.as_slice(), &sealed].concat();
            whole[bit / 8] ^= 1 << (bit % 8);
            let (signature, sealed) = whole.split_at(16);
            prop_assert_eq!(theirs.open(signature, sealed), Err(Refused::Signature));
            let (signature, sealed) = ours.seal(b"next").expect("sealed");
            prop_assert_eq!(theirs.open(&signature, &sealed), Err(Refused::Signature));
        }
    }

    #[test]
    fn a_message_sent_twice_left_out_or_sent_back_is_refused() {
        let (mut ours, mut theirs) = pair();
        let (first, body) = ours.seal(b"first").expect("sealed");
        assert!(theirs.open(&first, &body).is_ok());
        assert!(theirs.open(&first, &body).is_err(), "twice");
        let (mut ours, mut theirs) = pair();
        let _ = ours.seal(b"first").expect("sealed");
        let (second, body) = ours.seal(b"second").expect("sealed");
        assert!(theirs.open(&second, &body).is_err(), "left out");
        let (mut ours, _) = pair();
        let (first, body) = ours.seal(b"first").expect("sealed");
        assert!(ours.open(&first, &body).is_err(), "sent back");
    }

    #[test]
    fn without_full_keys_of_its_own_a_session_seals_nothing() {
        for missing in [flag::SEAL, flag::KEY_128, flag::KEY_EXCHANGE] {
            let mut session = Session::new(&[1; 16], FLAGS & !missing, true).expect("a session");
            assert!(!session.can_seal());
            assert!(session.seal(b"x").is_err() && session.open(&[0; 16], b"x").is_err());
        }
    }

    #[test]
    fn the_stream_begins_anew_behind_the_list_of_mechanisms() {
        let (mut ours, mut theirs) = pair();
        let signature = ours.sign_list(b"list").expect("signed");
        theirs.check_list(b"list", &signature).expect("checked");
        let (signature, sealed) = ours.seal(b"x").expect("sealed");
        assert_eq!(signature[12], 1, "it was the first message");
        assert_eq!(theirs.open(&signature, &sealed), Ok(b"x".to_vec()));
        assert_eq!(ours.check_list(b"list", &[0; 16]), Err(Refused::Integrity));
    }
}
