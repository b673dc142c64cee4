//! LIKE patterns: `%` any run, `_` one character, `[a-f]` one of a set, `[^a-f]` one not in it.
//!
//! A pattern is compiled once, when the query is read, and costs a text one step a character: between two runs stands a
//! segment of a fixed number of characters, and all places where it may begin are followed at once, one bit each.

/// The most characters of a pattern: they bound what a text's character costs (one step for every 64 of them).
pub(super) const MAX_CHARS: usize = 1024;

/// A compiled pattern; equal to another of the same text.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    matcher: Matcher,
    /// With doubled backslashes made single, where there are any.
    single: Option<Matcher>,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Pattern {
    /// Compiles a pattern; the error is a sentence's end.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let length = text.chars().count();
        if length > MAX_CHARS {
            return Err(format!(
                "a LIKE pattern may have {MAX_CHARS} characters, this one has {length}"
            ));
        }
        let single = text
            .contains('\\')
            .then(|| Matcher::new(&without_doubled_backslashes(text)));
        Ok(Pattern {
            text: text.to_owned(),
            matcher: Matcher::new(text),
            single,
        })
    }

    /// Whether a text matches, without case; also where only doubled backslashes, on either side, keep it from doing so.
    pub(super) fn matches(&self, text: &str) -> bool {
        let lower: Vec<char> = text.to_lowercase().chars().collect();
        if self.matcher.matches(&lower) {
            return true;
        }
        self.single.as_ref().is_some_and(|single| {
            let text = without_doubled_backslashes(text).to_lowercase();
            single.matches(&text.chars().collect::<Vec<_>>())
        })
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Doubled backslashes made single.
pub(super) fn without_doubled_backslashes(text: &str) -> String {
    text.replace("\\\\", "\\")
}

/// What stands between runs; more than one segment means there is a run between each two.
#[derive(Clone, Debug)]
struct Matcher {
    segments: Vec<Segment>,
}

impl Matcher {
    fn new(pattern: &str) -> Self {
        let mut segments = vec![Vec::new()];
        for piece in pieces(&pattern.to_lowercase()) {
            match (piece, segments.last_mut()) {
                (Some(set), Some(segment)) => segment.push(set),
                _ => segments.push(Vec::new()),
            }
        }
        Matcher {
            segments: segments.iter().map(|sets| Segment::new(sets)).collect(),
        }
    }

    fn matches(&self, text: &[char]) -> bool {
        match self.segments.as_slice() {
            [] => text.is_empty(),
            [only] => only.length == text.len() && only.fits(text),
            [first, middle @ .., last] => {
                let ends = first.length + last.length;
                let Some(end) = text.len().checked_sub(last.length) else {
                    return false;
                };
                if text.len() < ends || !first.fits(text) {
                    return false;
                }
                if !text.get(end..).is_some_and(|tail| last.fits(tail)) {
                    return false;
                }
                // The first place of each is the best one: it leaves most to the others.
                let mut between = text.get(first.length..end).unwrap_or_default();
                middle.iter().all(|segment| match segment.find(between) {
                    Some(after) => {
                        between = between.get(after..).unwrap_or_default();
                        true
                    }
                    None => false,
                })
            }
        }
    }
}

/// Characters as sorted ranges that do not touch.
type Set = Vec<(char, char)>;

/// A fixed number of places, each with the characters it takes.
#[derive(Clone, Debug)]
struct Segment {
    length: usize,
    /// Where the characters of a class begin; all of a class are alike to every place.
    classes: Vec<char>,
    /// For each class one bit for every place that takes it, `words` words each.
    places: Vec<u64>,
    words: usize,
}

impl Segment {
    fn new(sets: &[Set]) -> Self {
        let after = |c: char| ((c as u32 + 1)..=0x11_0000).find_map(char::from_u32);
        let mut classes = vec!['\0'];
        for (from, to) in sets.iter().flatten() {
            classes.push(*from);
            classes.extend(after(*to));
        }
        classes.sort_unstable();
        classes.dedup();
        let words = sets.len().div_ceil(64);
        let mut places = vec![0; classes.len() * words];
        for (place, set) in sets.iter().enumerate() {
            for (from, to) in set {
                let first = classes.partition_point(|c| c < from);
                let end = classes.partition_point(|c| c <= to);
                for class in first..end {
                    if let Some(word) = places.get_mut(class * words + place / 64) {
                        *word |= 1 << (place % 64);
                    }
                }
            }
        }
        Segment {
            length: sets.len(),
            classes,
            places,
            words,
        }
    }

    fn takers(&self, c: char) -> &[u64] {
        let class = self.classes.partition_point(|first| *first <= c) - 1;
        let at = class * self.words;
        self.places.get(at..at + self.words).unwrap_or_default()
    }

    /// Whether it fits at the beginning of a text.
    fn fits(&self, text: &[char]) -> bool {
        let Some(text) = text.get(..self.length) else {
            return false;
        };
        text.iter().enumerate().all(|(place, c)| {
            let word = self.takers(*c).get(place / 64);
            word.is_some_and(|word| word >> (place % 64) & 1 == 1)
        })
    }

    /// Behind the first place where it fits.
    fn find(&self, text: &[char]) -> Option<usize> {
        let Some(last) = self.length.checked_sub(1) else {
            return Some(0);
        };
        // One bit for every beginning of the segment that the text up to here ends with.
        let mut reached = vec![0u64; self.words];
        for (at, c) in text.iter().enumerate() {
            let mut carry = 1;
            for (reached, takers) in reached.iter_mut().zip(self.takers(*c)) {
                let next = (*reached << 1 | carry) & takers;
                carry = *reached >> 63;
                *reached = next;
            }
            if reached
                .last()
                .is_some_and(|word| word >> (last % 64) & 1 == 1)
            {
                return Some(at + 1);
            }
        }
        None
    }
}

/// The pattern's pieces: `None` is a run.
fn pieces(pattern: &str) -> Vec<Option<Set>> {
    let chars: Vec<char> = pattern.chars().collect();
    // Behind the last closing bracket none opens a set, which spares looking for its end again and again.
    let last_close = chars.iter().rposition(|c| *c == ']');
    let mut pieces = Vec::with_capacity(chars.len());
    let mut at = 0;
    while let Some(c) = chars.get(at) {
        at += 1;
        let opened = (*c == '[' && last_close >= Some(at))
            .then(|| set(chars.get(at..).unwrap_or_default()))
            .flatten();
        pieces.push(match (c, opened) {
            ('%', _) => None,
            ('_', _) => Some(vec![('\0', char::MAX)]),
            (_, Some((set, length))) => {
                at += length;
                Some(set)
            }
            // A bracket without its closing one is a character like any other.
            (c, None) => Some(vec![(*c, *c)]),
        });
    }
    pieces
}

/// The set after an opening bracket and how many characters it takes, the closing one included.
fn set(chars: &[char]) -> Option<(Set, usize)> {
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
                // One that is the wrong way round holds nothing.
                if from <= to {
                    ranges.push((*from, *to));
                }
                at += 3;
            }
            _ => {
                ranges.push((*from, *from));
                at += 1;
            }
        }
    }
    let ranges = joined(ranges);
    let set = if negated { others(&ranges) } else { ranges };
    Some((set, end + 1))
}

/// Sorted, and those that overlap made one.
fn joined(mut ranges: Set) -> Set {
    ranges.sort_unstable();
    let mut out: Set = Vec::with_capacity(ranges.len());
    for (from, to) in ranges {
        match out.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => out.push((from, to)),
        }
    }
    out
}

/// All characters that are in none of them.
fn others(ranges: &Set) -> Set {
    let mut out = Vec::with_capacity(ranges.len() + 1);
    let mut next = Some('\0');
    for (from, to) in ranges {
        if let Some(start) = next
            && let Some(end) = before(*from)
            && start <= end
        {
            out.push((start, end));
        }
        next = ((*to as u32 + 1)..=0x11_0000).find_map(char::from_u32);
    }
    if let Some(start) = next {
        out.push((start, char::MAX));
    }
    out
}

fn before(c: char) -> Option<char> {
    (0..c as u32).rev().find_map(char::from_u32)
}

#[cfg(test)]
mod tests {
    use super::{MAX_CHARS, Pattern};
    use proptest::prelude::*;

    fn like(text: &str, pattern: &str) -> bool {
        Pattern::new(pattern)
            .unwrap_or_else(|e| panic!("{pattern}: {e}"))
            .matches(text)
    }

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
            ("a\\b", "a\\\\b"),
            ("a\\\\b", "a\\b"),
            ("a\\b", "a%\\\\%"),
            ("abab", "%ab"),
            ("xaab", "%a_b"),
            ("[]", "[[[]]"),
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
            ("a", "a%a"),
            ("ab", "[b-a]b"),
            ("abcabd", "%abe%"),
        ] {
            assert!(!like(text, pattern), "{text} {pattern}");
        }
    }

    #[test]
    fn a_pattern_of_many_runs_or_brackets_takes_no_time() {
        let text = "a".repeat(200_000);
        for pattern in [
            format!("{}b", "%a".repeat(500)),
            format!("%{}b%", "a".repeat(1000)),
            format!("%{}", "[".repeat(1000)),
            format!("%{}]%", "[".repeat(1000)),
            format!("%{}%", "[^".repeat(500)),
            format!("%{}b%", "_".repeat(1000)),
        ] {
            let compiled = Pattern::new(&pattern).expect("short enough");
            let before = std::time::Instant::now();
            assert!(!compiled.matches(&text), "{pattern}");
            // Quadratic, it took minutes.
            assert!(before.elapsed().as_secs() < 20, "{pattern}");
        }
    }

    #[test]
    fn a_pattern_has_a_longest_length() {
        assert!(Pattern::new(&"[".repeat(MAX_CHARS)).is_ok());
        let error = Pattern::new(&"[".repeat(18_000)).expect_err("too long");
        assert!(error.contains("1024") && error.contains("18000"), "{error}");
    }

    /// The obvious matcher, exponential as it is.
    fn slow(text: &[char], pattern: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('%', rest)) => (0..=text.len()).any(|at| slow(&text[at..], rest)),
            Some((c, rest)) => match text.split_first() {
                Some((t, after)) => (*c == '_' || c == t) && slow(after, rest),
                None => false,
            },
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_obvious_matcher(text in "[ab]{0,12}", pattern in "[ab_%]{0,8}") {
            let chars = |s: &str| s.chars().collect::<Vec<_>>();
            prop_assert_eq!(like(&text, &pattern), slow(&chars(&text), &chars(&pattern)));
        }
    }
}
