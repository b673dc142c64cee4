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

/// The methods of all classes.
macro_rules! any_method {
    ($($class:ident,)*) => {
        /// A method of any concrete class of any namespace.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Any {
            $(
                #[doc = concat!("A method of [`", stringify!($class), "`].")]
                $class($class),
            )*
        }

        impl Any {
            /// The method of a class, both named in any case.
            pub fn of(class: &str, method: &str) -> Option<Self> {
                $(
                    if class.eq_ignore_ascii_case($class::CLASS) {
                        return method.parse().ok().map(Self::$class);
                    }
                )*
                None
            }

            /// The class.
            pub const fn class(self) -> &'static str {
                match self {
                    $(Self::$class(_) => $class::CLASS,)*
                }
            }

            /// The name in the schema.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$class(method) => method.name(),)*
                }
            }

            /// Every method of every class.
            pub fn all() -> Vec<Self> {
                let mut all = Vec::new();
                $(all.extend($class::ALL.iter().map(|m| Self::$class(*m)));)*
                all
            }
        }
    };
}
pub(crate) use any_method;
