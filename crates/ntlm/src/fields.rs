//! Fixed fields of messages and the pieces they point to.

use std::ops::Range;

use crate::Refused;

/// The first bytes of every message.
pub(crate) const SIGNATURE: &[u8; 8] = b"NTLMSSP\0";

/// `N` bytes at an offset.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Refused> {
    at.checked_add(N)
        .and_then(|end| bytes.get(at..end))
        .and_then(|found| found.try_into().ok())
        .ok_or(Refused::Malformed("a message that is too short"))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Refused> {
    array(bytes, at).map(u32::from_le_bytes)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Refused> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// Where the piece lies that the length and offset at a place point to; an empty one lies nowhere. Nothing may point into the fixed
/// part, which ends at `head`.
pub(crate) fn place(bytes: &[u8], at: usize, head: usize) -> Result<Range<usize>, Refused> {
    let length = usize::from(u16_at(bytes, at)?);
    if length == 0 {
        return Ok(0..0);
    }
    let offset = usize::try_from(u32_at(bytes, at + 4)?).unwrap_or(usize::MAX);
    if offset < head {
        return Err(Refused::Malformed("a field that points into the head"));
    }
    match offset.checked_add(length) {
        Some(end) if end <= bytes.len() => Ok(offset..end),
        _ => Err(Refused::Malformed("a field that points out of the message")),
    }
}

/// The piece itself.
pub(crate) fn pointed(bytes: &[u8], at: usize, head: usize) -> Result<&[u8], Refused> {
    let place = place(bytes, at, head)?;
    Ok(bytes.get(place).unwrap_or_default())
}

/// Text in UTF-16; half a character is none.
pub(crate) fn text(bytes: &[u8]) -> Result<String, Refused> {
    let (units, rest) = bytes.as_chunks::<2>();
    let units: Vec<u16> = units.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
    match String::from_utf16(&units) {
        Ok(text) if rest.is_empty() => Ok(text),
        _ => Err(Refused::Malformed("text that is not UTF-16")),
    }
}

/// A message being written: its fixed part, and the pieces behind it.
pub(crate) struct Builder {
    head: Vec<u8>,
    length: usize,
    payload: Vec<u8>,
}

impl Builder {
    /// A message of that kind whose fixed part will have `length` bytes.
    pub(crate) fn new(kind: u32, length: usize) -> Self {
        let mut head = SIGNATURE.to_vec();
        head.extend(kind.to_le_bytes());
        Builder {
            head,
            length,
            payload: Vec::new(),
        }
    }

    /// Bytes of the fixed part.
    pub(crate) fn fixed(mut self, bytes: &[u8]) -> Self {
        self.head.extend(bytes);
        self
    }

    /// A field that points to a piece.
    pub(crate) fn piece(mut self, bytes: &[u8]) -> Result<Self, Refused> {
        let too_long = |_| Refused::Malformed("a field that is too long");
        let length = u16::try_from(bytes.len()).map_err(too_long)?;
        let offset = u32::try_from(self.length + self.payload.len()).map_err(too_long)?;
        self.head.extend(length.to_le_bytes());
        self.head.extend(length.to_le_bytes());
        self.head.extend(offset.to_le_bytes());
        self.payload.extend(bytes);
        Ok(self)
    }

    pub(crate) fn build(self) -> Vec<u8> {
        let mut message = self.head;
        message.resize(self.length, 0);
        message.extend(self.payload);
        message
    }
}
