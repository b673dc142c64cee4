//! One request from bytes to bytes.

use std::sync::Arc;
use std::time::Duration;

use cim::xml::{Element, Encoding, Limits};
use cim::{Name, Path, Value};

use super::enumerate::{self, Enumeration};
use super::envelope::{self, Message, Origin};
use super::fault::{Fault, Subcode};
use super::uri::{self, Family, Resource};
use super::{classes, epr, instance, invoke, ns, transfer};
use crate::contexts::{ContextLimits, Contexts};
use crate::wire::{self, Ask, Reply};
use crate::{Caller, Handler, Operation, Request, Response};

/// The WS-Management front end.
pub(crate) struct Service {
    pub(super) handler: Arc<dyn Handler>,
    pub(crate) contexts: Contexts<Enumeration>,
}

/// A request with its caller.
pub(super) struct Call<'a> {
    pub(super) service: &'a Service,
    pub(super) caller: &'a Caller,
    pub(super) message: Message,
    request_key: Option<String>,
}

/// The instances a request is about.
pub(super) struct Subject {
    pub(super) family: Family,
    /// The namespace in the one form used inside.
    pub(super) namespace: String,
    pub(super) class: Option<Name>,
}

const PRODUCT_VERSION: &str = env!("CARGO_PKG_VERSION");

impl Service {
    pub(crate) fn new(handler: Arc<dyn Handler>, limits: ContextLimits) -> Self {
        Service {
            handler,
            contexts: Contexts::new(limits),
        }
    }

    /// Answers a request of a known caller.
    pub(crate) async fn answer(&self, ask: Ask) -> Reply {
        let (origin, message) = Message::read(&ask.body);
        let answered = match message {
            Err(fault) => Err(fault),
            Ok(message) => {
                let call = Call {
                    service: self,
                    caller: &ask.caller,
                    message,
                    request_key: ask.request_key,
                };
                call.perform().await
            }
        };
        match answered {
            Ok(text) => reply(200, &origin, &text),
            Err(fault) => self.faulted(&origin, &fault),
        }
    }

    /// Answers Identify, and nothing else, without knowing the caller.
    pub(crate) fn identify(&self, body: &[u8]) -> Option<Reply> {
        let limits = Limits {
            elements: 100,
            ..Limits::default()
        };
        // Looked at cheaply first: every first request of a client that waits to be challenged comes by here.
        let named = |needle: &[u8]| body.windows(needle.len()).any(|w| w == needle);
        if !named(b"wsmanidentity") && !named(b"w\0s\0m\0a\0n\0i\0d\0e\0n\0t\0i\0t\0y") {
            return None;
        }
        let document = cim::xml::parse(body, &limits).ok()?;
        let asked = document
            .root
            .child(ns::SOAP, "Body")?
            .children
            .first()
            .and_then(identity_namespace)?;
        let origin = Origin {
            message_id: None,
            encoding: document.encoding,
        };
        Some(reply(200, &origin, &identified(asked)))
    }

    /// The answer to a body that was not read because of its size.
    pub(crate) fn too_large(&self, limit: usize) -> Reply {
        let fault = Fault::sender(
            Subcode::EncodingLimit,
            format!("A request may have {limit} bytes."),
        )
        .detail("ServiceEnvelopeLimit");
        self.faulted(&Origin::default(), &fault)
    }

    fn faulted(&self, origin: &Origin, fault: &Fault) -> Reply {
        let text = envelope::write(
            fault.action(),
            origin.message_id.as_deref(),
            |w| fault.write_header(w),
            |w| fault.write(w, self.handler.host()),
        );
        reply(500, origin, &text)
    }
}

fn reply(status: u16, origin: &Origin, text: &str) -> Reply {
    let charset = origin.encoding.charset();
    let body = match origin.encoding {
        Encoding::Utf8 => text.as_bytes().to_vec(),
        other => other.encode(text),
    };
    Reply::new(
        status,
        &format!("application/soap+xml;charset={charset}"),
        body,
    )
}

fn identity_namespace(body: &Element) -> Option<&'static str> {
    ns::IDENTIFY
        .into_iter()
        .find(|namespace| body.is(namespace, "Identify"))
}

fn identified(namespace: &str) -> String {
    let mut w = cim::xml::Writer::new();
    w.open("s:Envelope")
        .attr("xml:lang", "en-US")
        .attr("xmlns:s", ns::SOAP)
        .empty("s:Header")
        .open("s:Body")
        .open("wsmid:IdentifyResponse")
        .attr("xmlns:wsmid", namespace)
        .leaf("wsmid:ProtocolVersion", ns::WSMAN)
        .leaf("wsmid:ProductVendor", "kvmms")
        .leaf("wsmid:ProductVersion", PRODUCT_VERSION);
    w.finish()
}

impl Call<'_> {
    async fn perform(mut self) -> Result<String, Fault> {
        if let Some(namespace) = self.message.body.as_ref().and_then(identity_namespace) {
            return Ok(identified(namespace));
        }
        let action = std::mem::take(&mut self.message.action);
        if action.is_empty() {
            return Err(Fault::sender(
                Subcode::MissingHeader,
                "The request has no Action header.",
            ));
        }
        if let Some(verb) = action.strip_prefix(ns::ENUMERATION) {
            return match verb {
                "/Enumerate" => enumerate::enumerate(self).await,
                "/Pull" => enumerate::pull(&self),
                "/Release" => enumerate::release(&self),
                _ => Err(unsupported(&action)),
            };
        }
        if let Some(verb) = action.strip_prefix(ns::TRANSFER) {
            return match (verb, self.resource()?) {
                ("/Get", Resource::Config) => Ok(transfer::config(&self)),
                ("/Get", Resource::Classes { namespace, class }) => {
                    classes::get(&self, namespace, class).await
                }
                ("/Get", _) => transfer::get(self).await,
                ("/Put", _) => transfer::put(self).await,
                ("/Create", _) => transfer::create(self).await,
                ("/Delete", _) => transfer::delete(self).await,
                _ => Err(unsupported(&action)),
            };
        }
        if action.starts_with(ns::EVENTING) {
            return Err(Fault::sender(
                Subcode::ActionNotSupported,
                "Subscriptions are not served yet; poll the job or the instance instead.",
            ));
        }
        invoke::invoke(self, &action).await
    }

    pub(super) fn resource(&self) -> Result<Resource, Fault> {
        let uri = self.message.resource_uri.as_deref().ok_or_else(|| {
            Fault::sender(
                Subcode::MissingHeader,
                "The request has no ResourceURI header.",
            )
        })?;
        uri::parse(uri, self.message.selector(epr::NAMESPACE))
    }

    /// What the request is about, when it must be instances.
    pub(super) fn subject(&self) -> Result<Subject, Fault> {
        match self.resource()? {
            Resource::Instances {
                mut family,
                class,
                default_namespace,
            } => {
                if default_namespace {
                    family = Family::CimSchema {
                        namespace: self.default_namespace(class.as_ref()),
                    };
                }
                Ok(Subject {
                    namespace: cim::normal_namespace(family.namespace()),
                    family,
                    class,
                })
            }
            Resource::Classes { .. } | Resource::Config => Err(Fault::sender(
                Subcode::ActionNotSupported,
                "This resource has no instances to work on.",
            )),
        }
    }

    /// Where a class lives that was asked for without a namespace: the first that has it.
    pub(super) fn default_namespace(&self, class: Option<&Name>) -> String {
        let handler = &self.service.handler;
        let namespaces = handler.namespaces();
        let has = |namespace: &&String| {
            class.is_some_and(|class| {
                handler
                    .schema(namespace)
                    .is_some_and(|s| s.class(class.as_str()).is_some())
            })
        };
        namespaces
            .iter()
            .find(has)
            .or(namespaces.first())
            .cloned()
            .unwrap_or_default()
    }

    /// The path the selectors name.
    pub(super) fn path(&self, subject: &Subject) -> Result<Path, Fault> {
        let class = subject.class.clone().ok_or_else(|| {
            Fault::sender(
                Subcode::DestinationUnreachable,
                "The resource URI names all classes; this operation needs one.",
            )
            .detail("InvalidResourceURI")
        })?;
        let mut path = Path::class(class);
        path.keys = self
            .message
            .selectors
            .iter()
            .filter(|(name, _)| !name.is(epr::NAMESPACE))
            .cloned()
            .collect();
        let schema = self.service.handler.schema(&subject.namespace);
        let class = schema.and_then(|s| s.class(path.class.as_str()));
        // What a key names is the handler's to judge; what the class does not know names nothing.
        let unknown = |(name, _): &&(Name, Value)| {
            class.is_some_and(|class| class.property(name.as_str()).is_none())
        };
        if let Some((name, _)) = path.keys.iter().find(unknown) {
            let what = format!("{} has no key {name}.", path.class);
            let fault = Fault::sender(Subcode::InvalidSelectors, what);
            return Err(fault.detail("UnexpectedSelectors"));
        }
        let path = path.in_namespace(&subject.namespace);
        Ok(instance::declared_keys(path, class))
    }

    pub(super) fn shape(&self, family: Family) -> instance::Shape {
        instance::Shape {
            family,
            precise_arrays: self
                .message
                .option("msftwinrm:UsePreciseArrays")
                .or_else(|| self.message.option("UsePreciseArrays"))
                .is_some_and(|v| v.trim().eq_ignore_ascii_case("true")),
            base: None,
        }
    }

    /// Carries out an operation.
    pub(super) async fn run(
        &self,
        namespace: &str,
        operation: Operation,
    ) -> Result<Response, Fault> {
        let request = Request {
            namespace: namespace.to_owned(),
            caller: self.caller.clone(),
            request_key: self
                .message
                .option("kvmms-request-key")
                .map(str::to_owned)
                .or_else(|| self.request_key.clone()),
            operation,
        };
        let limit = self.message.timeout.filter(|t| *t > Duration::ZERO);
        Ok(wire::run(&self.service.handler, request, limit).await?)
    }

    /// Writes the answer to this request.
    pub(super) fn respond(
        &self,
        action: &str,
        headers: impl FnOnce(&mut cim::xml::Writer),
        body: impl FnOnce(&mut cim::xml::Writer),
    ) -> String {
        envelope::write(action, self.message.message_id.as_deref(), headers, body)
    }
}

pub(super) fn unsupported(action: &str) -> Fault {
    let shown: String = action.chars().take(200).collect();
    Fault::sender(
        Subcode::ActionNotSupported,
        format!("The action {shown:?} is not supported."),
    )
}

/// An answer of the handler that does not fit the question: a mistake in the service, told as such.
pub(super) fn misfit() -> Fault {
    tracing::error!("the handler answered with another shape than the operation has");
    Fault::receiver(
        Subcode::InternalError,
        "The service answered with something else than was asked for.",
    )
}
