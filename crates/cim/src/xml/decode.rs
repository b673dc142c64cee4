//! Bytes to text: UTF-8 and UTF-16, with or without a byte order mark.

use std::borrow::Cow;

use super::{Limits, Reason, XmlError};

/// The encodings that are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Encoding {
    /// UTF-8
    #[default]
    Utf8,
    /// UTF-16, little endian
    Utf16Le,
    /// UTF-16, big endian
    Utf16Be,
}

impl Encoding {
    /// The bytes of `text`; UTF-16 begins with a byte order mark, as receivers of a bare `UTF-16` need one.
    pub fn encode(self, text: &str) -> Vec<u8> {
        match self {
            Encoding::Utf8 => text.as_bytes().to_vec(),
            Encoding::Utf16Le => bom(text).flat_map(u16::to_le_bytes).collect(),
            Encoding::Utf16Be => bom(text).flat_map(u16::to_be_bytes).collect(),
        }
    }

    /// The name for a `charset` parameter: `UTF-8` or `UTF-16`.
    pub fn charset(self) -> &'static str {
        match self {
            Encoding::Utf8 => "UTF-8",
            Encoding::Utf16Le | Encoding::Utf16Be => "UTF-16",
        }
    }
}

fn bom(text: &str) -> impl Iterator<Item = u16> {
    std::iter::once(0xfeff).chain(text.encode_utf16())
}

/// The text of a document and its encoding, told from the byte order mark or, without one, from the
/// first two bytes (`<` in one byte or two). The text has no byte order mark.
pub fn decode<'a>(bytes: &'a [u8], limits: &Limits) -> Result<(Cow<'a, str>, Encoding), XmlError> {
    if bytes.len() > limits.bytes {
        return Err(XmlError::at_start(Reason::Limit(
            "the document is too long",
        )));
    }
    let (encoding, body) = match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => (Encoding::Utf8, rest),
        [0xff, 0xfe, rest @ ..] => (Encoding::Utf16Le, rest),
        [0xfe, 0xff, rest @ ..] => (Encoding::Utf16Be, rest),
        [first, 0, ..] if *first != 0 => (Encoding::Utf16Le, bytes),
        [0, second, ..] if *second != 0 => (Encoding::Utf16Be, bytes),
        _ => (Encoding::Utf8, bytes),
    };
    if encoding == Encoding::Utf8 {
        return match std::str::from_utf8(body) {
            Ok(text) => Ok((Cow::Borrowed(text), encoding)),
            Err(err) => {
                let good = body.get(..err.valid_up_to()).unwrap_or_default();
                let before = std::str::from_utf8(good).unwrap_or_default();
                let reason = Reason::Encoding("the bytes are not UTF-8");
                Err(XmlError::at(before, before.len(), reason))
            }
        };
    }
    let odd = Reason::Encoding("UTF-16 needs an even number of bytes");
    let (pairs, rest) = body.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(XmlError::at_start(odd));
    }
    let units = pairs.iter().map(|pair| match encoding {
        Encoding::Utf16Be => u16::from_be_bytes(*pair),
        _ => u16::from_le_bytes(*pair),
    });
    let mut text = String::with_capacity(body.len() / 2);
    for unit in char::decode_utf16(units) {
        match unit {
            Ok(c) => text.push(c),
            Err(_) => {
                let reason = Reason::Encoding("the bytes are not UTF-16");
                return Err(XmlError::at(&text, text.len(), reason));
            }
        }
    }
    Ok((Cow::Owned(text), encoding))
}
