//! The appender.

use super::chars::{allowed, is_name_char};

/// Appends XML to a text: tags in order, names remembered, everything else escaped.
///
/// What XML 1.0 cannot hold (control characters) becomes U+FFFD, in a name `_`: what is written can
/// always be read.
///
/// ```
/// let mut w = cim::xml::Writer::new();
/// w.open("VALUE.ARRAY").leaf("VALUE", "a<b").close();
/// assert_eq!(w.finish(), "<VALUE.ARRAY><VALUE>a&lt;b</VALUE></VALUE.ARRAY>");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Writer {
    out: String,
    /// Where in `out` the names of the open elements stand.
    open: Vec<(usize, usize)>,
    /// Whether the last start tag still lacks its `>`.
    in_tag: bool,
}

impl Writer {
    /// Nothing yet.
    pub fn new() -> Self {
        Writer::default()
    }

    /// With room for that many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Writer {
            out: String::with_capacity(bytes),
            ..Writer::default()
        }
    }

    /// The UTF-8 declaration, for the head of a document.
    pub fn declaration(&mut self) -> &mut Self {
        self.raw("<?xml version=\"1.0\" encoding=\"utf-8\"?>")
    }

    /// Begins an element.
    pub fn open(&mut self, tag: &str) -> &mut Self {
        self.end_tag();
        self.out.push('<');
        let start = self.out.len();
        self.name(tag);
        self.open.push((start, self.out.len()));
        self.in_tag = true;
        self
    }

    /// An attribute of the element just begun. Ignored once the element has content.
    pub fn attr(&mut self, name: &str, value: &str) -> &mut Self {
        if self.in_tag {
            self.out.push(' ');
            self.name(name);
            self.out.push_str("=\"");
            escape(&mut self.out, value, true);
            self.out.push('"');
        }
        self
    }

    /// The same attribute, where there is a value.
    pub fn attr_if(&mut self, name: &str, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.attr(name, value),
            None => self,
        }
    }

    /// Text, escaped. Empty text keeps the element from being closed in the short form.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.end_tag();
        escape(&mut self.out, text, false);
        self
    }

    /// XML put in as it is; the caller answers for it.
    pub fn raw(&mut self, xml: &str) -> &mut Self {
        self.end_tag();
        self.out.push_str(xml);
        self
    }

    /// Ends the element begun last: `<a/>` when nothing was put in.
    pub fn close(&mut self) -> &mut Self {
        if self.in_tag {
            self.in_tag = false;
            self.open.pop();
            self.out.push_str("/>");
            return self;
        }
        self.close_long()
    }

    /// Ends the element begun last with an end tag, empty or not.
    pub fn close_long(&mut self) -> &mut Self {
        self.end_tag();
        if let Some((start, end)) = self.open.pop() {
            self.out.push_str("</");
            self.out.extend_from_within(start..end);
            self.out.push('>');
        }
        self
    }

    /// An element with text only, always with an end tag.
    pub fn leaf(&mut self, tag: &str, text: &str) -> &mut Self {
        self.open(tag).text(text).close()
    }

    /// An empty element without attributes: `<a/>`.
    pub fn empty(&mut self, tag: &str) -> &mut Self {
        self.open(tag).close()
    }

    /// What was written so far, in bytes.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// The text, with every open element closed.
    pub fn finish(mut self) -> String {
        while !self.open.is_empty() {
            self.close();
        }
        self.out
    }

    fn end_tag(&mut self) {
        if self.in_tag {
            self.in_tag = false;
            self.out.push('>');
        }
    }

    fn name(&mut self, name: &str) {
        let good = |c: char| is_name_char(c) || c == ':';
        let starts = name.starts_with(|c: char| c.is_alphabetic() || c == '_');
        if starts && name.chars().all(good) {
            self.out.push_str(name);
        } else {
            if !starts {
                self.out.push('_');
            }
            self.out
                .extend(name.chars().map(|c| if good(c) { c } else { '_' }));
        }
    }
}

fn escape(out: &mut String, text: &str, in_attribute: bool) {
    let mut plain = 0;
    for (at, c) in text.char_indices() {
        let replacement = match c {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            '"' if in_attribute => "&quot;",
            // A reader would turn these into blanks or line feeds.
            '\t' if in_attribute => "&#9;",
            '\n' if in_attribute => "&#10;",
            '\r' => "&#13;",
            _ if allowed(c) => continue,
            _ => "\u{fffd}",
        };
        out.push_str(text.get(plain..at).unwrap_or_default());
        out.push_str(replacement);
        plain = at + c.len_utf8();
    }
    out.push_str(text.get(plain..).unwrap_or_default());
}
