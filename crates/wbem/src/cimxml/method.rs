//! Method calls.

use std::borrow::Cow;

use cim::cimxml::{param_value, write_param_value, write_return_value};
use cim::xml::{Element, Writer};
use cim::{Declaration, Literal, Name, Path, Qualifier, Value};

use super::parameters::unreadable;
use super::service::Asked;
use crate::{Error, Operation, OutParameter, Response, Status};

/// The outcome of a method.
pub(super) struct Invoked {
    return_value: Value,
    parameters: Vec<OutParameter>,
}

pub(super) async fn perform(
    asked: &Asked<'_>,
    method: &Name,
    path: &Path,
    at: &Element,
) -> Result<Invoked, Error> {
    let parameters = at
        .children
        .iter()
        .filter(|c| c.local == "PARAMVALUE")
        .map(|c| param_value(c).map_err(|e| unreadable(c.attr("NAME").unwrap_or_default(), &e)))
        .collect::<Result<_, _>>()?;
    let operation = Operation::Invoke {
        path: path.clone(),
        method: method.clone(),
        parameters,
    };
    match asked.run(operation).await? {
        Response::Invoked {
            return_value,
            parameters,
        } => Ok(Invoked {
            return_value,
            parameters,
        }),
        _ => Err(misfit()),
    }
}

/// An answer of the handler that does not fit the question: a mistake in the service, told as such.
pub(super) fn misfit() -> Error {
    tracing::error!("the handler answered with another shape than the operation has");
    Error::new(
        Status::Failed,
        "The service answered with something else than was asked for.",
    )
}

impl Invoked {
    pub(super) fn write(&self, w: &mut Writer) {
        write_return_value(w, &self.return_value);
        for parameter in &self.parameters {
            let declared = Declaration {
                name: parameter.name.clone(),
                ty: parameter.ty,
                ref_class: None,
                array: parameter.array,
                array_size: None,
                default: Literal::Null,
                qualifiers: match &parameter.embedded {
                    None => Cow::Borrowed(&[]),
                    Some(class) => Cow::Owned(vec![Qualifier {
                        name: Name::of("EmbeddedInstance"),
                        value: Literal::Text(class.to_string().into()),
                    }]),
                },
                origin: None,
            };
            let name = parameter.name.as_str();
            write_param_value(w, name, &parameter.value, Some(&declared));
        }
    }
}
