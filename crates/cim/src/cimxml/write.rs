//! Values, properties and instances, in the strict shape.

use super::path::write_reference;
use crate::xml::Writer;
use crate::{Class, Declaration, Instance, Name, Property, Type, Value, embedded};

/// How an instance is written. The default is the bare shape: names, types and values only.
#[derive(Clone, Copy, Debug, Default)]
pub struct InstanceShape<'a> {
    /// The resolved class: tells which strings hold embedded instances, and the class origins.
    pub class: Option<&'a Class>,
    /// Whether to write CLASSORIGIN (needs `class`).
    pub class_origin: bool,
    /// Only these properties; all without.
    pub properties: Option<&'a [Name]>,
}

/// Writes INSTANCE: every property (or those asked for), null ones as an element without VALUE.
pub fn write_instance(w: &mut Writer, instance: &Instance, shape: &InstanceShape<'_>) {
    w.open("INSTANCE")
        .attr("CLASSNAME", instance.class.as_str());
    for property in &instance.properties {
        if shape
            .properties
            .is_some_and(|wanted| !wanted.contains(&property.name))
        {
            continue;
        }
        let declared = shape
            .class
            .and_then(|class| class.property(property.name.as_str()));
        write_property(w, property, declared, shape.class_origin);
    }
    w.close_long();
}

/// Writes PROPERTY, PROPERTY.ARRAY or PROPERTY.REFERENCE. The declaration, where known, adds
/// REFERENCECLASS, EmbeddedObject and, if wanted, CLASSORIGIN. An array of references, for which the DTD has
/// no element, is written as an array of strings that hold paths.
pub fn write_property(
    w: &mut Writer,
    property: &Property,
    declared: Option<&Declaration>,
    class_origin: bool,
) {
    let element = match (property.ty, property.array) {
        (Type::Reference, false) => "PROPERTY.REFERENCE",
        (_, true) => "PROPERTY.ARRAY",
        _ => "PROPERTY",
    };
    w.open(element).attr("NAME", property.name.as_str());
    match (property.ty, property.array) {
        (Type::Reference, false) => {
            let class = declared
                .and_then(|d| d.ref_class.as_ref())
                .map(Name::as_str);
            w.attr_if("REFERENCECLASS", class);
        }
        _ => {
            w.attr("TYPE", wire_type(property.ty, false));
        }
    }
    if class_origin {
        w.attr_if(
            "CLASSORIGIN",
            declared.and_then(|d| d.origin.as_ref()).map(Name::as_str),
        );
    }
    w.attr_if("EmbeddedObject", embedded_kind(property.ty, declared));
    match (&property.value, property.ty) {
        (Value::Null, _) => {}
        (Value::Array(items), Type::Reference) => {
            w.open("VALUE.ARRAY");
            for item in items {
                w.leaf("VALUE", &item.to_text().unwrap_or_default());
            }
            w.close();
        }
        (value, _) => write_value(w, value),
    }
    w.close_long();
}

/// Writes VALUE, VALUE.ARRAY, VALUE.REFERENCE or VALUE.REFARRAY; nothing for null. Embedded
/// objects become their text.
pub fn write_value(w: &mut Writer, value: &Value) {
    match value {
        Value::Null => {}
        Value::Array(items) if value.ty() == Some(Type::Reference) => {
            w.open("VALUE.REFARRAY");
            for item in items {
                match item {
                    Value::Reference(path) => write_reference(w, path),
                    _ => {
                        w.empty("VALUE.NULL");
                    }
                }
            }
            w.close();
        }
        Value::Array(items) => {
            w.open("VALUE.ARRAY");
            for item in items {
                match item {
                    Value::Null | Value::Array(_) => {
                        w.empty("VALUE.NULL");
                    }
                    item => write_value(w, item),
                }
            }
            w.close();
        }
        Value::Reference(path) => write_reference(w, path),
        Value::Object(instance) => {
            w.leaf("VALUE", &embedded::write(instance));
        }
        scalar => {
            w.leaf("VALUE", &scalar.to_text().unwrap_or_default());
        }
    }
}

/// Writes PARAMVALUE with its PARAMTYPE, for calls and answers alike. The type is the declared one,
/// else the value's, else string.
pub fn write_param_value(
    w: &mut Writer,
    name: &str,
    value: &Value,
    declared: Option<&Declaration>,
) {
    let ty = declared
        .map(|d| d.ty)
        .or_else(|| value.ty())
        .unwrap_or(Type::String);
    w.open("PARAMVALUE")
        .attr("NAME", name)
        .attr("PARAMTYPE", wire_type(ty, true));
    w.attr_if("EmbeddedObject", embedded_kind(ty, declared));
    write_value(w, value);
    w.close();
}

/// Writes RETURNVALUE; nothing for null.
pub fn write_return_value(w: &mut Writer, value: &Value) {
    if let Some(ty) = value.ty() {
        w.open("RETURNVALUE").attr("PARAMTYPE", wire_type(ty, true));
        w.attr_if("EmbeddedObject", embedded_kind(ty, None));
        write_value(w, value);
        w.close();
    }
}

fn wire_type(ty: Type, parameter: bool) -> &'static str {
    match ty {
        Type::Object => "string",
        Type::Reference if !parameter => "string",
        _ => ty.name(),
    }
}

fn embedded_kind(ty: Type, declared: Option<&Declaration>) -> Option<&'static str> {
    let named = declared.is_some_and(|d| d.embedded_class().is_some());
    (named || ty == Type::Object).then_some("instance")
}
