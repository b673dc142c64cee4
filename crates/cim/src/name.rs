//! Names of classes, properties, methods, namespaces: CIM compares them without regard to case (DSP0004 7.1).

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

/// A CIM name. Keeps the spelling it was given; equality, order and hash ignore ASCII case.
#[derive(Clone)]
pub struct Name(Cow<'static, str>);

impl Name {
    /// A name from static text, usable in tables built at compile time.
    pub const fn of(text: &'static str) -> Self {
        Name(Cow::Borrowed(text))
    }

    /// The name as it was spelled.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this name and `other` are the same to CIM.
    pub fn is(&self, other: &str) -> bool {
        self.0.eq_ignore_ascii_case(other)
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.is(&other.0)
    }
}
impl Eq for Name {}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        self.is(other)
    }
}
impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        self.is(other)
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (self.0.bytes(), other.0.bytes());
        a.map(|c| c.to_ascii_lowercase())
            .cmp(b.map(|c| c.to_ascii_lowercase()))
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for b in self.0.bytes() {
            state.write_u8(b.to_ascii_lowercase());
        }
        state.write_u8(0xff);
    }
}

impl From<&'static str> for Name {
    fn from(text: &'static str) -> Self {
        Name(Cow::Borrowed(text))
    }
}
impl From<String> for Name {
    fn from(text: String) -> Self {
        Name(Cow::Owned(text))
    }
}
impl From<&String> for Name {
    fn from(text: &String) -> Self {
        Name(Cow::Owned(text.clone()))
    }
}
impl From<&Name> for Name {
    fn from(name: &Name) -> Self {
        name.clone()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn names_compare_order_and_hash_without_case() {
        let a = Name::of("Msvm_ConcreteJob");
        let b = Name::from("MSVM_concretejob".to_owned());
        assert_eq!(a, b);
        assert_eq!(a.cmp(&b), Ordering::Equal);
        assert!(Name::of("a") < Name::of("B"));
        assert!(Name::of("ab") > Name::of("A"));
        let map = HashMap::from([(a, 1)]);
        assert_eq!(map.get(&b), Some(&1));
        assert_eq!(b.as_str(), "MSVM_concretejob");
    }
}
