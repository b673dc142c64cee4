//! Class and property names as constants, so that a misspelt one does not compile.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use cim::Class;

use crate::{Outcome, snake};

pub(crate) fn write(code: &mut String, classes: &[&Class]) -> Outcome<()> {
    let mut class_names = BTreeMap::new();
    let mut property_names = BTreeMap::new();
    for class in classes {
        add(&mut class_names, class.name.as_str())?;
        for property in class.properties.iter() {
            add(&mut property_names, property.name.as_str())?;
        }
    }
    module(
        code,
        "class",
        "Names of classes, as the schema spells them.",
        &class_names,
    )?;
    module(
        code,
        "prop",
        "Names of properties, as the schema spells them.",
        &property_names,
    )
}

fn add<'a>(names: &mut BTreeMap<String, &'a str>, name: &'a str) -> Outcome<()> {
    // Spellings that differ in case only are the same to CIM; the first one stands.
    let key = snake(name).to_uppercase();
    let kept = names.entry(key).or_insert(name);
    if kept.eq_ignore_ascii_case(name) {
        Ok(())
    } else {
        Err(format!("{kept} and {name} would have the same constant").into())
    }
}

fn module(
    code: &mut String,
    module: &str,
    doc: &str,
    names: &BTreeMap<String, &str>,
) -> Outcome<()> {
    writeln!(code, "/// {doc}\npub mod {module} {{")?;
    for (constant, name) in names {
        writeln!(
            code,
            "    /// `{name}`\n    pub const {constant}: &str = {name:?};"
        )?;
    }
    writeln!(code, "}}\n")?;
    Ok(())
}
