//! The parameters of intrinsic operations.

use cim::cimxml::{Target, instance, object_with_path, path, value_in};
use cim::xml::Element;
use cim::{Instance, Name, Path, Value};

use crate::{Error, Status};

/// The IPARAMVALUEs of a call.
pub(super) struct Parameters<'a> {
    found: Vec<(&'a str, &'a Element)>,
}

fn wrong(what: impl Into<String>) -> Error {
    Error::new(Status::InvalidParameter, what)
}

impl<'a> Parameters<'a> {
    /// Reads them; a name that the operation does not have or that stands twice is an error (DSP0200).
    pub(super) fn read(at: &'a Element, known: &[&str]) -> Result<Self, Error> {
        let mut found: Vec<(&str, &Element)> = Vec::new();
        for parameter in at.children.iter().filter(|c| c.local == "IPARAMVALUE") {
            let name = parameter.attr("NAME").unwrap_or_default();
            if !known.iter().any(|k| k.eq_ignore_ascii_case(name)) {
                return Err(wrong(format!("The operation has no parameter {name:?}.")));
            }
            if found.iter().any(|(n, _)| n.eq_ignore_ascii_case(name)) {
                return Err(wrong(format!("The parameter {name} stands twice.")));
            }
            found.push((name, parameter));
        }
        Ok(Parameters { found })
    }

    /// The element inside a parameter, if it is there and not null.
    fn inside(&self, name: &str) -> Option<&'a Element> {
        self.found
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .and_then(|(_, at)| at.children.first())
            .filter(|at| at.local != "VALUE.NULL")
    }

    fn value(&self, name: &str) -> Result<Value, Error> {
        let at = self
            .found
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, at)| at);
        match at {
            None => Ok(Value::Null),
            Some(at) => value_in(at, None).map_err(|e| unreadable(name, &e)),
        }
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, Error> {
        match self.value(name)?.to_text() {
            None => Ok(default),
            Some(text) if text.trim().eq_ignore_ascii_case("true") => Ok(true),
            Some(text) if text.trim().eq_ignore_ascii_case("false") => Ok(false),
            Some(_) => Err(wrong(format!("{name} is not a boolean."))),
        }
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u32>, Error> {
        match self.value(name)?.to_text() {
            None => Ok(None),
            Some(text) => match text.trim().parse() {
                Ok(n) => Ok(Some(n)),
                Err(_) => Err(wrong(format!("{name} is not a number."))),
            },
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<String>, Error> {
        Ok(self.value(name)?.to_text())
    }

    pub(super) fn required_text(&self, name: &str) -> Result<String, Error> {
        self.text(name)?.ok_or_else(|| missing(name))
    }

    /// A property list: `None` is every property, an empty one is none.
    pub(super) fn names(&self, name: &str) -> Result<Option<Vec<Name>>, Error> {
        match self.value(name)? {
            Value::Null => Ok(None),
            value => Ok(Some(
                value
                    .items()
                    .iter()
                    .filter_map(Value::to_text)
                    .map(Name::from)
                    .collect(),
            )),
        }
    }

    pub(super) fn class(&self, name: &str) -> Result<Option<Name>, Error> {
        match self.inside(name) {
            None => Ok(None),
            Some(at) => match at.local.as_str() {
                "CLASSNAME" => Ok(at
                    .attr("NAME")
                    .filter(|n| !n.is_empty())
                    .map(|n| n.to_owned().into())),
                // Some clients send the name as a string.
                "VALUE" => Ok(Some(at.text().to_owned())
                    .filter(|n| !n.is_empty())
                    .map(Name::from)),
                other => Err(wrong(format!("{name} holds {other} instead of a class."))),
            },
        }
    }

    pub(super) fn required_class(&self, name: &str) -> Result<Name, Error> {
        self.class(name)?.ok_or_else(|| missing(name))
    }

    /// The path of an instance.
    pub(super) fn instance_name(&self, name: &str) -> Result<Path, Error> {
        let at = self.inside(name).ok_or_else(|| missing(name))?;
        let (path, target) = path(at).map_err(|e| unreadable(name, &e))?;
        match target {
            Target::Instance => Ok(path),
            Target::Class => Err(Error::new(
                Status::NotSupported,
                "Associations between classes are not served; name an instance.",
            )),
        }
    }

    pub(super) fn instance(&self, name: &str) -> Result<Instance, Error> {
        let at = self.inside(name).ok_or_else(|| missing(name))?;
        let read = match at.local.as_str() {
            "INSTANCE" => instance(at),
            _ => object_with_path(at),
        };
        read.map_err(|e| unreadable(name, &e))
    }
}

fn missing(name: &str) -> Error {
    wrong(format!("The parameter {name} is missing."))
}

pub(super) fn unreadable(name: &str, error: &dyn std::error::Error) -> Error {
    wrong(format!(
        "The parameter {name} cannot be read: {}.",
        crate::wsman::envelope::chain(error)
    ))
}

/// Reads each parameter as everything it might be.
pub(super) fn probe(at: &Element) {
    let names: Vec<&str> = at.children.iter().filter_map(|c| c.attr("NAME")).collect();
    let Ok(parameters) = Parameters::read(at, &names) else {
        return;
    };
    for name in names {
        let _ = parameters.flag(name, true);
        let _ = parameters.number(name);
        let _ = parameters.names(name);
        let _ = parameters.class(name);
        let _ = parameters.instance_name(name);
        let _ = parameters.instance(name);
    }
}
