//! Paths: INSTANCENAME, LOCALINSTANCEPATH, INSTANCEPATH, their class twins, and VALUE.REFERENCE.

use super::{Read, caused, error, required};
use crate::xml::{Element, Writer};
use crate::{Name, Path, Type, Value, normal_namespace};

/// What a path element points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// An instance.
    Instance,
    /// A class.
    Class,
}

/// Reads any element that names an object: INSTANCENAME, LOCALINSTANCEPATH, INSTANCEPATH, CLASSNAME,
/// LOCALCLASSPATH, CLASSPATH, and OBJECTPATH, VALUE.REFERENCE or KEYBINDING's content around one
/// of them. A VALUE.REFERENCE may also hold the path as text, as Windows writes it.
pub fn path(at: &Element) -> Read<(Path, Target)> {
    match at.local.as_str() {
        "INSTANCENAME" => Ok((instance_name(at)?, Target::Instance)),
        "CLASSNAME" => Ok((Path::class(required(at, "NAME")?.to_owned()), Target::Class)),
        "INSTANCEPATH" | "LOCALINSTANCEPATH" | "CLASSPATH" | "LOCALCLASSPATH" => {
            let mut place = None;
            let mut inner = None;
            for child in &at.children {
                match child.local.as_str() {
                    "NAMESPACEPATH" | "LOCALNAMESPACEPATH" => place = Some(namespace(child)?),
                    _ => inner = Some(path(child)?),
                }
            }
            let (mut found, target) =
                inner.ok_or_else(|| error(at, format!("{} names nothing", at.local)))?;
            let (host, namespace) =
                place.ok_or_else(|| error(at, format!("{} has no namespace", at.local)))?;
            found.host = host;
            found.namespace = Some(namespace);
            Ok((found, target))
        }
        "OBJECTPATH" | "VALUE.REFERENCE" => match at.children.as_slice() {
            [inner] => path(inner),
            [] => match Path::parse(at.text()) {
                Ok(path) => Ok((path, Target::Instance)),
                Err(err) => Err(caused(at, format!("{} holds no path", at.local), err)),
            },
            _ => Err(error(at, format!("{} holds more than one path", at.local))),
        },
        other => Err(error(at, format!("{other} is not a path"))),
    }
}

/// Reads CLASSNAME.
pub fn class_name(at: &Element) -> Read<Name> {
    match at.local.as_str() {
        "CLASSNAME" => Ok(required(at, "NAME")?.to_owned().into()),
        other => Err(error(at, format!("{other} instead of CLASSNAME"))),
    }
}

/// Reads NAMESPACEPATH (host and namespace) or LOCALNAMESPACEPATH (namespace only).
pub fn namespace(at: &Element) -> Read<(Option<String>, String)> {
    match at.local.as_str() {
        "LOCALNAMESPACEPATH" => {
            let names: Vec<&str> = at
                .children
                .iter()
                .filter(|c| c.local == "NAMESPACE")
                .map(|c| required(c, "NAME"))
                .collect::<Read<_>>()?;
            let joined = normal_namespace(&names.join("/"));
            match joined.is_empty() {
                true => Err(error(at, "LOCALNAMESPACEPATH is empty")),
                false => Ok((None, joined)),
            }
        }
        "NAMESPACEPATH" => {
            let find = |name: &str| {
                let found = at.children.iter().find(|c| c.local == name);
                found.ok_or_else(|| error(at, format!("NAMESPACEPATH has no {name}")))
            };
            let host = find("HOST")?.text().to_owned();
            let (_, local) = namespace(find("LOCALNAMESPACEPATH")?)?;
            Ok((Some(host), local))
        }
        other => Err(error(at, format!("{other} is not a namespace"))),
    }
}

fn instance_name(at: &Element) -> Read<Path> {
    let mut found = Path::class(required(at, "CLASSNAME")?.to_owned());
    for child in &at.children {
        let (name, holder) = match child.local.as_str() {
            "KEYBINDING" => match child.children.as_slice() {
                [holder] => (required(child, "NAME")?, holder),
                _ => return Err(error(child, "KEYBINDING needs exactly one value")),
            },
            _ => ("", child),
        };
        let value = match holder.local.as_str() {
            "KEYVALUE" => key_value(holder)?,
            "VALUE.REFERENCE" => path(holder)?.0.into(),
            other => return Err(error(holder, format!("{other} is not the value of a key"))),
        };
        if found.get(name).is_some() {
            return Err(error(child, format!("the key {name} stands twice")));
        }
        found.keys.push((name.to_owned().into(), value));
    }
    Ok(found)
}

fn key_value(at: &Element) -> Read<Value> {
    let text = at.text.as_str();
    let named = at.attr("TYPE").and_then(Type::named);
    let ty = match (named, at.attr("VALUETYPE").unwrap_or("string")) {
        (Some(Type::Reference | Type::Object), _) | (None, "string") => Type::String,
        (Some(ty), _) => ty,
        (None, "boolean") => Type::Boolean,
        (None, "numeric") => {
            let number = Value::from_text(Type::Uint64, text)
                .or_else(|_| Value::from_text(Type::Sint64, text))
                .or_else(|_| Value::from_text(Type::Real64, text));
            return number.map_err(|err| caused(at, "the key is no number", err));
        }
        (None, other) => return Err(error(at, format!("{other} is no VALUETYPE"))),
    };
    Value::from_text(ty, text).map_err(|err| caused(at, "the key does not fit its type", err))
}

/// Writes a path to an instance: INSTANCEPATH with host and namespace, LOCALINSTANCEPATH with a
/// namespace, else INSTANCENAME.
pub fn write_path(w: &mut Writer, path: &Path) {
    match (
        &path.host,
        path.namespace.as_deref().filter(|n| !n.is_empty()),
    ) {
        (Some(host), Some(namespace)) => {
            w.open("INSTANCEPATH");
            write_namespace(w, host, namespace);
            write_instance_name(w, path);
            w.close();
        }
        (None, Some(namespace)) => {
            w.open("LOCALINSTANCEPATH");
            write_local_namespace(w, namespace);
            write_instance_name(w, path);
            w.close();
        }
        (_, None) => write_instance_name(w, path),
    }
}

/// Writes a path to a class: CLASSPATH, LOCALCLASSPATH or CLASSNAME, as far as it goes.
pub fn write_class_path(w: &mut Writer, path: &Path) {
    let class = path.class.as_str();
    match (
        &path.host,
        path.namespace.as_deref().filter(|n| !n.is_empty()),
    ) {
        (Some(host), Some(namespace)) => {
            w.open("CLASSPATH");
            write_namespace(w, host, namespace);
            w.open("CLASSNAME").attr("NAME", class).close().close();
        }
        (None, Some(namespace)) => {
            w.open("LOCALCLASSPATH");
            write_local_namespace(w, namespace);
            w.open("CLASSNAME").attr("NAME", class).close().close();
        }
        (_, None) => {
            w.open("CLASSNAME").attr("NAME", class).close();
        }
    }
}

/// Writes VALUE.REFERENCE around [`write_path`].
pub fn write_reference(w: &mut Writer, path: &Path) {
    w.open("VALUE.REFERENCE");
    write_path(w, path);
    w.close();
}

/// Writes INSTANCENAME: class and keys.
pub fn write_instance_name(w: &mut Writer, path: &Path) {
    w.open("INSTANCENAME")
        .attr("CLASSNAME", path.class.as_str());
    for (name, value) in &path.keys {
        let named = !name.as_str().is_empty();
        if named {
            w.open("KEYBINDING").attr("NAME", name.as_str());
        }
        match value {
            Value::Reference(inner) => write_reference(w, inner),
            _ => {
                let ty = value.ty().unwrap_or(Type::String);
                let kind = match ty {
                    Type::Boolean => "boolean",
                    Type::String | Type::Datetime | Type::Char16 => "string",
                    _ => "numeric",
                };
                w.open("KEYVALUE")
                    .attr("VALUETYPE", kind)
                    .attr("TYPE", ty.name());
                w.text(&value.to_text().unwrap_or_default()).close();
            }
        }
        if named {
            w.close();
        }
    }
    w.close();
}

/// Writes LOCALNAMESPACEPATH.
pub fn write_local_namespace(w: &mut Writer, namespace: &str) {
    w.open("LOCALNAMESPACEPATH");
    for name in namespace.split(['/', '\\']).filter(|name| !name.is_empty()) {
        w.open("NAMESPACE").attr("NAME", name).close();
    }
    w.close();
}

fn write_namespace(w: &mut Writer, host: &str, namespace: &str) {
    w.open("NAMESPACEPATH").leaf("HOST", host);
    write_local_namespace(w, namespace);
    w.close();
}
