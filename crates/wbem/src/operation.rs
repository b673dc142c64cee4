//! What every front end decodes into and every answer is encoded from.

use async_trait::async_trait;
use cim::{Class, Instance, Name, Path, Value};

use crate::{Error, Instances, Limit, Status};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The user's name, as authenticated.
    pub user: String,
    /// What the user may do.
    pub role: Role,
}

/// What a user may do; each role includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Read everything.
    Viewer,
    /// Start, stop, take points, export.
    Operator,
    /// Everything.
    Admin,
}

/// One operation with what surrounds it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The namespace with forward slashes and without ends (`root/virtualization/v2`).
    pub namespace: String,
    /// Who asks.
    pub caller: Caller,
    /// A key that makes a repeated method call return the first one's job (a WS-Management
    /// option or an HTTP header named `kvmms-request-key`); never the MessageID.
    pub request_key: Option<String>,
    /// What is asked.
    pub operation: Operation,
}

/// How an association is walked; `None` leaves a side open.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Walk {
    /// The class of the association.
    pub assoc_class: Option<Name>,
    /// The class of what is found.
    pub result_class: Option<Name>,
    /// The role of the start in the association.
    pub role: Option<Name>,
    /// The role of what is found.
    pub result_role: Option<Name>,
}

/// The operations both protocols know. Class names and paths are as the client spelled them.
#[derive(Clone, Debug)]
pub enum Operation {
    /// One class, resolved with its ancestors.
    GetClass {
        /// The class.
        class: Name,
    },
    /// The classes below one class, or below the root.
    EnumerateClasses {
        /// Where to start; `None` is the root.
        class: Option<Name>,
        /// Whole subtree or direct children only.
        deep: bool,
    },
    /// One instance. Partial keys are allowed where they name one instance only.
    GetInstance {
        /// Its path.
        path: Path,
    },
    /// All instances of a class and its subclasses.
    EnumerateInstances {
        /// The class.
        class: Name,
    },
    /// A WQL query.
    Query {
        /// The query.
        query: cim::wql::Query,
    },
    /// What is associated with an instance.
    Associators {
        /// The instance.
        path: Path,
        /// The filter.
        walk: Walk,
    },
    /// The association instances that name an instance.
    References {
        /// The instance.
        path: Path,
        /// The filter; `result_class` is the class of the association, `assoc_class` and `result_role` stay open.
        walk: Walk,
    },
    /// A method call.
    Invoke {
        /// The instance, or the class of a static method or singleton.
        path: Path,
        /// The method.
        method: Name,
        /// In parameters by name; each value as the protocol carried it (a string where it had no type).
        parameters: Vec<(Name, Value)>,
    },
    /// Creates an instance.
    CreateInstance {
        /// The instance.
        instance: Instance,
    },
    /// Changes an instance.
    ModifyInstance {
        /// Its path.
        path: Path,
        /// The properties to change.
        instance: Instance,
    },
    /// Deletes an instance.
    DeleteInstance {
        /// Its path.
        path: Path,
    },
}

/// What an operation answers; each operation has one shape.
#[derive(Debug)]
pub enum Response {
    /// To `GetClass`: one class. To `EnumerateClasses`: any number.
    Classes(Vec<Class>),
    /// To `GetInstance` (one), `EnumerateInstances`, `Query`, `Associators`, `References`: instances with every
    /// property of their class in the declared type, and their path with host and namespace.
    Instances(Vec<Instance>),
    /// The same to `EnumerateInstances`, made while they are pulled.
    Made(Instances),
    /// To `Invoke`: the return value and every out parameter (null where there is none), in
    /// the declared order and type.
    Invoked {
        /// The return value.
        return_value: Value,
        /// Out parameters.
        parameters: Vec<OutParameter>,
    },
    /// To `CreateInstance`.
    Created(Path),
    /// To `ModifyInstance` and `DeleteInstance`.
    Done,
}

impl Response {
    /// The instances, where the answer is some.
    pub(crate) fn instances(self) -> Option<Instances> {
        match self {
            Response::Instances(found) => Some(found.into()),
            Response::Made(found) => Some(found),
            _ => None,
        }
    }
}

/// An out parameter with its declaration, so that null ones keep their type.
#[derive(Clone, Debug, PartialEq)]
pub struct OutParameter {
    /// Its name.
    pub name: Name,
    /// Its type.
    pub ty: cim::Type,
    /// Whether it is an array.
    pub array: bool,
    /// The class of the instance its text holds (`EmbeddedInstance`).
    pub embedded: Option<Name>,
    /// Its value.
    pub value: Value,
}

/// The service behind the front ends.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Carries out one operation. Runs to its end even when the client goes away.
    async fn handle(&self, request: Request) -> Result<Response, Error>;

    /// The class declarations of a namespace, `None` where there is no such namespace.
    fn schema(&self, namespace: &str) -> Option<&dyn cim::Schema>;

    /// The namespaces served, for the interop namespace and for errors.
    fn namespaces(&self) -> Vec<String>;

    /// The host's name in paths.
    fn host(&self) -> &str;

    /// A bound of the server that a client ran into, in the words of the service.
    fn limit(&self, limit: &Limit) -> Error {
        Error::new(Status::LimitExceeded, format!("{limit}."))
    }
}
