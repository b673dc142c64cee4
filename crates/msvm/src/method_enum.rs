//! Method names as types.

/// A class has no method of that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{class} has no method {method}")]
pub struct UnknownMethod {
    /// The class.
    pub class: &'static str,
    /// What was called.
    pub method: String,
}

/// The methods of a class. Names are read in any case.
macro_rules! method_enum {
    ($(#[$doc:meta])* $name:ident of $class:literal { $($variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $(
                #[doc = $text]
                $variant,
            )*
        }

        impl $name {
            /// The class.
            pub const CLASS: &str = $class;
            /// Every method.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name in the schema.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::UnknownMethod;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL
                    .iter()
                    .copied()
                    .find(|m| m.name().eq_ignore_ascii_case(text))
                    .ok_or_else(|| crate::UnknownMethod {
                        class: Self::CLASS,
                        method: text.chars().take(80).collect(),
                    })
            }
        }
    };
}
pub(crate) use method_enum;
