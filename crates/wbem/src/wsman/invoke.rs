//! Method calls.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cim::xml::Writer;
use cim::{Declaration, Name, Type, Value, embedded};

use super::fault::{Fault, Subcode};
use super::service::{Call, misfit, unsupported};
use super::uri::Family;
use super::{instance, ns};
use crate::{Operation, OutParameter, Response};

pub(super) async fn invoke(mut call: Call<'_>, action: &str) -> Result<String, Fault> {
    let subject = call.subject()?;
    let uri = call.message.resource_uri.clone().unwrap_or_default();
    let uri = uri.trim().split('?').next().unwrap_or_default().to_owned();
    // The action is the resource URI and the method; clients differ in how exactly they repeat the URI.
    let method = action.rsplit('/').next().unwrap_or_default().trim();
    let good = |c: char| c.is_alphanumeric() || c == '_';
    if method.is_empty() || !method.chars().all(good) {
        return Err(unsupported(action));
    }
    let path = call.path(&subject)?;
    let body = call.message.body.take();
    let parameters = match &body {
        None => Vec::new(),
        Some(input) => {
            let expected = format!("{method}_INPUT");
            if !input.local.eq_ignore_ascii_case(&expected) && input.local != "INPUT" {
                return Err(Fault::sender(
                    Subcode::SchemaValidation,
                    format!("The Body holds {} instead of {expected}.", input.local),
                ));
            }
            instance::read_values(input)?
        }
    };
    let schema = call.service.handler.schema(&subject.namespace);
    let class = schema.and_then(|s| s.class(path.class.as_str()));
    let declared = class.and_then(|c| c.method(method));
    let parameters = parameters
        .into_iter()
        .map(|(name, value)| {
            let declaration = declared.and_then(|m| m.parameters.iter().find(|p| p.name == name));
            (name, carried(value, declaration))
        })
        .collect();
    // The answer repeats the method as the schema spells it.
    let method = declared.map_or_else(|| Name::from(method.to_owned()), |m| m.name.clone());
    let operation = Operation::Invoke {
        path,
        method: method.clone(),
        parameters,
    };
    let Response::Invoked {
        return_value,
        parameters,
    } = call.run(&subject.namespace, operation).await?
    else {
        return Err(misfit());
    };
    Ok(call.respond(
        &format!("{uri}/{method}Response"),
        |_| {},
        |w| {
            write_output(
                w,
                &method,
                &uri,
                &return_value,
                &parameters,
                &subject.family,
            );
        },
    ))
}

/// Octets travel as one base64 text; everything else is as it was sent.
fn carried(value: Value, declared: Option<&Declaration>) -> Value {
    let octets = declared.is_some_and(|d| d.array && d.ty == Type::Uint8);
    match &value {
        Value::String(text) if octets && text.trim().parse::<u8>().is_err() => {
            let packed: String = text.split_whitespace().collect();
            STANDARD.decode(packed).map_or(value, Value::from)
        }
        _ => value,
    }
}

fn write_output(
    w: &mut Writer,
    method: &Name,
    uri: &str,
    return_value: &Value,
    parameters: &[OutParameter],
    family: &Family,
) {
    w.open(&format!("p:{method}_OUTPUT"))
        .attr("xmlns:xsi", ns::XSI)
        .attr("xmlns:p", uri)
        .attr("xmlns:cim", ns::COMMON)
        .attr("xsi:type", &format!("p:{method}_OUTPUT_Type"));
    // libvirt takes the first InstanceID in the document for that of the result: the job comes after it.
    let (jobs, results): (Vec<_>, Vec<_>) = parameters.iter().partition(|p| p.name.is("Job"));
    for parameter in results.into_iter().chain(jobs) {
        let tag = format!("p:{}", parameter.name);
        match &parameter.value {
            Value::Array(items) if parameter.ty == Type::Uint8 => {
                let bytes: Vec<u8> = items
                    .iter()
                    .filter_map(|i| i.as_u64().and_then(|n| u8::try_from(n).ok()))
                    .collect();
                w.leaf(&tag, &STANDARD.encode(bytes));
            }
            Value::Object(instance) if parameter.embedded.is_some() => {
                w.leaf(&tag, &embedded::write(instance));
            }
            value => instance::write_value(w, &tag, value, parameter.ty, family),
        }
    }
    instance::write_value(w, "p:ReturnValue", return_value, Type::Uint32, family);
    w.close();
}

#[cfg(test)]
mod tests {
    use super::*;
    use cim::{Literal, Path};
    use std::borrow::Cow;

    fn out(name: &'static str, ty: Type, array: bool, value: Value) -> OutParameter {
        OutParameter {
            name: Name::of(name),
            ty,
            array,
            embedded: None,
            value,
        }
    }

    #[test]
    fn the_answer_has_every_parameter_the_job_behind_the_results() {
        let job = Path::class("Msvm_ConcreteJob").key("InstanceID", "J");
        let result = Path::class("Msvm_VirtualSystemSettingData").key("InstanceID", "R");
        let parameters = [
            out("Job", Type::Reference, false, job.into()),
            out("ResultingSystem", Type::Reference, false, result.into()),
            out("Errors", Type::String, true, Value::Null),
            out("ImageData", Type::Uint8, true, vec![1u8, 2, 255].into()),
        ];
        let family = Family::Wmi {
            namespace: "root/virtualization/v2".to_owned(),
        };
        let mut w = Writer::new();
        let method = Name::of("DefineSystem");
        write_output(
            &mut w,
            &method,
            "urn:c",
            &Value::Uint32(4096),
            &parameters,
            &family,
        );
        let text = w.finish();
        let at = |what: &str| {
            text.find(what)
                .unwrap_or_else(|| panic!("{what} in {text}"))
        };
        assert!(at(">R</w:Selector>") < at("<p:Errors xsi:nil=\"true\"/>"));
        assert!(at("<p:Errors") < at("<p:ImageData>AQL/</p:ImageData>"));
        assert!(at("<p:ImageData>") < at("<p:Job><a:Address>"));
        assert!(at(">J</w:Selector>") < at("<p:ReturnValue>4096</p:ReturnValue>"));
        assert!(text.starts_with("<p:DefineSystem_OUTPUT "));
        assert!(text.contains("xmlns:p=\"urn:c\""));
    }

    #[test]
    fn octets_come_as_base64_and_numbers_stay() {
        let octets = Declaration {
            name: Name::of("Data"),
            ty: Type::Uint8,
            ref_class: None,
            array: true,
            array_size: None,
            default: Literal::Null,
            qualifiers: Cow::Borrowed(&[]),
            origin: None,
        };
        let read = carried(Value::from("AQL/"), Some(&octets));
        assert_eq!(read, Value::from(vec![1u8, 2, 255]));
        assert_eq!(carried(Value::from("7"), Some(&octets)), Value::from("7"));
        assert_eq!(carried(Value::from("AQL/"), None), Value::from("AQL/"));
    }
}
