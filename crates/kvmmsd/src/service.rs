//! The handler behind both front ends: finds the class, checks the role, asks the provider.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cim::wql::{Environment, Query, Select, Traverse};
use cim::{Class, Instance, Method, Name, Path, Schema, Value};
use msvm::Namespace;
use vmms::machine::Asked;
use vmms::{Fault, fault};
use wbem::{
    Caller, Error, Handler, Instances, Limit, Operation, OutParameter, Request, Response, Status,
    Walk,
};

use crate::object::Object;
use crate::query::Queries;
use crate::view::{Call, CallError, House, Outcome, Provider, View};
use crate::{association, errors, provider, refusal, rights, served};

/// How a method tells that it refuses, where no job does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Refusals {
    /// By its return code; the reasons are one more out parameter.
    #[default]
    Code,
    /// As a failed operation, with the reasons in the detail of the fault.
    Fault,
}

/// The handler.
pub(crate) struct Service {
    house: Arc<House>,
    /// How refusals are told.
    refusals: Refusals,
    /// Where queries are tested.
    queries: Queries,
}

impl Service {
    /// The service of a house.
    pub(crate) fn new(house: House, refusals: Refusals, query_time: Duration) -> Self {
        Service {
            house: Arc::new(house),
            refusals,
            queries: Queries::new(query_time),
        }
    }

    /// What a caller sees.
    pub(crate) fn view(&self, caller: &Caller) -> View {
        View::new(Arc::clone(&self.house), Arc::new(caller.clone()))
    }

    /// Whether objects of a class or of one below it can exist here.
    pub(crate) fn serves(&self, namespace: &'static Namespace, class: &str) -> bool {
        let table = provider::associations(namespace);
        namespace.concrete(class).any(|c| {
            let name = c.name.as_str();
            self.house.provider(namespace.name(), name).is_some()
                || table.iter().any(|a| a.class.eq_ignore_ascii_case(name))
        })
    }

    fn class(&self, namespace: &'static Namespace, class: &str) -> Result<&'static Class, Error> {
        namespace.class(class).ok_or_else(|| {
            Error::new(
                Status::InvalidClass,
                format!("{} has no class {class}", namespace.name()),
            )
        })
    }

    /// Who asks for a change of an instance, where their role is enough for that.
    fn may_change(&self, view: &View, request: &Request) -> Result<Asked, Error> {
        let caller = &request.caller;
        if caller.role < rights::TO_CHANGE_INSTANCES {
            let fault = fault!(AccessDenied, caller.user, "change instances");
            return Err(errors::operation_error(view, &fault));
        }
        Ok(Asked {
            owner: caller.user.clone(),
            request_key: request.request_key.clone(),
        })
    }

    /// The provider whose instances of a class are created, changed and deleted.
    fn keeper(
        &self,
        view: &View,
        namespace: &'static Namespace,
        class: &Class,
        done: &str,
    ) -> Result<Arc<dyn Provider>, Error> {
        let provider = self.house.provider(namespace.name(), class.name.as_str());
        provider.cloned().ok_or_else(|| {
            let fault = fault!(NotDirectly, class.name, done);
            errors::operation_error(view, &fault)
        })
    }

    async fn select(
        &self,
        namespace: &'static Namespace,
        caller: &Caller,
        select: &Select,
    ) -> Result<Vec<Instance>, Error> {
        let view = &self.view(caller);
        let class = self.class(namespace, select.class.as_str())?;
        if let Some(name) = select.unknown_property(namespace) {
            let why = format!("{} has no property {name}", class.name);
            return Err(Error::new(Status::InvalidQuery, why));
        }
        let environment = Environment {
            schema: namespace,
            host: &self.house.host,
            namespace: namespace.name(),
        };
        let candidates = if class.is_association() {
            let table = provider::associations(namespace);
            association::instances(view, table, namespace, class.name.as_str()).await?
        } else {
            // A condition on a key, which every match must fulfil, saves building all others.
            let named = named(namespace, class, select);
            let objects = view.objects(namespace, class.name.as_str(), named.as_ref());
            let objects = objects
                .await
                .map_err(|fault| errors::operation_error(view, &fault))?;
            let wanted = select.key_equalities();
            let hopeless = |object: &Object| {
                wanted.iter().any(|(name, value)| {
                    let own = object.keys.iter().find(|(key, _)| name.is(key));
                    match (own, value.to_text()) {
                        (Some((_, own)), Some(text)) => {
                            !own.eq_ignore_ascii_case(&text) && !text.contains('\\')
                        }
                        _ => false,
                    }
                })
            };
            let hopeful = objects.iter().filter(|o| !hopeless(o));
            hopeful.map(|o| view.instance(namespace, o)).collect()
        };
        let matching = self
            .queries
            .matching(&caller.user, select, candidates, &environment);
        matching
            .await
            .map_err(|fault| errors::operation_error(view, &fault))
    }

    async fn traverse(
        &self,
        namespace: &'static Namespace,
        caller: &Caller,
        walk: &Traverse,
        references: bool,
    ) -> Result<Vec<Instance>, Error> {
        let view = &self.view(caller);
        let table = provider::associations(namespace);
        let filter = Walk {
            assoc_class: walk.assoc_class.clone(),
            result_class: walk.result_class.clone(),
            role: walk.role.clone(),
            result_role: walk.result_role.clone(),
        };
        let mut found = if references {
            association::references(view, table, namespace, &walk.path, &filter).await?
        } else {
            association::associators(view, table, namespace, &walk.path, &filter).await?
        };
        if walk.keys_only {
            for instance in &mut found {
                let keys = instance
                    .path
                    .as_ref()
                    .map(|p| p.keys.clone())
                    .unwrap_or_default();
                instance
                    .properties
                    .retain(|p| keys.iter().any(|(k, _)| *k == p.name));
            }
        }
        Ok(found)
    }

    async fn invoke(
        &self,
        namespace: &'static Namespace,
        caller: &Caller,
        request_key: Option<String>,
        path: &Path,
        method: &Name,
        parameters: &[(Name, Value)],
    ) -> Result<Response, Error> {
        let view = &self.view(caller);
        let class = self.class(namespace, path.class.as_str())?;
        let declared = class.method(method.as_str()).ok_or_else(|| {
            Error::new(
                Status::MethodNotFound,
                format!("class {} has no method {method}", class.name),
            )
        })?;
        let needed = rights::needed(namespace, &class.name, &declared.name);
        if caller.role < needed {
            let fault = vmms::fault!(AccessDenied, caller.user, format!("call {}", declared.name));
            return Err(errors::operation_error(view, &fault));
        }
        if !self.serves(namespace, class.name.as_str()) {
            let why = served::reason(class.name.as_str()).unwrap_or("it has no instances here");
            let fault = vmms::fault!(
                NotServed,
                format!("{}.{} ({why})", class.name, declared.name)
            );
            return Err(errors::operation_error(view, &fault));
        }
        let target = view.find(namespace, path).await;
        let target = target.map_err(|fault| errors::operation_error(view, &fault))?;
        let provider = view
            .provider(namespace.name(), target.class)
            .ok_or_else(|| {
                Error::new(
                    Status::MethodNotAvailable,
                    format!("{} is not served", target.class),
                )
            })?;
        let asked = Asked {
            owner: caller.user.clone(),
            request_key,
        };
        let call = Call {
            target: &target,
            method: declared.name.as_str(),
            parameters,
            asked: &asked,
        };
        let called = match unknown_parameter(class, declared, parameters) {
            Some(fault) => Err(CallError::Fault(fault)),
            None => provider.invoke(view, call).await,
        };
        let about = target.element().unwrap_or(vmms::Element::Host);
        let outcome = match called {
            Ok(outcome) => outcome,
            Err(CallError::Protocol(error)) => return Err(error),
            Err(CallError::Fault(fault)) if fault.kind() == vmms::Kind::NotFound => {
                return Err(errors::operation_error(view, &fault));
            }
            // What parameters alone do not tell was found out by looking: that was work, and its end is a job's.
            Err(CallError::Fault(fault)) if has_job(declared) && fault.is_about_content() => {
                let refused = refusal::job(class.name.as_str(), declared.name.as_str(), &fault);
                let affected = vec![(about.clone(), vmms::Effect::Other)];
                let submission = asked.submission(affected);
                match self.house.vmms.submit(refused, submission).await {
                    Ok(job) => Outcome::started(view, job),
                    Err(fault) => return Err(errors::operation_error(view, &fault)),
                }
            }
            Err(CallError::Fault(fault)) => {
                tracing::info!(method = %declared.name, user = caller.user, error = %fault, "refused");
                Outcome {
                    return_value: errors::return_code(&fault),
                    out: Vec::new(),
                    fault: Some(fault),
                }
            }
            Err(CallError::Parameter(error)) => {
                tracing::info!(method = %declared.name, user = caller.user, %error, "refused");
                let fault = provider::parameter_fault(&error);
                Outcome {
                    return_value: error.return_code(),
                    out: Vec::new(),
                    fault: Some(fault),
                }
            }
        };
        let mut outs = Vec::new();
        for p in declared.parameters.iter().filter(|p| p.is_out()) {
            let value = outcome
                .out
                .iter()
                .find(|(name, _)| *name == p.name)
                .map(|(_, v)| v.clone());
            outs.push(OutParameter {
                name: p.name.clone(),
                ty: p.ty,
                array: p.array,
                embedded: p.embedded_class().map(|c| c.to_owned().into()),
                value: value.unwrap_or(Value::Null),
            });
        }
        if let Some(fault) = &outcome.fault {
            self.remember_refusal(caller, fault);
            if self.refusals == Refusals::Fault {
                return Err(errors::refused(view, fault, &about));
            }
            // A return code has no place for a reason: the chain comes as one more out parameter.
            outs.push(refusal_of(view, fault, &about));
        }
        Ok(Response::Invoked {
            return_value: Value::Uint32(outcome.return_value),
            parameters: outs,
        })
    }

    /// A return code says little: the refusal behind it goes to the log with its id, where `kvmms` and people find it.
    fn remember_refusal(&self, caller: &Caller, fault: &Fault) {
        tracing::warn!(user = caller.user, id = fault.message.id(), reason = %fault, "a method call was refused");
    }
}

/// Why a method was refused, as the texts GetErrorEx gives.
fn refusal_of(view: &View, fault: &Fault, about: &vmms::Element) -> OutParameter {
    let chain = errors::chain(view, fault, about);
    let texts = chain
        .iter()
        .map(|e| Value::String(cim::embedded::write(e)))
        .collect();
    OutParameter {
        name: "KvmmsErrors".into(),
        ty: cim::Type::String,
        array: true,
        embedded: Some(msvm::class::MSVM_ERROR.into()),
        value: Value::Array(texts),
    }
}

/// The properties given, spelled as the class declares them; one that it does not have is refused.
fn declared(view: &View, class: &Class, given: &Instance) -> Result<Instance, Error> {
    let mut out = given.clone();
    out.class = class.name.clone();
    for property in &mut out.properties {
        let Some(own) = class.property(property.name.as_str()) else {
            let fault = fault!(UnknownName, class.name, "property", property.name);
            return Err(errors::operation_error(view, &fault));
        };
        property.name = own.name.clone();
    }
    Ok(out)
}

/// What the keys a query asks for name: text that is a key of every class the query is about.
fn named(namespace: &'static Namespace, class: &Class, select: &Select) -> Option<Path> {
    let is_key = |name: &Name| {
        let mut concrete = namespace.concrete(class.name.as_str());
        concrete.all(|c| c.keys().any(|key| key.name == *name))
    };
    let mut path = Path::class(class.name.clone());
    for (name, value) in select.key_equalities() {
        // Backslashes are written in more ways than one.
        if value.as_str().is_some_and(|text| !text.contains('\\')) && is_key(name) {
            path.keys.push((name.clone(), value.clone()));
        }
    }
    (!path.keys.is_empty()).then_some(path)
}

/// Whether a method may answer with a job.
fn has_job(method: &Method) -> bool {
    method
        .parameters
        .iter()
        .any(|p| p.is_out() && p.name.is("Job"))
}

/// A parameter the method does not have. Out parameters that are sent along say nothing.
fn unknown_parameter(class: &Class, method: &Method, given: &[(Name, Value)]) -> Option<Fault> {
    let known = |name: &Name| method.parameters.iter().any(|p| p.name == *name);
    let (unknown, _) = given.iter().find(|(name, _)| !known(name))?;
    let shown: String = unknown.as_str().chars().take(80).collect();
    let method = format!("{}.{}", class.name, method.name);
    Some(fault!(UnknownName, method, "parameter", shown))
}

#[async_trait]
impl Handler for Service {
    async fn handle(&self, request: Request) -> Result<Response, Error> {
        let request = &request;
        let namespace = msvm::namespace(&request.namespace).ok_or_else(|| {
            Error::new(
                Status::InvalidNamespace,
                format!("there is no namespace {}", request.namespace),
            )
        })?;
        let caller = &request.caller;
        let view = self.view(caller);
        let table = provider::associations(namespace);
        match &request.operation {
            Operation::GetClass { class } => {
                // Of all operations this one says "not found" where others say "invalid class" (DSP0200).
                let found = self.class(namespace, class.as_str());
                let found = found.map_err(|e| Error::new(Status::NotFound, e.to_string()))?;
                Ok(Response::Classes(vec![found.clone()]))
            }
            Operation::EnumerateClasses { class, deep } => {
                if let Some(class) = class {
                    self.class(namespace, class.as_str())?;
                }
                let classes = match (class, deep) {
                    (Some(class), true) => namespace
                        .family(class.as_str())
                        .filter(|c| c.name != *class)
                        .cloned()
                        .collect(),
                    (None, true) => namespace.classes().to_vec(),
                    (class, false) => namespace
                        .children(class.as_ref().map(Name::as_str))
                        .cloned()
                        .collect(),
                };
                Ok(Response::Classes(classes))
            }
            Operation::GetInstance { path } => {
                let class = self.class(namespace, path.class.as_str())?;
                if class.is_association() {
                    let found = association::get(&view, table, namespace, path).await?;
                    return Ok(Response::Instances(vec![found]));
                }
                let object = view.find(namespace, path).await;
                let object = object.map_err(|fault| errors::operation_error(&view, &fault))?;
                Ok(Response::Instances(vec![view.instance(namespace, &object)]))
            }
            Operation::EnumerateInstances { class } => {
                let class = self.class(namespace, class.as_str())?;
                let name = class.name.as_str();
                if class.is_association() {
                    let found = association::instances(&view, table, namespace, name).await?;
                    return Ok(Response::Instances(found));
                }
                let objects = view.objects(namespace, name, None).await;
                let objects = objects.map_err(|fault| errors::operation_error(&view, &fault))?;
                let bytes = objects.iter().map(Object::bytes).sum();
                let objects = objects.into_iter();
                let made = objects.map(move |o| view.instance(namespace, &o));
                Ok(Response::Made(Instances::made(made, bytes)))
            }
            Operation::Query { query } => Ok(Response::Instances(match query {
                Query::Select(select) => self.select(namespace, caller, select).await?,
                Query::Associators(walk) => self.traverse(namespace, caller, walk, false).await?,
                Query::References(walk) => self.traverse(namespace, caller, walk, true).await?,
            })),
            Operation::Associators { path, walk } => Ok(Response::Instances(
                association::associators(&view, table, namespace, path, walk).await?,
            )),
            Operation::References { path, walk } => Ok(Response::Instances(
                association::references(&view, table, namespace, path, walk).await?,
            )),
            Operation::Invoke {
                path,
                method,
                parameters,
            } => {
                self.invoke(
                    namespace,
                    caller,
                    request.request_key.clone(),
                    path,
                    method,
                    parameters,
                )
                .await
            }
            Operation::CreateInstance { instance } => {
                let asked = self.may_change(&view, request)?;
                let class = self.class(namespace, instance.class.as_str())?;
                let properties = declared(&view, class, instance)?;
                let provider = self.keeper(&view, namespace, class, "created")?;
                let made = provider.create(&view, &properties, &asked).await;
                let made = made.map_err(|fault| errors::operation_error(&view, &fault))?;
                Ok(Response::Created(made.path(&view.host, namespace.name())))
            }
            Operation::ModifyInstance { path, instance } => {
                let asked = self.may_change(&view, request)?;
                let class = self.class(namespace, path.class.as_str())?;
                let properties = declared(&view, class, instance)?;
                let provider = self.keeper(&view, namespace, class, "changed")?;
                let changed = provider.modify(&view, path, &properties, &asked).await;
                changed.map_err(|fault| errors::operation_error(&view, &fault))?;
                Ok(Response::Done)
            }
            Operation::DeleteInstance { path } => {
                let asked = self.may_change(&view, request)?;
                let class = self.class(namespace, path.class.as_str())?;
                let provider = self.keeper(&view, namespace, class, "deleted")?;
                let deleted = provider.delete(&view, path, &asked).await;
                deleted.map_err(|fault| errors::operation_error(&view, &fault))?;
                Ok(Response::Done)
            }
        }
    }

    fn schema(&self, namespace: &str) -> Option<&dyn Schema> {
        msvm::namespace(namespace).map(|n| n as &dyn Schema)
    }

    fn namespaces(&self) -> Vec<String> {
        msvm::namespaces()
            .into_iter()
            .map(|n| n.name().to_owned())
            .collect()
    }

    fn host(&self) -> &str {
        &self.house.host
    }

    fn limit(&self, limit: &Limit) -> Error {
        errors::anyones_error(&self.house, &crate::limits::fault(limit))
    }
}
