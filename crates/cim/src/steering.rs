//! Characters that steer a terminal or turn the direction of text: shown, never obeyed.

/// Whether a character steers what shows it: controls, marks and embeddings of direction, line and paragraph separators.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text with every such character written out, `\u{1b}`; those in `kept` stay.
pub fn written_out(text: &str, kept: &[char]) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) && !kept.contains(&c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_is_written_out_and_all_other_text_stays() {
        assert_eq!(
            written_out("a\u{1b}[2Jb\n\u{202e}c", &['\n']),
            "a\\u{1b}[2Jb\n\\u{202e}c"
        );
        let plain = "Grüße, 世界, שלום, 👩\u{200d}💻";
        assert_eq!(written_out(plain, &[]), plain);
    }
}
