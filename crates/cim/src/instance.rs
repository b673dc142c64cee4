//! Instances: a class name, properties, and the path once it is known.

use crate::{Name, Path, Type, Value};

/// One property of an instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Property {
    /// Its name.
    pub name: Name,
    /// Its declared type.
    pub ty: Type,
    /// Whether it is an array.
    pub array: bool,
    /// Its value or null.
    pub value: Value,
}

/// An instance of a class. Property names are unique without regard to case; order is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// The class, as the schema spells it when the schema made the instance.
    pub class: Name,
    /// The properties in the order they were set.
    pub properties: Vec<Property>,
    /// The path, where the instance has one (embedded instances have none).
    pub path: Option<Path>,
}

impl Instance {
    /// An instance without properties.
    pub fn new(class: impl Into<Name>) -> Self {
        Instance {
            class: class.into(),
            properties: Vec::new(),
            path: None,
        }
    }

    /// A property.
    pub fn property(&self, name: &str) -> Option<&Property> {
        self.properties.iter().find(|p| p.name.is(name))
    }

    /// The value of a property; null and a missing property are the same here.
    pub fn get(&self, name: &str) -> &Value {
        static NULL: Value = Value::Null;
        self.property(name).map_or(&NULL, |p| &p.value)
    }

    /// Sets a property. One that is there keeps its type; a new one takes the type of the value (null:
    /// string). Types are put right by the schema when the instance leaves the service.
    pub fn set(&mut self, name: impl Into<Name>, value: impl Into<Value>) -> &mut Self {
        let (name, value) = (name.into(), value.into());
        match self.properties.iter_mut().find(|p| p.name == name) {
            Some(property) => property.value = value,
            None => self.properties.push(Property {
                name,
                ty: value.ty().unwrap_or(Type::String),
                array: matches!(value, Value::Array(_)),
                value,
            }),
        }
        self
    }

    /// The same, by value, for building an instance in one expression.
    pub fn with(mut self, name: impl Into<Name>, value: impl Into<Value>) -> Self {
        self.set(name, value);
        self
    }

    /// The string value of a property.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_found_in_any_case_and_set_once() {
        let mut i = Instance::new("C").with("Name", "a").with("State", 2u16);
        i.set("NAME", "b").set("None", None::<String>);
        assert_eq!(i.properties.len(), 3);
        assert_eq!(i.get_str("name"), Some("b"));
        assert!(i.get("missing").is_null() && i.get("none").is_null());
    }
}
