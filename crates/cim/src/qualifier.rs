//! Qualifier declarations, and those every schema has (DSP0004 5.6, and the few that are WMI's own).

use std::borrow::Cow;

use crate::{List, Literal, Name, Type};

/// The declaration of a qualifier: its type, where it may stand and how it is inherited.
#[derive(Clone, Debug, PartialEq)]
pub struct QualifierDeclaration {
    /// Its name.
    pub name: Name,
    /// The type of its value.
    pub ty: Type,
    /// Whether the value is an array.
    pub array: bool,
    /// The value it has where it does not stand.
    pub default: Literal,
    /// Where it may stand: `class`, `association`, `indication`, `property`, `reference`, `method`,
    /// `parameter`, `any`.
    pub scopes: List<Name>,
    /// Whether a subclass may change it.
    pub overridable: bool,
    /// Whether subclasses inherit it.
    pub to_subclass: bool,
    /// Whether its value is for people and may be translated.
    pub translatable: bool,
}

const ANY: &[Name] = &[Name::of("any")];
const CLASSES: &[Name] = &[
    Name::of("class"),
    Name::of("association"),
    Name::of("indication"),
];
const ASSOCIATION: &[Name] = &[Name::of("association")];
const METHOD: &[Name] = &[Name::of("method")];
const PARAMETER: &[Name] = &[Name::of("parameter")];
const PROPERTY: &[Name] = &[Name::of("property"), Name::of("reference")];
const REFERENCE: &[Name] = &[Name::of("reference")];
const VALUES: &[Name] = &[
    Name::of("property"),
    Name::of("method"),
    Name::of("parameter"),
];
const MEMBERS: &[Name] = &[
    Name::of("property"),
    Name::of("reference"),
    Name::of("method"),
    Name::of("parameter"),
];

const fn declared(name: &'static str, ty: Type, scopes: &'static [Name]) -> QualifierDeclaration {
    with_default(name, ty, Literal::Null, scopes)
}

const fn with_default(
    name: &'static str,
    ty: Type,
    default: Literal,
    scopes: &'static [Name],
) -> QualifierDeclaration {
    QualifierDeclaration {
        name: Name::of(name),
        ty,
        array: false,
        default,
        scopes: Cow::Borrowed(scopes),
        overridable: true,
        to_subclass: true,
        translatable: false,
    }
}

const fn flag(name: &'static str, scopes: &'static [Name]) -> QualifierDeclaration {
    with_default(name, Type::Boolean, Literal::Boolean(false), scopes)
}

/// A flag that is fixed once set.
const fn fixed(name: &'static str, scopes: &'static [Name]) -> QualifierDeclaration {
    let mut flag = flag(name, scopes);
    flag.overridable = false;
    flag
}

/// A flag that subclasses do not inherit.
const fn own(name: &'static str, scopes: &'static [Name]) -> QualifierDeclaration {
    restricted(flag(name, scopes))
}

const fn list(name: &'static str, scopes: &'static [Name]) -> QualifierDeclaration {
    let mut list = declared(name, Type::String, scopes);
    list.array = true;
    list
}

const fn words(name: &'static str, scopes: &'static [Name]) -> QualifierDeclaration {
    translated(declared(name, Type::String, scopes))
}

const fn restricted(mut of: QualifierDeclaration) -> QualifierDeclaration {
    of.to_subclass = false;
    of
}

const fn translated(mut of: QualifierDeclaration) -> QualifierDeclaration {
    of.translatable = true;
    of
}

static STANDARD: [QualifierDeclaration; 58] = [
    own("Abstract", CLASSES),
    fixed("Aggregate", REFERENCE),
    fixed("Aggregation", ASSOCIATION),
    declared("ArrayType", Type::String, VALUES),
    fixed("Association", ASSOCIATION),
    list("BitMap", VALUES),
    list("BitValues", VALUES),
    list("ClassConstraint", CLASSES),
    fixed("Composition", ASSOCIATION),
    list("Correlatable", PROPERTY),
    flag("Counter", VALUES),
    restricted(list("Deprecated", ANY)),
    words("Description", ANY),
    words("DisplayName", ANY),
    flag("DN", VALUES),
    own("Dynamic", CLASSES),
    declared("EmbeddedInstance", Type::String, VALUES),
    fixed("EmbeddedObject", VALUES),
    fixed("Exception", CLASSES),
    own("Experimental", ANY),
    flag("Gauge", VALUES),
    own("Implemented", METHOD),
    fixed("In", PARAMETER),
    fixed("Indication", CLASSES),
    flag("IsPUnit", VALUES),
    fixed("Key", PROPERTY),
    list("MappingStrings", ANY),
    declared("Max", Type::Uint32, REFERENCE),
    declared("MaxLen", Type::Uint32, VALUES),
    declared("MaxValue", Type::Sint64, VALUES),
    list("MethodConstraint", METHOD),
    declared("Min", Type::Uint32, REFERENCE),
    declared("MinLen", Type::Uint32, VALUES),
    declared("MinValue", Type::Sint64, VALUES),
    list("ModelCorrespondence", ANY),
    declared("NullValue", Type::String, PROPERTY),
    fixed("OctetString", VALUES),
    fixed("Out", PARAMETER),
    restricted(declared("Override", Type::String, MEMBERS)),
    declared("Propagated", Type::String, PROPERTY),
    list("PropertyConstraint", PROPERTY),
    restricted(declared("Provider", Type::String, ANY)),
    declared("PUnit", Type::String, VALUES),
    flag("Read", PROPERTY),
    flag("Required", MEMBERS),
    words("Revision", CLASSES),
    own("Singleton", CLASSES),
    fixed("Static", MEMBERS),
    fixed("Structure", CLASSES),
    own("Terminal", CLASSES),
    declared("UMLPackagePath", Type::String, CLASSES),
    words("Units", VALUES),
    declared("UUID", Type::String, CLASSES),
    list("ValueMap", VALUES),
    translated(list("Values", VALUES)),
    restricted(words("Version", CLASSES)),
    fixed("Weak", REFERENCE),
    flag("Write", PROPERTY),
];

/// The qualifiers every namespace declares, sorted by name.
pub fn standard_qualifiers() -> &'static [QualifierDeclaration] {
    &STANDARD
}

/// The standard qualifier of that name.
pub fn standard_qualifier(name: &str) -> Option<&'static QualifierDeclaration> {
    STANDARD.iter().find(|q| q.name.is(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_qualifiers_are_sorted_and_named_once() {
        assert!(
            STANDARD
                .windows(2)
                .all(|pair| matches!(pair, [a, b] if a.name < b.name))
        );
        let key = standard_qualifier("key").expect("Key");
        assert_eq!(
            (key.ty, key.overridable, key.to_subclass),
            (Type::Boolean, false, true)
        );
    }
}
