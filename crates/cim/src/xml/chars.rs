//! Characters, names and references.

use std::borrow::Cow;

use super::Reason;

pub(super) fn shorten(text: &str) -> String {
    text.chars().take(60).collect()
}

/// Whether XML 1.0 lets a document hold the character (production 2).
pub(super) fn allowed(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..)
}

/// The same for a whole text; printable ASCII, nearly everything, is told byte by byte.
pub(super) fn all_allowed(text: &str) -> bool {
    text.bytes().all(|b| (b' '..=b'~').contains(&b)) || text.chars().all(allowed)
}

pub(super) fn is_name_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '\u{b7}')
}

pub(super) fn is_ncname(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_alphabetic() || c == '_') && chars.all(is_name_char)
}

/// The character a reference stands for: `amp`, `#38`, `#x26`.
pub(super) fn reference(name: &str) -> Result<char, Reason> {
    let number = |digits: &str, radix| {
        let plain = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
        let code = plain
            .then(|| u32::from_str_radix(digits, radix).ok())
            .flatten();
        code.and_then(char::from_u32)
            .filter(|c| allowed(*c))
            .ok_or_else(|| Reason::Malformed(format!("&{}; is no character of XML", shorten(name))))
    };
    match name {
        "amp" => Ok('&'),
        "lt" => Ok('<'),
        "gt" => Ok('>'),
        "quot" => Ok('"'),
        "apos" => Ok('\''),
        _ => match name.strip_prefix('#') {
            Some(digits) => match digits.strip_prefix('x') {
                Some(digits) => number(digits, 16),
                None => number(digits, 10),
            },
            None => Err(Reason::Forbidden(format!("the entity &{};", shorten(name)))),
        },
    }
}

/// The value of an attribute: references replaced, white space characters become blanks (XML 1.0, 3.3.3).
pub(super) fn normal_value(raw: &str) -> Result<Cow<'_, str>, Reason> {
    if all_allowed(raw)
        && !raw
            .bytes()
            .any(|b| matches!(b, b'&' | b'<' | b'\t' | b'\n' | b'\r'))
    {
        return Ok(Cow::Borrowed(raw));
    }
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        rest = match c {
            '&' => match after.split_once(';') {
                Some((name, after)) => {
                    out.push(reference(name)?);
                    after
                }
                None => return Err(Reason::Malformed("'&' without ';'".to_owned())),
            },
            '<' => {
                return Err(Reason::Malformed(
                    "'<' in the value of an attribute".to_owned(),
                ));
            }
            '\r' => {
                out.push(' ');
                after.strip_prefix('\n').unwrap_or(after)
            }
            '\t' | '\n' => {
                out.push(' ');
                after
            }
            _ if !allowed(c) => return Err(Reason::Malformed("a control character".to_owned())),
            _ => {
                out.push(c);
                after
            }
        };
    }
    Ok(Cow::Owned(out))
}
