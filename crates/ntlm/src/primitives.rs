//! The few cryptographic operations NTLM is made of. MD4, MD5 and RC4 are weak; the protocol knows no others.

use hmac::{Hmac, KeyInit as _, Mac as _};
use md4::Md4;
use md5::{Digest as _, Md5};
use rc4::{Rc4, StreamCipher as _};

use crate::Refused;

/// Sixteen bytes of key or hash.
pub(crate) type Key = [u8; 16];

/// MD4 of the password in UTF-16: all that NTLM needs to know, and so as good as the password itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NtHash(pub(crate) Key);

impl std::fmt::Debug for NtHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NtHash(…)")
    }
}

impl NtHash {
    /// That of a password.
    pub fn of(password: &str) -> Self {
        NtHash(Md4::digest(utf16(password)).into())
    }

    /// Reads what [`NtHash::to_hex`] wrote.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.is_ascii() {
            return None;
        }
        let mut hash = [0; 16];
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).ok()?;
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        Some(NtHash(hash))
    }

    /// Made of random bytes: the hash of no password anybody knows.
    pub fn of_nobody(random: [u8; 16]) -> Self {
        NtHash(random)
    }

    /// In 32 digits, for storage.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Text in UTF-16, little-endian.
pub(crate) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// HMAC-MD5 under a key, not yet ended.
pub(crate) fn hmac(key: &Key, parts: &[&[u8]]) -> Result<Hmac<Md5>, Refused> {
    // HMAC takes keys of any length.
    let mut mac =
        Hmac::<Md5>::new_from_slice(key).map_err(|_| Refused::Malformed("length of a key"))?;
    for part in parts {
        mac.update(part);
    }
    Ok(mac)
}

/// HMAC-MD5.
pub(crate) fn hmac_md5(key: &Key, parts: &[&[u8]]) -> Result<Key, Refused> {
    Ok(hmac(key, parts)?.finalize().into_bytes().into())
}

/// MD5.
pub(crate) fn md5(parts: &[&[u8]]) -> Key {
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// RC4 at the beginning of its stream.
pub(crate) fn rc4(key: &Key) -> Result<Rc4, Refused> {
    use rc4::KeyInit as _;
    Rc4::new_from_slice(key).map_err(|_| Refused::Malformed("length of a key"))
}

/// RC4 of a few bytes with a key of their own.
pub(crate) fn rc4_once(key: &Key, mut data: Key) -> Result<Key, Refused> {
    rc4(key)?.apply_keystream(&mut data);
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_password_is_the_documented_one() {
        // MS-NLMP 4.2.2.1.2
        let hash = NtHash::of("Password");
        assert_eq!(hash.to_hex(), "a4f49c406510bdcab6824ee7c30fd852");
        assert_eq!(NtHash::from_hex(&hash.to_hex()), Some(hash));
    }

    #[test]
    fn what_is_no_hash_is_not_read_as_one_and_none_is_printed() {
        for text in ["", "00", &"g".repeat(32), &"é".repeat(16), &"0".repeat(33)] {
            assert_eq!(NtHash::from_hex(text), None, "{text}");
        }
        assert!(!format!("{:?}", NtHash::of("Password")).contains("a4"));
    }
}
