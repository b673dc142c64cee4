//! Requests as envelopes.

use std::time::Duration;

use cim::xml::Writer;
use cim::{Name, Path, Type, Value, embedded};

use crate::Walk;
use crate::wsman::uri::Family;
use crate::wsman::{envelope, epr, instance, ns};

/// What Windows takes at most by default, and what our own server fills.
const MAX_ENVELOPE: &str = "512000";

pub(super) fn class_uri(namespace: &str, class: &str) -> String {
    family(namespace).class_uri(class)
}

fn family(namespace: &str) -> Family {
    Family::Wmi {
        namespace: cim::normal_namespace(namespace),
    }
}

pub(super) fn identify() -> String {
    let mut w = Writer::new();
    w.open("s:Envelope")
        .attr("xmlns:s", ns::SOAP)
        .attr(
            "xmlns:wsmid",
            "http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd",
        )
        .empty("s:Header")
        .open("s:Body")
        .empty("wsmid:Identify");
    w.finish()
}

/// A query that walks associations.
pub(super) fn traversal(verb: &str, path: &Path, walk: &Walk) -> String {
    let mut text = format!("{verb} OF {{{}}}", path.relative());
    let conditions = [
        ("AssocClass", &walk.assoc_class),
        ("ResultClass", &walk.result_class),
        ("Role", &walk.role),
        ("ResultRole", &walk.result_role),
    ];
    let mut before = " WHERE";
    for (name, value) in conditions {
        if let Some(value) = value {
            text.push_str(&format!("{before} {name} = {value}"));
            before = "";
        }
    }
    text
}

enum Body<'a> {
    None,
    Enumerate {
        wql: Option<&'a str>,
        with_paths: bool,
        batch: u32,
    },
    Pull {
        context: &'a str,
        batch: u32,
    },
    Method {
        name: &'a str,
        parameters: &'a [(Name, Value)],
    },
}

/// One request.
pub(super) struct Call<'a> {
    action: &'a str,
    namespace: &'a str,
    uri: String,
    keys: &'a [(Name, Value)],
    request_key: Option<&'a str>,
    repeatable: bool,
    body: Body<'a>,
}

impl<'a> Call<'a> {
    pub(super) fn new(action: &'a str, namespace: &'a str, class: &str) -> Self {
        Call {
            action,
            namespace,
            uri: class_uri(namespace, class),
            keys: &[],
            request_key: None,
            repeatable: false,
            body: Body::None,
        }
    }

    pub(super) fn uri(mut self, uri: &str) -> Self {
        self.uri = uri.to_owned();
        self
    }

    pub(super) fn keys(mut self, keys: &'a [(Name, Value)]) -> Self {
        self.keys = keys;
        self
    }

    pub(super) fn request_key(mut self, key: &'a str, repeatable: bool) -> Self {
        self.request_key = Some(key);
        self.repeatable = repeatable;
        self
    }

    pub(super) fn enumerate(mut self, wql: Option<&'a str>, with_paths: bool, batch: u32) -> Self {
        self.body = Body::Enumerate {
            wql,
            with_paths,
            batch,
        };
        self
    }

    pub(super) fn pull(mut self, context: &'a str, batch: u32) -> Self {
        self.body = Body::Pull { context, batch };
        self
    }

    pub(super) fn method(mut self, name: &'a str, parameters: &'a [(Name, Value)]) -> Self {
        self.body = Body::Method { name, parameters };
        self
    }

    /// Whether it may be sent again when nobody knows if it arrived: not what moves a context on, and a
    /// method only under a key that makes it safe.
    pub(super) fn is_repeatable(&self) -> bool {
        match self.body {
            Body::None | Body::Enumerate { .. } => true,
            Body::Pull { .. } => false,
            Body::Method { .. } => self.repeatable,
        }
    }

    pub(super) fn write(&self, to: &str, timeout: Duration) -> String {
        let mut w = Writer::with_capacity(2048);
        w.open("s:Envelope");
        for (prefix, namespace) in [
            ("xmlns:s", ns::SOAP),
            ("xmlns:a", ns::ADDRESSING),
            ("xmlns:n", ns::ENUMERATION),
            ("xmlns:w", ns::WSMAN),
        ] {
            w.attr(prefix, namespace);
        }
        w.open("s:Header").leaf("a:To", to);
        must(&mut w, "w:ResourceURI", &self.uri);
        w.open("a:ReplyTo");
        must(&mut w, "a:Address", ns::ANONYMOUS);
        w.close();
        must(&mut w, "a:Action", self.action);
        must(&mut w, "w:MaxEnvelopeSize", MAX_ENVELOPE);
        w.leaf("a:MessageID", &envelope::message_id());
        // Windows' own clients write it in seconds.
        let timeout = format!("PT{:.3}S", timeout.as_secs_f64());
        w.leaf("w:OperationTimeout", &timeout);
        self.write_selectors(&mut w);
        if let Some(key) = self.request_key {
            w.open("w:OptionSet")
                .open("w:Option")
                .attr("Name", "kvmms-request-key")
                .text(key)
                .close()
                .close();
        }
        w.close().open("s:Body");
        self.write_body(&mut w);
        w.finish()
    }

    fn write_selectors(&self, w: &mut Writer) {
        // Classes are named by their URI and this selector; for instances the URI tells the namespace.
        let classes = self.uri.starts_with(ns::CIM_XML);
        if self.keys.is_empty() && !classes {
            return;
        }
        w.open("w:SelectorSet");
        if classes {
            w.open("w:Selector")
                .attr("Name", epr::NAMESPACE)
                .text(self.namespace)
                .close();
        }
        for (name, value) in self.keys {
            w.open("w:Selector").attr("Name", name.as_str());
            match value {
                Value::Reference(path) => epr::write(w, path, &family(self.namespace)),
                other => {
                    w.text(&other.to_text().unwrap_or_default());
                }
            }
            w.close();
        }
        w.close();
    }

    fn write_body(&self, w: &mut Writer) {
        match self.body {
            Body::None => {}
            Body::Enumerate {
                wql,
                with_paths,
                batch,
            } => {
                w.open("n:Enumerate")
                    .empty("w:OptimizeEnumeration")
                    .leaf("w:MaxElements", &batch.to_string());
                if with_paths {
                    w.leaf("w:EnumerationMode", "EnumerateObjectAndEPR");
                }
                if let Some(wql) = wql {
                    w.open("w:Filter")
                        .attr("Dialect", ns::WQL)
                        .text(wql)
                        .close();
                }
                w.close();
            }
            Body::Pull { context, batch } => {
                w.open("n:Pull")
                    .leaf("n:EnumerationContext", context)
                    .leaf("n:MaxElements", &batch.to_string())
                    .close();
            }
            Body::Method { name, parameters } => {
                w.open(&format!("p:{name}_INPUT"))
                    .attr("xmlns:p", &self.uri)
                    .attr("xmlns:xsi", ns::XSI)
                    .attr("xmlns:cim", ns::COMMON);
                let family = family(self.namespace);
                for (name, value) in parameters {
                    write_parameter(w, &format!("p:{name}"), value, &family);
                }
                w.close();
            }
        }
    }
}

fn must(w: &mut Writer, tag: &str, text: &str) {
    w.open(tag)
        .attr("s:mustUnderstand", "true")
        .text(text)
        .close();
}

fn write_parameter(w: &mut Writer, tag: &str, value: &Value, family: &Family) {
    match value {
        Value::Null => {}
        Value::Array(items) => {
            for item in items {
                write_parameter(w, tag, item, family);
            }
        }
        Value::Object(instance) => {
            w.leaf(tag, &embedded::write(instance));
        }
        other => instance::write_value(w, tag, other, Type::String, family),
    }
}
