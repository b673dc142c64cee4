//! Value maps as types.

/// A number whose known values have names.
macro_rules! open_enum {
    ($(#[$doc:meta])* $name:ident($ty:ty) { $($constant:ident = $number:literal, $label:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $ty);

        impl $name {
            $(
                #[doc = $label]
                pub const $constant: Self = Self($number);
            )*

            /// The number's name in the schema, `None` for one the value map does not have.
            pub const fn label(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some($label),)*
                    _ => None,
                }
            }

            /// Reads a value of any integer type, or the digits of one.
            pub fn read(value: &cim::Value) -> Option<Self> {
                match value {
                    cim::Value::String(text) => text.trim().parse().ok().map(Self),
                    other => other.as_int()?.try_into().ok().map(Self),
                }
            }
        }

        impl From<$name> for cim::Value {
            fn from(from: $name) -> Self {
                cim::Value::from(from.0)
            }
        }

        impl From<$name> for $ty {
            fn from(from: $name) -> Self {
                from.0
            }
        }

        impl From<$ty> for $name {
            fn from(from: $ty) -> Self {
                Self(from)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.label() {
                    Some(label) => f.write_str(label),
                    None => write!(f, "{}", self.0),
                }
            }
        }
    };
}
pub(crate) use open_enum;
