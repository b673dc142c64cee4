//! A handler with a few objects in memory, enough to drive every operation of both protocols.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cim::wql::{Environment, Query};
use cim::{Class, ClassTable, Datetime, Instance, Name, Path, Property, Schema, Type, Value};
use tokio::sync::Semaphore;
use wbem::auth::{Authenticator, Verdict};
use wbem::{
    Caller, Error, Handler, Operation, Origin, OutParameter, Request, Response, Role, Status, Walk,
};

pub(crate) const NAMESPACE: &str = "root/virtualization/v2";
pub(crate) const HOST: &str = "HV1";
pub(crate) const USER: &str = "alice";
pub(crate) const PASSWORD: &str = "correct horse";

/// Knows one user.
pub(crate) struct OneUser;

#[async_trait]
impl Authenticator for OneUser {
    async fn check(&self, _origin: Origin, user: &str, password: &str) -> Verdict {
        match (user, password) {
            (USER, PASSWORD) => Verdict::Caller(Caller {
                user: user.to_owned(),
                role: Role::Admin,
            }),
            (USER, "again and again") => Verdict::Wait(Duration::from_millis(2500)),
            _ => Verdict::Wrong,
        }
    }
}

pub(crate) struct Scripted {
    schema: ClassTable,
    objects: Vec<Instance>,
    /// Lets one waiting `Wait` go on.
    pub(crate) gate: Semaphore,
    /// How many `Wait` have begun, and ended.
    pub(crate) begun: AtomicUsize,
    pub(crate) ended: AtomicUsize,
    pub(crate) last_key: std::sync::Mutex<Option<String>>,
    pub(crate) last_caller: std::sync::Mutex<Option<Caller>>,
    /// What was to be created, changed and deleted of `Msvm_SpecialSystem`; others are refused.
    pub(crate) changes: std::sync::Mutex<Vec<Operation>>,
}

fn system(class: &str, name: &str, state: u16) -> Instance {
    let since: Datetime = "20261120120000.000000+000".parse().expect("datetime");
    Instance::new(class.to_owned())
        .with("CreationClassName", "Msvm_ComputerSystem")
        .with("Name", name)
        .with("ElementName", format!("vm <{name}> & \"more\""))
        .with("EnabledState", state)
        .with("OperationalStatus", vec![2u16, 32768])
        .with("OnTimeInMilliseconds", u64::MAX)
        .with("Enabled", true)
        .with("InstallDate", since)
        .with("Settings", settings(name))
}

fn settings(id: &str) -> Instance {
    Instance::new("Msvm_VirtualSystemSettingData")
        .with("InstanceID", format!("Microsoft:{id}\\0"))
        .with("Notes", vec!["a <b>".to_owned(), String::new()])
}

pub(crate) fn job(id: &str) -> Path {
    Path::class("Msvm_ConcreteJob")
        .key("InstanceID", id)
        .in_namespace(NAMESPACE)
        .on_host(HOST)
}

impl Scripted {
    pub(crate) fn new() -> Self {
        Scripted::with_systems(3)
    }

    pub(crate) fn with_systems(count: usize) -> Self {
        let mof = cim::mof::parse(include_str!("schema.mof")).expect("mof");
        let schema = ClassTable::resolve(mof.classes).expect("schema");
        let mut objects: Vec<Instance> = (0..count)
            .map(|i| {
                let state = if i % 2 == 0 { 2 } else { 3 };
                system(
                    "Msvm_ComputerSystem",
                    &format!("00000000-0000-0000-0000-{i:012X}"),
                    state,
                )
            })
            .collect();
        objects.push(system("Msvm_SpecialSystem", "special", 3).with("Extra", "more"));
        objects.push(
            Instance::new("Msvm_ConcreteJob")
                .with("InstanceID", "J1")
                .with("JobState", 7u16)
                .with(
                    "ElapsedTime",
                    Datetime::interval(Duration::from_millis(61_500)),
                ),
        );
        objects.push(settings("00000000-0000-0000-0000-000000000000"));
        objects.push(
            Instance::new("Msvm_VirtualSystemManagementService")
                .with("CreationClassName", "Msvm_VirtualSystemManagementService")
                .with("SystemName", HOST),
        );
        let mut scripted = Scripted {
            schema,
            objects: Vec::new(),
            gate: Semaphore::new(0),
            begun: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            last_key: std::sync::Mutex::default(),
            last_caller: std::sync::Mutex::default(),
            changes: std::sync::Mutex::default(),
        };
        let mut objects: Vec<_> = objects.into_iter().map(|o| scripted.complete(o)).collect();
        let first = objects[0].path.clone().expect("path");
        let link = Instance::new("Msvm_AffectedJobElement")
            .with("AffectedElement", first)
            .with("AffectingElement", job("J1"));
        objects.push(scripted.complete(link));
        scripted.objects = objects;
        scripted
    }

    /// Every property in declared type and order, and the path.
    fn complete(&self, given: Instance) -> Instance {
        let class = self.schema.class(given.class.as_str()).expect("class");
        let mut full = Instance::new(class.name.clone());
        let mut path = Path::class(class.name.clone())
            .in_namespace(NAMESPACE)
            .on_host(HOST);
        for declared in class.properties.iter() {
            let value = given.get(declared.name.as_str()).clone();
            if declared.is_key() {
                path.keys.push((declared.name.clone(), value.clone()));
            }
            full.properties.push(Property {
                name: declared.name.clone(),
                ty: declared.ty,
                array: declared.array,
                value,
            });
        }
        full.path = Some(path);
        full
    }

    fn class(&self, name: &Name) -> Result<&Class, Error> {
        self.schema
            .class(name.as_str())
            .ok_or_else(|| Error::new(Status::InvalidClass, format!("There is no class {name}.")))
    }

    /// Partial keys are fine where they name one instance.
    fn find(&self, path: &Path) -> Result<&Instance, Error> {
        self.class(&path.class)?;
        let mut found = self.objects.iter().filter(|o| {
            self.schema.is_a(o.class.as_str(), path.class.as_str())
                && path.keys.iter().all(|(name, value)| {
                    let of = |v: &Value| Path::class("X").key("K", v.clone());
                    of(o.get(name.as_str())) == of(value)
                })
        });
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err(Error::new(
                Status::NotFound,
                format!("There is no {}.", path.relative()),
            )),
            _ => Err(Error::new(
                Status::InvalidParameter,
                "The keys name several instances.",
            )),
        }
    }

    fn of_class(&self, class: &Name) -> Result<Vec<Instance>, Error> {
        let class = self.class(class)?;
        let is = |o: &&Instance| self.schema.is_a(o.class.as_str(), class.name.as_str());
        Ok(self.objects.iter().filter(is).cloned().collect())
    }

    /// Association instances at `path`, with the path at their other end.
    fn links(&self, path: &Path, role: Option<&Name>) -> Result<Vec<(&Instance, Path)>, Error> {
        let start = self.find(path)?.path.clone().expect("path");
        let mut found = Vec::new();
        for object in &self.objects {
            let ends: Vec<_> = object
                .properties
                .iter()
                .filter(|p| p.ty == Type::Reference)
                .filter_map(|p| p.value.as_path().map(|at| (&p.name, at)))
                .collect();
            let from = ends
                .iter()
                .position(|(name, at)| *at == start && role.is_none_or(|r| r == *name));
            if let Some(from) = from {
                let far = ends.iter().enumerate().find(|(i, _)| *i != from);
                if let Some((_, (_, at))) = far {
                    found.push((object, at.clone()));
                }
            }
        }
        Ok(found)
    }

    fn associators(&self, path: &Path, walk: &Walk) -> Result<Vec<Instance>, Error> {
        let is = |class: &Name, wanted: &Option<Name>| {
            wanted
                .as_ref()
                .is_none_or(|w| self.schema.is_a(class.as_str(), w.as_str()))
        };
        let mut found = Vec::new();
        for (link, far) in self.links(path, walk.role.as_ref())? {
            let far = self.find(&far)?;
            if is(&link.class, &walk.assoc_class) && is(&far.class, &walk.result_class) {
                found.push(far.clone());
            }
        }
        Ok(found)
    }

    fn references(&self, path: &Path, walk: &Walk) -> Result<Vec<Instance>, Error> {
        let links = self.links(path, walk.role.as_ref())?;
        Ok(links.into_iter().map(|(link, _)| link.clone()).collect())
    }

    fn query(&self, query: Query) -> Result<Vec<Instance>, Error> {
        match query {
            Query::Select(select) => {
                let env = Environment {
                    schema: &self.schema,
                    host: HOST,
                    namespace: NAMESPACE,
                };
                let all = self.of_class(&select.class)?;
                let matching = all.into_iter().filter(|o| select.matches(o, &env));
                Ok(matching.map(|o| select.project(o)).collect())
            }
            Query::Associators(t) => {
                let walk = Walk {
                    assoc_class: t.assoc_class,
                    result_class: t.result_class,
                    role: t.role,
                    result_role: t.result_role,
                };
                self.associators(&t.path, &walk)
            }
            Query::References(t) => self.references(&t.path, &Walk::default()),
        }
    }

    async fn invoke(
        &self,
        path: &Path,
        method: &Name,
        parameters: &[(Name, Value)],
    ) -> Result<Response, Error> {
        self.find(path)?;
        let declared = self
            .class(&path.class)?
            .method(method.as_str())
            .ok_or_else(|| {
                Error::new(
                    Status::MethodNotFound,
                    format!("{} has no method {method}.", path.class),
                )
            })?;
        let given = |name: &str| {
            let found = parameters.iter().find(|(n, _)| n.is(name));
            found.map_or(Value::Null, |(_, value)| value.clone())
        };
        let mut out: Vec<(&str, Value)> = Vec::new();
        let mut return_value = 0u32;
        match method.as_str() {
            "RequestStateChange" => {
                let state = given("RequestedState")
                    .coerce(Type::Uint16, false)
                    .map_err(|e| Error::new(Status::TypeMismatch, e.to_string()))?;
                return_value = if state == Value::Uint16(2) {
                    4096
                } else {
                    32775
                };
                if return_value == 4096 {
                    out.push(("Job", job("J1").into()));
                }
            }
            "DefineSystem" => {
                let context = cim::embedded::Context::with(&self.schema);
                let settings = given("SystemSettings");
                let read = match settings.as_str() {
                    Some(text) => cim::embedded::read(text, &context),
                    None => return Err(Error::new(Status::InvalidParameter, "No SystemSettings.")),
                };
                let read = read.map_err(|e| Error::new(Status::InvalidParameter, e.to_string()))?;
                let name = read.get_str("ElementName").unwrap_or("?").to_owned();
                let count = given("ResourceSettings").items().len();
                let made = Path::class("Msvm_ComputerSystem")
                    .key("CreationClassName", "Msvm_ComputerSystem")
                    .key("Name", format!("{name}+{count}"))
                    .in_namespace(NAMESPACE)
                    .on_host(HOST);
                out.push(("ResultingSystem", made.into()));
                out.push(("Job", job("J2").into()));
                return_value = 4096;
            }
            "GetErrorEx" => {
                let error = Instance::new("Msvm_Error").with("Message", "disk <full>");
                let text = cim::embedded::write(&error);
                out.push(("Errors", vec![text.clone(), text].into()));
            }
            "Echo" => {
                let seen: Vec<String> = parameters
                    .iter()
                    .map(|(name, value)| format!("{name}={value:?}"))
                    .collect();
                out.push(("Seen", seen.into()));
                out.push(("OutText", given("Text")));
                out.push(("OutNumbers", given("Numbers")));
                let paths: Vec<Path> = given("Systems")
                    .items()
                    .iter()
                    .filter_map(Value::as_path)
                    .collect();
                out.push(("OutSystems", paths.into()));
                out.push(("OutData", given("Data")));
                let at: Datetime = "20260102030405.000000+060".parse().expect("datetime");
                out.push(("OutTime", at.into()));
            }
            "Panic" => panic!("on purpose"),
            "Wait" => {
                self.begun.fetch_add(1, Ordering::SeqCst);
                let permit = self.gate.acquire().await.expect("gate");
                permit.forget();
                self.ended.fetch_add(1, Ordering::SeqCst);
            }
            _ => {
                let mut error = Error::new(Status::Failed, "It failed, as asked for.");
                error.chain = vec![
                    Instance::new("Msvm_Error")
                        .with("Message", "It failed, as asked for.")
                        .with("MessageID", "KVMMS-0042")
                        .with("ErrorType", 4u16),
                    Instance::new("Msvm_Error").with("Message", "No space left on device."),
                ];
                return Err(error);
            }
        }
        let parameters = declared.parameters.iter().filter(|p| p.is_out()).map(|p| {
            let value = out.iter().find(|(name, _)| p.name.is(name));
            let value = value.map_or(Value::Null, |(_, value)| value.clone());
            OutParameter {
                name: p.name.clone(),
                ty: p.ty,
                array: p.array,
                embedded: p.embedded_class().map(|c| Name::from(c.to_owned())),
                value: value.coerce(p.ty, p.array).expect("declared type"),
            }
        });
        Ok(Response::Invoked {
            return_value: Value::Uint32(return_value),
            parameters: parameters.collect(),
        })
    }
}

#[async_trait]
impl Handler for Scripted {
    async fn handle(&self, request: Request) -> Result<Response, Error> {
        *self.last_key.lock().expect("key") = request.request_key.clone();
        *self.last_caller.lock().expect("caller") = Some(request.caller.clone());
        if !request.namespace.eq_ignore_ascii_case(NAMESPACE) {
            return Err(Error::new(
                Status::InvalidNamespace,
                format!("There is no namespace {}.", request.namespace),
            ));
        }
        Ok(match request.operation {
            Operation::GetClass { class } => Response::Classes(vec![self.class(&class)?.clone()]),
            Operation::EnumerateClasses { class, deep } => {
                let below = |c: &&Class| match (&class, deep) {
                    (None, true) => true,
                    (None, false) => c.superclass.is_none(),
                    (Some(top), false) => c.superclass.as_ref() == Some(top),
                    (Some(top), true) => {
                        c.name != *top && self.schema.is_a(c.name.as_str(), top.as_str())
                    }
                };
                Response::Classes(
                    self.schema
                        .classes()
                        .iter()
                        .filter(below)
                        .cloned()
                        .collect(),
                )
            }
            Operation::GetInstance { path } => Response::Instances(vec![self.find(&path)?.clone()]),
            Operation::EnumerateInstances { class } => Response::Instances(self.of_class(&class)?),
            Operation::Query { query } => Response::Instances(self.query(query)?),
            Operation::Associators { path, walk } => {
                Response::Instances(self.associators(&path, &walk)?)
            }
            Operation::References { path, walk } => {
                Response::Instances(self.references(&path, &walk)?)
            }
            Operation::Invoke {
                path,
                method,
                parameters,
            } => self.invoke(&path, &method, &parameters).await?,
            change @ (Operation::CreateInstance { .. }
            | Operation::ModifyInstance { .. }
            | Operation::DeleteInstance { .. }) => {
                let (class, created) = match &change {
                    Operation::CreateInstance { instance } => (&instance.class, true),
                    Operation::ModifyInstance { path, .. } | Operation::DeleteInstance { path } => {
                        (&path.class, false)
                    }
                    _ => unreachable!("others are matched above"),
                };
                if !class.is("Msvm_SpecialSystem") {
                    return Err(Error::new(Status::NotSupported, "Not served here."));
                }
                self.changes.lock().expect("lock").push(change);
                if created {
                    let special = self
                        .objects
                        .iter()
                        .find(|o| o.class.is("Msvm_SpecialSystem"));
                    Response::Created(special.and_then(|o| o.path.clone()).expect("path"))
                } else {
                    Response::Done
                }
            }
        })
    }

    fn schema(&self, namespace: &str) -> Option<&dyn Schema> {
        namespace
            .eq_ignore_ascii_case(NAMESPACE)
            .then_some(&self.schema as &dyn Schema)
    }

    fn namespaces(&self) -> Vec<String> {
        vec![NAMESPACE.to_owned()]
    }

    fn host(&self) -> &str {
        HOST
    }
}
