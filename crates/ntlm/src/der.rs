//! As much of DER as SPNEGO and the head of a certificate need.

use crate::Refused;

pub(crate) const OCTETS: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const ENUMERATED: u8 = 0x0a;
pub(crate) const SEQUENCE: u8 = 0x30;

const BAD: Refused = Refused::Malformed("no DER");

/// Elements one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next element's tag and content.
    pub(crate) fn next(&mut self) -> Result<(u8, &'a [u8]), Refused> {
        let (tag, rest) = self.rest.split_first().ok_or(BAD)?;
        // Tags of more than one byte have no place here.
        if tag & 0x1f == 0x1f {
            return Err(BAD);
        }
        let (first, mut rest) = rest.split_first().ok_or(BAD)?;
        let length = match first {
            0..=0x7f => usize::from(*first),
            // An open end is none of DER's; four bytes are more than enough.
            0x81..=0x84 => {
                let (digits, after) = rest
                    .split_at_checked(usize::from(first & 0x7f))
                    .ok_or(BAD)?;
                rest = after;
                digits
                    .iter()
                    .fold(0usize, |sum, digit| sum << 8 | usize::from(*digit))
            }
            _ => return Err(BAD),
        };
        let (content, rest) = rest.split_at_checked(length).ok_or(BAD)?;
        self.rest = rest;
        Ok((*tag, content))
    }

    /// The content of the next element, which has this tag.
    pub(crate) fn expect(&mut self, wanted: u8) -> Result<&'a [u8], Refused> {
        match self.next()? {
            (tag, content) if tag == wanted => Ok(content),
            _ => Err(BAD),
        }
    }
}

/// The single element in some bytes.
pub(crate) fn only(bytes: &[u8], tag: u8) -> Result<&[u8], Refused> {
    let mut reader = Reader::new(bytes);
    let content = reader.expect(tag)?;
    match reader.is_empty() {
        true => Ok(content),
        false => Err(BAD),
    }
}

/// An element.
pub(crate) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => bytes.push(short),
        _ => {
            let digits = length.to_be_bytes();
            let from = digits.iter().position(|d| *d != 0).unwrap_or(0);
            let digits = digits.get(from..).unwrap_or_default();
            // At most eight.
            bytes.push(0x80 | u8::try_from(digits.len()).unwrap_or_default());
            bytes.extend(digits);
        }
    }
    for part in parts {
        bytes.extend(*part);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn elements_survive(tag in 1u8..0x1f, content in proptest::collection::vec(any::<u8>(), 0..600)) {
            let bytes = element(tag, &[&content]);
            prop_assert_eq!(only(&bytes, tag), Ok(content.as_slice()));
            prop_assert!(only(&bytes[..bytes.len() - 1], tag).is_err());
            prop_assert!(only(&[bytes.as_slice(), &[0]].concat(), tag).is_err());
        }
    }

    #[test]
    fn open_ends_and_lengths_beyond_the_bytes_are_refused() {
        for bad in [
            b"\x30\x80\0\0".as_slice(),
            b"\x30\x84\xff\xff\xff\xff",
            b"\x30\x85\0\0\0\0\x01x",
            b"\x3f\x01x",
            b"\x30",
            b"",
        ] {
            assert!(Reader::new(bad).next().is_err(), "{bad:?}");
        }
    }
}
