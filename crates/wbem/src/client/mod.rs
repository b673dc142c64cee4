//! A WS-Management client: what the command line uses, against kvmms or a real Hyper-V host.
//!
//! One [`Client`] keeps one connection and sends one request at a time over it; it may be shared between
//! tasks. Values in answers have the types of the [`cim::Schema`] given to it, else they are strings.
//! Errors: [`ClientError`]; a fault of the server is [`ClientError::Fault`] with its cause chain.

mod answer;
mod endpoint;
mod error;
mod handshake;
mod request;
mod transport;
mod trust;

use std::collections::VecDeque;
use std::time::Duration;

use cim::xml::Element;
use cim::{Class, Instance, Name, Path, Schema, Value};

use crate::Walk;
use crate::auth::Credentials;
use crate::wsman::{instance, ns};

pub use endpoint::{Endpoint, Trust};
pub use error::{ClientError, ServerFault};
pub use handshake::Authentication;

use answer::Answer;
use request::Call;
use transport::Transport;

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// How long one request may take, connecting included.
    pub timeout: Duration,
    /// The namespace of class names and of paths that name none.
    pub namespace: String,
    /// Most items asked for in one answer.
    pub batch: u32,
    /// How the client says who it is.
    pub authentication: Authentication,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            timeout: Duration::from_secs(120),
            namespace: "root/virtualization/v2".to_owned(),
            batch: 200,
            authentication: Authentication::Auto,
        }
    }
}

/// What a server says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who made it: `kvmms`, `Microsoft Corporation`.
    pub vendor: String,
    /// Its version.
    pub version: String,
    /// The protocol it speaks.
    pub protocol: String,
}

/// What a method gave back.
#[derive(Clone, Debug, PartialEq)]
pub struct Invoked {
    /// The return value; `None` where the method has none or it is no number.
    pub return_value: Option<u32>,
    /// Out parameters that came, null ones too.
    pub out: Vec<(Name, Value)>,
}

impl Invoked {
    /// An out parameter; null and a missing one are the same here.
    pub fn get(&self, name: &str) -> &Value {
        static NULL: Value = Value::Null;
        self.out
            .iter()
            .find(|(n, _)| n.is(name))
            .map_or(&NULL, |(_, value)| value)
    }
}

/// A connection to a server.
pub struct Client {
    transport: Transport,
    options: ClientOptions,
    schema: Option<&'static dyn Schema>,
    identity: Identity,
}

impl Client {
    /// Connects, and asks the server what it is. Credentials are not needed on a local socket.
    pub async fn connect(
        endpoint: Endpoint,
        credentials: Option<Credentials>,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        let transport = Transport::new(
            endpoint,
            credentials,
            options.authentication,
            options.timeout,
        )?;
        let body = transport.send(request::identify(), true).await?;
        let identity = answer::identity(&body)?;
        Ok(Client {
            transport,
            options,
            schema: None,
            identity,
        })
    }

    /// Types of values come from this schema from now on, and instances get paths from its keys.
    pub fn with_schema(mut self, schema: &'static dyn Schema) -> Self {
        self.schema = Some(schema);
        self
    }

    /// What the server said it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The namespace of class names and of paths that name none.
    pub fn namespace(&self) -> &str {
        &self.options.namespace
    }

    async fn call(&self, call: Call<'_>) -> Result<Element, ClientError> {
        let text = call.write(&self.transport.url(), self.options.timeout);
        let body = self.transport.send(text, call.is_repeatable()).await?;
        Answer::read(&body).map(|answer| answer.body)
    }

    fn class_named(&self, name: &str) -> Option<&'static Class> {
        self.schema.and_then(|s| s.class(name))
    }

    fn place<'a>(&'a self, path: &'a Path) -> &'a str {
        path.namespace.as_deref().unwrap_or(&self.options.namespace)
    }

    /// One instance.
    pub async fn get(&self, path: &Path) -> Result<Instance, ClientError> {
        let namespace = self.place(path);
        let action = format!("{}/Get", ns::TRANSFER);
        let body = self
            .call(Call::new(&action, namespace, path.class.as_str()).keys(&path.keys))
            .await?;
        let item = body.children.first().ok_or_else(answer::empty)?;
        let mut found = self.read_item(item, namespace, path.class.as_str())?;
        found.path.get_or_insert_with(|| path.clone());
        Ok(found)
    }

    /// All instances of a class and its subclasses.
    pub async fn enumerate(&self, class: &str) -> Result<Vec<Instance>, ClientError> {
        let enumeration = self.open(class, None, class).await?;
        enumeration.all().await
    }

    /// What a WQL query finds.
    pub async fn query(&self, wql: &str) -> Result<Vec<Instance>, ClientError> {
        let enumeration = self.open("*", Some(wql), "").await?;
        enumeration.all().await
    }

    /// What a WQL query finds, piece by piece.
    pub async fn query_pieces(&self, wql: &str) -> Result<Enumeration<'_>, ClientError> {
        self.open("*", Some(wql), "").await
    }

    /// What is associated with an instance.
    pub async fn associators(
        &self,
        path: &Path,
        walk: &Walk,
    ) -> Result<Vec<Instance>, ClientError> {
        let wql = request::traversal("ASSOCIATORS", path, walk);
        self.open_in(self.place(path), "*", Some(&wql), "")
            .await?
            .all()
            .await
    }

    /// The association instances that name an instance.
    pub async fn references(&self, path: &Path, walk: &Walk) -> Result<Vec<Instance>, ClientError> {
        let wql = request::traversal("REFERENCES", path, walk);
        self.open_in(self.place(path), "*", Some(&wql), "")
            .await?
            .all()
            .await
    }

    /// Calls a method. Null parameters are left out. A kvmms server gets a fresh request key, so that the
    /// call is carried out once even when the connection breaks and it is sent again.
    pub async fn invoke(
        &self,
        path: &Path,
        method: &str,
        parameters: &[(Name, Value)],
    ) -> Result<Invoked, ClientError> {
        let key = uuid::Uuid::new_v4().to_string();
        self.invoke_keyed(path, method, parameters, &key).await
    }

    /// The same with a request key of one's own: a call repeated under it returns the first one's job.
    pub async fn invoke_keyed(
        &self,
        path: &Path,
        method: &str,
        parameters: &[(Name, Value)],
        key: &str,
    ) -> Result<Invoked, ClientError> {
        self.invoke_as(path, method, parameters, key, true).await
    }

    /// The same for a method that starts no job, so that there is none to give back to a repetition: it carries a
    /// key, and is sent once at most.
    pub async fn invoke_once(
        &self,
        path: &Path,
        method: &str,
        parameters: &[(Name, Value)],
        key: &str,
    ) -> Result<Invoked, ClientError> {
        self.invoke_as(path, method, parameters, key, false).await
    }

    async fn invoke_as(
        &self,
        path: &Path,
        method: &str,
        parameters: &[(Name, Value)],
        key: &str,
        repeatable: bool,
    ) -> Result<Invoked, ClientError> {
        let namespace = self.place(path);
        let class = path.class.as_str();
        let action = format!("{}/{method}", request::class_uri(namespace, class));
        let mut call = Call::new(&action, namespace, class)
            .keys(&path.keys)
            .method(method, parameters);
        // Windows would hand an option it does not know to the provider.
        if self.identity.vendor == "kvmms" {
            call = call.request_key(key, repeatable);
        }
        let body = self.call(call).await?;
        let output = body.children.first().ok_or_else(answer::empty)?;
        let declared = self.class_named(class).and_then(|c| c.method(method));
        answer::invoked(output, declared)
    }

    /// The declaration of a class with everything inherited.
    pub async fn class(&self, name: &str) -> Result<Class, ClientError> {
        let action = format!("{}/Get", ns::TRANSFER);
        let uri = format!("{}*", ns::CIM_XML);
        let keys = [(Name::of("ClassName"), Value::from(name))];
        let call = Call::new(&action, &self.options.namespace, "")
            .uri(&uri)
            .keys(&keys);
        let body = self.call(call).await?;
        let class = body.children.first().ok_or_else(answer::empty)?;
        cim::cimxml::class(class).map_err(|e| answer::unreadable(&e))
    }

    async fn open(
        &self,
        class: &str,
        wql: Option<&str>,
        fallback: &str,
    ) -> Result<Enumeration<'_>, ClientError> {
        self.open_in(&self.options.namespace, class, wql, fallback)
            .await
    }

    async fn open_in(
        &self,
        namespace: &str,
        class: &str,
        wql: Option<&str>,
        fallback: &str,
    ) -> Result<Enumeration<'_>, ClientError> {
        let action = format!("{}/Enumerate", ns::ENUMERATION);
        // With a schema the path follows from the keys; without one the server has to tell it, which it
        // cannot for the cut instances of a projection.
        let projection = wql.is_some_and(|q| {
            let q = q.trim_start().to_ascii_lowercase();
            q.strip_prefix("select")
                .is_some_and(|rest| !rest.trim_start().starts_with('*'))
        });
        let with_paths = self.schema.is_none() && !projection;
        let call =
            Call::new(&action, namespace, class).enumerate(wql, with_paths, self.options.batch);
        let body = self.call(call).await?;
        let response = answer::child(&body, ns::ENUMERATION, "EnumerateResponse")?;
        let fallback = match (fallback, wql) {
            ("", Some(wql)) => from_class(wql),
            (class, _) => class.to_owned(),
        };
        let mut enumeration = Enumeration {
            client: self,
            namespace: namespace.to_owned(),
            class: class.to_owned(),
            fallback,
            context: answer::context(response),
            ready: VecDeque::new(),
        };
        if let Some(items) = response.child(ns::WSMAN, "Items") {
            enumeration.take(items)?;
        }
        if response.child(ns::WSMAN, "EndOfSequence").is_some() {
            enumeration.context = None;
        }
        Ok(enumeration)
    }

    /// Reads one item: an instance, a `w:Item` with instance and reference, or a `w:XmlFragment` (a
    /// projection of Windows).
    fn read_item(
        &self,
        item: &Element,
        namespace: &str,
        fallback: &str,
    ) -> Result<Instance, ClientError> {
        if item.is(ns::WSMAN, "Item") {
            let mut children = item.children.iter();
            let object = children.next().ok_or_else(answer::empty)?;
            let mut found = self.read_item(object, namespace, fallback)?;
            if let Some(reference) = children.next() {
                let path = crate::wsman::epr::read(reference).map_err(|f| answer::unread(&f))?;
                found.path = Some(instance::declared_keys(
                    path,
                    self.class_named(found.class.as_str()),
                ));
            }
            return Ok(found);
        }
        let name = if item.is(ns::WSMAN, "XmlFragment") {
            fallback.to_owned()
        } else {
            item.local.clone()
        };
        let read = instance::read_properties(item, name).map_err(|f| answer::unread(&f))?;
        let class = self.class_named(read.class.as_str());
        let mut found = instance::declared(read, class);
        if let Some(class) = class {
            let mut path = Path::class(class.name.clone()).in_namespace(namespace);
            for key in class.keys() {
                let value = found.get(key.name.as_str());
                if !value.is_null() {
                    path.keys.push((key.name.clone(), value.clone()));
                }
            }
            found.path = (!path.keys.is_empty()).then_some(path);
        }
        Ok(found)
    }
}

/// The class a SELECT is about.
fn from_class(wql: &str) -> String {
    let mut words = wql.split_whitespace();
    words
        .by_ref()
        .find(|word| word.eq_ignore_ascii_case("from"))
        .and_then(|_| words.next())
        .unwrap_or_default()
        .to_owned()
}

/// An enumeration under way: read to its end with [`Enumeration::next`] or [`Enumeration::all`].
pub struct Enumeration<'a> {
    client: &'a Client,
    namespace: String,
    class: String,
    fallback: String,
    context: Option<String>,
    ready: VecDeque<Instance>,
}

impl Enumeration<'_> {
    fn take(&mut self, items: &Element) -> Result<(), ClientError> {
        for item in &items.children {
            let read = self
                .client
                .read_item(item, &self.namespace, &self.fallback)?;
            self.ready.push_back(read);
        }
        Ok(())
    }

    /// The next instance, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Instance>, ClientError> {
        while self.ready.is_empty() {
            let Some(context) = self.context.take() else {
                return Ok(None);
            };
            let action = format!("{}/Pull", ns::ENUMERATION);
            let call = Call::new(&action, &self.namespace, &self.class)
                .pull(&context, self.client.options.batch);
            let body = self.client.call(call).await?;
            let response = answer::child(&body, ns::ENUMERATION, "PullResponse")?;
            if response.child(ns::ENUMERATION, "EndOfSequence").is_none() {
                // The context may change with each answer; one that is left out stays as it is.
                self.context = answer::context(response).or(Some(context));
            }
            if let Some(items) = response.child(ns::ENUMERATION, "Items") {
                self.take(items)?;
            }
        }
        Ok(self.ready.pop_front())
    }

    /// All that is left.
    pub async fn all(mut self) -> Result<Vec<Instance>, ClientError> {
        let mut found = Vec::new();
        while let Some(instance) = self.next().await? {
            found.push(instance);
        }
        Ok(found)
    }
}

/// Reads bytes as every kind of answer.
pub(crate) fn probe(bytes: &[u8]) {
    let _ = answer::identity(bytes);
    let Ok(answer) = Answer::read(bytes) else {
        return;
    };
    for at in &answer.body.children {
        let _ = answer::context(at);
        let _ = answer::invoked(at, None);
        let _ = cim::cimxml::class(at);
        for inner in &at.children {
            let _ = instance::read_properties(inner, "X");
            let _ = crate::wsman::epr::read(inner);
        }
    }
}
