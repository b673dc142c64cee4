//! What guests wrote, as text that does nothing to a terminal.

/// Turns the bytes of a console into text, piece by piece: line ends and tabs stay; every other control character is
/// written out (`\x1b`), as is what changes the direction of text or hides it (`\u{202e}`).
#[derive(Default)]
pub(crate) struct Visible {
    /// The beginning of a character whose rest has not come yet.
    held: Vec<u8>,
}

impl Visible {
    /// The next piece.
    pub(crate) fn text(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let whole = self.held.len() - unfinished(&self.held);
        let rest = self.held.split_off(whole);
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held = rest;
        let mut out = String::with_capacity(text.len());
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\n' | '\t' => out.push(c),
                '\r' if chars.peek().is_none_or(|next| matches!(next, '\n' | '\r')) => {}
                c if (c as u32) < 0x100 && c.is_control() => {
                    out.push_str(&format!("\\x{:02x}", c as u32));
                }
                c if hides(c) => out.extend(c.escape_unicode()),
                c => out.push(c),
            }
        }
        out
    }
}

/// How many bytes at the end are the beginning of a character.
fn unfinished(bytes: &[u8]) -> usize {
    let end = bytes.len().saturating_sub(3);
    let tail = bytes.get(end..).unwrap_or_default();
    for (back, byte) in tail.iter().rev().enumerate() {
        let length = match byte {
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            0x80..=0xbf => continue,
            _ => return 0,
        };
        return if back + 1 < length { back + 1 } else { 0 };
    }
    0
}

/// Characters that turn text around or hide it.
fn hides(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> String {
        Visible::default().text(bytes)
    }

    #[test]
    fn escapes_are_written_out() {
        assert_eq!(
            all(b"\x1b]0;root\x07login:\r\n\tnext\x00\x7f"),
            "\\x1b]0;root\\x07login:\n\tnext\\x00\\x7f"
        );
        assert_eq!(all("a\u{202e}b\u{9b}c".as_bytes()), "a\\u{202e}b\\x9bc");
    }

    #[test]
    fn a_character_in_two_pieces_is_one() {
        let mut visible = Visible::default();
        let bytes = "aé€😀b".as_bytes();
        for cut in 0..bytes.len() {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(visible.text(head) + &visible.text(tail), "aé€😀b", "{cut}");
        }
        assert_eq!(visible.text(b"\xff\xfe x"), "\u{fffd}\u{fffd} x");
    }
}
