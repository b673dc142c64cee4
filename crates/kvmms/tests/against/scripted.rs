//! A server that serves what a test tells it to, on a socket in a directory of its own.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path as FilePath, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use cim::wql::{Environment, Query};
use cim::{Instance, Name, Path, Schema, Value};
use tempfile::TempDir;
use wbem::auth::Nobody;
use wbem::server::{Listen, Options, Server};
use wbem::{Error, Handler, Operation, OutParameter, Request, Response, Status};

const NAMESPACE: &str = "root/virtualization/v2";

/// A method call the server got.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) parameters: Vec<(Name, Value)>,
    pub(crate) key: Option<String>,
}

impl Call {
    /// An in parameter.
    pub(crate) fn get(&self, name: &str) -> Value {
        let found = self.parameters.iter().find(|(n, _)| n.is(name));
        found.map_or(Value::Null, |(_, v)| v.clone())
    }

    /// An instance or several among the in parameters.
    pub(crate) fn instances(&self, name: &str) -> Vec<Instance> {
        let context = cim::embedded::Context::with(msvm::virtualization());
        let value = self.get(name);
        let texts = value.items().iter().filter_map(Value::as_str);
        texts
            .map(|t| cim::embedded::read(t, &context).expect("an instance"))
            .collect()
    }
}

/// A return value with out parameters.
pub(crate) type Answer = (u32, Vec<(&'static str, Value)>);
type Script = dyn Fn(&World, &Call) -> Answer + Send + Sync;

/// What the server holds.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) instances: Mutex<Vec<Instance>>,
    pub(crate) calls: Mutex<Vec<Call>>,
    /// How often an instance was asked for by its path.
    pub(crate) gets: AtomicUsize,
}

impl World {
    /// The instance with that InstanceID or Name changes.
    pub(crate) fn change(&self, id: &str, change: impl Fn(&mut Instance)) {
        let mut all = self.instances.lock().expect("lock");
        for i in all.iter_mut().filter(|i| is(i, id)) {
            change(i);
        }
    }

    /// An instance goes.
    pub(crate) fn remove(&self, id: &str) {
        self.instances.lock().expect("lock").retain(|i| !is(i, id));
    }

    /// One comes.
    pub(crate) fn add(&self, instance: Instance) {
        self.instances
            .lock()
            .expect("lock")
            .push(complete(instance));
    }

    /// The methods called so far.
    pub(crate) fn methods(&self) -> Vec<String> {
        let calls = self.calls.lock().expect("lock");
        calls.iter().map(|c| c.method.clone()).collect()
    }

    /// The calls of a method.
    pub(crate) fn calls_of(&self, method: &str) -> Vec<Call> {
        let calls = self.calls.lock().expect("lock");
        calls
            .iter()
            .filter(|c| c.method == method)
            .cloned()
            .collect()
    }
}

fn is(i: &Instance, id: &str) -> bool {
    i.get_str("InstanceID") == Some(id) || i.get_str("Name") == Some(id)
}

fn complete(mut instance: Instance) -> Instance {
    msvm::virtualization()
        .complete(&mut instance)
        .expect("a declared class");
    let class = msvm::virtualization()
        .class(instance.class.as_str())
        .expect("class");
    let mut path = Path::class(class.name.clone()).in_namespace(NAMESPACE);
    for key in class.keys() {
        path.keys
            .push((key.name.clone(), instance.get(key.name.as_str()).clone()));
    }
    instance.path = Some(path);
    instance
}

struct Scripted {
    world: Arc<World>,
    script: Box<Script>,
}

#[async_trait]
impl Handler for Scripted {
    async fn handle(&self, request: Request) -> Result<Response, Error> {
        let schema = msvm::virtualization();
        let of_class = |class: &Name| -> Vec<Instance> {
            let all = self.world.instances.lock().expect("lock");
            let fits = all
                .iter()
                .filter(|i| schema.is_a(i.class.as_str(), class.as_str()));
            fits.cloned().collect()
        };
        match request.operation {
            Operation::EnumerateInstances { class } => Ok(Response::Instances(of_class(&class))),
            Operation::Query {
                query: Query::Select(select),
            } => {
                let environment = Environment {
                    schema,
                    host: "test",
                    namespace: NAMESPACE,
                };
                let found = of_class(&select.class).into_iter();
                let found = found.filter(|i| select.matches(i, &environment));
                Ok(Response::Instances(
                    found.map(|i| select.project(i)).collect(),
                ))
            }
            Operation::Query {
                query: Query::Associators(traverse),
            } => {
                let class = traverse.result_class.expect("a class");
                Ok(Response::Instances(of_class(&class)))
            }
            Operation::GetInstance { path } => {
                self.world.gets.fetch_add(1, Ordering::SeqCst);
                let mut found = of_class(&path.class);
                found.retain(|i| {
                    path.keys
                        .iter()
                        .all(|(k, v)| i.get(k.as_str()).to_text() == v.to_text())
                });
                match found.pop() {
                    Some(one) => Ok(Response::Instances(vec![one])),
                    None => Err(Error::new(Status::NotFound, format!("there is no {path}"))),
                }
            }
            Operation::Invoke {
                path,
                method,
                parameters,
            } => {
                let call = Call {
                    method: method.to_string(),
                    parameters,
                    key: request.request_key,
                };
                self.world.calls.lock().expect("lock").push(call.clone());
                let class = schema.class(path.class.as_str()).expect("class");
                let declared = class.method(method.as_str()).expect("method");
                let (code, mut out) = (self.script)(&self.world, &call);
                let mut parameters = Vec::new();
                for p in declared.parameters.iter().filter(|p| p.is_out()) {
                    let at = out.iter().position(|(name, _)| p.name.is(name));
                    parameters.push(OutParameter {
                        name: p.name.clone(),
                        ty: p.ty,
                        array: p.array,
                        embedded: p.embedded_class().map(|c| c.to_owned().into()),
                        value: at.map_or(Value::Null, |at| out.swap_remove(at).1),
                    });
                }
                for (name, value) in out {
                    parameters.push(OutParameter {
                        name: name.into(),
                        ty: cim::Type::String,
                        array: true,
                        embedded: Some("Msvm_Error".into()),
                        value,
                    });
                }
                Ok(Response::Invoked {
                    return_value: Value::Uint32(code),
                    parameters,
                })
            }
            other => Err(Error::new(Status::NotSupported, format!("{other:?}"))),
        }
    }

    fn schema(&self, namespace: &str) -> Option<&dyn Schema> {
        msvm::namespace(namespace).map(|n| n as &dyn Schema)
    }

    fn namespaces(&self) -> Vec<String> {
        vec![NAMESPACE.to_owned()]
    }

    fn host(&self) -> &str {
        "test"
    }
}

/// A running server. Ends with the value.
pub(crate) struct Host {
    pub(crate) world: Arc<World>,
    pub(crate) dir: TempDir,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Host {
    /// Serves these instances; methods answer what the script says.
    pub(crate) fn new(
        instances: impl IntoIterator<Item = Instance>,
        script: impl Fn(&World, &Call) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let dir = TempDir::new().expect("a directory");
        let world = Arc::new(World::default());
        for instance in instances {
            world.add(instance);
        }
        let handler = Scripted {
            world: Arc::clone(&world),
            script: Box::new(script),
        };
        let path = dir.path().join("kvmms.sock");
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async move {
                let mut server =
                    Server::new(Arc::new(handler), Arc::new(Nobody), Options::default());
                server
                    .listen(Listen::Unix { path })
                    .await
                    .expect("a socket");
                ready.send(()).expect("a test that waits");
                server
                    .run(async move {
                        // Ends when the sender is dropped.
                        let _ = stopped.await;
                    })
                    .await;
            });
        });
        is_ready.recv().expect("a server");
        Host {
            world,
            dir,
            _stop: stop,
        }
    }

    /// The socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("kvmms.sock")
    }

    /// Runs the command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        run(&self.socket(), arguments)
    }
}

/// The command with these arguments, not yet started.
pub(crate) fn command(socket: &FilePath, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvmms"));
    command
        .env_remove("KVMMS_HOST")
        .env_remove("KVMMS_USER")
        .env_remove("KVMMS_PASSWORD_FILE")
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs the command over that socket to its end.
pub(crate) fn run(socket: &FilePath, arguments: &[&str]) -> Ran {
    command(socket, arguments)
        .output()
        .expect("a process")
        .into()
}

/// What a run of the command gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Ran {
            code: output.status.code().expect("an exit code"),
            out: String::from_utf8(output.stdout).expect("text"),
            err: String::from_utf8(output.stderr).expect("text"),
        }
    }
}

impl Ran {
    /// Standard output as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// A socket in front of a server that loses the answer to the first request that holds `needle`: the server has
/// carried it out, and the client sees its connection break.
pub(crate) fn losing(host: &Host, needle: &'static str) -> PathBuf {
    let path = host.dir.path().join("front.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let behind = host.socket();
    let lost = Arc::new(Mutex::new(false));
    std::thread::spawn(move || {
        for front in listener.incoming() {
            let (front, behind, lost) =
                (front.expect("a client"), behind.clone(), Arc::clone(&lost));
            std::thread::spawn(move || pass_on(front, &behind, needle, &lost));
        }
    });
    path
}

fn pass_on(mut front: UnixStream, behind: &FilePath, needle: &str, lost: &Mutex<bool>) {
    let mut back = UnixStream::connect(behind).expect("the server");
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = front.read(&mut buffer).unwrap_or(0);
        if n == 0 {
            return;
        }
        let request = &buffer[..n];
        let text = String::from_utf8_lossy(request).into_owned();
        back.write_all(request).expect("the server reads");
        let n = back.read(&mut buffer).unwrap_or(0);
        let mut lost = lost.lock().expect("lock");
        if text.contains(needle) && !*lost {
            *lost = true;
            let _ = front.shutdown(Shutdown::Both);
            return;
        }
        if front.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

/// The GUID of [`vm`].
pub(crate) const VM: &str = "11111111-AAAA-4000-8000-000000000001";
/// The GUID of [`job`].
pub(crate) const JOB: &str = "99999999-AAAA-4000-8000-000000000009";

/// A machine.
pub(crate) fn machine(id: &str, name: &str, state: u16) -> Instance {
    Instance::new("Msvm_ComputerSystem")
        .with("CreationClassName", "Msvm_ComputerSystem")
        .with("Name", id)
        .with("ElementName", name)
        .with("EnabledState", state)
        .with("OnTimeInMilliseconds", 61_000u64)
}

/// The machine `web` with its settings.
pub(crate) fn vm() -> Vec<Instance> {
    let id = format!("Microsoft:{VM}");
    vec![
        Instance::new("Msvm_ComputerSystem")
            .with("CreationClassName", "Msvm_ComputerSystem")
            .with("Name", "test")
            .with("EnabledState", 5u16)
            .with("ElementName", "test"),
        machine(VM, "web", 2),
        Instance::new("Msvm_VirtualSystemSettingData")
            .with("InstanceID", id.as_str())
            .with("ElementName", "web")
            .with("VirtualSystemSubType", "Microsoft:Hyper-V:SubType:1"),
        Instance::new("Msvm_MemorySettingData")
            .with("InstanceID", format!("{id}\\M"))
            .with("ResourceType", 4u16)
            .with("VirtualQuantity", 512u64),
        Instance::new("Msvm_ProcessorSettingData")
            .with("InstanceID", format!("{id}\\P"))
            .with("ResourceType", 3u16)
            .with("VirtualQuantity", 2u64),
    ]
}

/// A job in that state.
pub(crate) fn job(state: u16) -> Instance {
    Instance::new("Msvm_ConcreteJob")
        .with("InstanceID", JOB)
        .with("ElementName", "Doing something")
        .with("JobState", state)
        .with("PercentComplete", 40u16)
}

/// 4096 with [`job`].
pub(crate) fn started() -> Answer {
    let path = Path::class("Msvm_ConcreteJob")
        .in_namespace(NAMESPACE)
        .key("InstanceID", JOB);
    (4096, vec![("Job", path.into())])
}

/// A chain of errors as texts.
pub(crate) fn errors(messages: &[(&str, &str)]) -> Value {
    let texts = messages.iter().map(|(id, message)| {
        let error = Instance::new("Msvm_Error")
            .with("MessageID", *id)
            .with("Message", *message)
            .with("RecommendedActions", vec![format!("Mend {id}.")]);
        Value::from(cim::embedded::write(&error))
    });
    Value::Array(texts.collect())
}
