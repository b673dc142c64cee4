//! Answers: bodies, faults, out parameters.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cim::xml::{Element, Limits};
use cim::{Method, Name, Type, Value};

use super::{ClientError, Identity, Invoked, ServerFault};
use crate::wsman::{envelope, instance, ns};

/// What came back, if it is no fault.
pub(super) struct Answer {
    pub(super) body: Element,
}

const LIMITS: Limits = Limits {
    bytes: 256 << 20,
    depth: 64,
    attributes: 128,
    elements: 5_000_000,
    text: 64 << 20,
};

pub(super) fn unreadable(error: &dyn std::error::Error) -> ClientError {
    ClientError::Answer {
        why: envelope::chain(error),
    }
}

pub(super) fn unread(fault: &crate::wsman::Fault) -> ClientError {
    ClientError::Answer {
        why: fault.reason().to_owned(),
    }
}

pub(super) fn empty() -> ClientError {
    ClientError::Answer {
        why: "it is empty".to_owned(),
    }
}

impl Answer {
    /// Reads an envelope; a fault becomes an error.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, ClientError> {
        let mut root = cim::xml::parse(bytes, &LIMITS)
            .map_err(|e| unreadable(&e))?
            .root;
        let body = root
            .children
            .iter()
            .position(|c| c.is(ns::SOAP, "Body"))
            .map(|i| root.children.swap_remove(i));
        let Some(body) = body.filter(|_| root.is(ns::SOAP, "Envelope")) else {
            return Err(ClientError::Answer {
                why: format!("{} is no SOAP envelope with a body", root.local),
            });
        };
        match body.child(ns::SOAP, "Fault") {
            Some(fault) => Err(ClientError::Fault(Box::new(read_fault(fault)))),
            None => Ok(Answer { body }),
        }
    }
}

fn read_fault(fault: &Element) -> ServerFault {
    let text = |steps: &[(&str, &str)]| fault.descend(steps).map(Element::text);
    let code = text(&[
        (ns::SOAP, "Code"),
        (ns::SOAP, "Subcode"),
        (ns::SOAP, "Value"),
    ])
    .or_else(|| text(&[(ns::SOAP, "Code"), (ns::SOAP, "Value")]))
    .unwrap_or_default();
    let mut read = ServerFault {
        reason: text(&[(ns::SOAP, "Reason"), (ns::SOAP, "Text")])
            .unwrap_or_default()
            .to_owned(),
        subcode: code.rsplit(':').next().unwrap_or_default().to_owned(),
        code: 0,
        cim_status: None,
        machine: None,
        chain: Vec::new(),
    };
    let number = |text: &str| -> Option<u32> {
        match text.trim().parse::<i64>().ok()? {
            // Windows writes error codes signed or unsigned.
            n if n < 0 => i32::try_from(n).ok().map(i32::cast_unsigned),
            n => u32::try_from(n).ok(),
        }
    };
    let details = fault
        .child(ns::SOAP, "Detail")
        .map(|d| d.children.as_slice())
        .unwrap_or_default();
    for detail in details {
        if detail.is(ns::MS_FAULT, "WSManFault") {
            let told = detail.attr("Code").and_then(number);
            read.code = told.unwrap_or(read.code);
            read.machine = detail.attr("Machine").map(str::to_owned);
            if read.reason.is_empty() {
                read.reason = all_text(detail);
            }
            continue;
        }
        let uri = detail.namespace.as_deref().unwrap_or_default();
        if !uri.contains("cim-schema/2/") && !uri.starts_with(ns::WMI) {
            continue;
        }
        let Ok(error) = instance::read_properties(detail, detail.local.clone()) else {
            continue;
        };
        if error.class.is("MSFT_WmiError") {
            let field = |name: &str| error.get_str(name).and_then(number);
            read.cim_status = field("CIMStatusCode");
            // WMI's own code says more than the one for "a provider failed".
            read.code = field("error_Code").filter(|c| *c != 0).unwrap_or(read.code);
            if let Some(message) = error.get_str("Message").filter(|_| read.reason.is_empty()) {
                read.reason = message.to_owned();
            }
        } else {
            read.chain.push(error);
        }
    }
    if read.reason.is_empty() {
        read.reason = format!("The server answered with the fault {}.", read.subcode);
    }
    read
}

fn all_text(at: &Element) -> String {
    let mut text = at.text().to_owned();
    for child in &at.children {
        let inner = all_text(child);
        if !inner.is_empty() && !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&inner);
    }
    text
}

pub(super) fn identity(bytes: &[u8]) -> Result<Identity, ClientError> {
    let answer = Answer::read(bytes)?;
    let response = answer
        .body
        .children
        .iter()
        .find(|c| c.local == "IdentifyResponse")
        .ok_or_else(|| ClientError::Answer {
            why: "it is no answer to Identify".to_owned(),
        })?;
    let text = |local: &str| {
        let found = response.children.iter().find(|c| c.local == local);
        found.map_or_else(String::new, |c| c.text().to_owned())
    };
    Ok(Identity {
        vendor: text("ProductVendor"),
        version: text("ProductVersion"),
        protocol: text("ProtocolVersion"),
    })
}

pub(super) fn child<'a>(
    body: &'a Element,
    namespace: &str,
    local: &str,
) -> Result<&'a Element, ClientError> {
    body.child(namespace, local)
        .ok_or_else(|| ClientError::Answer {
            why: format!("it holds no {local}"),
        })
}

/// The context of an enumeration that goes on.
pub(super) fn context(response: &Element) -> Option<String> {
    response
        .child(ns::ENUMERATION, "EnumerationContext")
        .map(|c| c.text().to_owned())
        .filter(|text| !text.is_empty())
}

/// Reads METHOD_OUTPUT, with the declared types where they fit.
pub(super) fn invoked(output: &Element, declared: Option<&Method>) -> Result<Invoked, ClientError> {
    let values = instance::read_values(output).map_err(|f| unread(&f))?;
    let mut invoked = Invoked {
        return_value: None,
        out: Vec::with_capacity(values.len()),
    };
    for (name, value) in values {
        if name.is("ReturnValue") {
            let number = value.to_text();
            invoked.return_value = number.and_then(|text| text.trim().parse().ok());
            continue;
        }
        let declaration = declared.and_then(|m| m.parameters.iter().find(|p| p.name == name));
        let Some(declaration) = declaration else {
            invoked.out.push((name, value));
            continue;
        };
        let octets = declaration.array && declaration.ty == Type::Uint8;
        let value = match value.as_str().filter(|_| octets) {
            Some(text) => STANDARD
                .decode(text.trim())
                .map_or_else(|_| value.clone(), Value::from),
            None => value,
        };
        let typed = value
            .clone()
            .coerce(declaration.ty, declaration.array)
            .unwrap_or(value);
        invoked.out.push((Name::clone(&declaration.name), typed));
    }
    Ok(invoked)
}
