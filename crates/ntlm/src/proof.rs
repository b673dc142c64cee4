//! The answer of NTLMv2 to a challenge, made and checked (MS-NLMP 3.3.2).

use hmac::Mac as _;

use crate::av::AvPairs;
use crate::fields::array;
use crate::primitives::{Key, hmac, hmac_md5, utf16};
use crate::{NtHash, Refused};

/// What stands before the attributes in the part of an answer that is not the proof.
const BEFORE: usize = 28;

/// The key of one user of one domain. Which domain is the client's to say: the key is only as it says.
pub(crate) fn response_key(hash: &NtHash, upper: &str, domain: &str) -> Result<Key, Refused> {
    hmac_md5(&hash.0, &[&utf16(upper), &utf16(domain)])
}

/// The name in capitals, as Windows makes them (character by character) and as others do (the whole word, which differs for some
/// letters).
pub(crate) fn capitals(user: &str) -> (String, String) {
    let one = |c: char| {
        let mut upper = c.to_uppercase();
        match (upper.next(), upper.next()) {
            (Some(single), None) => single,
            _ => c,
        }
    };
    (user.chars().map(one).collect(), user.to_uppercase())
}

/// An answer in its two parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// The proof.
    pub(crate) proof: Key,
    /// What it is about, besides the challenge: time, the client's challenge, attributes.
    pub(crate) about: Vec<u8>,
    pub(crate) info: AvPairs,
}

impl Response {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Refused> {
        // LM and NTLMv1 have 24 bytes, one without a password none or one.
        if bytes.len() <= 24 {
            return Err(Refused::Version);
        }
        let proof = array(bytes, 0)?;
        let about = bytes.get(16..).unwrap_or_default();
        if !about.starts_with(&[1, 1]) {
            return Err(Refused::Version);
        }
        let info = AvPairs::read(
            about
                .get(BEFORE..)
                .ok_or(Refused::Malformed("an answer that is too short"))?,
        )?;
        Ok(Response {
            proof,
            about: about.to_vec(),
            info,
        })
    }

    /// The answer to a challenge.
    pub(crate) fn make(
        key: &Key,
        challenge: &[u8; 8],
        time: u64,
        own: &[u8; 8],
        info: AvPairs,
    ) -> Result<Self, Refused> {
        let mut about = vec![1, 1, 0, 0, 0, 0, 0, 0];
        about.extend(time.to_le_bytes());
        about.extend(own);
        about.extend([0; 4]);
        about.extend(info.write()?);
        about.extend([0; 4]);
        let proof = hmac_md5(key, &[challenge, &about])?;
        Ok(Response { proof, about, info })
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        [self.proof.as_slice(), &self.about].concat()
    }

    /// The session's base key, if the proof was made with this key for this challenge. Takes the same time whatever is wrong.
    pub(crate) fn check(&self, key: &Key, challenge: &[u8; 8]) -> Result<Key, Refused> {
        hmac(key, &[challenge, &self.about])?
            .verify_slice(&self.proof)
            .map_err(|_| Refused::Proof)?;
        self.base_key(key)
    }

    pub(crate) fn base_key(&self, key: &Key) -> Result<Key, Refused> {
        hmac_md5(key, &[&self.proof])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::av::{NB_COMPUTER, NB_DOMAIN};

    /// MS-NLMP 4.2.4.
    fn documented() -> (Key, Response) {
        let key = response_key(&NtHash::of("Password"), "USER", "Domain").expect("key");
        let info = AvPairs(vec![
            (NB_DOMAIN, utf16("Domain")),
            (NB_COMPUTER, utf16("Server")),
        ]);
        let challenge = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];
        let made = Response::make(&key, &challenge, 0, &[0xaa; 8], info).expect("made");
        (key, made)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn keys_and_proof_are_the_documented_ones() {
        let (key, made) = documented();
        assert_eq!(hex(&key), "0c868a403bfd7a93a3001ef22ef02e3f");
        assert_eq!(hex(&made.proof), "68cd0ab851e51c96aabc927bebef6a1c");
        assert_eq!(
            hex(&made.base_key(&key).expect("key")),
            "8de40ccadbc14a82f15cb0ad0de95ca3"
        );
        assert_eq!(Response::read(&made.write()), Ok(made));
    }

    #[test]
    fn a_proof_of_another_password_or_challenge_is_wrong() {
        let (key, made) = documented();
        let challenge = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];
        assert!(made.check(&key, &challenge).is_ok());
        assert_eq!(made.check(&key, &[0; 8]), Err(Refused::Proof));
        let other = response_key(&NtHash::of("Passwort"), "USER", "Domain").expect("key");
        assert_eq!(made.check(&other, &challenge), Err(Refused::Proof));
        let mut nothing = made;
        nothing.proof = [0; 16];
        assert_eq!(nothing.check(&key, &challenge), Err(Refused::Proof));
    }

    #[test]
    fn older_answers_are_refused() {
        for old in [vec![], vec![0], vec![7; 24]] {
            assert_eq!(Response::read(&old), Err(Refused::Version));
        }
    }

    #[test]
    fn names_are_made_capitals_letter_by_letter_and_as_words() {
        assert_eq!(capitals("user"), ("USER".to_owned(), "USER".to_owned()));
        assert_eq!(capitals("groß"), ("GROß".to_owned(), "GROSS".to_owned()));
    }
}
