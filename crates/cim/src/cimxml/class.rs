//! CLASS with its qualifiers, properties and methods, and QUALIFIER.DECLARATION.

use std::borrow::Cow;

use super::read::{typed, value_in};
use super::{Read, error, required};
use crate::xml::{Element, Writer};
use crate::{
    Class, Declaration, Literal, Method, Name, Qualifier, QualifierDeclaration, Type, Value,
    standard_qualifier,
};

/// How a class is written.
#[derive(Clone, Copy, Debug)]
pub struct ClassShape<'a> {
    /// Only members the class declares itself.
    pub local_only: bool,
    /// With qualifiers.
    pub qualifiers: bool,
    /// With CLASSORIGIN on members.
    pub class_origin: bool,
    /// Only these properties; all without.
    pub properties: Option<&'a [Name]>,
    /// The superclasses, nearest first, for the DERIVATION attribute of WS-Management; the DTD has none.
    pub derivation: Option<&'a [Name]>,
}

impl Default for ClassShape<'_> {
    fn default() -> Self {
        ClassShape {
            local_only: false,
            qualifiers: true,
            class_origin: false,
            properties: None,
            derivation: None,
        }
    }
}

/// Writes CLASS.
pub fn write_class(w: &mut Writer, class: &Class, shape: &ClassShape<'_>) {
    let superclass = class.superclass.as_ref().map(Name::as_str);
    w.open("CLASS")
        .attr("NAME", class.name.as_str())
        .attr_if("SUPERCLASS", superclass);
    if let Some(ancestors) = shape.derivation {
        let names: Vec<&str> = ancestors.iter().map(Name::as_str).collect();
        w.attr("DERIVATION", &names.join(","));
    }
    write_qualifiers(w, &class.qualifiers, shape);
    let own = |origin: &Option<Name>| origin.as_ref().is_none_or(|o| *o == class.name);
    for property in class.properties.iter() {
        let left_out = shape
            .properties
            .is_some_and(|wanted| !wanted.contains(&property.name))
            || shape.local_only && !own(&property.origin);
        if !left_out {
            write_declared_property(w, property, !own(&property.origin), shape);
        }
    }
    for method in class.methods.iter() {
        if shape.local_only && !own(&method.origin) {
            continue;
        }
        w.open("METHOD")
            .attr("NAME", method.name.as_str())
            .attr("TYPE", method.return_type.name());
        write_origin(w, method.origin.as_ref(), !own(&method.origin), shape);
        write_qualifiers(w, &method.qualifiers, shape);
        for parameter in method.parameters.iter() {
            write_parameter(w, parameter, shape);
        }
        w.close();
    }
    w.close();
}

fn write_origin(w: &mut Writer, origin: Option<&Name>, inherited: bool, shape: &ClassShape<'_>) {
    if shape.class_origin {
        w.attr_if("CLASSORIGIN", origin.map(Name::as_str));
    }
    if inherited {
        w.attr("PROPAGATED", "true");
    }
}

fn write_declared_property(
    w: &mut Writer,
    property: &Declaration,
    inherited: bool,
    shape: &ClassShape<'_>,
) {
    let reference = property.ty == Type::Reference && !property.array;
    w.open(match (reference, property.array) {
        (true, _) => "PROPERTY.REFERENCE",
        (_, true) => "PROPERTY.ARRAY",
        _ => "PROPERTY",
    });
    w.attr("NAME", property.name.as_str());
    match reference {
        true => w.attr_if(
            "REFERENCECLASS",
            property.ref_class.as_ref().map(Name::as_str),
        ),
        false => w.attr("TYPE", plain_type(property.ty)),
    };
    if let Some(size) = property.array_size {
        w.attr("ARRAYSIZE", &size.to_string());
    }
    write_origin(w, property.origin.as_ref(), inherited, shape);
    if property.ty == Type::Object {
        w.attr("EmbeddedObject", "instance");
    }
    write_qualifiers(w, &property.qualifiers, shape);
    if !reference {
        write_literal(w, &property.default);
    }
    w.close();
}

fn write_parameter(w: &mut Writer, parameter: &Declaration, shape: &ClassShape<'_>) {
    let reference = parameter.ty == Type::Reference;
    w.open(match (reference, parameter.array) {
        (true, true) => "PARAMETER.REFARRAY",
        (true, false) => "PARAMETER.REFERENCE",
        (false, true) => "PARAMETER.ARRAY",
        (false, false) => "PARAMETER",
    });
    w.attr("NAME", parameter.name.as_str());
    match reference {
        true => w.attr_if(
            "REFERENCECLASS",
            parameter.ref_class.as_ref().map(Name::as_str),
        ),
        false => w.attr("TYPE", plain_type(parameter.ty)),
    };
    if let Some(size) = parameter.array_size {
        w.attr("ARRAYSIZE", &size.to_string());
    }
    write_qualifiers(w, &parameter.qualifiers, shape);
    w.close();
}

fn plain_type(ty: Type) -> &'static str {
    match ty {
        Type::Object | Type::Reference => "string",
        _ => ty.name(),
    }
}

fn write_qualifiers(w: &mut Writer, qualifiers: &[Qualifier], shape: &ClassShape<'_>) {
    if shape.qualifiers {
        for qualifier in qualifiers {
            write_qualifier(w, qualifier);
        }
    }
}

/// Writes QUALIFIER, typed and flavoured as the standard declares it, or by its value.
pub fn write_qualifier(w: &mut Writer, qualifier: &Qualifier) {
    let known = standard_qualifier(qualifier.name.as_str());
    let ty = known.map_or_else(|| literal_type(&qualifier.value), |k| k.ty);
    w.open("QUALIFIER")
        .attr("NAME", qualifier.name.as_str())
        .attr("TYPE", ty.name());
    if let Some(known) = known {
        write_flavor(w, known);
    }
    write_literal(w, &qualifier.value);
    w.close();
}

/// Writes QUALIFIER.DECLARATION.
pub fn write_qualifier_declaration(w: &mut Writer, declared: &QualifierDeclaration) {
    w.open("QUALIFIER.DECLARATION")
        .attr("NAME", declared.name.as_str())
        .attr("TYPE", declared.ty.name())
        .attr("ISARRAY", if declared.array { "true" } else { "false" });
    write_flavor(w, declared);
    w.open("SCOPE");
    const SCOPES: [&str; 7] = [
        "CLASS",
        "ASSOCIATION",
        "REFERENCE",
        "PROPERTY",
        "METHOD",
        "PARAMETER",
        "INDICATION",
    ];
    for scope in SCOPES {
        if declared.scopes.iter().any(|s| s.is(scope) || s.is("any")) {
            w.attr(scope, "true");
        }
    }
    w.close();
    write_literal(w, &declared.default);
    w.close();
}

/// Only what differs from the DTD's defaults (overridable, to subclasses, not translatable).
fn write_flavor(w: &mut Writer, declared: &QualifierDeclaration) {
    if !declared.overridable {
        w.attr("OVERRIDABLE", "false");
    }
    if !declared.to_subclass {
        w.attr("TOSUBCLASS", "false");
    }
    if declared.translatable {
        w.attr("TRANSLATABLE", "true");
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Boolean(_) => Type::Boolean,
        Literal::Integer(_) => Type::Sint64,
        Literal::Real(_) => Type::Real64,
        Literal::List(items) => items.first().map_or(Type::String, literal_type),
        Literal::Null | Literal::Text(_) => Type::String,
    }
}

fn write_literal(w: &mut Writer, literal: &Literal) {
    match literal {
        Literal::Null => {}
        Literal::List(items) => {
            w.open("VALUE.ARRAY");
            for item in items.iter() {
                match item {
                    Literal::Null | Literal::List(_) => {
                        w.empty("VALUE.NULL");
                    }
                    item => write_literal(w, item),
                }
            }
            w.close();
        }
        Literal::Boolean(b) => {
            w.leaf("VALUE", if *b { "true" } else { "false" });
        }
        Literal::Integer(n) => {
            w.leaf("VALUE", &n.to_string());
        }
        Literal::Real(r) => {
            w.leaf("VALUE", &r.to_string());
        }
        Literal::Text(text) => {
            w.leaf("VALUE", text);
        }
    }
}

/// Reads CLASS. Members marked PROPAGATED keep the origin they tell, others without one get none.
pub fn class(at: &Element) -> Read<Class> {
    if at.local != "CLASS" {
        return Err(error(at, format!("{} instead of CLASS", at.local)));
    }
    let mut properties = Vec::new();
    let mut methods = Vec::new();
    for child in &at.children {
        match child.local.as_str() {
            "QUALIFIER" => {}
            "METHOD" => methods.push(method(child)?),
            name if name.starts_with("PROPERTY") => properties.push(declaration(child)?),
            other => return Err(error(child, format!("{other} in a class"))),
        }
    }
    Ok(Class {
        name: required(at, "NAME")?.to_owned().into(),
        superclass: named(at, "SUPERCLASS"),
        qualifiers: Cow::Owned(qualifiers(at)?),
        properties: Cow::Owned(properties),
        methods: Cow::Owned(methods),
    })
}

fn named(at: &Element, attribute: &str) -> Option<Name> {
    at.attr(attribute)
        .filter(|name| !name.is_empty())
        .map(|name| name.to_owned().into())
}

fn qualifiers(at: &Element) -> Read<Vec<Qualifier>> {
    at.children
        .iter()
        .filter(|c| c.local == "QUALIFIER")
        .map(|c| {
            Ok(Qualifier {
                name: required(c, "NAME")?.to_owned().into(),
                value: literal(value_in(c, typed(c, "TYPE")?)?),
            })
        })
        .collect()
}

fn method(at: &Element) -> Read<Method> {
    Ok(Method {
        name: required(at, "NAME")?.to_owned().into(),
        return_type: typed(at, "TYPE")?.unwrap_or(Type::Uint32),
        qualifiers: Cow::Owned(qualifiers(at)?),
        parameters: at
            .children
            .iter()
            .filter(|c| c.local.starts_with("PARAMETER"))
            .map(declaration)
            .collect::<Read<Vec<_>>>()?
            .into(),
        origin: named(at, "CLASSORIGIN"),
    })
}

fn declaration(at: &Element) -> Read<Declaration> {
    let (fixed, array) = match at.local.as_str() {
        "PROPERTY" | "PARAMETER" => (None, false),
        "PROPERTY.ARRAY" | "PARAMETER.ARRAY" => (None, true),
        "PROPERTY.REFERENCE" | "PARAMETER.REFERENCE" => (Some(Type::Reference), false),
        "PROPERTY.REFARRAY" | "PARAMETER.REFARRAY" => (Some(Type::Reference), true),
        "PROPERTY.OBJECT" | "PARAMETER.OBJECT" => (Some(Type::Object), false),
        "PROPERTY.OBJECTARRAY" | "PARAMETER.OBJECTARRAY" => (Some(Type::Object), true),
        other => return Err(error(at, format!("{other} in a declaration"))),
    };
    let ty = match fixed {
        Some(ty) => ty,
        None => typed(at, "TYPE")?.unwrap_or(Type::String),
    };
    let property = at.local.starts_with("PROPERTY");
    Ok(Declaration {
        name: required(at, "NAME")?.to_owned().into(),
        ty,
        ref_class: named(at, "REFERENCECLASS"),
        array,
        array_size: at.attr("ARRAYSIZE").and_then(|size| size.parse().ok()),
        default: if property {
            literal(value_in(at, Some(ty))?)
        } else {
            Literal::Null
        },
        qualifiers: Cow::Owned(qualifiers(at)?),
        origin: named(at, "CLASSORIGIN"),
    })
}

fn literal(value: Value) -> Literal {
    match value {
        Value::Null | Value::Object(_) => Literal::Null,
        Value::Boolean(b) => Literal::Boolean(b),
        Value::Real32(r) => Literal::Real(f64::from(r)),
        Value::Real64(r) => Literal::Real(r),
        Value::Array(items) => Literal::List(items.into_iter().map(literal).collect()),
        other => match (other.as_int(), other.to_text()) {
            (Some(n), _) => Literal::Integer(n),
            (None, Some(text)) => Literal::Text(text.into()),
            (None, None) => Literal::Null,
        },
    }
}
