//! Our client against our server, on every kind of connection.

use std::sync::Arc;

use cim::{Class, ClassTable, Name, Path, Schema, Value};
use wbem::Walk;
use wbem::auth::Credentials;
use wbem::client::{Client, ClientError, ClientOptions, Endpoint, Trust};
use wbem::server::{Listen, Options, Protocols, Server};

use crate::scripted::{NAMESPACE, OneUser, PASSWORD, Scripted, USER};
use crate::wire::start_with;

fn credentials() -> Option<Credentials> {
    Some(Credentials {
        user: USER.to_owned(),
        password: PASSWORD.to_owned(),
    })
}

/// The client's own copy of the schema.
fn schema() -> &'static dyn Schema {
    static TABLE: std::sync::OnceLock<ClassTable> = std::sync::OnceLock::new();
    TABLE.get_or_init(|| {
        let mof = cim::mof::parse(include_str!("schema.mof")).expect("mof");
        ClassTable::resolve(mof.classes).expect("schema")
    })
}

async fn connect(systems: usize, batch: u32) -> (Client, crate::wire::Running) {
    let running = start_with(Scripted::with_systems(systems), Options::default()).await;
    let endpoint = Endpoint::Http {
        host: "127.0.0.1".to_owned(),
        port: running.addr.port(),
    };
    let options = ClientOptions {
        batch,
        ..ClientOptions::default()
    };
    let client = Client::connect(endpoint, credentials(), options)
        .await
        .expect("connect");
    (client, running)
}

fn service() -> Path {
    Path::class("Msvm_VirtualSystemManagementService")
}

#[tokio::test]
async fn instances_come_whole_in_pieces_with_their_paths() {
    for with_schema in [false, true] {
        let (mut client, _running) = connect(7, 3).await;
        assert_eq!(client.identity().vendor, "kvmms");
        if with_schema {
            client = client.with_schema(schema());
        }
        let found = client
            .enumerate("Msvm_ComputerSystem")
            .await
            .expect("enumerate");
        assert_eq!(found.len(), 8);
        let special = found.last().expect("last");
        assert_eq!(special.class, Name::of("Msvm_SpecialSystem"));
        let path = special.path.clone().expect("path");
        assert_eq!(path.get_str("Name"), Some("special"));
        assert_eq!(path.namespace.as_deref(), Some(NAMESPACE));
        let state = special.get("EnabledState");
        let expected = if with_schema {
            Value::Uint16(3)
        } else {
            Value::from("3")
        };
        assert_eq!(*state, expected);
        let got = client.get(&path).await.expect("get");
        assert_eq!(got.get_str("Extra"), Some("more"));
        assert_eq!(got.path, Some(path));
        let found = client
            .query("SELECT Name FROM Msvm_ComputerSystem WHERE EnabledState = 2")
            .await
            .expect("query");
        assert_eq!(found.len(), 4);
        assert_eq!(found[0].properties.len(), 1);
    }
}

#[tokio::test]
async fn associations_are_walked() {
    let (client, _running) = connect(2, 100).await;
    let job = Path::class("Msvm_ConcreteJob").key("InstanceID", "J1");
    let walk = Walk {
        assoc_class: Some(Name::of("Msvm_AffectedJobElement")),
        result_class: Some(Name::of("Msvm_ComputerSystem")),
        ..Walk::default()
    };
    let found = client.associators(&job, &walk).await.expect("associators");
    assert_eq!(found.len(), 1);
    let links = client
        .references(&job, &Walk::default())
        .await
        .expect("references");
    let far = links[0]
        .get("AffectedElement")
        .as_path()
        .expect("a reference");
    assert_eq!(Some(&far), found[0].path.as_ref());
}

#[tokio::test]
async fn methods_are_called_with_typed_results() {
    let (client, running) = connect(2, 100).await;
    let client = client.with_schema(schema());
    let settings = cim::Instance::new("Msvm_VirtualSystemSettingData").with("ElementName", "a & b");
    let parameters = [
        (Name::of("SystemSettings"), settings.clone().into()),
        (
            Name::of("ResourceSettings"),
            vec![settings.clone(), settings].into(),
        ),
        (Name::of("ReferenceConfiguration"), Value::Null),
    ];
    let invoked = client
        .invoke(&service(), "DefineSystem", &parameters)
        .await
        .expect("invoke");
    assert_eq!(invoked.return_value, Some(4096));
    let made = invoked.get("ResultingSystem").as_path().expect("path");
    assert_eq!(made.get_str("Name"), Some("a & b+2"));
    assert!(
        running.handler.last_key.lock().expect("key").is_some(),
        "every call has a key"
    );
    let system = Path::class("Msvm_ComputerSystem").key("Name", "s\\1");
    let at: cim::Datetime = "20260102030405.000000+000".parse().expect("datetime");
    let parameters = [
        (Name::of("Text"), Value::Datetime(at)),
        (Name::of("Numbers"), vec![7u32].into()),
        (
            Name::of("Systems"),
            vec![system.clone(), system.clone()].into(),
        ),
    ];
    let invoked = client
        .invoke(&service(), "Echo", &parameters)
        .await
        .expect("invoke");
    assert_eq!(
        *invoked.get("OutNumbers"),
        Value::from(vec![7u32]),
        "an array of one stays one"
    );
    assert_eq!(
        *invoked.get("OutSystems"),
        Value::from(vec![system.clone(), system])
    );
    assert!(matches!(invoked.get("OutTime"), Value::Datetime(_)));
    assert!(invoked.get("OutData").is_null());
}

#[tokio::test]
async fn a_fault_comes_with_codes_and_causes() {
    let (client, _running) = connect(1, 100).await;
    let error = client
        .invoke(&service(), "Fail", &[])
        .await
        .expect_err("fails");
    let fault = error.fault().expect("fault");
    assert_eq!(fault.reason, "It failed, as asked for.");
    assert_eq!((fault.code, fault.cim_status), (0x8004_1001, Some(1)));
    assert_eq!(fault.machine.as_deref(), Some("HV1"));
    let messages: Vec<_> = fault
        .chain
        .iter()
        .filter_map(|e| e.get_str("Message"))
        .collect();
    assert_eq!(
        messages,
        ["It failed, as asked for.", "No space left on device."]
    );
    let missing = Path::class("Msvm_ConcreteJob").key("InstanceID", "J9");
    let error = client.get(&missing).await.expect_err("not there");
    assert!(error.fault().expect("fault").is_not_found());
    let error = client.query("SELECT").await.expect_err("no query");
    assert_eq!(error.fault().expect("fault").subcode, "CannotProcessFilter");
}

#[tokio::test]
async fn a_class_is_read_with_everything_inherited() {
    let (client, _running) = connect(1, 100).await;
    let class = client.class("Msvm_ComputerSystem").await.expect("class");
    let keys: Vec<_> = Class::keys(&class).map(|k| k.name.to_string()).collect();
    assert_eq!(keys, ["CreationClassName", "Name"]);
    assert!(class.method("RequestStateChange").is_some());
}

#[tokio::test]
async fn wrong_credentials_say_what_is_offered() {
    let (_client, running) = connect(1, 100).await;
    let endpoint = Endpoint::Http {
        host: "127.0.0.1".to_owned(),
        port: running.addr.port(),
    };
    let wrong = Some(Credentials {
        user: USER.to_owned(),
        password: "wrong".to_owned(),
    });
    let client = Client::connect(endpoint, wrong, ClientOptions::default())
        .await
        .expect("identify is open");
    let error = client.enumerate("CIM_System").await.expect_err("refused");
    assert!(matches!(error, ClientError::Unauthorized { ref offered, .. } if offered == "Basic"));
}

#[tokio::test]
async fn the_local_socket_needs_no_password() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("kvmms.sock");
    let handler = Arc::new(Scripted::new());
    let dynamic: Arc<dyn wbem::Handler> = Arc::<Scripted>::clone(&handler);
    let mut server = Server::new(dynamic, Arc::new(wbem::auth::Nobody), Options::default());
    server
        .listen(Listen::Unix { path: path.clone() })
        .await
        .expect("listen");
    tokio::spawn(server.run(std::future::pending()));
    let client = Client::connect(Endpoint::Unix(path), None, ClientOptions::default())
        .await
        .expect("connect");
    assert_eq!(
        client
            .enumerate("Msvm_ComputerSystem")
            .await
            .expect("enumerate")
            .len(),
        4
    );
    let caller = handler
        .last_caller
        .lock()
        .expect("caller")
        .clone()
        .expect("caller");
    assert_eq!(caller.role, wbem::Role::Admin);
}

#[tokio::test]
async fn tls_takes_the_certificates_it_is_told_and_no_others() {
    let dir = tempfile::tempdir().expect("dir");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let tls = wbem::tls::load_or_make(dir.path(), &names).expect("tls");
    let mut server = Server::new(
        Arc::new(Scripted::new()),
        Arc::new(OneUser),
        Options::default(),
    );
    let listen = Listen::Tcp {
        addr: ([127, 0, 0, 1], 0).into(),
        tls: Some(tls),
        protocols: Protocols::BOTH,
    };
    let port = server
        .listen(listen)
        .await
        .expect("listen")
        .addr()
        .expect("addr")
        .port();
    tokio::spawn(server.run(std::future::pending()));
    let connect = |host: &str, trust| {
        let endpoint = Endpoint::Https {
            host: host.to_owned(),
            port,
            trust,
        };
        Client::connect(endpoint, credentials(), ClientOptions::default())
    };
    let ca = dir.path().join(wbem::tls::CERTIFICATE);
    for host in ["localhost", "127.0.0.1"] {
        let client = connect(host, Trust::Ca(ca.clone())).await.expect(host);
        assert_eq!(
            client
                .enumerate("Msvm_ConcreteJob")
                .await
                .expect("enumerate")
                .len(),
            1
        );
    }
    assert!(connect("localhost", Trust::Insecure).await.is_ok());
    let refused = connect("localhost", Trust::System).await;
    assert!(matches!(refused, Err(ClientError::Tls { .. })));
}

#[tokio::test]
async fn no_server_is_an_error_with_its_cause() {
    let endpoint =
        Endpoint::parse("unix:/nonexistent/kvmms.sock", Trust::System).expect("endpoint");
    let error = Client::connect(endpoint, None, ClientOptions::default())
        .await
        .err()
        .expect("no server");
    assert_eq!(
        error.to_string(),
        "cannot connect to /nonexistent/kvmms.sock"
    );
    assert!(std::error::Error::source(&error).is_some());
}

#[tokio::test]
async fn a_restarted_server_is_found_again() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("kvmms.sock");
    let begin = async || {
        let handler = Arc::new(Scripted::new());
        let mut server = Server::new(handler, Arc::new(wbem::auth::Nobody), Options::default());
        let listen = Listen::Unix { path: path.clone() };
        server.listen(listen).await.expect("listen");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        (stop, task)
    };
    let (stop, task) = begin().await;
    let endpoint = Endpoint::Unix(path.clone());
    let client = Client::connect(endpoint, None, ClientOptions::default())
        .await
        .expect("connect");
    assert!(client.enumerate("Msvm_ConcreteJob").await.is_ok());
    stop.send(()).expect("running");
    task.await.expect("ended");
    let error = client.enumerate("Msvm_ConcreteJob").await;
    assert!(
        matches!(error, Err(ClientError::Connect { .. })),
        "{error:?}"
    );
    let _running = begin().await;
    assert!(client.enumerate("Msvm_ConcreteJob").await.is_ok());
}
