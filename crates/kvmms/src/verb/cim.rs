//! `kvmms cim`: every class of the API, as it is.

use std::borrow::Cow;

use cim::embedded::Context;
use cim::{Class, Declaration, Instance, Method, Name, Path, Schema as _, Type, Value};
use msvm::code;
use serde_json::json;

use crate::cli::CimVerb;
use crate::error::{Error, Result};
use crate::inspect;
use crate::output::Row;
use crate::session::Session;
use crate::vendor;
use crate::watch;

/// Carries out a verb of `cim`.
pub(super) async fn run(session: &Session, verb: CimVerb) -> Result<()> {
    match verb {
        CimVerb::Get { path, .. } => {
            let instance = session.client.get(&parse_path(&path)?).await?;
            match session.output.is_json() {
                true => print_json(session, &inspect::json_instance(&instance)),
                false => session.output.one(&Row::instance(&instance)),
            }
        }
        CimVerb::List { class, .. } => {
            let found = session.client.enumerate(&class).await?;
            print(session, &found)
        }
        CimVerb::Query { query, .. } => {
            let found = session.client.query(&query).await?;
            print(session, &found)
        }
        CimVerb::Class { class, .. } => {
            let class = session.client.class(&class).await?;
            session.output.one(&declaration(&class))
        }
        CimVerb::Invoke {
            path,
            method,
            parameters,
            namespace,
        } => invoke(session, &path, &method, &parameters, &namespace).await,
    }
}

fn parse_path(text: &str) -> Result<Path> {
    Path::parse(text).map_err(|e| Error::usage(e.to_string()))
}

fn print_json(session: &Session, value: &serde_json::Value) -> Result<()> {
    session.output.raw(format!("{value:#}\n").as_bytes())
}

/// Narrow instances as a table, others one below the other.
fn print(session: &Session, found: &[Instance]) -> Result<()> {
    const COLUMNS: usize = 6;
    if session.output.is_json() {
        return print_json(session, &found.iter().map(inspect::json_instance).collect());
    }
    let narrow = found.iter().all(|i| {
        let first = found.first().map(|f| &f.properties);
        i.properties.len() <= COLUMNS && first.is_some_and(|f| f.len() == i.properties.len())
    });
    if narrow {
        let rows: Vec<_> = found
            .iter()
            .map(|i| {
                i.properties.iter().fold(Row::new(), |row, p| {
                    let name = p.name.as_str();
                    row.both(
                        name,
                        name,
                        inspect::words(&p.value),
                        inspect::json(&p.value),
                    )
                })
            })
            .collect();
        return session.output.list(&rows, "No instances.");
    }
    for (nth, instance) in found.iter().enumerate() {
        if nth > 0 {
            session.output.raw(b"\n")?;
        }
        let path = instance
            .path
            .as_ref()
            .map_or_else(|| instance.class.to_string(), Path::relative);
        session.output.raw(format!("{path}\n").as_bytes())?;
        session.output.one(&Row::instance(instance))?;
    }
    Ok(())
}

fn type_word(d: &Declaration) -> String {
    let name = match (&d.ref_class, d.embedded_class()) {
        (Some(class), _) => format!("{class} REF"),
        (None, Some(class)) => format!("{class} (in a {})", d.ty.name()),
        (None, None) => d.ty.name().to_owned(),
    };
    let array = if d.array { "[]" } else { "" };
    format!("{name}{array}")
}

fn signature(method: &Method) -> String {
    let parameters = method.parameters.iter().map(|p| {
        let direction = match (p.is_in(), p.is_out()) {
            (true, true) => "in/out ",
            (false, true) => "out ",
            _ => "",
        };
        format!("{direction}{} {}", type_word(p), p.name)
    });
    let parameters: Vec<_> = parameters.collect();
    format!(
        "{} {}({})",
        method.return_type.name(),
        method.name,
        parameters.join(", ")
    )
}

fn described(list: &[cim::Qualifier]) -> Option<String> {
    cim::qualifier(list, "Description")
        .and_then(|l| l.as_text())
        .map(str::to_owned)
}

fn declaration(class: &Class) -> Row {
    let properties: Vec<_> = class
        .properties
        .iter()
        .map(|p| {
            Row::new()
                .text("name", "Name", p.name.as_str())
                .text("type", "Type", type_word(p))
                .both(
                    "key",
                    "Key",
                    if p.is_key() { "key" } else { "" }.to_owned(),
                    json!(p.is_key()),
                )
                .maybe("origin", "From", p.origin.as_ref().map(Name::to_string))
        })
        .collect();
    Row::new()
        .text("class", "Class", class.name.as_str())
        .maybe(
            "superclass",
            "Superclass",
            class.superclass.as_ref().map(Name::to_string),
        )
        .maybe("description", "Description", described(&class.qualifiers))
        .yes("association", "Association", Some(class.is_association()))
        .yes("abstract", "Abstract", Some(class.is_abstract()))
        .rows("properties", "Properties", &properties)
        .lines(
            "methods",
            "Methods",
            class.methods.iter().map(signature).collect(),
        )
}

/// `NAME=VALUE` with the value in its declared type; `@FILE` reads it.
fn value(declared: &Declaration, text: &str) -> Result<Value> {
    let text: Cow<'_, str> = match text.strip_prefix('@') {
        Some(file) => {
            let path = std::path::Path::new(file);
            let read = std::fs::read_to_string(path);
            Cow::Owned(read.map_err(|e| Error::file("read", path, e))?)
        }
        None => Cow::Borrowed(text),
    };
    let bad = |why: String| Error::usage(format!("parameter {}: {why}", declared.name));
    if declared.embedded_class().is_some() || declared.ty == Type::Object {
        let context = Context::with(msvm::virtualization());
        let instance = cim::embedded::read(&text, &context);
        return instance.map(Value::from).map_err(|e| bad(e.to_string()));
    }
    Value::from_text(declared.ty, &text).map_err(|e| bad(e.to_string()))
}

/// The parameters a command line gives, as the method declares them.
fn read_parameters(method: &Method, given: &[String]) -> Result<Vec<(Name, Value)>> {
    let mut parameters: Vec<(Name, Value)> = Vec::new();
    for text in given {
        let (name, text) = text
            .split_once('=')
            .ok_or_else(|| Error::usage(format!("{text:?} is not NAME=VALUE")))?;
        let mut ins = method.parameters.iter().filter(|p| p.is_in());
        let declared = ins.find(|p| p.name.is(name)).ok_or_else(|| {
            let known = method.parameters.iter().filter(|p| p.is_in());
            let known: Vec<_> = known.map(|p| p.name.as_str()).collect();
            Error::usage(format!(
                "{} has no parameter {name}; it has {}",
                method.name,
                known.join(", ")
            ))
        })?;
        let value = value(declared, text)?;
        match parameters.iter_mut().find(|(n, _)| *n == declared.name) {
            Some((_, Value::Array(items))) => items.push(value),
            Some(_) => {
                return Err(Error::usage(format!(
                    "{name} is no array, and is given twice"
                )));
            }
            None if declared.array => {
                parameters.push((declared.name.clone(), Value::Array(vec![value])));
            }
            None => parameters.push((declared.name.clone(), value)),
        }
    }
    Ok(parameters)
}

async fn invoke(
    session: &Session,
    path: &str,
    method: &str,
    given: &[String],
    namespace: &str,
) -> Result<()> {
    let path = parse_path(path)?;
    let known = msvm::namespace(namespace).and_then(|n| n.class(path.class.as_str()));
    let class = match known {
        Some(class) => Cow::Borrowed(class),
        None => Cow::Owned(session.client.class(path.class.as_str()).await?),
    };
    let declared = class.method(method).ok_or_else(|| {
        let names: Vec<_> = class.methods.iter().map(|m| m.name.as_str()).collect();
        Error::usage(format!(
            "{} has no method {method}; it has {}",
            class.name,
            names.join(", ")
        ))
    })?;
    let parameters = read_parameters(declared, given)?;
    let invoked = session
        .invoke(&path, declared.name.as_str(), &parameters)
        .await?;
    let label = invoked.return_value.and_then(code::label);
    let mut row = Row::new()
        .number(
            "ReturnValue",
            "ReturnValue",
            invoked.return_value.map(u64::from),
        )
        .maybe("Meaning", "Meaning", label.map(str::to_owned));
    for (name, value) in invoked.out.iter().filter(|(n, _)| !n.is(vendor::ERRORS)) {
        let name = name.as_str();
        row = row.both(name, name, inspect::words(value), inspect::json(value));
    }
    session.output.one(&row)?;
    match (invoked.return_value, invoked.get("Job").as_path()) {
        (Some(code::JOB_STARTED), Some(job)) if session.wait => {
            watch::to_the_end(session, &job).await?;
            session.output.remark("The job has completed.");
            Ok(())
        }
        (Some(code), _) if code >= code::FAILED => Err(Error::Refused {
            method: declared.name.to_string(),
            code,
            hint: None,
            chain: inspect::embedded(invoked.get(vendor::ERRORS)),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(class: &str, method: &str) -> &'static Method {
        let class = msvm::virtualization().class(class).expect(class);
        class.method(method).expect(method)
    }

    fn read(class: &str, name: &str, given: &[&str]) -> Result<Vec<(Name, Value)>> {
        let given: Vec<_> = given.iter().map(|g| (*g).to_owned()).collect();
        read_parameters(method(class, name), &given)
    }

    #[test]
    fn parameters_get_their_declared_types() {
        let read = read(
            "Msvm_ComputerSystem",
            "RequestStateChange",
            &["requestedstate=2"],
        );
        let read = read.expect("parameters");
        assert_eq!(read, [(Name::of("RequestedState"), Value::Uint16(2))]);
    }

    #[test]
    fn a_parameter_given_several_times_is_an_array() {
        let read = read(
            "Msvm_VirtualSystemManagementService",
            "GetSummaryInformation",
            &["RequestedInformation=0", "RequestedInformation=100"],
        );
        let items = read.expect("parameters").pop().expect("one").1;
        assert_eq!(
            items,
            Value::Array(vec![Value::Uint32(0), Value::Uint32(100)])
        );
    }

    #[test]
    fn instances_are_read_from_mof_and_references_from_paths() {
        let define = "instance of Msvm_VirtualSystemSettingData { ElementName = \"a\"; };";
        let parameter = format!("SystemSettings={define}");
        let made = read(
            "Msvm_VirtualSystemManagementService",
            "DefineSystem",
            &[&parameter],
        );
        let Value::Object(instance) = made.expect("parameters").pop().expect("one").1 else {
            panic!("an instance");
        };
        assert_eq!(instance.get_str("ElementName"), Some("a"));
        let path = "AffectedSystem=Msvm_ComputerSystem.Name=\"A\"";
        let named = read(
            "Msvm_VirtualSystemManagementService",
            "DestroySystem",
            &[path],
        );
        assert!(matches!(
            named.expect("parameters")[0].1,
            Value::Reference(_)
        ));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for bad in [
            "RequestedState",
            "RequestedState=on",
            "Nonsense=1",
            "RequestedState=70000",
            "Job=x",
        ] {
            let read = read("Msvm_ComputerSystem", "RequestStateChange", &[bad]);
            assert!(read.is_err(), "{bad}");
        }
        let twice = ["RequestedState=2", "RequestedState=3"];
        assert!(read("Msvm_ComputerSystem", "RequestStateChange", &twice).is_err());
    }
}
