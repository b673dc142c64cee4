//! The message around a call.

use cim::cimxml::{CimXmlError, Target, namespace, path};
use cim::xml::{Element, Limits};
use cim::{Name, Path};

/// A request.
#[derive(Debug)]
pub(crate) struct Message {
    pub(super) id: String,
    pub(super) call: Call,
}

/// What is called.
#[derive(Debug)]
pub(super) enum Call {
    /// An intrinsic operation (IMETHODCALL), with its element for the parameters.
    Intrinsic {
        name: String,
        namespace: String,
        at: Element,
    },
    /// A method of a class (METHODCALL).
    Method {
        name: Name,
        namespace: String,
        path: Path,
        at: Element,
    },
}

/// Why a message is no request: the value of the `CIMError` header and a sentence.
#[derive(Debug, PartialEq)]
pub(crate) struct Refused {
    pub(super) status: u16,
    pub(super) cim_error: &'static str,
    pub(super) why: String,
}

impl Refused {
    pub(super) fn bad(cim_error: &'static str, why: impl Into<String>) -> Self {
        Refused {
            status: 400,
            cim_error,
            why: why.into(),
        }
    }

    fn invalid(why: impl Into<String>) -> Self {
        Refused::bad("request-not-valid", why)
    }
}

impl From<CimXmlError> for Refused {
    fn from(error: CimXmlError) -> Self {
        Refused::invalid(crate::wsman::envelope::chain(&error))
    }
}

const LIMITS: Limits = Limits {
    bytes: 64 << 20,
    depth: 64,
    attributes: 64,
    elements: 200_000,
    text: 32 << 20,
};

/// Reads a request.
pub(crate) fn decode(bytes: &[u8]) -> Result<Message, Refused> {
    let document = cim::xml::parse(bytes, &LIMITS)
        .map_err(|e| Refused::bad("request-not-well-formed", crate::wsman::envelope::chain(&e)))?;
    let root = document.root;
    if root.local != "CIM" {
        return Err(Refused::invalid(format!("{} instead of CIM", root.local)));
    }
    version(&root, "CIMVERSION", "2.", "unsupported-cim-version")?;
    version(&root, "DTDVERSION", "2.", "unsupported-dtd-version")?;
    let message = only_child(root, "MESSAGE")?;
    version(
        &message,
        "PROTOCOLVERSION",
        "1.",
        "unsupported-protocol-version",
    )?;
    let id = message.attr("ID").unwrap_or_default().to_owned();
    let request = match message.children.first().map(|c| c.local.as_str()) {
        Some("MULTIREQ") => {
            return Err(Refused {
                status: 501,
                cim_error: "multiple-requests-unsupported",
                why: "several requests in one message are not supported".to_owned(),
            });
        }
        _ => only_child(message, "SIMPLEREQ")?,
    };
    let at = request
        .children
        .into_iter()
        .next()
        .ok_or_else(|| Refused::invalid("SIMPLEREQ is empty"))?;
    let name = at
        .attr("NAME")
        .ok_or_else(|| Refused::invalid(format!("{} has no NAME", at.local)))?
        .to_owned();
    let call = match at.local.as_str() {
        "IMETHODCALL" => {
            let place = at
                .children
                .iter()
                .find(|c| c.local == "LOCALNAMESPACEPATH")
                .ok_or_else(|| Refused::invalid("IMETHODCALL has no LOCALNAMESPACEPATH"))?;
            let (_, namespace) = namespace(place)?;
            Call::Intrinsic {
                name,
                namespace: cim::normal_namespace(&namespace),
                at,
            }
        }
        "METHODCALL" => {
            let object = at
                .children
                .iter()
                .find(|c| c.local == "LOCALINSTANCEPATH" || c.local == "LOCALCLASSPATH")
                .ok_or_else(|| Refused::invalid("METHODCALL names no object"))?;
            let (path, _): (Path, Target) = path(object)?;
            Call::Method {
                name: name.into(),
                namespace: cim::normal_namespace(path.namespace.as_deref().unwrap_or_default()),
                path,
                at,
            }
        }
        other => return Err(Refused::invalid(format!("{other} is not a call"))),
    };
    Ok(Message { id, call })
}

fn only_child(mut at: Element, name: &str) -> Result<Element, Refused> {
    let found = at.children.iter().position(|c| c.local == name);
    match found {
        Some(i) => Ok(at.children.swap_remove(i)),
        None => Err(Refused::invalid(format!("{} has no {name}", at.local))),
    }
}

fn version(
    at: &Element,
    attribute: &str,
    wanted: &str,
    cim_error: &'static str,
) -> Result<(), Refused> {
    match at.attr(attribute) {
        Some(found) if found.starts_with(wanted) => Ok(()),
        found => Err(Refused::bad(
            cim_error,
            format!(
                "{attribute} is {:?}, {wanted}x is supported",
                found.unwrap_or_default()
            ),
        )),
    }
}

/// The value of a CIM header: clients encode it as a URL or do not.
pub(super) fn header_text(value: &str) -> String {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.trim().bytes();
    while let Some(b) = bytes.next() {
        let mut ahead = bytes.clone();
        let digits = (ahead.next(), ahead.next());
        match (b, digits) {
            (b'%', (Some(high), Some(low))) => {
                let digit = |d: u8| {
                    char::from(d)
                        .to_digit(16)
                        .and_then(|d| u8::try_from(d).ok())
                };
                match (digit(high), digit(low)) {
                    (Some(high), Some(low)) => {
                        out.push(high * 16 + low);
                        bytes = ahead;
                    }
                    _ => out.push(b),
                }
            }
            _ => out.push(b),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(inner: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><CIM CIMVERSION=\"2.0\" DTDVERSION=\"2.0\"><MESSAGE ID=\"1001\" PROTOCOLVERSION=\"1.0\"><SIMPLEREQ>{inner}</SIMPLEREQ></MESSAGE></CIM>"
        )
    }

    const PLACE: &str = "<LOCALNAMESPACEPATH><NAMESPACE NAME=\"root\"/><NAMESPACE NAME=\"cimv2\"/></LOCALNAMESPACEPATH>";

    #[test]
    fn both_kinds_of_call_are_read() {
        let text = request(&format!(
            "<IMETHODCALL NAME=\"GetClass\">{PLACE}</IMETHODCALL>"
        ));
        let message = decode(text.as_bytes()).expect("intrinsic");
        assert_eq!(message.id, "1001");
        assert!(matches!(
            message.call,
            Call::Intrinsic { ref name, ref namespace, .. } if name == "GetClass" && namespace == "root/cimv2"
        ));
        let text = request(&format!(
            "<METHODCALL NAME=\"M\"><LOCALCLASSPATH>{PLACE}<CLASSNAME NAME=\"C\"/></LOCALCLASSPATH></METHODCALL>"
        ));
        let message = decode(text.as_bytes()).expect("method");
        assert!(matches!(
            message.call,
            Call::Method { ref path, .. } if path.class.is("C")
        ));
    }

    #[test]
    fn what_is_refused_says_so_in_the_header() {
        let error = |text: &str| decode(text.as_bytes()).expect_err(text).cim_error;
        assert_eq!(error("<CIM"), "request-not-well-formed");
        assert_eq!(error("<a/>"), "request-not-valid");
        assert_eq!(error("<CIM CIMVERSION='3.0'/>"), "unsupported-cim-version");
        assert_eq!(
            error("<CIM CIMVERSION='2.0' DTDVERSION='2.0'><MESSAGE PROTOCOLVERSION='2.0'/></CIM>"),
            "unsupported-protocol-version"
        );
        assert_eq!(error(&request("")), "request-not-valid");
        assert_eq!(
            error(&request("<IMETHODCALL NAME='x'/>")),
            "request-not-valid"
        );
        let several = request("").replace("SIMPLEREQ", "MULTIREQ");
        assert_eq!(error(&several), "multiple-requests-unsupported");
    }

    #[test]
    fn headers_may_be_url_encoded() {
        assert_eq!(
            header_text("root%2Fvirtualization%2fv2"),
            "root/virtualization/v2"
        );
        assert_eq!(header_text(" a%zz%2 "), "a%zz%2");
    }
}
