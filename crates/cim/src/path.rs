//! Object paths in every spelling clients send.

use std::fmt;

use crate::{Name, Value};

/// The path of an instance (with keys) or of a class (without).
///
/// Two paths are equal when class, keys and, where both name one, the namespace agree; the host is
/// never compared (clients spell it `.`, short, long, or not at all), key order does not matter and key
/// strings compare without case, as Windows does.
#[derive(Clone, Debug)]
pub struct Path {
    /// The host, where one was named.
    pub host: Option<String>,
    /// The namespace with forward slashes, `root/virtualization/v2`, where one was named.
    pub namespace: Option<String>,
    /// The class.
    pub class: Name,
    /// Key bindings; empty for a class path or a singleton (`Class=@`).
    pub keys: Vec<(Name, Value)>,
}

/// Why a text is not an object path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an object path: {reason} at character {at}")]
pub struct PathError {
    /// The text, cut to 200 characters.
    pub text: String,
    /// What was expected.
    pub reason: &'static str,
    /// The character position, from 1.
    pub at: usize,
}

const MAX_PATH: usize = 64 * 1024;
const MAX_KEYS: usize = 32;

impl Path {
    /// A path without host, namespace and keys.
    pub fn class(class: impl Into<Name>) -> Self {
        Path {
            host: None,
            namespace: None,
            class: class.into(),
            keys: Vec::new(),
        }
    }

    /// This path with one more key.
    pub fn key(mut self, name: impl Into<Name>, value: impl Into<Value>) -> Self {
        self.keys.push((name.into(), value.into()));
        self
    }

    /// This path in that namespace (either slash).
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(normal_namespace(namespace));
        self
    }

    /// This path on that host.
    pub fn on_host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// The value of a key.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.keys
            .iter()
            .find(|(key, _)| key.is(name))
            .map(|(_, value)| value)
    }

    /// The string value of a key.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }

    /// Reads `\\HOST\ns:Class.K="v",K2=1`, `//HOST/ns:Class…`, `ns:Class…`, `Class.K='v'`, `Class=@`,
    /// `Class="v"` (a single unnamed key, stored under the empty name), `Class`. Strings are quoted
    /// with `"` or `'`; a backslash escapes a quote or itself and is literal before anything else.
    pub fn parse(text: &str) -> Result<Path, PathError> {
        Parser { text, at: 0 }.path()
    }

    /// The path as relative text: class and keys only.
    pub fn relative(&self) -> String {
        let mut out = String::new();
        let bare = Path {
            host: None,
            namespace: None,
            ..self.clone()
        };
        let _ = fmt::write(&mut out, format_args!("{bare}"));
        out
    }
}

/// A namespace in the one form used inside: forward slashes, none at the ends.
pub fn normal_namespace(namespace: &str) -> String {
    let ends = |c: char| c == '/' || c.is_whitespace();
    namespace.replace('\\', "/").trim_matches(ends).to_owned()
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        let namespaces = match (&self.namespace, &other.namespace) {
            (Some(a), Some(b)) => normal_namespace(a).eq_ignore_ascii_case(&normal_namespace(b)),
            _ => true,
        };
        namespaces
            && self.class == other.class
            && self.keys.len() == other.keys.len()
            && self
                .keys
                .iter()
                .all(|(name, value)| other.get(name.as_str()).is_some_and(|o| same_key(value, o)))
    }
}

fn same_key(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Reference(_), _) | (_, Value::Reference(_)) => match (a.as_path(), b.as_path()) {
            (Some(a), Some(b)) => a == b,
            _ => false,
        },
        _ => match (a.to_text(), b.to_text()) {
            (Some(a), Some(b)) => a.to_lowercase() == b.to_lowercase(),
            (a, b) => a.is_none() && b.is_none(),
        },
    }
}

impl fmt::Display for Path {
    /// The Windows spelling: backslashes between host and namespace, values in double quotes with
    /// backslash and quote escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = &self.host {
            write!(f, "\\\\{host}\\")?;
        }
        if let Some(namespace) = &self.namespace {
            write!(f, "{}:", namespace.replace('/', "\\"))?;
        }
        write!(f, "{}", self.class)?;
        for (i, (name, value)) in self.keys.iter().enumerate() {
            f.write_str(match (i, name.as_str()) {
                (0, "") => "",
                (0, _) => ".",
                _ => ",",
            })?;
            write!(f, "{name}=")?;
            let text = value.to_text().unwrap_or_default();
            match value {
                Value::String(_) | Value::Reference(_) | Value::Datetime(_) | Value::Char16(_) => {
                    write!(f, "\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))?;
                }
                Value::Boolean(v) => f.write_str(if *v { "TRUE" } else { "FALSE" })?,
                _ => f.write_str(&text)?,
            }
        }
        Ok(())
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn fail<T>(&self, reason: &'static str) -> Result<T, PathError> {
        let at = self
            .text
            .get(..self.at)
            .map_or(0, |before| before.chars().count())
            + 1;
        Err(PathError {
            text: self.text.chars().take(200).collect(),
            reason,
            at,
        })
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let len = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.at += len;
        rest.get(..len).unwrap_or_default()
    }

    fn path(mut self) -> Result<Path, PathError> {
        if self.text.len() > MAX_PATH {
            return self.fail("at most 65536 bytes");
        }
        self.take_while(char::is_whitespace);
        let mut path = Path::class("");
        let slash = |c: char| c == '\\' || c == '/';
        let rest = self.rest();
        if rest.starts_with("\\\\") || rest.starts_with("//") {
            self.at += 2;
            let host = self.take_while(|c| !slash(c));
            if host.is_empty() {
                return self.fail("a host name was expected");
            }
            path.host = Some(host.to_owned());
            self.take_while(slash);
        }
        // A colon before the first key belongs to the namespace.
        let head = self.rest();
        let keys_at = head.find(['.', '=', '"', '\'']).unwrap_or(head.len());
        if let Some(colon) = head.get(..keys_at).and_then(|h| h.rfind(':')) {
            let namespace = normal_namespace(head.get(..colon).unwrap_or_default());
            if namespace.is_empty() {
                return self.fail("a namespace was expected before the colon");
            }
            path.namespace = Some(namespace);
            self.at += colon + 1;
        } else if path.host.is_some() {
            return self.fail("a colon was expected after the namespace");
        }
        let class = self.take_while(|c| c.is_alphanumeric() || c == '_');
        if class.is_empty() {
            return self.fail("a class name was expected");
        }
        path.class = class.to_owned().into();
        match self.peek() {
            None => return Ok(path),
            Some('.') => self.at += 1,
            Some('=') if self.rest().starts_with("=@") => {
                self.at += 2;
                self.take_while(char::is_whitespace);
                return if self.rest().is_empty() {
                    Ok(path)
                } else {
                    self.fail("the end")
                };
            }
            Some('=') => {
                self.at += 1;
                let value = self.value()?;
                self.take_while(char::is_whitespace);
                if !self.rest().is_empty() {
                    return self.fail("the end was expected");
                }
                return Ok(path.key("", value));
            }
            Some(c) if c.is_whitespace() && self.rest().trim().is_empty() => return Ok(path),
            Some(_) => return self.fail("'.' or '=' was expected after the class"),
        }
        loop {
            self.take_while(char::is_whitespace);
            let key = self.take_while(|c| c.is_alphanumeric() || c == '_');
            if key.is_empty() {
                return self.fail("a key name was expected");
            }
            self.take_while(char::is_whitespace);
            if !self.take('=') {
                return self.fail("'=' was expected after the key name");
            }
            self.take_while(char::is_whitespace);
            if path.get(key).is_some() {
                return self.fail("each key may stand once");
            }
            let value = self.value()?;
            path.keys.push((key.to_owned().into(), value));
            if path.keys.len() > MAX_KEYS {
                return self.fail("at most 32 keys");
            }
            self.take_while(char::is_whitespace);
            if self.rest().is_empty() {
                return Ok(path);
            }
            if !self.take(',') {
                return self.fail("',' was expected between keys");
            }
        }
    }

    fn value(&mut self) -> Result<Value, PathError> {
        let quote = match self.peek() {
            Some(quote @ ('"' | '\'')) => quote,
            _ => {
                let word = self.take_while(|c| c.is_alphanumeric() || "+-._".contains(c));
                return match word {
                    _ if word.eq_ignore_ascii_case("true") => Ok(Value::Boolean(true)),
                    _ if word.eq_ignore_ascii_case("false") => Ok(Value::Boolean(false)),
                    _ => match (word.parse::<u64>(), word.parse::<i64>()) {
                        (Ok(n), _) => Ok(Value::Uint64(n)),
                        (_, Ok(n)) => Ok(Value::Sint64(n)),
                        _ => self.fail("a quoted string, a number or a boolean was expected"),
                    },
                };
            }
        };
        self.at += 1;
        let mut out = String::new();
        let mut chars = self.rest().char_indices().peekable();
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => match chars.peek().copied() {
                    Some((_, next @ ('\\' | '"' | '\''))) => {
                        chars.next();
                        out.push(next);
                    }
                    _ => out.push('\\'),
                },
                _ if c == quote => {
                    self.at += i + 1;
                    return Ok(Value::String(out));
                }
                _ => out.push(c),
            }
        }
        self.at = self.text.len();
        self.fail("the closing quote is missing")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_names_the_same_object() {
        let wanted = Path::class("Msvm_VirtualSystemSettingData")
            .key("InstanceID", "Microsoft:ABC\\0\\D")
            .in_namespace("root/virtualization/v2");
        for text in [
            r#"\\HOST\root\virtualization\v2:Msvm_VirtualSystemSettingData.InstanceID="Microsoft:ABC\\0\\D""#,
            r#"\\.\Root\Virtualization\V2:msvm_virtualsystemsettingdata.instanceid="microsoft:abc\\0\\D""#,
            r#"root\virtualization\v2:Msvm_VirtualSystemSettingData.InstanceID="Microsoft:ABC\\0\\D""#,
            r#"//host/root/virtualization/v2:Msvm_VirtualSystemSettingData.InstanceID='Microsoft:ABC\0\D'"#,
            r#"Msvm_VirtualSystemSettingData.InstanceID="Microsoft:ABC\0\D" "#,
        ] {
            assert_eq!(Path::parse(text).as_ref(), Ok(&wanted), "{text}");
        }
        let written = wanted.on_host("H").to_string();
        assert_eq!(
            written,
            r#"\\H\root\virtualization\v2:Msvm_VirtualSystemSettingData.InstanceID="Microsoft:ABC\\0\\D""#
        );
    }

    #[test]
    fn key_order_and_number_forms_do_not_matter() {
        let a = Path::parse("C.A=1,B='x'").expect("a");
        let b = Path::parse("c.b=\"X\",a=\"1\"").expect("b");
        assert_eq!(a, b);
        assert_ne!(a, Path::parse("C.A=1").expect("fewer keys"));
    }

    #[test]
    fn a_nested_reference_survives() {
        let inner = Path::class("CIM_X").key("Name", "a\"b\\c");
        let outer = Path::class("CIM_Y").key("Ref", inner.clone());
        let read = Path::parse(&outer.to_string()).expect("outer");
        assert_eq!(read.get("Ref").and_then(Value::as_path), Some(inner));
    }

    #[test]
    fn what_is_no_path_says_where_it_broke() {
        for text in [
            "",
            ".",
            "C.",
            "C.K",
            "C.K=",
            "C.K=\"x",
            "C.K=1,",
            "C.K=1,K=2",
            r"\\h",
            "C D",
        ] {
            let err = Path::parse(text).expect_err(text);
            assert!(!err.to_string().is_empty());
        }
    }
}
