//! One request from bytes to bytes.

use std::sync::Arc;

use super::answer::{self, Place};
use super::message::{Call, Message, Refused, decode, header_text};
use super::pull::Opened;
use super::{intrinsic, method};
use crate::contexts::{ContextLimits, Contexts};
use crate::wire::{self, Ask, Reply};
use crate::{Caller, Error, Handler, Operation, Request, Response, Status};

/// The CIM-XML front end.
pub(crate) struct Service {
    pub(super) handler: Arc<dyn Handler>,
    pub(crate) contexts: Contexts<Opened>,
}

/// Who asks, and where.
pub(super) struct Asked<'a> {
    pub(super) service: &'a Service,
    pub(super) caller: &'a Caller,
    pub(super) namespace: &'a str,
    request_key: Option<&'a str>,
}

impl Asked<'_> {
    pub(super) async fn run(&self, operation: Operation) -> Result<Response, Error> {
        let request = Request {
            namespace: self.namespace.to_owned(),
            caller: self.caller.clone(),
            request_key: self.request_key.map(str::to_owned),
            operation,
        };
        wire::run(&self.service.handler, request, None).await
    }
}

impl Service {
    pub(crate) fn new(handler: Arc<dyn Handler>, limits: ContextLimits) -> Self {
        Service {
            handler,
            contexts: Contexts::new(limits),
        }
    }

    /// Answers a request of a known caller.
    pub(crate) async fn answer(&self, ask: Ask) -> Reply {
        let message = match operation_header(&ask).and_then(|()| decode(&ask.body)) {
            Ok(message) => message,
            Err(refused) => return refuse(&refused),
        };
        if let Err(refused) = agree(&ask, &message) {
            return refuse(&refused);
        }
        let Message { id, call } = message;
        let (kind, name, namespace) = match &call {
            Call::Intrinsic {
                name, namespace, ..
            } => ("IMETHODRESPONSE", name.clone(), namespace.clone()),
            Call::Method {
                name, namespace, ..
            } => ("METHODRESPONSE", name.to_string(), namespace.clone()),
        };
        let asked = Asked {
            service: self,
            caller: &ask.caller,
            namespace: &namespace,
            request_key: ask.request_key.as_deref(),
        };
        let result = if self.handler.schema(&namespace).is_none() {
            Err(Error::new(
                Status::InvalidNamespace,
                format!("There is no namespace {namespace}."),
            ))
        } else {
            match &call {
                Call::Intrinsic { at, .. } => intrinsic::perform(&asked, &name, at)
                    .await
                    .map(Either::Left),
                Call::Method { name, path, at, .. } => method::perform(&asked, name, path, at)
                    .await
                    .map(Either::Right),
            }
        };
        let place = Place {
            handler: &*self.handler,
            namespace: &namespace,
        };
        let text = answer::message(&id, |w| {
            w.open(kind).attr("NAME", &name);
            match &result {
                Ok(Either::Left(answer)) => place.write(w, answer),
                Ok(Either::Right(invoked)) => invoked.write(w),
                Err(error) => answer::write_error(w, error),
            }
            w.close();
        });
        Reply::new(200, "application/xml; charset=\"utf-8\"", text.into_bytes())
            .header("cimoperation", "MethodResponse")
    }
}

enum Either<L, R> {
    Left(L),
    Right(R),
}

fn refuse(refused: &Refused) -> Reply {
    Reply::text(refused.status, &refused.why).header("cimerror", refused.cim_error)
}

fn operation_header(ask: &Ask) -> Result<(), Refused> {
    match ask.cim_operation.as_deref().map(str::trim) {
        Some(operation) if operation.eq_ignore_ascii_case("MethodCall") => Ok(()),
        Some(other) => Err(Refused::bad(
            "unsupported-operation",
            format!("the CIMOperation {other:?} is not supported"),
        )),
        None => Err(Refused::bad(
            "unsupported-operation",
            "the request has no CIMOperation header",
        )),
    }
}

/// Headers, where they are there, have to say the same as the body (DSP0200, header-mismatch): firewalls and
/// proxies decide by them.
fn agree(ask: &Ask, message: &Message) -> Result<(), Refused> {
    let (name, namespace) = match &message.call {
        Call::Intrinsic {
            name, namespace, ..
        } => (name.as_str(), namespace),
        Call::Method {
            name, namespace, ..
        } => (name.as_str(), namespace),
    };
    let mismatch = |header: &str| {
        Refused::bad(
            "header-mismatch",
            format!("the header {header} does not say the same as the body"),
        )
    };
    if let Some(header) = &ask.cim_method
        && !header_text(header).eq_ignore_ascii_case(name)
    {
        return Err(mismatch("CIMMethod"));
    }
    if let Some(header) = &ask.cim_object {
        let text = header_text(header);
        let end = match &message.call {
            Call::Intrinsic { .. } => text.len(),
            // The keys, which may hold colons, come after the namespace's.
            Call::Method { .. } => text.find(':').unwrap_or(text.len()),
        };
        let told = cim::normal_namespace(text.get(..end).unwrap_or_default());
        if !told.eq_ignore_ascii_case(namespace) {
            return Err(mismatch("CIMObject"));
        }
    }
    Ok(())
}
