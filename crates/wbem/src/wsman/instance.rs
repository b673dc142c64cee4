//! Instances, parameters and values as WS-Management XML, written exactly as Windows does: properties in
//! alphabetical order, null scalars `xsi:nil`, null arrays left out, arrays as repeated elements.

use cim::xml::{Element, Writer};
use cim::{Class, Datetime, Instance, Name, Path, Type, Value, embedded};

use super::fault::{Fault, Subcode};
use super::uri::Family;
use super::{epr, ns};

/// How instances are written.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) family: Family,
    /// Write null arrays as elements that say so (an option of PowerShell).
    pub(crate) precise_arrays: bool,
    /// Only the members of this class, under its name.
    pub(crate) base: Option<Class>,
}

/// Writes an instance as an element of its class's namespace.
pub(crate) fn write(w: &mut Writer, instance: &Instance, shape: &Shape) {
    let class = shape.base.as_ref().map_or(&instance.class, |c| &c.name);
    let family = match instance.path.as_ref().and_then(|p| p.namespace.as_deref()) {
        Some(namespace) => shape.family.at(namespace),
        None => shape.family.clone(),
    };
    let mut tag = format!("p:{class}");
    w.open(&tag)
        .attr("xmlns:xsi", ns::XSI)
        .attr("xmlns:p", &family.class_uri(class.as_str()))
        .attr("xmlns:cim", ns::COMMON)
        .attr("xsi:type", &format!("p:{class}_Type"));
    let mut properties: Vec<_> = instance.properties.iter().collect();
    if let Some(base) = &shape.base {
        properties.retain(|p| base.property(p.name.as_str()).is_some());
    }
    properties.sort_by(|a, b| a.name.cmp(&b.name));
    for property in properties {
        tag.truncate(2);
        tag.push_str(property.name.as_str());
        match &property.value {
            Value::Null if property.array => {
                if shape.precise_arrays {
                    w.open(&tag)
                        .attr("xmlns:msftwinrm", ns::MS_WINRM)
                        .attr("msftwinrm:IsNullArray", "true")
                        .attr("xsi:nil", "true")
                        .close();
                }
            }
            value => write_value(w, &tag, value, property.ty, &family),
        }
    }
    w.close_long();
}

/// Writes a value as elements named `tag`: one, or one for each of an array.
pub(crate) fn write_value(w: &mut Writer, tag: &str, value: &Value, ty: Type, family: &Family) {
    match value {
        Value::Array(items) => {
            for item in items {
                write_value(w, tag, item, ty, family);
            }
        }
        Value::Null => {
            w.open(tag).attr("xsi:nil", "true").close();
        }
        Value::Reference(path) => {
            w.open(tag);
            epr::write_parts(w, path, family);
            w.close();
        }
        Value::Datetime(at) => {
            let kind = match at {
                Datetime::Timestamp { .. } => "cim:Datetime",
                Datetime::Interval { .. } => "cim:Interval",
            };
            w.open(tag).leaf(kind, &at.to_xsd()).close();
        }
        Value::Object(instance) if ty == Type::Object => {
            let class = &instance.class;
            w.open(tag)
                .attr("xmlns:q", &family.class_uri(class.as_str()))
                .attr("xsi:type", &format!("q:{class}_Type"));
            for property in &instance.properties {
                let inner = format!("q:{}", property.name);
                write_value(w, &inner, &property.value, property.ty, family);
            }
            w.close_long();
        }
        Value::Object(instance) => {
            w.leaf(tag, &embedded::write(instance));
        }
        Value::String(text) => {
            w.leaf(tag, text);
        }
        scalar => {
            w.leaf(tag, &scalar.to_text().unwrap_or_default());
        }
    }
}

/// Reads one value. What has no type of its own is a string.
pub(crate) fn read_value(at: &Element) -> Result<Value, Fault> {
    let nil = at.attr_ns(ns::XSI, "nil");
    if nil.is_some_and(|v| v.trim().eq_ignore_ascii_case("true") || v.trim() == "1") {
        return Ok(Value::Null);
    }
    let Some(first) = at.children.first() else {
        return Ok(Value::String(at.text.clone()));
    };
    if epr::looks_like(first) {
        return Ok(Value::Reference(Box::new(epr::read(at)?)));
    }
    if first.namespace.as_deref() == Some(ns::COMMON) {
        let text = first.text();
        return Ok(Datetime::parse_lenient(text)
            .map_or_else(|_| Value::String(text.to_owned()), Value::Datetime));
    }
    if first.local == "INSTANCE" && first.namespace.is_none() {
        return cim::cimxml::instance(first)
            .map(|i| Value::Object(Box::new(i)))
            .map_err(|e| invalid(&e));
    }
    let class = class_of(at).unwrap_or(Name::of(""));
    read_properties(at, class).map(|i| Value::Object(Box::new(i)))
}

fn invalid(error: &dyn std::error::Error) -> Fault {
    Fault::sender(
        Subcode::SchemaValidation,
        format!(
            "The body cannot be read: {}.",
            super::envelope::chain(error)
        ),
    )
}

/// The class an element says it is: by its `xsi:type`, else by the end of its namespace.
fn class_of(at: &Element) -> Option<Name> {
    let typed = at
        .attr_ns(ns::XSI, "type")
        .and_then(|v| at.qname(v))
        .map(|(_, local)| local.strip_suffix("_Type").unwrap_or(local).to_owned());
    let spaced = || {
        let uri = at.children.first()?.namespace.as_deref()?;
        uri.rsplit('/').next().map(str::to_owned)
    };
    typed
        .or_else(spaced)
        .filter(|name| !name.is_empty())
        .map(Name::from)
}

/// Reads the elements inside `at` as properties of an instance of `class`; an element that stands several
/// times is an array.
pub(crate) fn read_properties(at: &Element, class: impl Into<Name>) -> Result<Instance, Fault> {
    let mut instance = Instance::new(class);
    for (name, value) in read_values(at)? {
        instance.set(name, value);
    }
    Ok(instance)
}

/// Reads the elements inside `at` as named values.
pub(crate) fn read_values(at: &Element) -> Result<Vec<(Name, Value)>, Fault> {
    let mut found: Vec<(Name, Value)> = Vec::new();
    for child in &at.children {
        let value = read_value(child)?;
        // Elements of one array follow each other; looking at the last one first keeps this linear.
        let seen = found.iter_mut().rev().find(|(n, _)| n.is(&child.local));
        match seen {
            Some((_, Value::Array(items))) => items.push(value),
            Some((_, first)) => {
                let one = std::mem::replace(first, Value::Null);
                *first = Value::Array(vec![one, value]);
            }
            None => {
                if found.len() >= MAX_VALUES {
                    return Err(Fault::sender(
                        Subcode::SchemaValidation,
                        format!("More than {MAX_VALUES} values in one element."),
                    ));
                }
                found.push((child.local.clone().into(), value));
            }
        }
    }
    Ok(found)
}

const MAX_VALUES: usize = 1024;

/// An instance with the names and types its class declares; what it does not declare or does not fit stays
/// as it came, for whoever knows more to judge.
pub(crate) fn declared(mut instance: Instance, class: Option<&Class>) -> Instance {
    let Some(class) = class else { return instance };
    instance.class = class.name.clone();
    for property in &mut instance.properties {
        let Some(declaration) = class.property(property.name.as_str()) else {
            continue;
        };
        let typed = property
            .value
            .clone()
            .coerce(declaration.ty, declaration.array);
        if let Ok(value) = typed {
            property.name = declaration.name.clone();
            property.ty = declaration.ty;
            property.array = declaration.array;
            property.value = value;
        }
    }
    instance
}

/// The keys of a path with the types its class declares, where they fit.
pub(crate) fn declared_keys(mut path: Path, class: Option<&Class>) -> Path {
    for (name, value) in &mut path.keys {
        let declaration = class.and_then(|c| c.property(name.as_str()));
        if let Some(declaration) = declaration
            && let Ok(typed) = value.clone().coerce(declaration.ty, false)
        {
            *value = typed;
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use cim::Property;
    use cim::xml::{Limits, parse_str};

    fn shape() -> Shape {
        Shape {
            family: Family::Wmi {
                namespace: "root/cimv2".to_owned(),
            },
            precise_arrays: false,
            base: None,
        }
    }

    fn sample() -> Instance {
        let null_array = Property {
            name: Name::of("Dedicated"),
            ty: Type::Uint16,
            array: true,
            value: Value::Null,
        };
        let mut instance = Instance::new("Msvm_X")
            .with("name", "a<b")
            .with("Caption", None::<String>)
            .with("Enabled", true)
            .with("BootOrder", vec![1u16, 2])
            .with("Empty", "");
        instance.properties.push(null_array);
        let at: Datetime = "20130309025732.000000+000".parse().expect("datetime");
        instance.set("InstallDate", at);
        instance
    }

    #[test]
    fn an_instance_is_written_as_windows_does() {
        let mut w = Writer::new();
        write(&mut w, &sample(), &shape());
        let expected = concat!(
            "<p:Msvm_X xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" ",
            "xmlns:p=\"http://schemas.microsoft.com/wbem/wsman/1/wmi/root/cimv2/Msvm_X\" ",
            "xmlns:cim=\"http://schemas.dmtf.org/wbem/wscim/1/common\" xsi:type=\"p:Msvm_X_Type\">",
            "<p:BootOrder>1</p:BootOrder><p:BootOrder>2</p:BootOrder>",
            "<p:Caption xsi:nil=\"true\"/><p:Empty></p:Empty><p:Enabled>true</p:Enabled>",
            "<p:InstallDate><cim:Datetime>2013-03-09T02:57:32Z</cim:Datetime></p:InstallDate>",
            "<p:name>a&lt;b</p:name></p:Msvm_X>"
        );
        assert_eq!(w.finish(), expected);
    }

    #[test]
    fn precise_arrays_name_the_null_ones() {
        let mut w = Writer::new();
        let precise = Shape {
            precise_arrays: true,
            ..shape()
        };
        write(&mut w, &sample(), &precise);
        assert!(
            w.finish()
                .contains("msftwinrm:IsNullArray=\"true\" xsi:nil=\"true\"/>")
        );
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut w = Writer::new();
        w.open("r")
            .attr("xmlns:a", ns::ADDRESSING)
            .attr("xmlns:w", ns::WSMAN);
        let path = Path::class("Msvm_Y")
            .key("Name", "n")
            .in_namespace("root/cimv2");
        let given = sample().with("Ref", path.clone());
        write(&mut w, &given, &shape());
        let root = parse_str(&w.finish(), &Limits::default()).expect("xml");
        let at = root.children.first().expect("instance");
        let read = read_properties(at, "Msvm_X").expect("read");
        assert_eq!(read.get_str("name"), Some("a<b"));
        assert_eq!(read.get("BootOrder").items().len(), 2);
        assert!(read.get("Caption").is_null() && read.property("Caption").is_some());
        assert!(read.property("Dedicated").is_none());
        assert_eq!(read.get("InstallDate"), given.get("InstallDate"));
        assert_eq!(read.get("Ref").as_path(), Some(path));
    }

    #[test]
    fn an_object_inside_keeps_its_class() {
        let inner = Instance::new("Msvm_Z").with("A", 1u8);
        let mut w = Writer::new();
        w.open("r").attr("xmlns:xsi", ns::XSI);
        write_value(
            &mut w,
            "v",
            &inner.clone().into(),
            Type::Object,
            &shape().family,
        );
        let at = parse_str(&w.finish(), &Limits::default()).expect("xml");
        match read_value(at.children.first().expect("v")).expect("value") {
            Value::Object(read) => {
                assert_eq!(read.class, inner.class);
                assert_eq!(read.get_str("A"), Some("1"));
            }
            other => panic!("{other:?}"),
        }
    }
}
