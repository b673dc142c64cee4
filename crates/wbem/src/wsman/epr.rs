//! Endpoint references: how object paths travel (DSP0227 with Windows' habits).

use cim::xml::{Element, Writer};
use cim::{Path, Value};

use super::fault::{Fault, Subcode};
use super::uri::{self, Family, Resource};
use super::{envelope, ns};

/// Whether an element is an endpoint reference or holds the parts of one.
pub(crate) fn looks_like(at: &Element) -> bool {
    at.is(ns::ADDRESSING, "EndpointReference")
        || at.is(ns::ADDRESSING, "Address")
        || at.is(ns::ADDRESSING, "ReferenceParameters")
        || at.is(ns::ADDRESSING, "ReferenceProperties")
}

/// Reads an endpoint reference: the element itself, or one whose children are its parts (as method
/// parameters come).
pub(crate) fn read(at: &Element) -> Result<Path, Fault> {
    let at = at.child(ns::ADDRESSING, "EndpointReference").unwrap_or(at);
    let parameters = at
        .child(ns::ADDRESSING, "ReferenceParameters")
        .or_else(|| at.child(ns::ADDRESSING, "ReferenceProperties"))
        .ok_or_else(|| invalid("an endpoint reference has no ReferenceParameters"))?;
    let uri = parameters
        .child(ns::WSMAN, "ResourceURI")
        .ok_or_else(|| invalid("an endpoint reference has no ResourceURI"))?;
    let mut keys = match parameters.child(ns::WSMAN, "SelectorSet") {
        Some(set) => envelope::selectors(set)?,
        None => Vec::new(),
    };
    let namespace = keys
        .iter()
        .position(|(name, _)| name.is(NAMESPACE))
        .map(|i| keys.remove(i).1);
    let namespace = namespace.as_ref().and_then(Value::as_str);
    match uri::parse(uri.text(), namespace)? {
        Resource::Instances {
            family,
            class: Some(class),
            default_namespace,
        } => {
            let mut path = Path::class(class);
            path.keys = keys;
            if !default_namespace {
                path = path.in_namespace(family.namespace());
            }
            Ok(path)
        }
        _ => Err(invalid("an endpoint reference names no class")),
    }
}

/// The selector that names the namespace.
pub(crate) const NAMESPACE: &str = "__cimnamespace";

fn invalid(what: &str) -> Fault {
    Fault::sender(
        Subcode::InvalidParameter,
        format!("A reference cannot be read: {what}."),
    )
    .detail("InvalidValue")
}

/// Writes the parts of an endpoint reference, without the element around them.
pub(crate) fn write_parts(w: &mut Writer, path: &Path, family: &Family) {
    let namespace = path.namespace.as_deref().unwrap_or(family.namespace());
    let family = family.at(namespace);
    w.leaf("a:Address", ns::ANONYMOUS)
        .open("a:ReferenceParameters")
        .leaf("w:ResourceURI", &family.class_uri(path.class.as_str()))
        .open("w:SelectorSet")
        .open("w:Selector")
        .attr("Name", NAMESPACE)
        .text(family.namespace())
        .close();
    for (name, value) in &path.keys {
        w.open("w:Selector").attr("Name", name.as_str());
        match value {
            Value::Reference(inner) => write(w, inner, &family),
            value => {
                w.text(&value.to_text().unwrap_or_default());
            }
        }
        w.close();
    }
    w.close().close();
}

/// Writes an endpoint reference.
pub(crate) fn write(w: &mut Writer, path: &Path, family: &Family) {
    w.open("a:EndpointReference");
    write_parts(w, path, family);
    w.close();
}

#[cfg(test)]
mod tests {
    use super::*;
    use cim::xml::{Limits, parse_str};

    fn wrapped(inner: impl FnOnce(&mut Writer)) -> Element {
        let mut w = Writer::new();
        w.open("r")
            .attr("xmlns:a", ns::ADDRESSING)
            .attr("xmlns:w", ns::WSMAN);
        inner(&mut w);
        parse_str(&w.finish(), &Limits::default()).expect("xml")
    }

    #[test]
    fn a_path_survives_either_family_nested_references_too() {
        let job = Path::class("Msvm_ConcreteJob")
            .key("InstanceID", "A<B>\"\\")
            .in_namespace("root/virtualization/v2");
        let link = Path::class("Msvm_AffectedJobElement")
            .key("AffectingElement", job.clone())
            .key("AffectedElement", job)
            .in_namespace("root/virtualization/v2");
        let namespace = "root/virtualization/v2".to_owned();
        for family in [
            Family::Wmi {
                namespace: namespace.clone(),
            },
            Family::CimSchema { namespace },
        ] {
            let bare = wrapped(|w| write_parts(w, &link, &family));
            assert_eq!(read(&bare), Ok(link.clone()));
            let whole = wrapped(|w| write(w, &link, &family));
            assert_eq!(read(&whole), Ok(link.clone()));
        }
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for inner in [
            "",
            "<a:Address>x</a:Address>",
            "<a:ReferenceParameters/>",
            "<a:ReferenceParameters><w:ResourceURI>http://schemas.microsoft.com/wbem/wsman/1/wmi/root/cimv2/*</w:ResourceURI></a:ReferenceParameters>",
        ] {
            let at = wrapped(|w| {
                w.raw(inner);
            });
            assert!(read(&at).is_err(), "{inner}");
        }
    }
}
