//! Tokens of MOF.

use super::MofError;

/// A token. Names and numbers keep their text; strings are unescaped.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'a> {
    Name(&'a str),
    /// `#name`
    Pragma(&'a str),
    /// `$name`
    Alias(&'a str),
    Text(String),
    Integer(i128),
    Real(f64),
    Mark(char),
    End,
}

impl Token<'_> {
    /// The token as an error shows it.
    pub(super) fn show(&self) -> String {
        match self {
            Token::Name(name) => format!("{:?}", name.chars().take(60).collect::<String>()),
            Token::Pragma(name) => format!("\"#{name}\""),
            Token::Alias(name) => format!("\"${name}\""),
            Token::Text(_) => "a string".to_owned(),
            Token::Integer(n) => format!("the number {n}"),
            Token::Real(n) => format!("the number {n}"),
            Token::Mark(c) => format!("'{c}'"),
            Token::End => "the end".to_owned(),
        }
    }
}

pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
    column: u32,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Lexer {
            text,
            at: 0,
            line: 1,
            column: 1,
        }
    }

    pub(super) fn place(&self) -> (u32, u32) {
        (self.line, self.column)
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T, MofError> {
        Err(MofError {
            line: self.line,
            column: self.column,
            message: message.into(),
        })
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        if c == '\n' {
            self.line = self.line.saturating_add(1);
            self.column = 1;
        } else {
            self.column = self.column.saturating_add(1);
        }
        Some(c)
    }

    fn skip(&mut self, chars: usize) {
        for _ in 0..chars {
            self.bump();
        }
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let len = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        let found = rest.get(..len).unwrap_or_default();
        self.skip(found.chars().count());
        found
    }

    /// Skips white space and comments, so that [`Self::place`] is where the next token begins.
    pub(super) fn skip_blank(&mut self) -> Result<(), MofError> {
        loop {
            self.take_while(char::is_whitespace);
            if self.rest().starts_with("//") {
                self.take_while(|c| c != '\n');
            } else if self.rest().starts_with("/*") {
                match self.rest().find("*/") {
                    Some(end) => {
                        let inside = self.rest().get(..end + 2).unwrap_or_default();
                        self.skip(inside.chars().count());
                    }
                    None => return self.fail("the comment is not closed"),
                }
            } else {
                return Ok(());
            }
        }
    }

    /// The next token; call [`Self::skip_blank`] before.
    pub(super) fn token(&mut self) -> Result<Token<'a>, MofError> {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let Some(c) = self.peek() else {
            return Ok(Token::End);
        };
        match c {
            _ if c.is_alphabetic() || c == '_' => Ok(Token::Name(self.take_while(word))),
            '#' | '$' => {
                self.bump();
                let name = self.take_while(word);
                match (name.is_empty(), c) {
                    (true, _) => self.fail(format!("a name was expected after '{c}'")),
                    (false, '#') => Ok(Token::Pragma(name)),
                    (false, _) => Ok(Token::Alias(name)),
                }
            }
            '"' => self.text(),
            '\'' => self.character(),
            '0'..='9' | '+' | '-' | '.' => self.number(),
            '{' | '}' | '(' | ')' | '[' | ']' | ';' | ':' | ',' | '=' => {
                self.bump();
                Ok(Token::Mark(c))
            }
            _ => self.fail(format!("{c:?} does not belong here")),
        }
    }

    fn text(&mut self) -> Result<Token<'a>, MofError> {
        let mut out = String::new();
        self.bump();
        loop {
            match self.peek() {
                Some('"') => {
                    self.bump();
                    return Ok(Token::Text(out));
                }
                Some('\\') => out.push(self.escape()?),
                Some(c) => {
                    out.push(c);
                    self.bump();
                }
                None => return self.fail("the string is not closed"),
            }
        }
    }

    fn character(&mut self) -> Result<Token<'a>, MofError> {
        self.bump();
        let c = match self.peek() {
            Some('\\') => self.escape()?,
            Some(c) if c != '\'' => {
                self.bump();
                c
            }
            _ => return self.fail("a character was expected"),
        };
        match self.bump() {
            Some('\'') => Ok(Token::Text(c.to_string())),
            _ => self.fail("the closing ' is missing"),
        }
    }

    fn escape(&mut self) -> Result<char, MofError> {
        self.bump();
        let known = match self.peek() {
            Some('b') => '\u{8}',
            Some('t') => '\t',
            Some('n') => '\n',
            Some('f') => '\u{c}',
            Some('r') => '\r',
            Some(c @ ('"' | '\'' | '\\')) => c,
            Some('x' | 'X') => {
                self.bump();
                let digits: String = self
                    .rest()
                    .chars()
                    .take(4)
                    .take_while(char::is_ascii_hexdigit)
                    .collect();
                self.skip(digits.len());
                return match u32::from_str_radix(&digits, 16)
                    .ok()
                    .and_then(char::from_u32)
                {
                    Some(c) if c != '\0' => Ok(c),
                    _ => self.fail("\\x needs one to four hexadecimal digits of a character"),
                };
            }
            _ => return self.fail("an unknown escape after '\\'"),
        };
        self.bump();
        Ok(known)
    }

    fn number(&mut self) -> Result<Token<'a>, MofError> {
        let text = self.take_while(|c| c.is_alphanumeric() || matches!(c, '+' | '-' | '.'));
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let plain = |radix: u32, digits: &str| {
            let only_digits = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
            only_digits
                .then(|| i128::from_str_radix(digits, radix).ok())
                .flatten()
        };
        let hex = digits
            .strip_prefix("0x")
            .or_else(|| digits.strip_prefix("0X"));
        let binary = digits
            .strip_suffix('b')
            .or_else(|| digits.strip_suffix('B'));
        let octal = digits.strip_prefix('0').filter(|rest| !rest.is_empty());
        let integer = hex
            .and_then(|d| plain(16, d))
            .or_else(|| binary.and_then(|d| plain(2, d)))
            .or_else(|| octal.and_then(|d| plain(8, d)))
            .or_else(|| octal.is_none().then(|| plain(10, digits)).flatten());
        if let Some(n) = integer {
            return Ok(Token::Integer(if negative { -n } else { n }));
        }
        let real =
            digits.contains('.') && digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
        match text.parse::<f64>() {
            Ok(n) if real && n.is_finite() => Ok(Token::Real(n)),
            _ => self.fail(format!(
                "{:?} is no number",
                text.chars().take(60).collect::<String>()
            )),
        }
    }
}
