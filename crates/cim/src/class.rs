//! Class declarations. The same types hold what the MOF compiler reads at run time (owned) and the
//! tables the schema crate compiles in (borrowed): every list and text is a `Cow<'static, …>`.

use std::borrow::Cow;

use crate::{Name, Type, Value};

/// A static or owned list.
pub type List<T> = Cow<'static, [T]>;
/// A static or owned text.
pub type Text = Cow<'static, str>;

/// A literal of MOF: a qualifier's value or a property's default.
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    /// `NULL`
    Null,
    /// `TRUE` or `FALSE`
    Boolean(bool),
    /// Any integer
    Integer(i128),
    /// Any real
    Real(f64),
    /// A string, datetime or character
    Text(Text),
    /// `{ a, b }`
    List(List<Literal>),
}

impl Literal {
    /// The value this literal stands for in a declaration of that type, or `None` where it does not fit.
    pub fn to_value(&self, ty: Type, array: bool) -> Option<Value> {
        let value = match self {
            Literal::Null => return Some(Value::Null),
            Literal::Boolean(b) => Value::Boolean(*b),
            Literal::Integer(n) => {
                return Value::from_text(ty, &n.to_string())
                    .ok()?
                    .coerce(ty, array)
                    .ok();
            }
            Literal::Real(r) => Value::Real64(*r),
            Literal::Text(s) => Value::String(s.clone().into_owned()),
            Literal::List(items) => Value::Array(
                items
                    .iter()
                    .map(|i| i.to_value(ty, false))
                    .collect::<Option<_>>()?,
            ),
        };
        value.coerce(ty, array).ok()
    }

    /// The text, if this is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Literal::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// A qualifier on a class, property, method or parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Qualifier {
    /// Its name (`Key`, `ValueMap`, `EmbeddedInstance`, …).
    pub name: Name,
    /// Its value; a bare `[Key]` is `Boolean(true)`.
    pub value: Literal,
}

/// The declaration of a property or of a method's parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Declaration {
    /// Its name.
    pub name: Name,
    /// Its type.
    pub ty: Type,
    /// The class a reference points to (`CIM_ConcreteJob` of `CIM_ConcreteJob REF`).
    pub ref_class: Option<Name>,
    /// Whether it is an array.
    pub array: bool,
    /// The fixed size of an array, where declared.
    pub array_size: Option<u32>,
    /// The default value, properties only.
    pub default: Literal,
    /// Qualifiers.
    pub qualifiers: List<Qualifier>,
    /// The class that declares it; filled when a class is resolved with its ancestors.
    pub origin: Option<Name>,
}

/// The declaration of a method.
#[derive(Clone, Debug, PartialEq)]
pub struct Method {
    /// Its name.
    pub name: Name,
    /// The type of its return value.
    pub return_type: Type,
    /// Qualifiers.
    pub qualifiers: List<Qualifier>,
    /// Parameters, in order; `In` and `Out` qualifiers tell the direction.
    pub parameters: List<Declaration>,
    /// The class that declares it; filled when a class is resolved with its ancestors.
    pub origin: Option<Name>,
}

/// The declaration of a class: its own members only, or, once resolved by a schema, all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// Its name.
    pub name: Name,
    /// Its superclass.
    pub superclass: Option<Name>,
    /// Qualifiers.
    pub qualifiers: List<Qualifier>,
    /// Properties.
    pub properties: List<Declaration>,
    /// Methods.
    pub methods: List<Method>,
}

/// The qualifier of that name.
pub fn qualifier<'a>(list: &'a [Qualifier], name: &str) -> Option<&'a Literal> {
    list.iter().find(|q| q.name.is(name)).map(|q| &q.value)
}

/// Whether a boolean qualifier is there and true.
pub fn has_qualifier(list: &[Qualifier], name: &str) -> bool {
    matches!(qualifier(list, name), Some(Literal::Boolean(true)))
}

impl Declaration {
    /// Whether this is a key property.
    pub fn is_key(&self) -> bool {
        has_qualifier(&self.qualifiers, "Key")
    }

    /// Whether a parameter goes in: `In` is the default when neither `In` nor `Out` stands there.
    pub fn is_in(&self) -> bool {
        match qualifier(&self.qualifiers, "In") {
            Some(value) => *value == Literal::Boolean(true),
            None => !self.is_out(),
        }
    }

    /// Whether a parameter comes out.
    pub fn is_out(&self) -> bool {
        has_qualifier(&self.qualifiers, "Out")
    }

    /// The class named by `EmbeddedInstance`, where the value is an instance in text form.
    pub fn embedded_class(&self) -> Option<&str> {
        qualifier(&self.qualifiers, "EmbeddedInstance").and_then(Literal::as_text)
    }
}

impl Class {
    /// The property of that name among those listed here.
    pub fn property(&self, name: &str) -> Option<&Declaration> {
        self.properties.iter().find(|p| p.name.is(name))
    }

    /// The method of that name among those listed here.
    pub fn method(&self, name: &str) -> Option<&Method> {
        self.methods.iter().find(|m| m.name.is(name))
    }

    /// The key properties among those listed here.
    pub fn keys(&self) -> impl Iterator<Item = &Declaration> {
        self.properties.iter().filter(|p| p.is_key())
    }

    /// Whether the class is an association.
    pub fn is_association(&self) -> bool {
        has_qualifier(&self.qualifiers, "Association")
    }

    /// Whether the class has no instances of its own.
    pub fn is_abstract(&self) -> bool {
        has_qualifier(&self.qualifiers, "Abstract")
    }
}

/// A set of classes: what GetClass, queries and the XML writers ask. The schema crate implements it over
/// its tables; names are looked up in any case.
pub trait Schema: Send + Sync {
    /// The class with all inherited members, own members first overriding, each with its `origin`.
    fn class(&self, name: &str) -> Option<&Class>;
    /// The names of all classes, sorted.
    fn class_names(&self) -> Vec<Name>;

    /// The superclass of a class.
    fn superclass(&self, name: &str) -> Option<&Name> {
        self.class(name).and_then(|c| c.superclass.as_ref())
    }

    /// Whether `name` is `ancestor` or below it.
    fn is_a(&self, name: &str, ancestor: &str) -> bool {
        let mut at = self.class(name);
        // A superclass loop in a faulty schema must not hang a request.
        for _ in 0..64 {
            match at {
                Some(class) if class.name.is(ancestor) => return true,
                Some(class) => {
                    at = class
                        .superclass
                        .as_ref()
                        .and_then(|s| self.class(s.as_str()));
                }
                None => return false,
            }
        }
        false
    }

    /// The superclasses of a class, nearest first.
    fn ancestors(&self, name: &str) -> Vec<Name> {
        let mut out: Vec<Name> = Vec::new();
        let mut at = self.superclass(name).cloned();
        while let Some(class) = at {
            if out.contains(&class) {
                break;
            }
            at = self.superclass(class.as_str()).cloned();
            out.push(class);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_become_values_of_the_declared_type() {
        assert_eq!(
            Literal::Integer(5).to_value(Type::Uint16, false),
            Some(Value::Uint16(5))
        );
        assert_eq!(Literal::Integer(-5).to_value(Type::Uint16, false), None);
        let list = Literal::List(Cow::Owned(vec![Literal::Integer(1), Literal::Integer(2)]));
        assert_eq!(
            list.to_value(Type::Uint8, true),
            Some(Value::from(vec![1u8, 2]))
        );
    }

    #[test]
    fn a_parameter_goes_in_unless_it_only_comes_out() {
        let with = |qualifiers: Vec<Qualifier>| Declaration {
            name: Name::of("P"),
            ty: Type::String,
            ref_class: None,
            array: false,
            array_size: None,
            default: Literal::Null,
            qualifiers: Cow::Owned(qualifiers),
            origin: None,
        };
        let flag = |name, on| Qualifier {
            name: Name::of(name),
            value: Literal::Boolean(on),
        };
        assert!(with(vec![]).is_in());
        let out = with(vec![flag("Out", true)]);
        assert!(out.is_out() && !out.is_in());
        let both = with(vec![flag("In", true), flag("Out", true)]);
        assert!(both.is_out() && both.is_in());
        assert!(!with(vec![flag("In", false), flag("Out", true)]).is_in());
    }
}
