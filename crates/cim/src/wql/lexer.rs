//! Tokens of WQL.

use super::WqlError;
use crate::Value;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'a> {
    /// A name or keyword.
    Word(&'a str),
    /// A string, number, or boolean.
    Literal(Value),
    /// What stands between braces.
    Braced(&'a str),
    /// `=`, `<=`, `(`, …
    Mark(&'static str),
    End,
}

impl Token<'_> {
    pub(super) fn show(&self) -> String {
        match self {
            Token::Word(word) => format!("{:?}", word.chars().take(60).collect::<String>()),
            Token::Literal(Value::String(_)) => "a string".to_owned(),
            Token::Literal(value) => value.to_text().unwrap_or_default(),
            Token::Braced(_) => "a path in braces".to_owned(),
            Token::Mark(mark) => format!("'{mark}'"),
            Token::End => "the end".to_owned(),
        }
    }
}

/// Longer marks first.
const MARKS: [&str; 12] = [
    "<=", ">=", "<>", "!=", "=", "<", ">", "(", ")", ",", ".", "*",
];

pub(super) struct Lexer<'a> {
    pub(super) text: &'a str,
    pub(super) at: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn error(&self, at: usize, message: impl Into<String>) -> WqlError {
        let before = self.text.get(..at).unwrap_or(self.text);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).saturating_add(1);
        let line = before.rsplit('\n').next().unwrap_or_default();
        WqlError {
            line: count(before.matches('\n').count()),
            column: count(line.chars().count()),
            message: message.into(),
        }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, len: usize) -> &'a str {
        let found = self.rest().get(..len).unwrap_or_default();
        self.at += found.len();
        found
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        self.take(rest.find(|c| !accept(c)).unwrap_or(rest.len()))
    }

    pub(super) fn skip_blank(&mut self) {
        self.take_while(|c| c.is_whitespace() || c == '\0');
    }

    /// The next token; call [`Self::skip_blank`] before.
    pub(super) fn token(&mut self) -> Result<Token<'a>, WqlError> {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let Some(c) = self.rest().chars().next() else {
            return Ok(Token::End);
        };
        match c {
            '\'' | '"' => self.string(c),
            '{' => self.braced(),
            '0'..='9' | '+' | '-' => self.number(),
            _ if c.is_alphabetic() || c == '_' => {
                let word = self.take_while(word);
                Ok(match word {
                    _ if word.eq_ignore_ascii_case("true") => Token::Literal(true.into()),
                    _ if word.eq_ignore_ascii_case("false") => Token::Literal(false.into()),
                    _ => Token::Word(word),
                })
            }
            _ => match MARKS.into_iter().find(|mark| self.rest().starts_with(mark)) {
                Some(mark) => {
                    self.take(mark.len());
                    Ok(Token::Mark(mark))
                }
                None => Err(self.error(self.at, format!("{c:?} does not belong here"))),
            },
        }
    }

    /// A backslash escapes a quote or itself and is literal before anything else.
    fn string(&mut self, quote: char) -> Result<Token<'a>, WqlError> {
        let start = self.at;
        self.take(1);
        let mut out = String::new();
        let mut chars = self.rest().char_indices().peekable();
        while let Some((i, c)) = chars.next() {
            match c {
                _ if c == quote => {
                    self.take(i + 1);
                    return Ok(Token::Literal(out.into()));
                }
                '\\' => match chars.peek() {
                    Some(&(_, next @ ('\\' | '"' | '\''))) => {
                        chars.next();
                        out.push(next);
                    }
                    _ => out.push('\\'),
                },
                _ => out.push(c),
            }
        }
        Err(self.error(start, "the string is not closed"))
    }

    /// Everything up to the closing brace that is not inside quotes.
    fn braced(&mut self) -> Result<Token<'a>, WqlError> {
        let start = self.at;
        self.take(1);
        let mut quote = None;
        let mut escaped = false;
        let rest = self.rest();
        for (i, c) in rest.char_indices() {
            match (quote, c) {
                _ if escaped => escaped = false,
                (Some(_), '\\') => escaped = true,
                (Some(q), c) if c == q => quote = None,
                (Some(_), _) => {}
                (None, '"' | '\'') => quote = Some(c),
                (None, '}') => {
                    self.take(i + 1);
                    return Ok(Token::Braced(rest.get(..i).unwrap_or_default()));
                }
                (None, _) => {}
            }
        }
        Err(self.error(start, "the closing brace is missing"))
    }

    fn number(&mut self) -> Result<Token<'a>, WqlError> {
        let start = self.at;
        let sign = self.take_while(|c| matches!(c, '+' | '-'));
        let digits = self.take_while(|c| c.is_alphanumeric() || c == '.');
        let exponent = match digits.ends_with(['e', 'E']) && !digits.starts_with("0x") {
            true => self.take_while(|c| c.is_ascii_digit() || matches!(c, '+' | '-')),
            false => "",
        };
        let text = format!("{sign}{digits}{exponent}");
        let integer = Value::from_text(crate::Type::Uint64, &text)
            .or_else(|_| Value::from_text(crate::Type::Sint64, &text));
        if let Ok(integer) = integer {
            return Ok(Token::Literal(integer));
        }
        let real = digits.starts_with(|c: char| c.is_ascii_digit());
        match text.parse::<f64>() {
            Ok(n) if real && n.is_finite() => Ok(Token::Literal(n.into())),
            _ => {
                let shown: String = text.chars().take(60).collect();
                Err(self.error(start, format!("{shown:?} is no number")))
            }
        }
    }
}
