//! Method parameters between CIM values and Rust.

use cim::embedded::{self, Context, EmbeddedError};
use cim::{Datetime, Instance, Name, Path, Schema as _, Type, TypeMismatch, Value};

use crate::{code, virtualization};

/// Why a call does not fit its method.
#[derive(Debug, thiserror::Error)]
pub enum ParameterError {
    /// The method has no such parameter.
    #[error("there is no parameter {parameter}")]
    Unknown {
        /// What was sent.
        parameter: String,
    },
    /// A parameter that must be there is null or was not sent.
    #[error("parameter {parameter} is required")]
    Missing {
        /// The parameter.
        parameter: &'static str,
    },
    /// The value is not of the declared type.
    #[error("parameter {parameter} is not of type {}{}", .wanted.name(), if *.array { "[]" } else { "" })]
    Type {
        /// The parameter.
        parameter: &'static str,
        /// The declared type.
        wanted: Type,
        /// Whether an array is declared.
        array: bool,
        /// What does not fit.
        #[source]
        source: TypeMismatch,
    },
    /// The class of an embedded instance has no such property.
    #[error("{class} in parameter {parameter} has no property {property}")]
    Property {
        /// The parameter.
        parameter: &'static str,
        /// The class.
        class: String,
        /// What was sent.
        property: String,
    },
    /// The text is no instance.
    #[error("parameter {parameter} holds no instance that can be read")]
    Embedded {
        /// The parameter.
        parameter: &'static str,
        /// What is wrong with the text.
        #[source]
        source: EmbeddedError,
    },
}

impl ParameterError {
    /// The return code the call gets.
    pub fn return_code(&self) -> u32 {
        match self {
            ParameterError::Unknown { .. }
            | ParameterError::Missing { .. }
            | ParameterError::Property { .. }
            | ParameterError::Type { .. } => code::INVALID_PARAMETER,
            ParameterError::Embedded { .. } => code::INCORRECT_DATA_TYPE,
        }
    }
}

/// The value of a parameter the method cannot do without.
pub fn required<T>(parameter: &'static str, value: Option<T>) -> Result<T, ParameterError> {
    value.ok_or(ParameterError::Missing { parameter })
}

/// What a declaration says about the values of a parameter.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    /// Its name.
    pub parameter: &'static str,
    /// Its type.
    pub ty: Type,
    /// Whether it is an array.
    pub array: bool,
}

/// Rust types of In parameters. The value has the declared type already.
pub trait FromParameter: Sized {
    /// The value; `Ok(None)` for null.
    fn from_value(value: Value, declared: Declared) -> Result<Option<Self>, ParameterError>;
}

/// Rust types of Out parameters.
pub trait IntoParameter {
    /// The value; an instance becomes its text where the declared type is string.
    fn into_value(self, declared: Type) -> Value;
}

fn mismatch(value: &Value, declared: Declared) -> ParameterError {
    let text = value.to_text().unwrap_or_default();
    ParameterError::Type {
        parameter: declared.parameter,
        wanted: declared.ty,
        array: declared.array,
        source: TypeMismatch {
            text: text.chars().take(80).collect(),
            wanted: declared.ty,
        },
    }
}

macro_rules! scalar {
    ($($rust:ty => $variant:ident),* $(,)?) => {$(
        impl FromParameter for $rust {
            fn from_value(value: Value, declared: Declared) -> Result<Option<Self>, ParameterError> {
                match value {
                    Value::Null => Ok(None),
                    Value::$variant(v) => Ok(Some(v)),
                    other => Err(mismatch(&other, declared)),
                }
            }
        }
        impl IntoParameter for $rust {
            fn into_value(self, _declared: Type) -> Value {
                Value::from(self)
            }
        }
    )*};
}
scalar!(bool => Boolean, u8 => Uint8, i8 => Sint8, u16 => Uint16, i16 => Sint16, u32 => Uint32,
    i32 => Sint32, u64 => Uint64, i64 => Sint64, f32 => Real32, f64 => Real64, String => String,
    Datetime => Datetime);

impl FromParameter for Path {
    fn from_value(value: Value, declared: Declared) -> Result<Option<Self>, ParameterError> {
        match value {
            Value::Null => Ok(None),
            Value::Reference(path) => Ok(Some(*path)),
            other => Err(mismatch(&other, declared)),
        }
    }
}
impl IntoParameter for Path {
    fn into_value(self, _declared: Type) -> Value {
        Value::from(self)
    }
}

impl FromParameter for Instance {
    fn from_value(value: Value, declared: Declared) -> Result<Option<Self>, ParameterError> {
        match value {
            Value::Null => Ok(None),
            Value::Object(instance) => checked(*instance, declared.parameter).map(Some),
            // Clients send an empty text for "none" where the parameter is optional.
            Value::String(text) if text.trim().is_empty() => Ok(None),
            Value::String(text) => embedded_instance(&text, declared.parameter).map(Some),
            other => Err(mismatch(&other, declared)),
        }
    }
}

/// The instance in a text. A property that its class does not have is an error: left aside, it would change what is done.
pub fn embedded_instance(text: &str, parameter: &'static str) -> Result<Instance, ParameterError> {
    let read = embedded::read(text, &Context::with(virtualization()));
    let instance = read.map_err(|source| ParameterError::Embedded { parameter, source })?;
    checked(instance, parameter)
}

/// Settings of resources come under the name of a sibling class: libvirt sends disks as Msvm_ResourceAllocationSettingData.
const RESOURCES: &str = "CIM_ResourceAllocationSettingData";

fn checked(instance: Instance, parameter: &'static str) -> Result<Instance, ParameterError> {
    let schema = virtualization();
    // A class that is not known is refused where the parameter's own class is.
    let Some(class) = schema.class(instance.class.as_str()) else {
        return Ok(instance);
    };
    let known = |name: &Name| {
        // WMI writes its system properties into the texts it makes.
        name.as_str().starts_with("__")
            || class.property(name.as_str()).is_some()
            || (schema.is_a(class.name.as_str(), RESOURCES)
                && schema
                    .family(RESOURCES)
                    .any(|sibling| sibling.property(name.as_str()).is_some()))
    };
    match instance.properties.iter().find(|p| !known(&p.name)) {
        Some(unknown) => Err(ParameterError::Property {
            parameter,
            class: class.name.to_string(),
            property: unknown.name.as_str().chars().take(80).collect(),
        }),
        None => Ok(instance),
    }
}
impl IntoParameter for Instance {
    fn into_value(self, declared: Type) -> Value {
        match declared {
            Type::String => Value::String(embedded::write(&self)),
            _ => Value::from(self),
        }
    }
}

/// Null elements are skipped: they carry nothing, and some clients send one for an empty array.
impl<T: FromParameter> FromParameter for Vec<T> {
    fn from_value(value: Value, declared: Declared) -> Result<Option<Self>, ParameterError> {
        match value {
            Value::Null => Ok(None),
            Value::Array(items) => items
                .into_iter()
                .filter_map(|item| T::from_value(item, declared).transpose())
                .collect::<Result<_, _>>()
                .map(Some),
            other => Err(mismatch(&other, declared)),
        }
    }
}
impl<T: IntoParameter> IntoParameter for Vec<T> {
    fn into_value(self, declared: Type) -> Value {
        Value::Array(
            self.into_iter()
                .map(|item| item.into_value(declared))
                .collect(),
        )
    }
}

/// Refuses names the method does not have. Out parameters that are sent along are ignored.
pub(crate) fn check_names(
    given: &[(Name, Value)],
    ins: &[&str],
    others: &[&str],
) -> Result<(), ParameterError> {
    let unknown = given
        .iter()
        .find(|(name, _)| !ins.iter().chain(others).any(|known| name.is(known)));
    match unknown {
        Some((name, _)) => Err(ParameterError::Unknown {
            parameter: name.as_str().chars().take(80).collect(),
        }),
        None => Ok(()),
    }
}

/// One parameter, put into its declared type.
pub(crate) fn take<T: FromParameter>(
    given: &[(Name, Value)],
    declared: Declared,
    embeds: bool,
) -> Result<Option<T>, ParameterError> {
    let Some((_, value)) = given.iter().find(|(name, _)| name.is(declared.parameter)) else {
        return Ok(None);
    };
    let value = if embeds {
        as_declared_array(value.clone(), declared)?
    } else {
        value
            .clone()
            .coerce(declared.ty, declared.array)
            .map_err(|source| ParameterError::Type {
                parameter: declared.parameter,
                wanted: declared.ty,
                array: declared.array,
                source,
            })?
    };
    T::from_value(value, declared)
}

/// An instance comes as text or as an object, whatever is declared: only the shape is put right here.
fn as_declared_array(value: Value, declared: Declared) -> Result<Value, ParameterError> {
    match (value, declared.array) {
        (Value::Array(items), false) => {
            let mut items = items.into_iter();
            match (items.next(), items.next()) {
                (item, None) => Ok(item.unwrap_or(Value::Null)),
                (Some(item), Some(_)) | (None, Some(item)) => Err(mismatch(&item, declared)),
            }
        }
        (array @ Value::Array(_), true) | (array @ Value::Null, _) => Ok(array),
        (scalar, true) => Ok(Value::Array(vec![scalar])),
        (scalar, false) => Ok(scalar),
    }
}

macro_rules! embeds {
    (plain) => {
        false
    };
    (embedded) => {
        true
    };
}
pub(crate) use embeds;

macro_rules! input {
    (
        $(#[$doc:meta])*
        $name:ident other than [$($other:literal),*] {
            $($(#[$field_doc:meta])* $field:ident: $rust:ty = $text:literal $form:ident $ty:ident $array:literal,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: Option<$rust>,)*
        }

        impl $name {
            /// Reads the parameters of a call. Names are taken in any case, values in any form
            /// that fits the declared type.
            ///
            /// # Errors
            /// A parameter the method does not have, or a value that does not fit.
            pub fn read(given: &[(cim::Name, cim::Value)]) -> Result<Self, crate::ParameterError> {
                crate::parameter::check_names(given, &[$($text),*], &[$($other),*])?;
                Ok(Self {
                    $($field: crate::parameter::take(
                        given,
                        crate::parameter::Declared {
                            parameter: $text,
                            ty: cim::Type::$ty,
                            array: $array,
                        },
                        crate::parameter::embeds!($form),
                    )?,)*
                })
            }
        }
    };
}
pub(crate) use input;

macro_rules! output {
    (
        $(#[$doc:meta])*
        $name:ident {
            $($(#[$field_doc:meta])* $field:ident: $rust:ty = $text:literal $form:ident $ty:ident $array:literal,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name {
            /// The return value; see [`crate::code`].
            pub return_value: u32,
            $($(#[$field_doc])* pub $field: Option<$rust>,)*
        }

        impl $name {
            /// Only a return value, every out parameter null.
            pub fn code(return_value: u32) -> Self {
                Self {
                    return_value,
                    $($field: None,)*
                }
            }

            /// Every out parameter in declared order, null ones too.
            pub fn into_values(self) -> Vec<(cim::Name, cim::Value)> {
                vec![$((
                    cim::Name::of($text),
                    self.$field.map_or(cim::Value::Null, |v| {
                        crate::IntoParameter::into_value(v, cim::Type::$ty)
                    }),
                )),*]
            }
        }
    };
}
pub(crate) use output;
