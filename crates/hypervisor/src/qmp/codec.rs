//! Bytes of the monitor into messages, without I/O. Unknown messages, members and events pass through.

use serde_json::Value;

/// Longest line accepted; a whole `query-qmp-schema` reply is about 200 KiB.
pub const MAX_LINE: usize = 16 * 1024 * 1024;

/// Cuts a byte stream into lines and refuses lines without end.
#[derive(Debug)]
pub struct LineDecoder {
    buffer: Vec<u8>,
    searched: usize,
    limit: usize,
}

/// A line was longer than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {limit} bytes")]
pub struct LineTooLong {
    /// The limit.
    pub limit: usize,
}

impl Default for LineDecoder {
    fn default() -> Self {
        Self::with_limit(MAX_LINE)
    }
}

impl LineDecoder {
    /// A decoder that refuses lines longer than `limit` bytes.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        Self {
            buffer: Vec::new(),
            searched: 0,
            limit,
        }
    }

    /// Adds bytes as they came.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line without its line end, if there is one.
    ///
    /// # Errors
    /// [`LineTooLong`]; the stream cannot be used any further.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineTooLong> {
        let unseen = self.buffer.get(self.searched..).unwrap_or_default();
        let Some(at) = unseen.iter().position(|&byte| byte == b'\n') else {
            self.searched = self.buffer.len();
            if self.buffer.len() > self.limit {
                return Err(LineTooLong { limit: self.limit });
            }
            return Ok(None);
        };
        let end = self.searched + at;
        if end > self.limit {
            return Err(LineTooLong { limit: self.limit });
        }
        let rest = self.buffer.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.buffer, rest);
        self.searched = 0;
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Some(line))
    }

    /// Forgets everything up to and including the last `0xFF`, the guest agent's "start over" mark.
    pub fn drop_until_mark(&mut self) {
        if let Some(at) = self.buffer.iter().rposition(|&byte| byte == 0xff) {
            self.buffer.drain(..=at);
            self.searched = 0;
        }
    }
}

/// One message from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first line.
    Greeting {
        /// QEMU's version.
        version: Version,
        /// It takes commands out of band.
        oob: bool,
    },
    /// The answer to a command.
    Reply {
        /// Our id of the command; missing if QEMU could not read the command.
        id: Option<u64>,
        /// The value, or QEMU's error.
        result: Result<Value, Fault>,
    },
    /// An event.
    Event(QmpEvent),
    /// Valid JSON of a shape we do not know: skipped.
    Unknown,
}

/// QEMU's error answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Class, for example `CommandNotFound`.
    pub class: String,
    /// Text.
    pub desc: String,
}

/// An event as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    /// QEMU's name of it.
    pub name: String,
    /// Its data, or null.
    pub data: Value,
    /// When, seconds since 1970; negative if QEMU could not tell.
    pub seconds: i64,
    /// Microseconds of that second.
    pub microseconds: i64,
}

/// QEMU's version.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Version {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Micro.
    pub micro: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl Version {
    /// From the `qemu` member of a greeting or of `query-version`.
    #[must_use]
    pub fn from_value(value: &Value) -> Self {
        let part = |name| u32::try_from(number(value, name).unwrap_or(0)).unwrap_or(0);
        Self {
            major: part("major"),
            minor: part("minor"),
            micro: part("micro"),
        }
    }
}

/// Reads one line.
///
/// # Errors
/// The line is not JSON, or not a JSON object.
pub fn decode(line: &[u8]) -> Result<Message, String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if !value.is_object() {
        return Err("the line is not a JSON object".to_owned());
    }
    if let Some(greeting) = value.get("QMP") {
        let version = greeting
            .pointer("/version/qemu")
            .map(Version::from_value)
            .unwrap_or_default();
        let oob = greeting
            .get("capabilities")
            .map(items)
            .unwrap_or_default()
            .iter()
            .any(|capability| capability == "oob");
        return Ok(Message::Greeting { version, oob });
    }
    if let Some(name) = text(&value, "event") {
        let stamp = value.get("timestamp").unwrap_or(&Value::Null);
        return Ok(Message::Event(QmpEvent {
            name: name.to_owned(),
            data: value.get("data").cloned().unwrap_or(Value::Null),
            seconds: stamp.get("seconds").and_then(Value::as_i64).unwrap_or(-1),
            microseconds: stamp
                .get("microseconds")
                .and_then(Value::as_i64)
                .unwrap_or(0),
        }));
    }
    let id = value.get("id").and_then(Value::as_u64);
    if let Some(error) = value.get("error") {
        let class = text(error, "class").unwrap_or("GenericError").to_owned();
        let desc = text(error, "desc").unwrap_or("no description").to_owned();
        return Ok(Message::Reply {
            id,
            result: Err(Fault { class, desc }),
        });
    }
    if let Some(answer) = value.get("return") {
        return Ok(Message::Reply {
            id,
            result: Ok(answer.clone()),
        });
    }
    Ok(Message::Unknown)
}

/// A text member.
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str)
}

/// A number member.
pub(crate) fn number(value: &Value, name: &str) -> Option<u64> {
    value.get(name).and_then(Value::as_u64)
}

/// A boolean member, false if missing.
pub(crate) fn flag(value: &Value, name: &str) -> bool {
    value.get(name).and_then(Value::as_bool).unwrap_or(false)
}

/// The elements of an array, none if it is something else.
pub(crate) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_however_they_were_cut() {
        let stream = b"{\"a\":1}\r\n{\"b\":2}\n\n{\"c\"";
        for cut in 0..stream.len() {
            let mut decoder = LineDecoder::default();
            let mut lines = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                decoder.feed(part);
                while let Some(line) = decoder.next_line().unwrap() {
                    lines.push(String::from_utf8(line).unwrap());
                }
            }
            assert_eq!(lines, ["{\"a\":1}", "{\"b\":2}", ""], "cut at {cut}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut decoder = LineDecoder::with_limit(8);
        decoder.feed(b"12345678");
        assert_eq!(decoder.next_line(), Ok(None));
        decoder.feed(b"9");
        assert_eq!(decoder.next_line(), Err(LineTooLong { limit: 8 }));
    }

    #[test]
    fn messages_of_every_kind_are_read() {
        let greeting = br#"{"QMP":{"version":{"qemu":{"micro":2,"minor":0,"major":10},"package":"x"},"capabilities":["oob"]}}"#;
        assert_eq!(
            decode(greeting),
            Ok(Message::Greeting {
                version: Version {
                    major: 10,
                    minor: 0,
                    micro: 2
                },
                oob: true
            })
        );
        let fault =
            br#"{"id":7,"error":{"class":"CommandNotFound","desc":"no such thing","more":1}}"#;
        let expected = Fault {
            class: "CommandNotFound".into(),
            desc: "no such thing".into(),
        };
        assert_eq!(
            decode(fault),
            Ok(Message::Reply {
                id: Some(7),
                result: Err(expected)
            })
        );
        let event =
            br#"{"timestamp":{"seconds":5,"microseconds":6},"event":"NEW_THING","data":{"x":1}}"#;
        let Ok(Message::Event(event)) = decode(event) else {
            panic!("not an event")
        };
        assert_eq!(
            (event.name.as_str(), event.seconds, event.microseconds),
            ("NEW_THING", 5, 6)
        );
        assert_eq!(decode(b"{\"surprise\":[]}"), Ok(Message::Unknown));
        assert!(decode(b"[]").is_err());
        assert!(decode(b"\xff\xfe").is_err());
    }
}
