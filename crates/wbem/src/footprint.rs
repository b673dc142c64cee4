//! About how much memory values take, so that what is kept for a client can be bounded.

use std::borrow::Cow;
use std::mem::size_of;

use cim::{
    Class, Declaration, Instance, List, Literal, Method, Name, Path, Property, Qualifier, Value,
};

/// What an allocation costs beside its bytes.
const ALLOCATION: usize = 16;

/// About how many bytes of memory an instance takes with everything in it.
pub fn instance(instance: &Instance) -> usize {
    let properties: usize = instance
        .properties
        .iter()
        .map(|p| size_of::<Property>() + beyond(&p.value))
        .sum();
    let path = instance.path.as_ref().map_or(0, path_beyond);
    size_of::<Instance>() + ALLOCATION + properties + path
}

/// A path with everything in it.
pub(crate) fn path(path: &Path) -> usize {
    size_of::<Path>() + path_beyond(path)
}

/// A class with its ancestors; what it shares with the tables of its schema is not its own.
pub(crate) fn class(class: &Class, ancestors: &[Name]) -> usize {
    let parameters = |m: &Method| list(&m.qualifiers, literal) + list(&m.parameters, declaration);
    size_of::<Class>()
        + ALLOCATION
        + size_of_val(ancestors)
        + list(&class.qualifiers, literal)
        + list(&class.properties, declaration)
        + list(&class.methods, parameters)
}

fn declaration(declared: &Declaration) -> usize {
    list(&declared.qualifiers, literal)
}

fn literal(qualifier: &Qualifier) -> usize {
    match &qualifier.value {
        Literal::Text(Cow::Owned(text)) => text.capacity() + ALLOCATION,
        Literal::List(Cow::Owned(items)) => items.capacity() * size_of::<Literal>() + ALLOCATION,
        _ => 0,
    }
}

/// An owned list; a borrowed one belongs to somebody else.
fn list<T: Clone>(list: &List<T>, inside: impl Fn(&T) -> usize) -> usize {
    match list {
        Cow::Borrowed(_) => 0,
        Cow::Owned(items) => {
            let within: usize = items.iter().map(inside).sum();
            items.capacity() * size_of::<T>() + ALLOCATION + within
        }
    }
}

fn path_beyond(path: &Path) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, |t| t.capacity() + ALLOCATION);
    let keys: usize = path
        .keys
        .iter()
        .map(|(_, value)| size_of::<(Name, Value)>() + beyond(value))
        .sum();
    text(&path.host) + text(&path.namespace) + ALLOCATION + keys
}

/// What a value holds beyond itself.
fn beyond(value: &Value) -> usize {
    match value {
        Value::String(text) => text.capacity() + ALLOCATION,
        Value::Reference(inner) => ALLOCATION + path(inner),
        Value::Object(inner) => ALLOCATION + instance(inner),
        Value::Array(items) => {
            let inside: usize = items.iter().map(|v| size_of::<Value>() + beyond(v)).sum();
            ALLOCATION + inside
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nested_counts() {
        let text = "x".repeat(1000);
        let plain = instance(&Instance::new("C"));
        let one = instance(&Instance::new("C").with("P", text.as_str()));
        assert!((1000..1500).contains(&(one - plain)), "{plain} {one}");
        let inner = Instance::new("D").with("P", text.as_str());
        let list = vec![text.clone(); 10];
        let nested = Instance::new("C").with("I", inner).with("L", list);
        assert!(instance(&nested) > 11_000);
        let named = Path::class("C").key("K", text.as_str());
        assert!(path(&named) > 1000);
    }
}
