//! Instances as text: what string properties and parameters marked `EmbeddedInstance` carry.
//!
//! Clients send five shapes, all read by [`read`]: CIM-XML as `GetText` of the CIM DTD writes it, the
//! WMI DTD (qualifiers inside, null properties), the MI serialiser's (UTF-16 declared, MODIFIED
//! attributes, a class beside the instance), hand-written XML with the least that will do, and MOF
//! (`instance of X { … };`). [`write()`] gives one strict shape that every known reader takes.
//!
//! A partial instance means "keep the rest": a property that was not sent is not in the result, one
//! sent without a value is there and null. Callers that treat both as "keep" use [`Instance::get`].

use crate::cimxml::{self, CimXmlError, InstanceShape};
use crate::mof::{self, MofError};
use crate::xml::{self, Element, Limits, Writer, XmlError};
use crate::{Instance, Schema, Type, TypeMismatch, Value};

/// What reading may know and take.
#[derive(Clone, Copy, Default)]
pub struct Context<'a> {
    /// Bounds of the text.
    pub limits: Limits,
    /// Where classes are looked up: names get its spelling and values its types. Without one the
    /// types are those of the text.
    pub schema: Option<&'a dyn Schema>,
}

impl<'a> Context<'a> {
    /// The usual bounds, and types from that schema.
    pub fn with(schema: &'a dyn Schema) -> Self {
        Context {
            schema: Some(schema),
            ..Context::default()
        }
    }
}

/// Why a text is no embedded instance.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Nothing but white space.
    #[error("the embedded instance is empty")]
    Empty,
    /// Not well-formed, or past the bounds.
    #[error("the embedded instance is no acceptable XML")]
    Xml(#[from] XmlError),
    /// XML, but not of an instance.
    #[error("the embedded instance is no CIM-XML instance")]
    CimXml(#[from] CimXmlError),
    /// XML without INSTANCE.
    #[error("<{0}> instead of INSTANCE")]
    NotAnInstance(String),
    /// Not XML, and no MOF either.
    #[error("the embedded instance is neither XML nor MOF")]
    Mof(#[from] MofError),
    /// MOF that declares something else than one instance.
    #[error("the MOF text of an embedded instance declares {0} instances instead of one")]
    MofCount(usize),
    /// A value that does not fit the declaration in the schema.
    #[error("property {property} of {class} has the wrong type")]
    Type {
        /// The class.
        class: String,
        /// The property.
        property: String,
        /// What does not fit.
        #[source]
        source: TypeMismatch,
    },
}

/// Reads an instance in any of the shapes. Properties of classes the schema knows are spelled and
/// typed as declared; a class or a property it does not know stays as it was sent.
pub fn read(text: &str, context: &Context<'_>) -> Result<Instance, EmbeddedError> {
    let text = text
        .trim_start_matches('\u{feff}')
        .trim_matches(['\0', ' ', '\t', '\r', '\n']);
    if text.is_empty() {
        return Err(EmbeddedError::Empty);
    }
    if !text.starts_with('<') {
        return typed(from_mof(text, &context.limits)?, context);
    }
    let root = xml::parse_str(text, &context.limits)?;
    let found =
        find_instance(&root).ok_or_else(|| EmbeddedError::NotAnInstance(root.local.clone()))?;
    typed(cimxml::instance(found)?, context)
}

fn from_mof(text: &str, limits: &Limits) -> Result<Instance, EmbeddedError> {
    if text.len() > limits.bytes {
        let message = "the text is too long".to_owned();
        return Err(MofError {
            line: 1,
            column: 1,
            message,
        }
        .into());
    }
    let mut instances = mof::parse(text)?.instances;
    match (instances.pop(), instances.len()) {
        (Some(instance), 0) => Ok(instance),
        (last, others) => Err(EmbeddedError::MofCount(
            others + usize::from(last.is_some()),
        )),
    }
}

/// The instance inside the wrappers some serialisers put round it; classes beside it do not matter.
fn find_instance(at: &Element) -> Option<&Element> {
    match at.local.as_str() {
        "INSTANCE" => Some(at),
        "CIM"
        | "DECLARATION"
        | "DECLARATIONS"
        | "DECLGROUP"
        | "DECLGROUP.WITHNAME"
        | "DECLGROUP.WITHPATH"
        | "VALUE"
        | "VALUE.OBJECT"
        | "VALUE.NAMEDOBJECT"
        | "VALUE.NAMEDINSTANCE"
        | "VALUE.INSTANCEWITHPATH"
        | "VALUE.OBJECTWITHPATH"
        | "VALUE.OBJECTWITHLOCALPATH" => at.children.iter().find_map(find_instance),
        _ => None,
    }
}

/// Gives an instance the names and types its class declares.
fn typed(mut instance: Instance, context: &Context<'_>) -> Result<Instance, EmbeddedError> {
    let Some(class) = context
        .schema
        .and_then(|schema| schema.class(instance.class.as_str()))
    else {
        return Ok(instance);
    };
    instance.class = class.name.clone();
    for property in &mut instance.properties {
        let Some(declared) = class.property(property.name.as_str()) else {
            continue;
        };
        let value = std::mem::replace(&mut property.value, Value::Null);
        property.value = coerce(value, declared.ty, declared.array, context).map_err(|source| {
            EmbeddedError::Type {
                class: class.name.to_string(),
                property: declared.name.to_string(),
                source,
            }
        })?;
        property.name = declared.name.clone();
        property.ty = declared.ty;
        property.array = declared.array;
    }
    Ok(instance)
}

/// [`Value::coerce`], which also turns embedded objects into their text and text into embedded
/// objects, as the declaration wants it.
pub fn coerce(
    value: Value,
    wanted: Type,
    array: bool,
    context: &Context<'_>,
) -> Result<Value, TypeMismatch> {
    match (value, wanted) {
        (Value::Array(items), Type::String | Type::Object) => items
            .into_iter()
            .map(|item| coerce(item, wanted, false, context))
            .collect::<Result<Vec<_>, _>>()
            .and_then(|items| Value::Array(items).coerce(wanted, array)),
        (Value::Object(instance), Type::String) => {
            Value::String(write(&instance)).coerce(wanted, array)
        }
        (Value::String(text), Type::Object) => match read(&text, context) {
            Ok(instance) => Value::from(instance).coerce(wanted, array),
            Err(_) => Err(TypeMismatch {
                text: text.chars().take(80).collect(),
                wanted,
            }),
        },
        (other, _) => other.coerce(wanted, array),
    }
}

/// Writes an instance in the strict shape: one root, no declaration, no white space between tags,
/// NAME the first attribute, every property there, null ones without VALUE.
pub fn write(instance: &Instance) -> String {
    let mut w = Writer::with_capacity(64 + instance.properties.len() * 80);
    cimxml::write_instance(&mut w, instance, &InstanceShape::default());
    w.finish()
}

#[cfg(test)]
mod tests;
