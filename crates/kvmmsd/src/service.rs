//! The handler behind both front ends: finds the class, checks the role, asks the provider.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cim::wql::{Environment, Query, Select, Traverse};
use cim::{Class, Instance, Method, Name, Path, Schema, Value};
use msvm::Namespace;
use vmms::vm::Asked;
use vmms::{Fault, Vmms, fault};
use wbem::{
    Caller, Error, Handler, Limit, Operation, OutParameter, Request, Response, Role, Status, Walk,
};

use crate::association;
use crate::errors::{self, CallError};
use crate::object::Object;
use crate::provider::{self, Call, Outcome, Provider};
use crate::query::Queries;
use crate::refusal;
use crate::rights;
use crate::served;

/// How a method tells that it refuses, where no job does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Refusals {
    /// By its return code; the reasons are one more out parameter.
    #[default]
    Code,
    /// As a failed operation, with the reasons in the detail of the fault.
    Fault,
}

/// Everything a provider needs.
pub(crate) struct Service {
    /// The domain.
    pub(crate) vmms: Arc<Vmms>,
    /// The host's name in paths.
    pub(crate) host: String,
    /// How refusals are told.
    refusals: Refusals,
    /// Where queries are tested.
    queries: Queries,
    /// By namespace (lower case) and class (lower case).
    providers: HashMap<(&'static str, String), Arc<dyn Provider>>,
}

impl Service {
    /// The service with all its providers.
    pub(crate) fn new(vmms: Arc<Vmms>, refusals: Refusals, query_time: Duration) -> Self {
        let mut providers: HashMap<_, Arc<dyn Provider>> = HashMap::new();
        for provider in provider::all() {
            for class in provider.classes() {
                providers.insert(
                    (provider.namespace(), class.to_ascii_lowercase()),
                    Arc::clone(&provider),
                );
            }
        }
        let host = vmms.host.clone();
        Service {
            vmms,
            host,
            refusals,
            queries: Queries::new(query_time),
            providers,
        }
    }

    /// The provider of a class.
    pub(crate) fn provider(
        &self,
        namespace: &'static str,
        class: &str,
    ) -> Option<&Arc<dyn Provider>> {
        self.providers.get(&(namespace, class.to_ascii_lowercase()))
    }

    /// Every object of a class and its subclasses.
    pub(crate) fn objects(&self, namespace: &'static Namespace, class: &str) -> Vec<Object> {
        namespace
            .concrete(class)
            .filter_map(|c| Some((c, self.provider(namespace.name(), c.name.as_str())?)))
            .flat_map(|(c, provider)| provider.list(self, c.name.as_str()))
            .collect()
    }

    /// The one object a path names. Every key that is given fits it, and the one that tells it from others of its class is given.
    pub(crate) fn find(&self, namespace: &'static Namespace, path: &Path) -> Result<Object, Fault> {
        let (mut found, mut misfit) = (Vec::new(), None);
        for class in namespace.concrete(path.class.as_str()) {
            let Some(provider) = self.provider(namespace.name(), class.name.as_str()) else {
                continue;
            };
            for object in provider.find(self, class.name.as_str(), path) {
                match object.fits(self, namespace, path) {
                    Ok(()) => found.push(object),
                    Err(fault) => misfit = Some(fault),
                }
            }
        }
        match (found.pop(), found.is_empty()) {
            (Some(object), true) => Ok(object),
            (None, _) => Err(misfit
                .or_else(|| unknown_key(namespace, path))
                .unwrap_or_else(|| fault!(ObjectNotFound, path))),
            (Some(_), false) => Err(fault!(AmbiguousPath, path, found.len() + 1)),
        }
    }

    fn class(&self, namespace: &'static Namespace, class: &str) -> Result<&'static Class, Error> {
        namespace.class(class).ok_or_else(|| {
            Error::new(
                Status::InvalidClass,
                format!("{} has no class {class}", namespace.name()),
            )
        })
    }

    /// An object as an instance: whole, with its path.
    pub(crate) fn instance(&self, namespace: &'static Namespace, object: &Object) -> Instance {
        let mut instance = match self.provider(namespace.name(), object.class) {
            Some(provider) => provider.instance(self, object),
            None => Instance::new(object.class),
        };
        for (key, value) in &object.keys {
            instance.set(*key, value.as_str());
        }
        if let Err(error) = namespace.complete(&mut instance) {
            tracing::error!(class = object.class, %error, "an instance does not fit its class");
        }
        instance.path = Some(object.path(self, namespace.name()));
        instance
    }

    /// The objects of a class and its subclasses that have to be asked for first.
    async fn fetch(
        &self,
        namespace: &'static Namespace,
        class: &str,
        path: Option<&Path>,
    ) -> Result<Vec<Object>, Error> {
        let mut out = Vec::new();
        for class in namespace.concrete(class) {
            if let Some(provider) = self.provider(namespace.name(), class.name.as_str()) {
                let fetched = provider.fetch(self, class.name.as_str(), path).await;
                out.extend(fetched.map_err(|fault| errors::operation_error(self, &fault))?);
            }
        }
        Ok(out)
    }

    /// The one object a path names, also one that has to be asked for first.
    async fn get(&self, namespace: &'static Namespace, path: &Path) -> Result<Object, Error> {
        let fault = match self.find(namespace, path) {
            Ok(object) => return Ok(object),
            Err(fault) => fault,
        };
        if fault.kind() == vmms::Kind::NotFound {
            let mut fetched = self
                .fetch(namespace, path.class.as_str(), Some(path))
                .await?;
            fetched.retain(|o| o.is_named_by(path));
            if let (Some(object), true) = (fetched.pop(), fetched.is_empty()) {
                return Ok(object);
            }
        }
        Err(errors::operation_error(self, &fault))
    }

    async fn select(
        &self,
        namespace: &'static Namespace,
        user: &str,
        select: &Select,
    ) -> Result<Vec<Instance>, Error> {
        let class = self.class(namespace, select.class.as_str())?;
        if let Some(name) = select.unknown_property(namespace) {
            let why = format!("{} has no property {name}", class.name);
            return Err(Error::new(Status::InvalidQuery, why));
        }
        let environment = Environment {
            schema: namespace,
            host: &self.host,
            namespace: namespace.name(),
        };
        let mut candidates = Vec::new();
        if class.is_association() {
            candidates = association::instances(self, namespace, class.name.as_str());
        } else {
            // A condition on a key, which every match must fulfil, saves building all others.
            let wanted = select.key_equalities();
            let mut path = Path::class(class.name.clone());
            path.keys = wanted
                .iter()
                .map(|(name, value)| ((*name).clone(), (*value).clone()))
                .collect();
            let mut objects = self.objects(namespace, class.name.as_str());
            objects.extend(
                self.fetch(namespace, class.name.as_str(), Some(&path))
                    .await?,
            );
            for object in objects {
                let hopeless = wanted.iter().any(|(name, value)| {
                    let own = object.keys.iter().find(|(key, _)| name.is(key));
                    match (own, value.to_text()) {
                        (Some((_, own)), Some(text)) => {
                            !own.eq_ignore_ascii_case(&text) && !text.contains('\\')
                        }
                        _ => false,
                    }
                });
                if !hopeless {
                    candidates.push(self.instance(namespace, &object));
                }
            }
        }
        let matching = self
            .queries
            .matching(user, select, candidates, &environment);
        matching
            .await
            .map_err(|fault| errors::operation_error(self, &fault))
    }

    fn traverse(
        &self,
        namespace: &'static Namespace,
        walk: &Traverse,
        references: bool,
    ) -> Result<Vec<Instance>, Error> {
        let filter = Walk {
            assoc_class: walk.assoc_class.clone(),
            result_class: walk.result_class.clone(),
            role: walk.role.clone(),
            result_role: walk.result_role.clone(),
        };
        let mut found = if references {
            association::references(self, namespace, &walk.path, &filter)?
        } else {
            association::associators(self, namespace, &walk.path, &filter)?
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
            return Err(errors::operation_error(self, &fault));
        }
        if !self.serves(namespace, class.name.as_str()) {
            let why = served::reason(class.name.as_str()).unwrap_or("it has no instances here");
            let fault = vmms::fault!(
                NotServed,
                format!("{}.{} ({why})", class.name, declared.name)
            );
            return Err(errors::operation_error(self, &fault));
        }
        let target = self
            .find(namespace, path)
            .map_err(|fault| errors::operation_error(self, &fault))?;
        let provider = self
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
            None => provider.invoke(self, call).await,
        };
        let about = target.element().unwrap_or(vmms::Element::Host);
        let outcome = match called {
            Ok(outcome) => outcome,
            Err(CallError::Protocol(error)) => return Err(error),
            Err(CallError::Fault(fault)) if fault.kind() == vmms::Kind::NotFound => {
                return Err(errors::operation_error(self, &fault));
            }
            // What parameters alone do not tell was found out by looking: that was work, and its end is a job's.
            Err(CallError::Fault(fault)) if has_job(declared) && fault.is_about_content() => {
                let refused = refusal::job(class.name.as_str(), declared.name.as_str(), &fault);
                let affected = vec![(about.clone(), vmms::Effect::Other)];
                let submission = asked.submission(affected);
                match self.vmms.submit(refused, submission).await {
                    Ok(job) => Outcome::started(self, job),
                    Err(fault) => return Err(errors::operation_error(self, &fault)),
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
                return Err(errors::refused(self, fault, &about));
            }
            // A return code has no place for a reason: the chain comes as one more out parameter.
            outs.push(self.refusal(fault, &about));
        }
        Ok(Response::Invoked {
            return_value: Value::Uint32(outcome.return_value),
            parameters: outs,
        })
    }

    /// Why a method was refused, as the texts GetErrorEx gives.
    fn refusal(&self, fault: &Fault, about: &vmms::Element) -> OutParameter {
        let chain = errors::chain(self, fault, about);
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

    /// A return code says little: the refusal behind it goes to the log with its id, where `kvmms` and people find it.
    fn remember_refusal(&self, caller: &Caller, fault: &Fault) {
        tracing::warn!(user = caller.user, id = fault.message.id(), reason = %fault, "a method call was refused");
    }
}

/// The key of a path that none of the classes it may mean has.
fn unknown_key(namespace: &'static Namespace, path: &Path) -> Option<Fault> {
    let class = namespace.class(path.class.as_str())?;
    let known = |name: &Name| {
        name.as_str().is_empty()
            || namespace
                .family(class.name.as_str())
                .any(|c| c.property(name.as_str()).is_some())
    };
    let (unknown, _) = path.keys.iter().find(|(name, _)| !known(name))?;
    Some(fault!(UnknownName, class.name, "key", unknown))
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
        let namespace = msvm::namespace(&request.namespace).ok_or_else(|| {
            Error::new(
                Status::InvalidNamespace,
                format!("there is no namespace {}", request.namespace),
            )
        })?;
        let caller = &request.caller;
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
                    let found = association::get(self, namespace, path)?;
                    return Ok(Response::Instances(vec![found]));
                }
                let object = self.get(namespace, path).await?;
                Ok(Response::Instances(vec![self.instance(namespace, &object)]))
            }
            Operation::EnumerateInstances { class } => {
                let class = self.class(namespace, class.as_str())?;
                let found = if class.is_association() {
                    association::instances(self, namespace, class.name.as_str())
                } else {
                    let mut objects = self.objects(namespace, class.name.as_str());
                    objects.extend(self.fetch(namespace, class.name.as_str(), None).await?);
                    objects
                        .iter()
                        .map(|o| self.instance(namespace, o))
                        .collect()
                };
                Ok(Response::Instances(found))
            }
            Operation::Query { query } => Ok(Response::Instances(match query {
                Query::Select(select) => self.select(namespace, &caller.user, select).await?,
                Query::Associators(walk) => self.traverse(namespace, walk, false)?,
                Query::References(walk) => self.traverse(namespace, walk, true)?,
            })),
            Operation::Associators { path, walk } => Ok(Response::Instances(
                association::associators(self, namespace, path, walk)?,
            )),
            Operation::References { path, walk } => Ok(Response::Instances(
                association::references(self, namespace, path, walk)?,
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
            Operation::CreateInstance { .. }
            | Operation::ModifyInstance { .. }
            | Operation::DeleteInstance { .. } => {
                if caller.role < Role::Admin {
                    let fault = vmms::fault!(AccessDenied, caller.user, "change instances");
                    return Err(errors::operation_error(self, &fault));
                }
                Err(Error::new(
                    Status::NotSupported,
                    "instances are changed through the methods of the services (for example \
                     Msvm_VirtualSystemManagementService.ModifySystemSettings), not directly",
                ))
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
        &self.host
    }

    fn limit(&self, limit: &Limit) -> Error {
        errors::operation_error(self, &crate::limits::fault(limit))
    }
}
