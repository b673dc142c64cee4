//! The reader: tokens from quick-xml, everything else checked here.

use std::sync::Arc;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::chars::{all_allowed, is_ncname, normal_value, reference, shorten};
use super::element::{Scope, XML};
use super::place::Place;
use super::{Attribute, Document, Element, Encoding, Limits, Reason, XmlError, decode};

/// Reads a document from bytes.
pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Document, XmlError> {
    let (text, encoding) = decode(bytes, limits)?;
    let root = Builder::new(&text, limits, Some(encoding)).run()?;
    Ok(Document { root, encoding })
}

/// Reads a document that is text already; an encoding its declaration names does not matter any more.
pub fn parse_str(text: &str, limits: &Limits) -> Result<Element, XmlError> {
    if text.len() > limits.bytes {
        return Err(XmlError::at_start(Reason::Limit(
            "the document is too long",
        )));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    Builder::new(text, limits, None).run()
}

struct Builder<'a> {
    text: &'a str,
    limits: &'a Limits,
    declared_as: Option<Encoding>,
    reader: Reader<&'a [u8]>,
    place: Place,
    /// Where the event being looked at begins.
    start: usize,
    open: Vec<Element>,
    root: Option<Element>,
    elements: usize,
}

type Read<T> = Result<T, XmlError>;

impl<'a> Builder<'a> {
    fn new(text: &'a str, limits: &'a Limits, declared_as: Option<Encoding>) -> Self {
        let mut reader = Reader::from_str(text);
        let config = reader.config_mut();
        config.check_comments = true;
        config.check_end_names = true;
        Builder {
            text,
            limits,
            declared_as,
            reader,
            place: Place::default(),
            start: 0,
            open: Vec::new(),
            root: None,
            elements: 0,
        }
    }

    fn fail<T>(&self, reason: Reason) -> Read<T> {
        Err(XmlError::at(self.text, self.start, reason))
    }

    fn malformed<T>(&self, what: impl Into<String>) -> Read<T> {
        self.fail(Reason::Malformed(what.into()))
    }

    fn limit<T>(&self, what: &'static str) -> Read<T> {
        self.fail(Reason::Limit(what))
    }

    fn token_error(&self, offset: usize, source: quick_xml::Error) -> XmlError {
        let reason = Reason::Malformed("unexpected token".to_owned());
        XmlError {
            source: Some(Box::new(source)),
            ..XmlError::at(self.text, offset, reason)
        }
    }

    fn run(mut self) -> Read<Element> {
        loop {
            self.start = position(self.reader.buffer_position());
            let event = match self.reader.read_event() {
                Ok(event) => event,
                Err(err) => {
                    return Err(self.token_error(position(self.reader.error_position()), err));
                }
            };
            match event {
                Event::Start(tag) => self.start_tag(&tag, false)?,
                Event::Empty(tag) => self.start_tag(&tag, true)?,
                Event::End(_) => self.end_tag()?,
                Event::Text(text) => self.push_text(&text.xml10_content())?,
                Event::CData(text) => {
                    if self.open.is_empty() {
                        return self.malformed("text outside the root element");
                    }
                    self.push_text(&text.xml10_content())?;
                }
                Event::GeneralRef(name) => {
                    let name = name.into_inner();
                    match reference(&name) {
                        Ok(c) => {
                            let mut buffer = [0; 4];
                            self.push_raw(c.encode_utf8(&mut buffer))?;
                        }
                        Err(reason) => return self.fail(reason),
                    }
                }
                Event::Comment(_) => {}
                Event::Decl(decl) => {
                    if self.start != 0 {
                        return self.malformed("the XML declaration stands first or not at all");
                    }
                    let encoding = decl.encoding();
                    match (encoding, self.declared_as) {
                        (Some(Ok(name)), Some(real)) if !agrees(&name, real) => {
                            return self.fail(Reason::Encoding(
                                "the declared encoding is not the one the bytes are in",
                            ));
                        }
                        (Some(Err(err)), _) => return Err(self.token_error(0, err.into())),
                        _ => {}
                    }
                }
                Event::PI(_) => {
                    return self.fail(Reason::Forbidden("a processing instruction".to_owned()));
                }
                Event::DocType(_) => {
                    return self.fail(Reason::Forbidden("a document type declaration".to_owned()));
                }
                Event::Eof => break,
            }
        }
        match (self.open.last(), self.root.take()) {
            (Some(open), _) => {
                let what = format!("<{}> is not closed", open.local);
                self.malformed(what)
            }
            (None, Some(root)) => Ok(root),
            (None, None) => self.malformed("there is no element"),
        }
    }

    fn push_text(&mut self, text: &str) -> Read<()> {
        if self.open.is_empty() {
            return match text.chars().all(|c| c.is_ascii_whitespace()) {
                true => Ok(()),
                false => self.malformed("text outside the root element"),
            };
        }
        if !all_allowed(text) {
            return self.malformed("a control character");
        }
        self.push_raw(text)
    }

    fn push_raw(&mut self, text: &str) -> Read<()> {
        let most = self.limits.text;
        match self.open.last_mut() {
            Some(open) if open.text.len() + text.len() > most => {
                self.limit("the text of one element is too long")
            }
            Some(open) => {
                open.text.push_str(text);
                Ok(())
            }
            None => self.malformed("a reference outside the root element"),
        }
    }

    fn end_tag(&mut self) -> Read<()> {
        match self.open.pop() {
            Some(element) => {
                self.attach(element);
                Ok(())
            }
            None => self.malformed("an end tag without its start tag"),
        }
    }

    fn attach(&mut self, mut element: Element) {
        // White space between child elements is layout, not text.
        if !element.children.is_empty() && element.text.trim().is_empty() {
            element.text = String::new();
        }
        match self.open.last_mut() {
            Some(parent) => parent.children.push(element),
            None => self.root = Some(element),
        }
    }

    fn start_tag(&mut self, tag: &BytesStart<'_>, empty: bool) -> Read<()> {
        self.elements += 1;
        if self.elements > self.limits.elements {
            return self.limit("too many elements");
        }
        if self.open.len() >= self.limits.depth {
            return self.limit("elements are nested too deeply");
        }
        if self.root.is_some() {
            return self.malformed("a second root element");
        }
        let outer = self.open.last().and_then(|parent| parent.scope.clone());
        let mut declared = Vec::new();
        let mut plain = Vec::new();
        for attribute in tag.attributes().with_checks(false) {
            let attribute = attribute.map_err(|err| self.token_error(self.start, err.into()))?;
            if plain.len() + declared.len() >= self.limits.attributes {
                return self.limit("too many attributes");
            }
            let value = match normal_value(&attribute.value) {
                Ok(value) => value.into_owned(),
                Err(reason) => return self.fail(reason),
            };
            let name = attribute.key.0;
            let prefix = match name.split_once(':') {
                Some(("xmlns", prefix)) => Some(prefix),
                None if name == "xmlns" => Some(""),
                _ => None,
            };
            match prefix {
                None => plain.push((name, value)),
                Some("xmlns") => return self.malformed("xmlns cannot be declared"),
                Some("xml") if value == XML => {}
                Some("xml") => return self.malformed("xml is bound for ever"),
                Some(prefix) => {
                    if declared.iter().any(|(p, _): &(String, _)| p == prefix) {
                        return self.malformed("a prefix declared twice");
                    }
                    if value.is_empty() && !prefix.is_empty() {
                        return self.malformed("a prefix cannot be taken back");
                    }
                    let uri = (!value.is_empty()).then(|| Arc::from(value.as_str()));
                    declared.push((prefix.to_owned(), uri));
                }
            }
        }
        let scope = match declared.is_empty() {
            true => outer,
            false => Some(Arc::new(Scope { declared, outer })),
        };
        let (prefix, local) = self.split(tag.name().0)?;
        let namespace = self.resolve(scope.as_ref(), prefix)?;
        let mut attributes: Vec<Attribute> = Vec::with_capacity(plain.len());
        for (name, value) in plain {
            let (prefix, local) = self.split(name)?;
            let namespace = match prefix {
                "" => None,
                _ => self.resolve(scope.as_ref(), prefix)?,
            };
            if attributes
                .iter()
                .any(|a| a.local == local && a.namespace == namespace)
            {
                return self.malformed(format!("the attribute {local} stands twice"));
            }
            attributes.push(Attribute {
                namespace,
                local: local.to_owned(),
                value,
            });
        }
        self.place.advance(self.text, self.start);
        let element = Element {
            namespace,
            prefix: prefix.to_owned(),
            local: local.to_owned(),
            attributes,
            children: Vec::new(),
            text: String::new(),
            position: (self.place.line, self.place.column),
            scope,
        };
        match empty {
            true => self.attach(element),
            false => self.open.push(element),
        }
        Ok(())
    }

    fn split<'n>(&self, name: &'n str) -> Read<(&'n str, &'n str)> {
        let (prefix, local) = name.split_once(':').unwrap_or(("", name));
        let good = is_ncname(local) && (is_ncname(prefix) || name.len() == local.len());
        match good {
            true => Ok((prefix, local)),
            false => self.malformed(format!("{:?} is not a name", shorten(name))),
        }
    }

    fn resolve(&self, scope: Option<&Arc<Scope>>, prefix: &str) -> Read<Option<Arc<str>>> {
        match prefix {
            "xml" => Ok(Some(XML.into())),
            "" => Ok(Scope::find(scope, "")),
            _ => match Scope::find(scope, prefix) {
                None => self.malformed(format!("the prefix {:?} is not declared", shorten(prefix))),
                some => Ok(some),
            },
        }
    }
}

fn position(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

fn agrees(name: &str, real: Encoding) -> bool {
    match real {
        Encoding::Utf8 => ["utf-8", "utf8", "us-ascii", "ascii"]
            .iter()
            .any(|known| name.eq_ignore_ascii_case(known)),
        Encoding::Utf16Le | Encoding::Utf16Be => {
            name.get(..5).is_some_and(|head| {
                head.eq_ignore_ascii_case("utf-1") || head.eq_ignore_ascii_case("utf16")
            }) || name
                .get(..5)
                .is_some_and(|head| head.eq_ignore_ascii_case("ucs-2"))
        }
    }
}
