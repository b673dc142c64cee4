//! CIM values and their types (DSP0004 5.2).

use crate::{Datetime, Instance, Path};

/// The type of a property, parameter or return value; arrays are told apart where it is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// `boolean`
    Boolean,
    /// `uint8`
    Uint8,
    /// `sint8`
    Sint8,
    /// `uint16`
    Uint16,
    /// `sint16`
    Sint16,
    /// `uint32`
    Uint32,
    /// `sint32`
    Sint32,
    /// `uint64`
    Uint64,
    /// `sint64`
    Sint64,
    /// `real32`
    Real32,
    /// `real64`
    Real64,
    /// `char16`
    Char16,
    /// `string`
    String,
    /// `datetime`
    Datetime,
    /// `Class REF`
    Reference,
    /// `object`: an instance as an embedded object, not as its text
    Object,
}

impl Type {
    /// The name in MOF and CIM-XML (`Reference` and `Object` have none in CIM-XML).
    pub const fn name(self) -> &'static str {
        match self {
            Type::Boolean => "boolean",
            Type::Uint8 => "uint8",
            Type::Sint8 => "sint8",
            Type::Uint16 => "uint16",
            Type::Sint16 => "sint16",
            Type::Uint32 => "uint32",
            Type::Sint32 => "sint32",
            Type::Uint64 => "uint64",
            Type::Sint64 => "sint64",
            Type::Real32 => "real32",
            Type::Real64 => "real64",
            Type::Char16 => "char16",
            Type::String => "string",
            Type::Datetime => "datetime",
            Type::Reference => "reference",
            Type::Object => "object",
        }
    }

    /// The type of that name, in any case.
    pub fn named(name: &str) -> Option<Self> {
        const ALL: [Type; 16] = [
            Type::Boolean,
            Type::Uint8,
            Type::Sint8,
            Type::Uint16,
            Type::Sint16,
            Type::Uint32,
            Type::Sint32,
            Type::Uint64,
            Type::Sint64,
            Type::Real32,
            Type::Real64,
            Type::Char16,
            Type::String,
            Type::Datetime,
            Type::Reference,
            Type::Object,
        ];
        ALL.into_iter()
            .find(|t| t.name().eq_ignore_ascii_case(name))
    }
}

/// A value, or `Null`. The variant tells the type; an array holds elements of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// No value.
    Null,
    /// `boolean`
    Boolean(bool),
    /// `uint8`
    Uint8(u8),
    /// `sint8`
    Sint8(i8),
    /// `uint16`
    Uint16(u16),
    /// `sint16`
    Sint16(i16),
    /// `uint32`
    Uint32(u32),
    /// `sint32`
    Sint32(i32),
    /// `uint64`
    Uint64(u64),
    /// `sint64`
    Sint64(i64),
    /// `real32`
    Real32(f32),
    /// `real64`
    Real64(f64),
    /// `char16`
    Char16(u16),
    /// `string`; also an embedded instance in its text form
    String(String),
    /// `datetime`
    Datetime(Datetime),
    /// A reference to an instance
    Reference(Box<Path>),
    /// An embedded object
    Object(Box<Instance>),
    /// Several values of one type; elements may be `Null`
    Array(Vec<Value>),
}

/// Why a text or a value does not fit a type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} does not fit type {}", .wanted.name())]
pub struct TypeMismatch {
    /// The text or a rendering of the value, cut to 80 characters.
    pub text: String,
    /// The type wanted.
    pub wanted: Type,
}

impl Value {
    /// Whether there is no value.
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// The type of a value or of an array's first element; `None` for null.
    pub fn ty(&self) -> Option<Type> {
        Some(match self {
            Value::Null => return None,
            Value::Boolean(_) => Type::Boolean,
            Value::Uint8(_) => Type::Uint8,
            Value::Sint8(_) => Type::Sint8,
            Value::Uint16(_) => Type::Uint16,
            Value::Sint16(_) => Type::Sint16,
            Value::Uint32(_) => Type::Uint32,
            Value::Sint32(_) => Type::Sint32,
            Value::Uint64(_) => Type::Uint64,
            Value::Sint64(_) => Type::Sint64,
            Value::Real32(_) => Type::Real32,
            Value::Real64(_) => Type::Real64,
            Value::Char16(_) => Type::Char16,
            Value::String(_) => Type::String,
            Value::Datetime(_) => Type::Datetime,
            Value::Reference(_) => Type::Reference,
            Value::Object(_) => Type::Object,
            Value::Array(items) => return items.iter().find_map(Value::ty),
        })
    }

    /// The text of a scalar as CIM-XML and WS-Management write it (`true`, `42`, the 25 character datetime);
    /// a reference as its object path. `None` for null, arrays and embedded objects.
    pub fn to_text(&self) -> Option<String> {
        Some(match self {
            Value::Null | Value::Array(_) | Value::Object(_) => return None,
            Value::Boolean(v) => v.to_string(),
            Value::Uint8(v) => v.to_string(),
            Value::Sint8(v) => v.to_string(),
            Value::Uint16(v) => v.to_string(),
            Value::Sint16(v) => v.to_string(),
            Value::Uint32(v) => v.to_string(),
            Value::Sint32(v) => v.to_string(),
            Value::Uint64(v) => v.to_string(),
            Value::Sint64(v) => v.to_string(),
            Value::Real32(v) => v.to_string(),
            Value::Real64(v) => v.to_string(),
            Value::Char16(v) => char::from_u32(u32::from(*v))
                .unwrap_or('\u{fffd}')
                .to_string(),
            Value::String(v) => v.clone(),
            Value::Datetime(v) => v.to_string(),
            Value::Reference(v) => v.to_string(),
        })
    }

    /// Reads a scalar of type `wanted` from its text: integers decimal or `0x` hexadecimal, booleans
    /// in any case, datetimes in the CIM or the XML Schema form, references in any spelling [`Path`] reads.
    pub fn from_text(wanted: Type, text: &str) -> Result<Value, TypeMismatch> {
        let mismatch = || TypeMismatch {
            text: text.chars().take(80).collect(),
            wanted,
        };
        let trimmed = text.trim();
        let int = || -> Option<i128> {
            let (negative, digits) = match trimmed.strip_prefix('-') {
                Some(rest) => (true, rest),
                None => (false, trimmed.strip_prefix('+').unwrap_or(trimmed)),
            };
            let hex = digits
                .strip_prefix("0x")
                .or_else(|| digits.strip_prefix("0X"));
            let (digits, radix) = hex.map_or((digits, 10), |hex| (hex, 16));
            if !digits.starts_with(|c: char| c.is_digit(radix)) {
                return None;
            }
            let magnitude = i128::from_str_radix(digits, radix).ok()?;
            Some(if negative { -magnitude } else { magnitude })
        };
        macro_rules! integer {
            ($variant:ident) => {
                int().and_then(|n| n.try_into().ok()).map(Value::$variant)
            };
        }
        let value = match wanted {
            Type::Boolean if trimmed.eq_ignore_ascii_case("true") || trimmed == "1" => {
                Some(Value::Boolean(true))
            }
            Type::Boolean if trimmed.eq_ignore_ascii_case("false") || trimmed == "0" => {
                Some(Value::Boolean(false))
            }
            Type::Boolean => None,
            Type::Uint8 => integer!(Uint8),
            Type::Sint8 => integer!(Sint8),
            Type::Uint16 => integer!(Uint16),
            Type::Sint16 => integer!(Sint16),
            Type::Uint32 => integer!(Uint32),
            Type::Sint32 => integer!(Sint32),
            Type::Uint64 => integer!(Uint64),
            Type::Sint64 => integer!(Sint64),
            Type::Real32 => trimmed.parse().ok().map(Value::Real32),
            Type::Real64 => trimmed.parse().ok().map(Value::Real64),
            Type::Char16 => {
                let mut units = text.encode_utf16();
                match (units.next(), units.next()) {
                    (Some(unit), None) => Some(Value::Char16(unit)),
                    _ => None,
                }
            }
            Type::String => Some(Value::String(text.to_owned())),
            Type::Datetime => Datetime::parse_lenient(trimmed).ok().map(Value::Datetime),
            Type::Reference => Path::parse(trimmed)
                .ok()
                .map(|p| Value::Reference(Box::new(p))),
            Type::Object => None,
        };
        value.ok_or_else(mismatch)
    }

    /// This value as type `wanted`: unchanged if it has it, otherwise through its text (a string
    /// `"5"` becomes a `uint16` 5, a `uint8` 5 a `uint64` 5). Arrays go element by element; with `array` set a
    /// scalar becomes an array of one, without it an array of one becomes its element. Null stays null.
    pub fn coerce(self, wanted: Type, array: bool) -> Result<Value, TypeMismatch> {
        match (self, array) {
            (Value::Null, _) => Ok(Value::Null),
            (Value::Array(items), true) => items
                .into_iter()
                .map(|item| item.coerce(wanted, false))
                .collect::<Result<_, _>>()
                .map(Value::Array),
            (Value::Array(mut items), false) => match (items.pop(), items.is_empty()) {
                (Some(item), true) => item.coerce(wanted, false),
                (last, _) => Err(TypeMismatch {
                    text: format!("array of {}", items.len() + usize::from(last.is_some())),
                    wanted,
                }),
            },
            (scalar, true) => Ok(Value::Array(vec![scalar.coerce(wanted, false)?])),
            (scalar, false) if scalar.ty() == Some(wanted) => Ok(scalar),
            (scalar, false) => match scalar.to_text() {
                Some(text) => Value::from_text(wanted, &text),
                None => Err(TypeMismatch {
                    text: "embedded object".to_owned(),
                    wanted,
                }),
            },
        }
    }

    /// The string, if this is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    /// The boolean, if this is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Boolean(b) => Some(*b),
            _ => None,
        }
    }

    /// Any integer, as one that holds them all.
    pub fn as_int(&self) -> Option<i128> {
        Some(match self {
            Value::Uint8(v) => i128::from(*v),
            Value::Sint8(v) => i128::from(*v),
            Value::Uint16(v) => i128::from(*v),
            Value::Sint16(v) => i128::from(*v),
            Value::Uint32(v) => i128::from(*v),
            Value::Sint32(v) => i128::from(*v),
            Value::Uint64(v) => i128::from(*v),
            Value::Sint64(v) => i128::from(*v),
            _ => return None,
        })
    }

    /// A non-negative integer that fits `u64`.
    pub fn as_u64(&self) -> Option<u64> {
        self.as_int().and_then(|v| u64::try_from(v).ok())
    }

    /// The path of a reference; a string is read as one.
    pub fn as_path(&self) -> Option<Path> {
        match self {
            Value::Reference(path) => Some((**path).clone()),
            Value::String(text) => Path::parse(text).ok(),
            _ => None,
        }
    }

    /// The elements of an array; a scalar counts as an array of one, null as an empty one.
    pub fn items(&self) -> &[Value] {
        match self {
            Value::Null => &[],
            Value::Array(items) => items,
            scalar => std::slice::from_ref(scalar),
        }
    }
}

macro_rules! from_scalar {
    ($($rust:ty => $variant:ident),* $(,)?) => {$(
        impl From<$rust> for Value {
            fn from(v: $rust) -> Self {
                Value::$variant(v)
            }
        }
        impl From<Vec<$rust>> for Value {
            fn from(v: Vec<$rust>) -> Self {
                Value::Array(v.into_iter().map(Value::$variant).collect())
            }
        }
    )*};
}
from_scalar!(bool => Boolean, u8 => Uint8, i8 => Sint8, u16 => Uint16, i16 => Sint16, u32 => Uint32,
    i32 => Sint32, u64 => Uint64, i64 => Sint64, f32 => Real32, f64 => Real64, String => String,
    Datetime => Datetime);

impl From<&str> for Value {
    fn from(v: &str) -> Self {
        Value::String(v.to_owned())
    }
}
impl From<Path> for Value {
    fn from(v: Path) -> Self {
        Value::Reference(Box::new(v))
    }
}
impl From<Vec<Path>> for Value {
    fn from(v: Vec<Path>) -> Self {
        Value::Array(v.into_iter().map(Value::from).collect())
    }
}
impl From<Instance> for Value {
    fn from(v: Instance) -> Self {
        Value::Object(Box::new(v))
    }
}
impl From<Vec<Instance>> for Value {
    fn from(v: Vec<Instance>) -> Self {
        Value::Array(v.into_iter().map(Value::from).collect())
    }
}
impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(v: Option<T>) -> Self {
        v.map_or(Value::Null, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_within_their_range_only() {
        assert_eq!(
            Value::from_text(Type::Uint16, " 65535 "),
            Ok(Value::Uint16(65535))
        );
        assert_eq!(
            Value::from_text(Type::Uint16, "0xFF"),
            Ok(Value::Uint16(255))
        );
        assert_eq!(
            Value::from_text(Type::Sint8, "-128"),
            Ok(Value::Sint8(-128))
        );
        for (ty, text) in [
            (Type::Uint16, "65536"),
            (Type::Uint8, "-1"),
            (Type::Uint32, ""),
            (Type::Uint32, "--1"),
            (Type::Uint32, "0x+1"),
            (Type::Boolean, "yes"),
            (Type::Char16, "ab"),
            (Type::Datetime, "now"),
        ] {
            assert!(Value::from_text(ty, text).is_err(), "{ty:?} {text:?}");
        }
    }

    #[test]
    fn a_value_becomes_the_declared_type_when_it_fits() {
        assert_eq!(
            Value::from("5").coerce(Type::Uint16, false),
            Ok(Value::Uint16(5))
        );
        assert_eq!(
            Value::Uint8(5).coerce(Type::Uint64, true),
            Ok(Value::Array(vec![Value::Uint64(5)]))
        );
        assert_eq!(
            Value::from(vec![7u8]).coerce(Type::Uint8, false),
            Ok(Value::Uint8(7)),
            "an array of one is its element"
        );
        assert!(
            Value::from(vec![7u8, 8])
                .coerce(Type::Uint8, false)
                .is_err()
        );
        assert_eq!(Value::Null.coerce(Type::Uint8, true), Ok(Value::Null));
    }
}
