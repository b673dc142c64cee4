//! The list of attributes both sides put beside their challenges (`AV_PAIR`).

use crate::Refused;
use crate::fields::{array, text, u16_at};

/// What is in a list, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AvPairs(pub(crate) Vec<(u16, Vec<u8>)>);

pub(crate) const END: u16 = 0;
pub(crate) const NB_COMPUTER: u16 = 1;
pub(crate) const NB_DOMAIN: u16 = 2;
pub(crate) const DNS_COMPUTER: u16 = 3;
pub(crate) const DNS_DOMAIN: u16 = 4;
pub(crate) const FLAGS: u16 = 6;
pub(crate) const TIME: u16 = 7;
pub(crate) const TARGET_NAME: u16 = 9;
pub(crate) const BINDINGS: u16 = 10;

/// Of [`FLAGS`]: the message has an integrity code.
pub(crate) const HAS_MIC: u32 = 2;

/// More than there are kinds.
const MOST: usize = 32;

impl AvPairs {
    /// Reads a list up to its end mark; what follows that is not its own.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Refused> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            let id = u16_at(bytes, at)?;
            let length = usize::from(u16_at(bytes, at + 2)?);
            at += 4;
            if id == END {
                return Ok(AvPairs(found));
            }
            let value = bytes
                .get(at..at + length)
                .ok_or(Refused::Malformed("an attribute that is too short"))?;
            if found.len() == MOST || found.iter().any(|(other, _)| *other == id) {
                return Err(Refused::Malformed("attributes more than once"));
            }
            found.push((id, value.to_vec()));
            at += length;
        }
    }

    pub(crate) fn write(&self) -> Result<Vec<u8>, Refused> {
        let mut bytes = Vec::new();
        for (id, value) in &self.0 {
            let length = u16::try_from(value.len())
                .map_err(|_| Refused::Malformed("an attribute that is too long"))?;
            bytes.extend(id.to_le_bytes());
            bytes.extend(length.to_le_bytes());
            bytes.extend(value);
        }
        bytes.extend([0; 4]);
        Ok(bytes)
    }

    pub(crate) fn get(&self, id: u16) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|(other, _)| *other == id)
            .map(|(_, value)| value.as_slice())
    }

    /// Puts in a value, in the place of one that was there.
    pub(crate) fn set(&mut self, id: u16, value: Vec<u8>) {
        match self.0.iter_mut().find(|(other, _)| *other == id) {
            Some((_, old)) => *old = value,
            None => self.0.push((id, value)),
        }
    }

    /// [`FLAGS`]; none where they are not told.
    pub(crate) fn flags(&self) -> Result<u32, Refused> {
        match self.get(FLAGS) {
            None => Ok(0),
            Some(value) if value.len() == 4 => array(value, 0).map(u32::from_le_bytes),
            Some(_) => Err(Refused::Malformed("flags of another length")),
        }
    }

    pub(crate) fn text(&self, id: u16) -> Result<Option<String>, Refused> {
        self.get(id).map(text).transpose()
    }
}
