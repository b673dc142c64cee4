//! Namespaces: classes with all their members, sorted by name.

use std::cmp::Ordering;
use std::sync::{LazyLock, OnceLock};

use cim::{
    Class, ClassTable, Declaration, Instance, Name, Property, Schema, Type, TypeMismatch, Value,
};

use crate::generated::tables;

/// The classes of one namespace, resolved.
#[derive(Debug)]
pub struct Namespace {
    name: &'static str,
    table: ClassTable,
    /// Of each class, itself and its ancestors, nearest first, by index.
    lines: Vec<Vec<usize>>,
    /// Of each class, what a new instance has. Made when one is first asked for.
    blanks: Vec<OnceLock<Vec<Property>>>,
}

/// Why an instance is not one of its class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompletionError {
    /// No such class in the namespace.
    #[error("no class {0}")]
    Class(String),
    /// The class has no such property.
    #[error("{class} has no property {property}")]
    Property {
        /// The class.
        class: String,
        /// The property.
        property: String,
    },
    /// The value does not fit the declaration.
    #[error("{class}.{property} has a value of the wrong type")]
    Type {
        /// The class.
        class: String,
        /// The property.
        property: String,
        /// What does not fit.
        #[source]
        source: TypeMismatch,
    },
}

/// `root/virtualization/v2`.
pub fn virtualization() -> &'static Namespace {
    static NAMESPACE: LazyLock<Namespace> =
        LazyLock::new(|| Namespace::resolve("root/virtualization/v2", &tables::VIRTUALIZATION));
    &NAMESPACE
}

/// `root/cimv2`: what clients read about the host.
pub fn cimv2() -> &'static Namespace {
    static NAMESPACE: LazyLock<Namespace> =
        LazyLock::new(|| Namespace::resolve("root/cimv2", &tables::CIMV2));
    &NAMESPACE
}

/// `root/interop`: the server about itself.
pub fn interop() -> &'static Namespace {
    static NAMESPACE: LazyLock<Namespace> =
        LazyLock::new(|| Namespace::resolve("root/interop", &tables::INTEROP));
    &NAMESPACE
}

/// Every namespace.
pub fn namespaces() -> [&'static Namespace; 3] {
    [virtualization(), cimv2(), interop()]
}

/// The namespace of that name, in any case and with either slash. `interop` alone is none: clients that probe for
/// it would miss it in the list of namespaces.
pub fn namespace(name: &str) -> Option<&'static Namespace> {
    let name = name.replace('\\', "/");
    let name = name.trim_matches('/');
    namespaces()
        .into_iter()
        .find(|n| n.name.eq_ignore_ascii_case(name))
}

fn compare(a: &str, b: &str) -> Ordering {
    let lower = |c: u8| c.to_ascii_lowercase();
    a.bytes().map(lower).cmp(b.bytes().map(lower))
}

impl Namespace {
    /// The name with forward slashes.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// All classes, sorted by name.
    pub fn classes(&self) -> &[Class] {
        self.table.classes()
    }

    /// The class and all classes below it, sorted by name.
    pub fn family(&self, name: &str) -> impl Iterator<Item = &Class> {
        let root = self.index(name);
        self.classes()
            .iter()
            .zip(&self.lines)
            .filter(move |(_, line)| root.is_some_and(|root| line.contains(&root)))
            .map(|(class, _)| class)
    }

    /// The classes of [`Namespace::family`] that may have instances.
    pub fn concrete(&self, name: &str) -> impl Iterator<Item = &Class> {
        self.family(name).filter(|c| !c.is_abstract())
    }

    /// The classes directly below one, or those without a superclass.
    pub fn children(&self, name: Option<&str>) -> impl Iterator<Item = &Class> {
        self.classes()
            .iter()
            .filter(move |c| match (&c.superclass, name) {
                (None, None) => true,
                (Some(superclass), Some(name)) => superclass.is(name),
                _ => false,
            })
    }

    /// An instance with every property of its class in declared order, each with its default or null.
    pub fn new_instance(&self, class: &str) -> Option<Instance> {
        let at = self.index(class)?;
        Some(Instance {
            class: self.classes().get(at)?.name.clone(),
            properties: self.blank(at).to_vec(),
            path: None,
        })
    }

    /// Makes an instance whole before it leaves the service: class and properties spelled as declared, in
    /// declared order and type; what was not set gets its default or null. Null that was set stays null.
    ///
    /// # Errors
    /// An unknown class or property, or a value that does not fit: a mistake of whoever built it. The instance
    /// is then unchanged.
    pub fn complete(&self, instance: &mut Instance) -> Result<(), CompletionError> {
        let (at, class) = self
            .index(instance.class.as_str())
            .and_then(|at| Some((at, self.classes().get(at)?)))
            .ok_or_else(|| CompletionError::Class(instance.class.to_string()))?;
        let blank = self.blank(at);
        let context = cim::embedded::Context::with(self);
        let mut places = Vec::with_capacity(instance.properties.len());
        let mut coerced = Vec::new();
        let mut next = 0;
        for (i, property) in instance.properties.iter().enumerate() {
            // Most instances are set in declared order.
            let same = |b: &Property| b.name == property.name;
            let found = match blank.get(next) {
                Some(b) if same(b) => Some((next, b)),
                _ => blank.iter().enumerate().find(|(_, b)| same(b)),
            };
            let (place, declared) = found.ok_or_else(|| CompletionError::Property {
                class: class.name.to_string(),
                property: property.name.to_string(),
            })?;
            next = place + 1;
            places.push(place);
            if !has_type(&property.value, declared.ty, declared.array) {
                let value = property.value.clone();
                let value = cim::embedded::coerce(value, declared.ty, declared.array, &context)
                    .map_err(|source| CompletionError::Type {
                        class: class.name.to_string(),
                        property: declared.name.to_string(),
                        source,
                    })?;
                coerced.push((i, value));
            }
        }
        let set = std::mem::replace(&mut instance.properties, blank.to_vec());
        let mut coerced = coerced.into_iter().peekable();
        for (i, (property, place)) in set.into_iter().zip(places).enumerate() {
            let value = coerced.next_if(|(at, _)| *at == i).map(|(_, value)| value);
            if let Some(slot) = instance.properties.get_mut(place) {
                slot.value = value.unwrap_or(property.value);
            }
        }
        instance.class = class.name.clone();
        Ok(())
    }

    /// The properties of a class, each with its default or null.
    fn blank(&self, at: usize) -> &[Property] {
        match (self.blanks.get(at), self.classes().get(at)) {
            (Some(blank), Some(class)) => {
                blank.get_or_init(|| class.properties.iter().map(unset).collect())
            }
            _ => &[],
        }
    }

    fn index(&self, name: &str) -> Option<usize> {
        position(self.table.classes(), name)
    }

    fn resolve(name: &'static str, declared: &[&'static Class]) -> Self {
        // The build script has put the same classes together before: there is no error to come.
        let table = ClassTable::resolve(declared.iter().map(|c| (*c).clone())).unwrap_or_default();
        let index = |class: &Name| position(table.classes(), class.as_str());
        let lines: Vec<Vec<usize>> = table
            .classes()
            .iter()
            .map(|class| {
                let ancestors = table.ancestors(class.name.as_str());
                std::iter::once(&class.name)
                    .chain(&ancestors)
                    .filter_map(index)
                    .collect()
            })
            .collect();
        Namespace {
            name,
            blanks: lines.iter().map(|_| OnceLock::new()).collect(),
            lines,
            table,
        }
    }
}

fn position(classes: &[Class], name: &str) -> Option<usize> {
    classes
        .binary_search_by(|class| compare(class.name.as_str(), name))
        .ok()
}

impl Schema for Namespace {
    fn class(&self, name: &str) -> Option<&Class> {
        self.table.class(name)
    }

    fn class_names(&self) -> Vec<Name> {
        self.table.class_names()
    }

    fn is_a(&self, name: &str, ancestor: &str) -> bool {
        match (self.index(name), self.index(ancestor)) {
            (Some(class), Some(ancestor)) => self
                .lines
                .get(class)
                .is_some_and(|line| line.contains(&ancestor)),
            _ => false,
        }
    }
}

fn unset(declared: &Declaration) -> Property {
    Property {
        name: declared.name.clone(),
        ty: declared.ty,
        array: declared.array,
        value: declared
            .default
            .to_value(declared.ty, declared.array)
            .unwrap_or(Value::Null),
    }
}

/// Whether a value can stand as it is where that type is declared.
fn has_type(value: &Value, ty: Type, array: bool) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => {
            array
                && items
                    .iter()
                    .all(|item| item.is_null() || item.ty() == Some(ty))
        }
        scalar => !array && scalar.ty() == Some(ty),
    }
}
