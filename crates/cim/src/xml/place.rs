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
        for c in text.get(self.offset..to).unwrap_or_default().chars() {
            if c == '\n' {
                self.line = self.line.saturating_add(1);
                self.column = 1;
            } else {
                self.column = self.column.saturating_add(1);
            }
        }
        self.offset = self.offset.max(to);
    }
}
