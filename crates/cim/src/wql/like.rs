//! LIKE patterns: `%` any run, `_` one character, `[a-f]` one of a set, `[^a-f]` one not in it.

enum Piece {
    Run,
    One,
    Char(char),
    Set {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// Whether `text` matches `pattern`, without case.
pub(super) fn like(text: &str, pattern: &str) -> bool {
    let text: Vec<char> = text.to_lowercase().chars().collect();
    let pieces = compile(&pattern.to_lowercase());
    // Where to go on after a mismatch: the piece after the last `%`, and the next place to try it at. A run needs
    // no other way back, so this takes text length times pattern length at most.
    let mut back: Option<(usize, usize)> = None;
    let (mut t, mut p) = (0, 0);
    loop {
        let (piece, c) = (pieces.get(p), text.get(t));
        match (piece, c) {
            (Some(Piece::Run), _) => {
                p += 1;
                back = Some((p, t));
                continue;
            }
            (Some(piece), Some(c)) if piece.takes(*c) => {
                p += 1;
                t += 1;
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        match &mut back {
            Some((after, next)) if *next < text.len() => {
                *next += 1;
                (p, t) = (*after, *next);
            }
            _ => return false,
        }
    }
}

impl Piece {
    fn takes(&self, c: char) -> bool {
        match self {
            Piece::Run | Piece::One => true,
            Piece::Char(wanted) => *wanted == c,
            Piece::Set { negated, ranges } => {
                ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) != *negated
            }
        }
    }
}

fn compile(pattern: &str) -> Vec<Piece> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut pieces = Vec::with_capacity(chars.len());
    let mut at = 0;
    while let Some(c) = chars.get(at) {
        at += 1;
        pieces.push(match c {
            '%' => Piece::Run,
            '_' => Piece::One,
            '[' => match set(chars.get(at..).unwrap_or_default()) {
                Some((piece, len)) => {
                    at += len;
                    piece
                }
                // Without its bracket it is a character like any other.
                None => Piece::Char('['),
            },
            c => Piece::Char(*c),
        });
    }
    pieces
}

/// The set after an opening bracket and how many characters it takes, the closing one included.
fn set(chars: &[char]) -> Option<(Piece, usize)> {
    let negated = chars.first() == Some(&'^');
    let first = usize::from(negated);
    // A closing bracket that stands first is a member.
    let end = first + 1 + chars.get(first + 1..)?.iter().position(|c| *c == ']')?;
    let members = chars.get(first..end)?;
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Some(from) = members.get(at) {
        match (members.get(at + 1), members.get(at + 2)) {
            (Some('-'), Some(to)) => {
                ranges.push((*from, *to));
                at += 3;
            }
            _ => {
                ranges.push((*from, *from));
                at += 1;
            }
        }
    }
    Some((Piece::Set { negated, ranges }, end + 1))
}

#[cfg(test)]
mod tests {
    use super::like;

    #[test]
    fn patterns_match_as_documented() {
        for (text, pattern) in [
            (
                "Microsoft:Definition\\X\\Maximum",
                "microsoft:definition%maximum",
            ),
            ("a Default b", "%%default%%"),
            ("", "%"),
            ("", ""),
            ("abc", "a_c"),
            ("abc", "a[a-c]c"),
            ("abc", "a[^x-z]c"),
            ("50%", "50[%]"),
            ("a_b", "a[_]b"),
            ("a[b", "a[[]b"),
            ("a[b", "a[b"),
            ("a]b", "a[]]b"),
            ("aXbXc", "%x%x%"),
            ("\u{c9}t\u{e9}", "\u{e9}t\u{c9}"),
        ] {
            assert!(like(text, pattern), "{text} {pattern}");
        }
        for (text, pattern) in [
            ("abc", "ab"),
            ("abc", "a[^b]c"),
            ("abc", "%d%"),
            ("", "_"),
            ("ab", "%a"),
            ("a", "a[b]"),
        ] {
            assert!(!like(text, pattern), "{text} {pattern}");
        }
    }

    #[test]
    fn a_pattern_of_many_runs_ends() {
        assert!(!like(
            &"a".repeat(20_000),
            &format!("{}b", "%a".repeat(500))
        ));
    }
}
