//! Values, properties and instances.

use super::{Read, caused, error, path, required};
use crate::xml::Element;
use crate::{Instance, Name, Property, Type, Value};

/// Reads INSTANCE. Properties without a value are there and null; those not written are not there.
pub fn instance(at: &Element) -> Read<Instance> {
    if at.local != "INSTANCE" {
        return Err(error(at, format!("{} instead of INSTANCE", at.local)));
    }
    let mut found = Instance::new(required(at, "CLASSNAME")?.to_owned());
    for child in &at.children {
        if child.local == "QUALIFIER" {
            continue;
        }
        let property = property(child)?;
        if found.property(property.name.as_str()).is_some() {
            return Err(error(
                child,
                format!("the property {} stands twice", property.name),
            ));
        }
        found.properties.push(property);
    }
    Ok(found)
}

/// Reads an instance together with its path: VALUE.NAMEDINSTANCE, VALUE.INSTANCEWITHPATH,
/// VALUE.OBJECTWITHPATH, VALUE.OBJECTWITHLOCALPATH, VALUE.NAMEDOBJECT, VALUE.OBJECT, or a bare INSTANCE.
pub fn object_with_path(at: &Element) -> Read<Instance> {
    if at.local == "INSTANCE" {
        return instance(at);
    }
    let mut found = None;
    let mut place = None;
    for child in &at.children {
        match child.local.as_str() {
            "INSTANCE" => found = Some(instance(child)?),
            _ => place = Some(path(child)?.0),
        }
    }
    let mut found = found.ok_or_else(|| error(at, format!("{} has no INSTANCE", at.local)))?;
    found.path = place;
    Ok(found)
}

/// Reads PROPERTY, PROPERTY.ARRAY, PROPERTY.REFERENCE, PROPERTY.OBJECT, PROPERTY.OBJECTARRAY.
pub fn property(at: &Element) -> Read<Property> {
    let name = required(at, "NAME")?;
    let (fixed, array) = match at.local.as_str() {
        "PROPERTY" => (None, false),
        "PROPERTY.ARRAY" => (None, true),
        "PROPERTY.REFERENCE" => (Some(Type::Reference), false),
        "PROPERTY.REFARRAY" => (Some(Type::Reference), true),
        "PROPERTY.OBJECT" => (Some(Type::Object), false),
        "PROPERTY.OBJECTARRAY" => (Some(Type::Object), true),
        other => return Err(error(at, format!("{other} instead of a property"))),
    };
    let ty = match fixed {
        Some(ty) => ty,
        None => typed(at, "TYPE")?.unwrap_or(Type::String),
    };
    let value = value_in(at, Some(ty))?;
    let value = match (value, array) {
        (Value::Null, _) => Value::Null,
        (Value::Array(_), false) => {
            return Err(error(at, format!("an array in the scalar property {name}")));
        }
        (scalar @ (Value::Reference(_) | Value::Object(_)), true) => Value::Array(vec![scalar]),
        (value, _) => value,
    };
    let ty = value.ty().unwrap_or(ty);
    Ok(Property {
        name: name.to_owned().into(),
        ty,
        array,
        value,
    })
}

/// Reads the value inside an element (PROPERTY, PARAMVALUE, IPARAMVALUE, RETURNVALUE, QUALIFIER):
/// null when there is none. Without `ty` the element inside tells: strings for VALUE.
pub fn value_in(at: &Element, ty: Option<Type>) -> Read<Value> {
    let mut children = at.children.iter().filter(|c| c.local != "QUALIFIER");
    let Some(first) = children.next() else {
        // Some writers put the text of a value straight into the element.
        return match at.text() {
            "" => Ok(Value::Null),
            _ => Err(error(at, format!("text in {} outside VALUE", at.local))),
        };
    };
    if children.next().is_some() {
        return Err(error(at, format!("more than one value in {}", at.local)));
    }
    value(first, ty)
}

/// Reads one value element: VALUE, VALUE.ARRAY, VALUE.NULL, VALUE.REFERENCE, VALUE.REFARRAY,
/// VALUE.OBJECT(ARRAY), INSTANCE, VALUE.NAMEDINSTANCE and the path elements, which become references.
pub fn value(at: &Element, ty: Option<Type>) -> Read<Value> {
    match at.local.as_str() {
        "VALUE" => match at.children.as_slice() {
            [] => scalar(at, ty.unwrap_or(Type::String)),
            // Not in the DTD, but unmistakable.
            [inner] if inner.local == "INSTANCE" => Ok(instance(inner)?.into()),
            _ => Err(error(at, "elements inside VALUE")),
        },
        "VALUE.NULL" => Ok(Value::Null),
        "VALUE.ARRAY" | "VALUE.REFARRAY" | "VALUE.OBJECTARRAY" => at
            .children
            .iter()
            .map(|item| value(item, ty))
            .collect::<Read<_>>()
            .map(Value::Array),
        "INSTANCE"
        | "VALUE.NAMEDINSTANCE"
        | "VALUE.OBJECT"
        | "VALUE.INSTANCEWITHPATH"
        | "VALUE.OBJECTWITHPATH" => Ok(object_with_path(at)?.into()),
        _ => Ok(path(at)?.0.into()),
    }
}

/// Reads PARAMVALUE or IPARAMVALUE: the name and the value, typed by PARAMTYPE where it is told.
/// An embedded object in text form stays text.
pub fn param_value(at: &Element) -> Read<(Name, Value)> {
    match at.local.as_str() {
        "PARAMVALUE" | "IPARAMVALUE" => {
            let ty = typed(at, "PARAMTYPE")?;
            let name = required(at, "NAME")?.to_owned();
            Ok((name.into(), value_in(at, ty)?))
        }
        other => Err(error(at, format!("{other} instead of a parameter"))),
    }
}

/// The type an attribute names; embedded objects travel as strings.
pub(super) fn typed(at: &Element, attribute: &str) -> Read<Option<Type>> {
    match at.attr(attribute) {
        None => Ok(None),
        Some(name) => match Type::named(name) {
            Some(ty) => Ok(Some(ty)),
            None => Err(error(at, format!("{name:?} is not a type"))),
        },
    }
}

fn scalar(at: &Element, ty: Type) -> Read<Value> {
    // Only strings and characters may be empty or begin with a blank.
    if at.text().is_empty() && !matches!(ty, Type::String | Type::Char16) {
        return Ok(Value::Null);
    }
    if ty == Type::Object {
        return Ok(Value::String(at.text.clone()));
    }
    Value::from_text(ty, &at.text).map_err(|err| caused(at, "the value does not fit its type", err))
}
