//! Method names of each concrete class as an enum, and one In and one Out struct per declared method.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use cim::{Class, Declaration, Method, Name, Type};

use crate::{Outcome, line, rust_type, snake};

pub(crate) fn write(
    code: &mut String,
    classes: &[&Class],
    namespaces: &[Vec<&Class>],
) -> Outcome<()> {
    writeln!(
        code,
        "/// The methods of each concrete class, own and inherited: a `match` over them forgets none.\npub mod method {{\nuse crate::method_enum::{{any_method, method_enum}};\n"
    )?;
    let mut names: BTreeMap<String, (&Name, BTreeSet<&Name>)> = BTreeMap::new();
    for namespace in namespaces {
        for class in namespace.iter().filter(|c| !c.is_abstract()) {
            let methods: BTreeSet<&Name> = line(namespace, class)
                .into_iter()
                .flat_map(|at| at.methods.iter().map(|m| &m.name))
                .collect();
            if methods.is_empty() {
                continue;
            }
            // A class that several namespaces have is one, with the methods of all.
            let (kept, all) = names
                .entry(rust_name(class.name.as_str()))
                .or_insert_with(|| (&class.name, BTreeSet::new()));
            if *kept != &class.name {
                return Err(format!("{kept} and {} would have the same enum", class.name).into());
            }
            all.extend(methods);
        }
    }
    for (rust, (class, methods)) in &names {
        enumeration(code, rust, class, methods)?;
    }
    writeln!(code, "any_method! {{")?;
    for rust in names.keys() {
        writeln!(code, "    {rust},")?;
    }
    writeln!(
        code,
        "}}\n}}\n\n/// In and out parameters, one module per class that declares methods.\npub mod params {{"
    )?;
    for class in classes.iter().filter(|c| !c.methods.is_empty()) {
        let module = snake(class.name.as_str().trim_start_matches("Msvm_"));
        writeln!(
            code,
            "/// Parameters of the methods `{}` declares.\npub mod {module} {{",
            class.name
        )?;
        for method in class.methods.iter() {
            input(code, class, method)?;
            output(code, class, method)?;
        }
        writeln!(code, "}}")?;
    }
    writeln!(code, "}}\n")?;
    Ok(())
}

/// The class without the prefix most have, as the name of a type.
fn rust_name(class: &str) -> String {
    let mut out = String::new();
    for word in class.trim_start_matches("Msvm_").split('_') {
        // CIM_Service is CimService; what is written in capitals after the prefix stays.
        let capitals = out.is_empty() && class.starts_with("CIM_");
        let mut chars = word.chars();
        out.extend(chars.next().map(|c| c.to_ascii_uppercase()));
        out.extend(chars.map(|c| if capitals { c.to_ascii_lowercase() } else { c }));
    }
    out
}

fn enumeration(
    code: &mut String,
    rust: &str,
    class: &Name,
    methods: &BTreeSet<&Name>,
) -> Outcome<()> {
    writeln!(
        code,
        "method_enum! {{\n    /// Methods of `{class}`.\n    {rust} of {:?} {{",
        class.as_str()
    )?;
    for name in methods {
        writeln!(code, "        {0} = {0:?},", name.as_str())?;
    }
    writeln!(code, "    }}\n}}")?;
    Ok(())
}

fn input(code: &mut String, class: &Class, method: &Method) -> Outcome<()> {
    let (ins, rest): (Vec<&Declaration>, Vec<_>) =
        method.parameters.iter().partition(|p| p.is_in());
    if ins.is_empty() {
        return Ok(());
    }
    let rest: Vec<&str> = rest.iter().map(|p| p.name.as_str()).collect();
    writeln!(
        code,
        "crate::parameter::input! {{\n    /// In parameters of `{}.{}`; what was null or not sent is `None`.\n    {}In other than {rest:?} {{",
        class.name, method.name, method.name
    )?;
    for parameter in ins {
        field(code, parameter)?;
    }
    writeln!(code, "    }}\n}}")?;
    Ok(())
}

fn output(code: &mut String, class: &Class, method: &Method) -> Outcome<()> {
    writeln!(
        code,
        "crate::parameter::output! {{\n    /// Return value and out parameters of `{}.{}`.\n    {}Out {{",
        class.name, method.name, method.name
    )?;
    for parameter in method.parameters.iter().filter(|p| p.is_out()) {
        field(code, parameter)?;
    }
    writeln!(code, "    }}\n}}")?;
    Ok(())
}

fn field(code: &mut String, at: &Declaration) -> Outcome<()> {
    let about = match (&at.ref_class, at.embedded_class()) {
        (Some(class), _) => format!(": a reference to `{class}`"),
        (None, Some(class)) => format!(": `{class}`"),
        _ => String::new(),
    };
    // An embedded instance is read and written here, so that providers see instances only.
    let (ty, form) = match at.embedded_class() {
        Some(_) if at.ty == Type::String => ("cim::Instance", "embedded"),
        _ => (rust_type(at.ty), "plain"),
    };
    let ty = if at.array {
        format!("Vec<{ty}>")
    } else {
        ty.to_owned()
    };
    let mut rust = snake(at.name.as_str());
    if matches!(
        rust.as_str(),
        "type" | "ref" | "self" | "match" | "move" | "use"
    ) {
        rust.push('_');
    }
    writeln!(
        code,
        "        /// `{}`{about}.\n        {rust}: {ty} = {:?} {form} {:?} {},",
        at.name,
        at.name.as_str(),
        at.ty,
        at.array
    )?;
    Ok(())
}
