//! Requests: the SOAP envelope and the headers of addressing and WS-Management.

use std::time::Duration;

use cim::xml::{Document, Element, Encoding, Limits, Writer};
use cim::{Datetime, Name, Value};

use super::fault::{Fault, Subcode};
use super::{epr, ns};

/// A request as far as its headers say.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) action: String,
    /// Echoed as it came; clients compare it byte by byte.
    pub(crate) message_id: Option<String>,
    pub(crate) resource_uri: Option<String>,
    pub(crate) selectors: Vec<(Name, Value)>,
    pub(crate) options: Vec<(String, String)>,
    pub(crate) timeout: Option<Duration>,
    /// In bytes.
    pub(crate) max_envelope: Option<usize>,
    pub(crate) fragment: Option<String>,
    pub(crate) wants_total: bool,
    pub(crate) body: Option<Element>,
}

/// What could be told of a request that is refused: enough to answer it.
#[derive(Debug, Default)]
pub(crate) struct Origin {
    pub(crate) message_id: Option<String>,
    pub(crate) encoding: Encoding,
}

/// Deep enough for embedded references, small enough to refuse bombs.
const LIMITS: Limits = Limits {
    bytes: 64 << 20,
    depth: 64,
    attributes: 64,
    elements: 200_000,
    text: 32 << 20,
};

const MAX_SELECTORS: usize = 64;

impl Message {
    /// Reads a request. An error comes with what is needed to answer it.
    pub(crate) fn read(bytes: &[u8]) -> (Origin, Result<Message, Fault>) {
        match cim::xml::parse(bytes, &LIMITS) {
            Err(error) => {
                let fault = Fault::sender(
                    Subcode::SchemaValidation,
                    format!("The request cannot be read: {}.", chain(&error)),
                );
                (Origin::default(), Err(fault))
            }
            Ok(Document { root, encoding }) => {
                let message_id = root
                    .descend(&[(ns::SOAP, "Header"), (ns::ADDRESSING, "MessageID")])
                    .map(|id| id.text().to_owned());
                let origin = Origin {
                    message_id: message_id.clone(),
                    encoding,
                };
                (origin, Message::from_root(root, message_id))
            }
        }
    }

    fn from_root(mut root: Element, message_id: Option<String>) -> Result<Message, Fault> {
        if !root.is(ns::SOAP, "Envelope") {
            return Err(Fault::sender(
                Subcode::SchemaValidation,
                format!(
                    "The request is a {} instead of a SOAP 1.2 Envelope.",
                    root.local
                ),
            ));
        }
        let mut message = Message {
            action: String::new(),
            message_id,
            resource_uri: None,
            selectors: Vec::new(),
            options: Vec::new(),
            timeout: None,
            max_envelope: None,
            fragment: None,
            wants_total: false,
            body: None,
        };
        let mut body = None;
        for part in std::mem::take(&mut root.children) {
            if part.is(ns::SOAP, "Header") {
                for header in &part.children {
                    message.header(header)?;
                }
            } else if part.is(ns::SOAP, "Body") {
                body = Some(part);
            }
        }
        let body = body
            .ok_or_else(|| Fault::sender(Subcode::SchemaValidation, "The Envelope has no Body."))?;
        message.body = body.children.into_iter().next();
        Ok(message)
    }

    fn header(&mut self, header: &Element) -> Result<(), Fault> {
        let namespace = header.namespace.as_deref().unwrap_or_default();
        let text = || header.text().to_owned();
        match (namespace, header.local.as_str()) {
            (ns::ADDRESSING, "Action") => self.action = text(),
            (ns::ADDRESSING, "MessageID" | "To" | "ReplyTo" | "FaultTo" | "From" | "RelatesTo") => {
            }
            (ns::WSMAN, "ResourceURI") => self.resource_uri = Some(text()),
            (ns::WSMAN, "SelectorSet") => self.selectors = selectors(header)?,
            (ns::WSMAN, "OptionSet") => {
                self.options = header
                    .children_named(ns::WSMAN, "Option")
                    .take(MAX_SELECTORS)
                    .map(|o| {
                        (
                            o.attr("Name").unwrap_or_default().to_owned(),
                            o.text.clone(),
                        )
                    })
                    .collect();
            }
            (ns::WSMAN, "OperationTimeout") => {
                self.timeout = timeout(header.text())?;
            }
            (ns::WSMAN, "MaxEnvelopeSize") => {
                let size = header.text().parse::<usize>().map_err(|_| {
                    Fault::sender(
                        Subcode::InvalidParameter,
                        "MaxEnvelopeSize is not a number of bytes.",
                    )
                })?;
                // Nothing useful fits below; the standard names this minimum.
                if size < 8192 {
                    return Err(Fault::sender(
                        Subcode::EncodingLimit,
                        format!("MaxEnvelopeSize {size} is below the least allowed, 8192."),
                    )
                    .detail("MinimumEnvelopeLimit"));
                }
                self.max_envelope = Some(size);
            }
            (ns::WSMAN, "FragmentTransfer") => self.fragment = Some(text()),
            (ns::WSMAN, "RequestTotalItemsCountEstimate") => self.wants_total = true,
            (ns::WSMAN, "RequestEPR" | "Locale") => {}
            (ns::EVENTING, "Identifier") => {}
            (ns::MS_WSMAN, _) => {}
            _ if must_understand(header) => {
                return Err(Fault::not_understood(namespace, &header.local));
            }
            _ => {}
        }
        Ok(())
    }

    /// An option by its name, in any case.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        self.options
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The value of a selector, as text.
    pub(crate) fn selector(&self, name: &str) -> Option<&str> {
        self.selectors
            .iter()
            .find(|(n, _)| n.is(name))
            .and_then(|(_, value)| value.as_str())
    }
}

fn must_understand(header: &Element) -> bool {
    // Some clients leave the attribute unqualified.
    ["", ns::SOAP].iter().any(|namespace| {
        header
            .attr_ns(namespace, "mustUnderstand")
            .is_some_and(|v| v.eq_ignore_ascii_case("true") || v == "1")
    })
}

/// Reads a `SelectorSet`: names and values, a value being text or an endpoint reference.
pub(crate) fn selectors(set: &Element) -> Result<Vec<(Name, Value)>, Fault> {
    let mut found: Vec<(Name, Value)> = Vec::new();
    for selector in set.children_named(ns::WSMAN, "Selector") {
        let name = selector
            .attr_ns(ns::WSMAN, "Name")
            .or_else(|| selector.attr("Name"))
            .unwrap_or_default()
            .trim();
        if name.is_empty() || found.iter().any(|(n, _)| n.is(name)) {
            let (what, detail) = match name {
                "" => ("A selector has no name.".to_owned(), "InvalidSelector"),
                _ => (
                    format!("The selector {name} stands twice."),
                    "DuplicateSelectors",
                ),
            };
            return Err(Fault::sender(Subcode::InvalidSelectors, what).detail(detail));
        }
        let value = match selector.children.first() {
            Some(inner) if epr::looks_like(inner) => Value::Reference(Box::new(epr::read(inner)?)),
            Some(_) => {
                return Err(Fault::sender(
                    Subcode::InvalidSelectors,
                    format!("The selector {name} holds neither text nor an endpoint reference."),
                ));
            }
            None => Value::String(unquoted(&selector.text).to_owned()),
        };
        found.push((name.to_owned().into(), value));
        if found.len() > MAX_SELECTORS {
            return Err(Fault::sender(
                Subcode::InvalidSelectors,
                format!("More than {MAX_SELECTORS} selectors."),
            ));
        }
    }
    Ok(found)
}

/// Some clients put the value of a selector into quotes, as in an object path.
fn unquoted(text: &str) -> &str {
    text.strip_prefix('"')
        .and_then(|t| t.strip_suffix('"'))
        .unwrap_or(text)
}

/// The time a client gives an operation. One that is too large to count is no limit.
fn timeout(text: &str) -> Result<Option<Duration>, Fault> {
    let well_formed = |text: &str| {
        let rest = text.trim().strip_prefix('P')?;
        let (days, time) = rest.split_once('T').unwrap_or((rest, ""));
        let parts = |part: &str, units: &str| {
            let mut units = units.chars();
            part.split_inclusive(char::is_alphabetic).all(|item| {
                let unit = item.chars().last().unwrap_or_default();
                let number = item.trim_end_matches(char::is_alphabetic);
                let digits = |d: &str| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit());
                let whole = match number.split_once('.') {
                    Some((whole, part)) => unit == 'S' && digits(whole) && digits(part),
                    None => digits(number),
                };
                // Each at most once, the larger ones first.
                whole && units.any(|u| u == unit)
            })
        };
        let some = rest.len() > 1 && !rest.ends_with('T');
        (some && parts(days, "YMWD") && parts(time, "HMS")).then_some(())
    };
    if well_formed(text).is_none() {
        let shown: String = text.chars().take(60).collect();
        let what = format!("OperationTimeout {shown:?} is no time, such as PT60S.");
        return Err(Fault::sender(Subcode::InvalidParameter, what).detail("InvalidTimeout"));
    }
    Ok(duration(text))
}

/// An XML Schema duration; absurdly large or malformed ones are no limit at all.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    Datetime::parse_lenient(text).ok()?.as_duration()
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        at = cause.source();
    }
    text
}

/// Writes an answer: envelope and headers, then what `body` writes.
pub(crate) fn write(
    action: &str,
    relates_to: Option<&str>,
    headers: impl FnOnce(&mut Writer),
    body: impl FnOnce(&mut Writer),
) -> String {
    let mut w = Writer::with_capacity(4096);
    w.open("s:Envelope").attr("xml:lang", "en-US");
    // libvirt finds results by these very prefixes.
    for (prefix, namespace) in [
        ("xmlns:s", ns::SOAP),
        ("xmlns:a", ns::ADDRESSING),
        ("xmlns:x", ns::TRANSFER),
        ("xmlns:e", ns::EVENTING),
        ("xmlns:n", ns::ENUMERATION),
        ("xmlns:w", ns::WSMAN),
        ("xmlns:b", ns::BINDING),
    ] {
        w.attr(prefix, namespace);
    }
    w.open("s:Header")
        .leaf("a:Action", action)
        .leaf("a:MessageID", &message_id())
        .leaf("a:To", ns::ANONYMOUS);
    if let Some(id) = relates_to {
        w.leaf("a:RelatesTo", id);
    }
    headers(&mut w);
    w.close().open("s:Body");
    body(&mut w);
    w.close_long();
    w.finish()
}

/// A fresh message identifier, in upper case as Windows writes them.
pub(crate) fn message_id() -> String {
    let mut buffer = uuid::Uuid::encode_buffer();
    format!(
        "uuid:{}",
        uuid::Uuid::new_v4().hyphenated().encode_upper(&mut buffer)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(header: &str) -> Result<Message, Fault> {
        let text = format!(
            "<s:Envelope xmlns:s='{}' xmlns:a='{}' xmlns:w='{}'><s:Header>{header}</s:Header><s:Body/></s:Envelope>",
            ns::SOAP,
            ns::ADDRESSING,
            ns::WSMAN
        );
        Message::read(text.as_bytes()).1
    }

    #[test]
    fn every_form_of_timeout_is_read() {
        for (text, seconds) in [
            ("PT60S", 60.0),
            ("PT60.0S", 60.0),
            ("PT60.000S", 60.0),
            ("PT1M30S", 90.0),
            ("PT600.000000S", 600.0),
            ("P0DT1H", 3600.0),
        ] {
            let m = read(&format!("<w:OperationTimeout>{text}</w:OperationTimeout>")).expect(text);
            assert_eq!(m.timeout.map(|d| d.as_secs_f64()), Some(seconds), "{text}");
        }
        let asked = |text: &str| read(&format!("<w:OperationTimeout>{text}</w:OperationTimeout>"));
        let absurd = "PT99999999999999999999S";
        assert_eq!(asked(absurd).expect(absurd).timeout, None);
        for no_time in [
            "soon", "-PT5S", "", "P", "PT", "P1DT", "60", "PT1.5M", "PT1S1M", "PT1S1S", "PT.S",
            "P1H", "1PT1S",
        ] {
            let fault = asked(no_time).expect_err(no_time);
            assert!(fault.reason().contains("OperationTimeout"), "{no_time}");
        }
    }

    #[test]
    fn must_understand_counts_qualified_or_not() {
        let unknown = |attribute: &str| read(&format!("<q:X xmlns:q='urn:q' {attribute}/>"));
        for refused in [
            "s:mustUnderstand='true'",
            "s:mustUnderstand='1'",
            "mustUnderstand='TRUE'",
        ] {
            assert!(unknown(refused).is_err(), "{refused}");
        }
        for fine in ["", "s:mustUnderstand='false'", "mustUnderstand='0'"] {
            assert!(unknown(fine).is_ok(), "{fine}");
        }
        assert!(read("<w:OptionSet s:mustUnderstand='true'></w:OptionSet>").is_ok());
    }

    #[test]
    fn selectors_may_be_quoted_and_stand_once() {
        let m = read(
            "<w:SelectorSet><w:Selector Name='DeviceID'>\"a\\b\"</w:Selector></w:SelectorSet>",
        )
        .expect("read");
        assert_eq!(m.selector("deviceid"), Some("a\\b"));
        let twice = "<w:Selector Name='A'>1</w:Selector><w:Selector Name='a'>2</w:Selector>";
        assert!(read(&format!("<w:SelectorSet>{twice}</w:SelectorSet>")).is_err());
    }

    #[test]
    fn what_is_no_envelope_is_a_fault_that_still_knows_its_request() {
        for text in ["", "<", "<a/>", "<!DOCTYPE a><a/>"] {
            assert!(Message::read(text.as_bytes()).1.is_err(), "{text}");
        }
        let text = format!(
            "<s:Envelope xmlns:s='{}' xmlns:a='{}'><s:Header><a:MessageID> id-1 </a:MessageID></s:Header></s:Envelope>",
            ns::SOAP,
            ns::ADDRESSING
        );
        let (origin, message) = Message::read(&Encoding::Utf16Le.encode(&text));
        assert!(message.is_err(), "no body");
        assert_eq!(origin.message_id.as_deref(), Some("id-1"));
        assert_eq!(origin.encoding, Encoding::Utf16Le);
    }
}
