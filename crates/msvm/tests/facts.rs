//! The MOF against the facts it was written from, class by class.
//!
//! `facts.json` holds names, types, keys, defaults, value maps, methods and parameters of the 429 documented
//! classes; `deviations.json` every place where the MOF says something else on purpose, and why;
//! `clients.json` the properties libvirt reads, each of which must be there.

#![expect(
    clippy::expect_used,
    reason = "a facts file of another form is a failed test"
)]

use std::collections::{BTreeMap, BTreeSet};

use cim::{Class, Declaration, Literal, Qualifier, Schema, has_qualifier, qualifier};
use serde_json::{Map, Value};

fn load(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).expect("a JSON object")
}

fn facts() -> Map<String, Value> {
    load(include_str!("facts.json"))
}

/// Differences found, by the place where they are.
#[derive(Default)]
struct Findings(BTreeMap<String, String>);

impl Findings {
    fn check(&mut self, place: impl Into<String>, same: bool, detail: impl FnOnce() -> String) {
        if !same {
            self.0.insert(place.into(), detail());
        }
    }
}

fn type_text(at: &Declaration) -> String {
    let ty = match &at.ref_class {
        Some(class) => format!("{class} REF"),
        None => at.ty.name().to_owned(),
    };
    if at.array { format!("{ty}[]") } else { ty }
}

/// `ValueMap` with `Values`; a map without labels has empty ones.
fn value_map(qualifiers: &[Qualifier]) -> BTreeMap<String, String> {
    let texts = |name: &str| match qualifier(qualifiers, name) {
        Some(Literal::List(items)) => items
            .iter()
            .filter_map(Literal::as_text)
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    };
    let (numbers, labels) = (texts("ValueMap"), texts("Values"));
    assert!(
        labels.is_empty() || labels.len() == numbers.len(),
        "{numbers:?} {labels:?}"
    );
    let labels = labels.into_iter().chain(std::iter::repeat(String::new()));
    numbers.into_iter().zip(labels).collect()
}

fn check_values(
    found: &mut Findings,
    place: &str,
    kind: &str,
    qualifiers: &[Qualifier],
    inherited: &[Qualifier],
    fact: Option<&Value>,
) {
    let have = value_map(qualifiers);
    let Some(fact) = fact.and_then(Value::as_object) else {
        let inherited = value_map(inherited);
        found.check(format!("{place}:{kind}"), have == inherited, || {
            "a list of our own".to_owned()
        });
        return;
    };
    let wanted: BTreeSet<&str> = fact.keys().map(String::as_str).collect();
    let numbers: BTreeSet<&str> = have.keys().map(String::as_str).collect();
    found.check(format!("{place}:{kind}"), numbers == wanted, || {
        format!("{numbers:?} instead of {wanted:?}")
    });
    if numbers != wanted {
        return;
    }
    for (number, label) in fact {
        // "in used" is a slip of the pages; without a label on the page any will do.
        let Some(label) = label.as_str().map(|l| l.replace("in used", "in use")) else {
            continue;
        };
        let same = have.get(number) == Some(&label);
        let kind = if kind == "returns" {
            "returns"
        } else {
            "values"
        };
        let listed = if kind == "values" { "labels" } else { kind };
        found.check(format!("{place}:{listed}"), same, || {
            format!("{number} is {:?} instead of {label:?}", have.get(number))
        });
        if !same {
            return;
        }
    }
}

fn default_text(literal: &Literal) -> String {
    match literal {
        Literal::Null => String::new(),
        Literal::Boolean(b) => b.to_string(),
        Literal::Integer(n) => n.to_string(),
        Literal::Real(r) => r.to_string(),
        Literal::Text(text) => text.trim().to_owned(),
        Literal::List(items) => items.iter().map(default_text).collect::<Vec<_>>().join("|"),
    }
}

fn default_fact(fact: &Value) -> String {
    match fact {
        Value::String(text) => text.trim().to_owned(),
        Value::Array(items) => items.iter().map(default_fact).collect::<Vec<_>>().join("|"),
        other => other.to_string(),
    }
}

fn superclass(class: &Class) -> Option<&'static Class> {
    msvm::virtualization().class(class.superclass.as_ref()?.as_str())
}

fn check_property(found: &mut Findings, class: &Class, name: &str, fact: &Value) {
    let place = format!("{}.{name}", class.name);
    let Some(have) = class.property(name) else {
        found.check(format!("{place}:absent"), false, || "missing".to_owned());
        return;
    };
    let wanted = fact
        .as_str()
        .or_else(|| fact["type"].as_str())
        .expect("type");
    found.check(format!("{place}:type"), type_text(have) == wanted, || {
        format!("{} instead of {wanted}", type_text(have))
    });
    if let Some(default) = fact.get("default") {
        let same = default_text(&have.default) == default_fact(default);
        found.check(format!("{place}:default"), same, || {
            format!("{:?} instead of {default}", have.default)
        });
    }
    let embedded = fact.get("embedded").and_then(Value::as_str);
    found.check(
        format!("{place}:embedded"),
        embedded.is_none() || have.embedded_class() == embedded,
        || format!("{:?} instead of {embedded:?}", have.embedded_class()),
    );
    let written = has_qualifier(&have.qualifiers, "Write");
    let access = fact.get("access").and_then(Value::as_str).unwrap_or("read");
    found.check(
        format!("{place}:access"),
        written == access.contains("write"),
        || format!("write {written} instead of {access}"),
    );
    check_values(
        found,
        &place,
        "values",
        &have.qualifiers,
        superclass(class)
            .and_then(|c| c.property(name))
            .map_or(&[], |p| &p.qualifiers),
        fact.get("values"),
    );
}

fn check_method(found: &mut Findings, class: &Class, name: &str, fact: &Value) {
    let place = format!("{}.{name}", class.name);
    let Some(have) = class.method(name) else {
        found.check(format!("{place}():absent"), false, || "missing".to_owned());
        return;
    };
    check_values(
        found,
        &format!("{place}()"),
        "returns",
        &have.qualifiers,
        superclass(class)
            .and_then(|c| c.method(name))
            .map_or(&[], |m| &m.qualifiers),
        fact.get("returns"),
    );
    let parameters = fact["parameters"].as_array().expect("parameters");
    let names: Vec<&str> = have.parameters.iter().map(|p| p.name.as_str()).collect();
    let wanted: Vec<&str> = parameters
        .iter()
        .filter_map(|p| p["name"].as_str())
        .collect();
    found.check(format!("{place}():parameters"), names == wanted, || {
        format!("{names:?} instead of {wanted:?}")
    });
    for (have, fact) in have.parameters.iter().zip(parameters) {
        let place = format!("{place}.{}", have.name);
        let wanted = fact["type"].as_str().expect("type");
        found.check(format!("{place}:type"), type_text(have) == wanted, || {
            format!("{} instead of {wanted}", type_text(have))
        });
        let direction = match (have.is_in(), have.is_out()) {
            (true, true) => "inout",
            (false, true) => "out",
            _ => "in",
        };
        let wanted = fact
            .get("direction")
            .and_then(Value::as_str)
            .unwrap_or("in");
        found.check(format!("{place}:direction"), direction == wanted, || {
            direction.to_owned()
        });
        let embedded = fact.get("embedded").and_then(Value::as_str);
        found.check(
            format!("{place}:embedded"),
            have.embedded_class() == embedded,
            || format!("{:?} instead of {embedded:?}", have.embedded_class()),
        );
        check_values(
            found,
            &place,
            "values",
            &have.qualifiers,
            &[],
            fact.get("values"),
        );
    }
}

fn check_class(found: &mut Findings, name: &str, fact: &Value) {
    let schema = msvm::virtualization();
    let Some(class) = schema.class(name) else {
        found.check(format!("{name}:absent"), false, || "missing".to_owned());
        return;
    };
    let superclass = class.superclass.as_ref().map(|s| s.as_str());
    found.check(
        format!("{name}:superclass"),
        superclass == fact.get("super").and_then(Value::as_str),
        || format!("{superclass:?}"),
    );
    let flags = |fact: &Value| -> BTreeSet<String> {
        fact.get("flags")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|f| f.as_str().map(str::to_owned))
            .collect()
    };
    for flag in flags(fact) {
        found.check(
            format!("{name}:{flag}"),
            has_qualifier(&class.qualifiers, &flag),
            || flag.clone(),
        );
    }
    let abstracted = flags(fact).contains("abstract");
    found.check(
        format!("{name}:abstract"),
        class.is_abstract() == abstracted,
        || format!("abstract {}", class.is_abstract()),
    );
    let sorted = |keys: Vec<&str>| keys.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    let keys = sorted(class.keys().map(|k| k.name.as_str()).collect());
    let wanted = sorted(
        fact.get("keys")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect(),
    );
    found.check(format!("{name}:keys"), keys == wanted, || {
        format!("{keys:?} instead of {wanted:?}")
    });
    for (property, fact) in fact
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        check_property(found, class, property, fact);
    }
    let listed = |of: &str, member: &str| {
        let names = fact.get(of).and_then(Value::as_object);
        names.is_some_and(|names| names.keys().any(|n| n.eq_ignore_ascii_case(member)))
    };
    let own = |origin: &Option<cim::Name>| origin.as_ref() == Some(&class.name);
    for property in class.properties.iter().filter(|p| own(&p.origin)) {
        let property = property.name.as_str();
        found.check(
            format!("{name}.{property}:extra"),
            listed("properties", property),
            || "not on the page".to_owned(),
        );
    }
    for method in class.methods.iter().filter(|m| own(&m.origin)) {
        let method = method.name.as_str();
        found.check(
            format!("{name}.{method}():extra"),
            listed("methods", method),
            || "not on the page".to_owned(),
        );
    }
    for property in fact
        .get("inherits")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let property = property.as_str().expect("name");
        let origin = class.property(property).and_then(|p| p.origin.as_ref());
        found.check(
            format!("{name}.{property}:inherited"),
            origin.is_some_and(|o| *o != class.name),
            || format!("{origin:?}"),
        );
    }
    for (method, fact) in fact
        .get("methods")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        check_method(found, class, method, fact);
    }
    for method in fact
        .get("inherited_methods")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let method = method.as_str().expect("name");
        found.check(
            format!("{name}.{method}():absent"),
            class.method(method).is_some(),
            || "missing".to_owned(),
        );
    }
}

#[test]
fn every_class_says_what_the_facts_say_or_why_not() {
    let mut found = Findings::default();
    let facts = facts();
    assert_eq!(facts.len(), 429);
    for (name, fact) in &facts {
        check_class(&mut found, name, fact);
    }
    let deviations = load(include_str!("deviations.json"));
    let unexplained: Vec<String> = found
        .0
        .iter()
        .filter(|(place, _)| !deviations.contains_key(*place))
        .map(|(place, detail)| format!("{place}: {detail}"))
        .collect();
    assert!(
        unexplained.is_empty(),
        "{} differences:\n{}",
        unexplained.len(),
        unexplained.join("\n")
    );
    let stale: Vec<&String> = deviations
        .keys()
        .filter(|place| !found.0.contains_key(*place))
        .collect();
    assert!(stale.is_empty(), "no deviations any more: {stale:#?}");
}

#[test]
fn no_class_of_the_namespace_is_without_facts_or_reason() {
    let facts = facts();
    let ours = [
        "CIM_ReferencedProfile",
        "CIM_RegisteredProfile",
        "CIM_RegisteredSubProfile",
        "CIM_SubProfileRequiresProfile",
    ];
    for name in msvm::virtualization().class_names() {
        let name = name.as_str();
        assert!(
            facts.contains_key(name)
                || ours.contains(&name)
                || ["__", "Kvmms_"].iter().any(|own| name.starts_with(own)),
            "{name}"
        );
    }
}

#[test]
fn every_property_libvirt_reads_is_there_in_its_type() {
    let clients = load(include_str!("clients.json"));
    assert_eq!(clients.len(), 25);
    // Typed as string by libvirt and as uint16 by the schema: both are text on the wire.
    let state_as_text = |property: &str, wanted: &str, have: &str| {
        property == "EnabledState" && wanted == "string" && have == "uint16"
    };
    let mut problems = Vec::new();
    for (name, properties) in &clients {
        let schema = if name.starts_with("Msvm_") {
            msvm::virtualization()
        } else {
            msvm::cimv2()
        };
        let class = schema.class(name).expect(name);
        for (property, wanted) in properties.as_object().expect("properties") {
            let wanted = wanted.as_str().expect("type");
            match class.property(property).map(type_text) {
                Some(have) if have == wanted || state_as_text(property, wanted, &have) => {}
                have => problems.push(format!("{name}.{property}: {have:?} instead of {wanted}")),
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
