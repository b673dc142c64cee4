//! A schema in memory: classes put together with what they inherit.

use std::borrow::Cow;
use std::cmp::Ordering;

use crate::{Class, List, Literal, Name, Qualifier, Schema, standard_qualifier};

/// Resolved classes, sorted by name: the usual [`Schema`].
#[derive(Clone, Debug, Default)]
pub struct ClassTable {
    classes: Vec<Class>,
}

/// Why classes do not make a schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// Two classes of one name.
    #[error("the class {0} is declared twice")]
    Twice(Name),
    /// A superclass that is not among the classes.
    #[error("{class} derives from {superclass}, which is not declared")]
    NoSuperclass {
        /// The class.
        class: Name,
        /// Its superclass.
        superclass: Name,
    },
    /// A class that derives from itself, or one more than 64 levels deep.
    #[error("the superclasses of {0} do not end")]
    Loop(Name),
}

const MAX_ANCESTORS: usize = 64;

fn compare(a: &str, b: &str) -> Ordering {
    let lower = |c: u8| c.to_ascii_lowercase();
    a.bytes().map(lower).cmp(b.bytes().map(lower))
}

impl ClassTable {
    /// Puts classes together: each gets its own members first, in order, then those it inherits and
    /// does not override, nearest class first; each member with its origin. An overriding member and a
    /// subclass keep the qualifiers they do not repeat, those that are restricted excepted, and an
    /// overriding property keeps the default.
    pub fn resolve(own: impl IntoIterator<Item = Class>) -> Result<Self, SchemaError> {
        let mut own: Vec<Class> = own.into_iter().collect();
        own.sort_by(|a, b| a.name.cmp(&b.name));
        for pair in own.windows(2) {
            if let [a, b] = pair
                && a.name == b.name
            {
                return Err(SchemaError::Twice(a.name.clone()));
            }
        }
        let declared = ClassTable { classes: own };
        let mut classes = Vec::with_capacity(declared.classes.len());
        for class in &declared.classes {
            let mut chain = vec![class];
            let mut at = class;
            while let Some(superclass) = &at.superclass {
                at = declared.class(superclass.as_str()).ok_or_else(|| {
                    SchemaError::NoSuperclass {
                        class: at.name.clone(),
                        superclass: superclass.clone(),
                    }
                })?;
                if chain.len() >= MAX_ANCESTORS {
                    return Err(SchemaError::Loop(class.name.clone()));
                }
                chain.push(at);
            }
            classes.push(merge(&chain));
        }
        Ok(ClassTable { classes })
    }

    /// The classes, sorted by name.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }
}

impl Schema for ClassTable {
    fn class(&self, name: &str) -> Option<&Class> {
        let found = self
            .classes
            .binary_search_by(|c| compare(c.name.as_str(), name))
            .ok()?;
        self.classes.get(found)
    }

    fn class_names(&self) -> Vec<Name> {
        self.classes.iter().map(|c| c.name.clone()).collect()
    }
}

/// One class of its chain, nearest first.
fn merge(chain: &[&Class]) -> Class {
    let mut out = Class {
        name: Name::of(""),
        superclass: None,
        qualifiers: Cow::Borrowed(&[]),
        properties: Cow::Borrowed(&[]),
        methods: Cow::Borrowed(&[]),
    };
    for (distance, class) in chain.iter().enumerate() {
        if distance == 0 {
            out.name = class.name.clone();
            out.superclass = class.superclass.clone();
        }
        inherit(&mut out.qualifiers, &class.qualifiers, distance == 0);
        let (properties, methods) = (out.properties.to_mut(), out.methods.to_mut());
        for property in class.properties.iter() {
            match properties.iter_mut().find(|p| p.name == property.name) {
                Some(over) => {
                    inherit(&mut over.qualifiers, &property.qualifiers, false);
                    if over.default == Literal::Null {
                        over.default = property.default.clone();
                    }
                }
                None => {
                    let mut property = property.clone();
                    property.origin = Some(class.name.clone());
                    properties.push(property);
                }
            }
        }
        for method in class.methods.iter() {
            match methods.iter_mut().find(|m| m.name == method.name) {
                Some(over) => inherit(&mut over.qualifiers, &method.qualifiers, false),
                None => {
                    let mut method = method.clone();
                    method.origin = Some(class.name.clone());
                    methods.push(method);
                }
            }
        }
    }
    out
}

fn inherit(into: &mut List<Qualifier>, from: &[Qualifier], own: bool) {
    // A value map and its labels are one statement: a new map does not keep the old labels.
    let maps = into.iter().any(|q| q.name.is("ValueMap"));
    for qualifier in from {
        let of_another_map = maps && qualifier.name.is("Values");
        let passes = own
            || !of_another_map
                && standard_qualifier(qualifier.name.as_str())
                    .is_none_or(|known| known.to_subclass);
        if passes && !into.iter().any(|q| q.name == qualifier.name) {
            into.to_mut().push(qualifier.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{mof, qualifier};

    fn table(text: &str) -> Result<ClassTable, SchemaError> {
        ClassTable::resolve(mof::parse(text).expect(text).classes)
    }

    #[test]
    fn a_class_has_its_own_members_and_those_it_inherits() {
        let table = table(
            "class C : B { [Override(\"Name\"), MaxLen(5)] string Name; string Own; uint32 Do(); };
             [Abstract, Association] class A { [Key] string Name; uint8 Old; uint32 Do(); uint32 Stop(); };
             [Abstract] class B : a { uint8 Mid; };",
        )
        .expect("table");
        let c = table.class("c").expect("C");
        let names: Vec<_> = c.properties.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["Name", "Own", "Mid", "Old"]);
        assert!(
            c.property("Name")
                .is_some_and(|p| p.is_key() && p.origin == Some("C".into()))
        );
        assert_eq!(
            c.property("Old").and_then(|p| p.origin.clone()),
            Some("A".into())
        );
        assert_eq!(c.methods.len(), 2);
        assert!(c.is_association() && !c.is_abstract());
        assert!(table.is_a("C", "a") && !table.is_a("A", "C"));
        assert_eq!(table.ancestors("C"), ["B", "A"]);
        assert_eq!(table.class_names(), ["A", "B", "C"]);
    }

    #[test]
    fn an_override_keeps_the_default_and_no_labels_of_another_value_map() {
        let table = table(
            "class A { [ValueMap {\"1\"}, Values {\"One\"}] uint8 N = 1; };
             class B : A { [Override(\"N\"), ValueMap {\"2\"}] uint8 N; };
             class C : B { [Override(\"N\"), Values {\"Two\"}] uint8 N = 2; };",
        )
        .expect("table");
        let n = |class: &str| table.class(class).and_then(|c| c.property("N")).expect("N");
        assert_eq!(n("B").default, Literal::Integer(1));
        assert!(qualifier(&n("B").qualifiers, "Values").is_none());
        assert_eq!(n("C").default, Literal::Integer(2));
        assert!(qualifier(&n("C").qualifiers, "ValueMap").is_some());
    }

    #[test]
    fn faulty_schemas_are_refused() {
        assert!(matches!(
            table("class A {}; class a {};"),
            Err(SchemaError::Twice(_))
        ));
        assert!(matches!(
            table("class A : B {};"),
            Err(SchemaError::NoSuperclass { .. })
        ));
        assert!(matches!(
            table("class A : B {}; class B : A {};"),
            Err(SchemaError::Loop(_))
        ));
    }
}
