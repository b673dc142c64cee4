//! Compiles `mof/**/*.mof` into the tables, names and method structs of the crate, as one Rust file.
//!
//! `wmi` goes into every namespace, `core` into all but `root/cimv2`, which has a class tree of its own.

mod methods;
mod names;
mod open_enums;
mod tables;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use cim::{
    Class, ClassTable, Name, Qualifier, QualifierDeclaration, Type, mof, standard_qualifier,
};

/// Each namespace's table and the directories its classes come from.
const NAMESPACES: [(&str, &[&str]); 3] = [
    ("VIRTUALIZATION", &["wmi", "core", "virtualization"]),
    ("INTEROP", &["wmi", "core", "interop"]),
    ("CIMV2", &["wmi", "cimv2"]),
];

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo::rerun-if-changed=mof");
    println!("cargo::rerun-if-changed=build");

    let mut source = Source::default();
    for directory in ["wmi", "core", "virtualization", "interop", "cimv2"] {
        source.read(directory, &root.join("mof").join(directory))?;
    }
    for (table, parts) in NAMESPACES {
        source.check(table, parts)?;
    }

    let mut code = String::from("// Generated from mof/ by build/main.rs.\n\n");
    let mut tables = tables::Tables::default();
    for (table, parts) in NAMESPACES {
        tables.namespace(table, &source.classes(parts))?;
    }
    tables.finish(&mut code)?;
    let all: Vec<&Class> = source.directories.values().flatten().collect();
    names::write(&mut code, &all)?;
    let virtualization = source.classes(NAMESPACES[0].1);
    open_enums::write(&mut code, &virtualization)?;
    let namespaces = NAMESPACES.map(|(_, parts)| source.classes(parts));
    methods::write(&mut code, &virtualization, &namespaces)?;
    fs::write(out.join("schema.rs"), code)?;
    Ok(())
}

/// What the MOF files declare.
#[derive(Default)]
struct Source {
    directories: BTreeMap<&'static str, Vec<Class>>,
    qualifiers: Vec<QualifierDeclaration>,
}

impl Source {
    fn read(&mut self, name: &'static str, directory: &Path) -> Outcome<()> {
        let mut files: Vec<PathBuf> = fs::read_dir(directory)
            .map_err(|e| format!("{}: {e}", directory.display()))?
            .map(|entry| entry.map(|e| e.path()))
            .collect::<Result<_, _>>()?;
        files.retain(|file| file.extension().is_some_and(|e| e == "mof"));
        files.sort();
        for file in files {
            let text = fs::read_to_string(&file)?;
            let mof = mof::parse(&text).map_err(|e| format!("{}: {e}", file.display()))?;
            self.directories
                .entry(name)
                .or_default()
                .extend(mof.classes);
            self.qualifiers.extend(mof.qualifiers);
        }
        Ok(())
    }

    /// The classes of some directories, sorted by name.
    fn classes(&self, parts: &[&str]) -> Vec<&Class> {
        let mut classes: Vec<&Class> = parts
            .iter()
            .filter_map(|part| self.directories.get(*part))
            .flatten()
            .collect();
        classes.sort_by(|a, b| a.name.cmp(&b.name));
        classes
    }

    /// What the grammar does not show: duplicates, missing classes and qualifiers, defaults that do not fit.
    fn check(&self, table: &str, parts: &[&str]) -> Outcome<()> {
        let classes = self.classes(parts);
        ClassTable::resolve(classes.iter().map(|c| (*c).clone()))
            .map_err(|e| format!("{table}: {e}"))?;
        let mut problems = String::new();
        for class in &classes {
            self.undeclared(&mut problems, &class.name, &class.qualifiers)?;
            for method in class.methods.iter() {
                self.undeclared(&mut problems, &class.name, &method.qualifiers)?;
            }
            let parameters = class.methods.iter().flat_map(|m| m.parameters.iter());
            for member in class.properties.iter().chain(parameters) {
                self.undeclared(&mut problems, &class.name, &member.qualifiers)?;
                let named = member
                    .ref_class
                    .as_ref()
                    .map(Name::as_str)
                    .or(member.embedded_class());
                if let Some(named) = named
                    && !classes.iter().any(|c| c.name.is(named))
                {
                    writeln!(problems, "{}.{}: no class {named}", class.name, member.name)?;
                }
                if member.default.to_value(member.ty, member.array).is_none() {
                    writeln!(
                        problems,
                        "{}.{}: the default does not fit",
                        class.name, member.name
                    )?;
                }
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(format!("{table}:\n{problems}").into())
        }
    }

    fn undeclared(&self, problems: &mut String, class: &Name, used: &[Qualifier]) -> Outcome<()> {
        for qualifier in used {
            let known = standard_qualifier(qualifier.name.as_str()).is_some()
                || self.qualifiers.iter().any(|q| q.name == qualifier.name);
            if !known {
                writeln!(
                    problems,
                    "{class}: qualifier {} is not declared",
                    qualifier.name
                )?;
            }
        }
        Ok(())
    }
}

/// A class with its ancestors, nearest first.
fn line<'a>(classes: &[&'a Class], class: &'a Class) -> Vec<&'a Class> {
    let mut out = vec![class];
    let mut at = class;
    while let Some(superclass) = &at.superclass {
        match classes.iter().find(|c| c.name == *superclass) {
            Some(found) if !out.iter().any(|c| c.name == found.name) => {
                out.push(found);
                at = found;
            }
            _ => break,
        }
    }
    out
}

/// `ReferencePointType` as `reference_point_type`; digits stay with the letters before them.
fn snake(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    let mut out = String::new();
    for (i, c) in chars.iter().enumerate() {
        let before = i.checked_sub(1).and_then(|j| chars.get(j));
        let after = chars.get(i + 1);
        let starts_word = c.is_ascii_uppercase()
            && before.is_some_and(|b| {
                b.is_ascii_lowercase()
                    || b.is_ascii_digit()
                    || (b.is_ascii_uppercase() && after.is_some_and(char::is_ascii_lowercase))
            });
        if starts_word {
            out.push('_');
        }
        if c.is_ascii_alphanumeric() {
            out.push(c.to_ascii_lowercase());
        } else if !out.ends_with('_') && !out.is_empty() {
            out.push('_');
        }
    }
    out.trim_end_matches('_').to_owned()
}

/// The Rust type of a scalar.
fn rust_type(ty: Type) -> &'static str {
    match ty {
        Type::Boolean => "bool",
        Type::Uint8 => "u8",
        Type::Sint8 => "i8",
        Type::Uint16 | Type::Char16 => "u16",
        Type::Sint16 => "i16",
        Type::Uint32 => "u32",
        Type::Sint32 => "i32",
        Type::Uint64 => "u64",
        Type::Sint64 => "i64",
        Type::Real32 => "f32",
        Type::Real64 => "f64",
        Type::String => "String",
        Type::Datetime => "cim::Datetime",
        Type::Reference => "cim::Path",
        Type::Object => "cim::Instance",
    }
}
