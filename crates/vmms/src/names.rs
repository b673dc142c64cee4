//! Names for people: of machines, points, snapshots, collections, resources.

use crate::{Result, fault};

/// Longest name in characters.
const LONGEST: usize = 256;

/// Refuses names that are empty, too long, or hold characters which would steer a terminal or turn the direction of text.
pub(crate) fn check(what: &str, name: &str) -> Result<()> {
    if name.trim().is_empty() || name.chars().count() > LONGEST {
        let shown: String = name.escape_debug().take(80).collect();
        let why = format!("a name has 1 to {LONGEST} printable characters");
        return Err(fault!(InvalidValue, what, format!("\"{shown}\""), why));
    }
    if let Some((place, c)) = name.chars().enumerate().find(|(_, c)| steers(*c)) {
        let shown: String = name.chars().map(written_out).collect();
        let kind = match c.is_control() {
            true => "a control character",
            false => "a character that turns the direction of text or ends its line",
        };
        let kind = format!("{kind} (U+{:04X})", u32::from(c));
        return Err(fault!(
            UnprintableName,
            what,
            format!("\"{shown}\""),
            kind,
            place + 1
        ));
    }
    Ok(())
}

fn written_out(c: char) -> String {
    match steers(c) {
        true => c.escape_unicode().to_string(),
        false => c.to_string(),
    }
}

/// Controls, marks and embeddings of direction, line and paragraph separators.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_lie_on_a_terminal_are_refused_and_told_where() {
        for good in ["web 1", "Grüße", "שלום", "👩\u{200d}💻"] {
            assert_eq!(check("ElementName", good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "  ",
            "a\u{1b}[2J",
            "a\nb",
            "abc\u{202e}txt",
            "\u{2066}",
            "a\u{9b}b",
            &"x".repeat(257),
        ] {
            assert!(check("ElementName", bad).is_err(), "{bad:?}");
        }
        let told = check("ElementName", "prod\u{202e}").map_err(|f| f.text());
        assert_eq!(
            told.err().as_deref(),
            Some(
                "ElementName cannot be \"prod\\u{202e}\": it holds a character that turns the direction of text or ends its line (U+202E) at character 5"
            )
        );
    }
}
