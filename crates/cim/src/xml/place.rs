//! Lines and columns.

use super::{Reason, XmlError};

impl XmlError {
    pub(super) fn at_start(reason: Reason) -> Self {
        XmlError {
            line: 1,
            column: 1,
            reason,
            source: None,
        }
    }

    pub(super) fn at(text: &str, offset: usize, reason: Reason) -> Self {
        let mut end = offset.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut place = Place::default();
        place.advance(text, end);
        XmlError {
            line: place.line,
            column: place.column,
            reason,
            source: None,
        }
    }
}

/// A place in the text, moved forward only, so that counting lines costs one pass.
pub(super) struct Place {
    offset: usize,
    pub(super) line: u32,
    pub(super) column: u32,
}

impl Default for Place {
    fn default() -> Self {
        Place {
            offset: 0,
            line: 1,
            column: 1,
        }
    }
}

impl Place {
    pub(super) fn advance(&mut self, text: &str, to: usize) {
        let passed = text.get(self.offset..to).unwrap_or_default();
        let since = match passed.rfind('\n') {
            Some(last) => {
                let lines = passed.bytes().filter(|b| *b == b'\n').count();
                self.line = self
                    .line
                    .saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
                self.column = 1;
                passed.get(last + 1..).unwrap_or_default()
            }
            None => passed,
        };
        // Characters are counted by their first bytes.
        let columns = since.bytes().filter(|b| b & 0xc0 != 0x80).count();
        self.column = self
            .column
            .saturating_add(u32::try_from(columns).unwrap_or(u32::MAX));
        self.offset = self.offset.max(to);
    }
}
