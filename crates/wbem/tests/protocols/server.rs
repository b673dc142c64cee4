//! HTTP: who may call, what connections may do, how the server stops.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use wbem::server::{Listen, ListenError, Options, Protocols, Server};

use crate::scripted::{OneUser, Scripted};
use crate::wire::{Connection, Running, basic, post, start, start_with};

const WMI: &str = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2";

fn invoke(method: &str) -> String {
    let uri = format!("{WMI}/Msvm_VirtualSystemManagementService");
    format!(
        "<s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\" xmlns:a=\"http://schemas.xmlsoap.org/ws/2004/08/addressing\" \
         xmlns:w=\"http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd\"><s:Header><a:Action>{uri}/{method}</a:Action>\
         <w:ResourceURI>{uri}</w:ResourceURI><a:MessageID>m</a:MessageID></s:Header><s:Body/></s:Envelope>"
    )
}

#[tokio::test]
async fn a_request_without_credentials_is_challenged_and_the_connection_stays() {
    let running = start().await;
    let mut connection = Connection::to(running.addr).await;
    let text = invoke("Echo");
    for (headers, body) in [
        ("", text.as_str()),
        ("", ""),
        ("Authorization: Basic eDp5\r\n", &text),
        ("Authorization: Negotiate YII=\r\n", &text),
    ] {
        let got = connection.post("/wsman", headers, body.as_bytes()).await;
        assert_eq!(got.status, 401);
        assert!(
            got.head
                .to_ascii_lowercase()
                .contains("www-authenticate: basic realm=\"kvmms\"\r\n")
        );
        assert!(got.body.is_empty());
    }
    assert_eq!(
        connection
            .post("/wsman", &basic(), text.as_bytes())
            .await
            .status,
        200
    );
    assert_eq!(connection.post("/cimom", "", b"<CIM/>").await.status, 401);
}

#[tokio::test]
async fn lengths_with_leading_zeros_and_an_expectation_are_taken() {
    let running = start().await;
    let text = invoke("Echo");
    let mut connection = Connection::to(running.addr).await;
    let head = format!(
        "POST /wsman HTTP/1.1\r\nhost: x\r\nCONTENT-length: {:010}\r\nTE: chunked, trailers\r\n{}\r\n",
        text.len(),
        basic()
    );
    connection.raw(head.as_bytes()).await;
    connection.raw(text.as_bytes()).await;
    assert_eq!(connection.answer().await.status, 200);
    let head = format!(
        "POST /wsman/ HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nExpect: 100-continue\r\n{}\r\n",
        text.len(),
        basic()
    );
    connection.raw(head.as_bytes()).await;
    assert_eq!(connection.answer().await.status, 100);
    connection.raw(text.as_bytes()).await;
    assert_eq!(connection.answer().await.status, 200);
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let running = start().await;
    assert_eq!(post(running.addr, "/tea", "", "").await.status, 404);
    let mut connection = Connection::to(running.addr).await;
    connection
        .raw(b"GET /wsman HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    let got = connection.answer().await;
    assert_eq!(got.status, 405);
    assert!(got.head.to_ascii_lowercase().contains("allow: post"));
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_fault() {
    let options = Options {
        max_body: 1000,
        ..Options::default()
    };
    let running = start_with(Scripted::new(), options).await;
    let text = " ".repeat(1001);
    let got = post(running.addr, "/wsman", "", &text).await;
    assert_eq!(got.status, 500);
    assert!(got.text().contains("w:EncodingLimit"));
    assert_eq!(post(running.addr, "/cimom", "", &text).await.status, 413);
}

#[tokio::test]
async fn a_panic_is_an_internal_error_and_the_server_goes_on() {
    let running = start().await;
    let got = post(running.addr, "/wsman", "", &invoke("Panic")).await;
    assert_eq!(got.status, 500);
    assert!(got.text().contains("w:InternalError"));
    assert_eq!(
        post(running.addr, "/wsman", "", &invoke("Echo"))
            .await
            .status,
        200
    );
}

async fn until(reached: impl Fn() -> bool) {
    while !reached() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_operation_ends_though_its_client_left() {
    let running = start().await;
    let mut connection = Connection::to(running.addr).await;
    let text = invoke("Wait");
    let head = format!(
        "POST /wsman HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{}\r\n{text}",
        text.len(),
        basic()
    );
    connection.raw(head.as_bytes()).await;
    until(|| running.handler.begun.load(Ordering::SeqCst) == 1).await;
    drop(connection);
    running.handler.gate.add_permits(1);
    until(|| running.handler.ended.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_stop_lets_requests_under_way_end() {
    let mut running = start().await;
    let mut connection = Connection::to(running.addr).await;
    let mut idle = Connection::to(running.addr).await;
    assert_eq!(
        idle.post("/wsman", &basic(), invoke("Echo").as_bytes())
            .await
            .status,
        200
    );
    let text = invoke("Wait");
    let head = format!(
        "POST /wsman HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{}\r\n{text}",
        text.len(),
        basic()
    );
    connection.raw(head.as_bytes()).await;
    until(|| running.handler.begun.load(Ordering::SeqCst) == 1).await;
    running
        .stop
        .take()
        .expect("stop")
        .send(())
        .expect("running");
    assert!(
        idle.is_closed().await,
        "an idle connection is closed at once"
    );
    running.handler.gate.add_permits(1);
    assert_eq!(connection.answer().await.status, 200);
    let Running { task, addr, .. } = running;
    task.await.expect("server");
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn a_slow_head_is_cut_off() {
    let options = Options {
        head_timeout: Duration::from_millis(50),
        ..Options::default()
    };
    let running = start_with(Scripted::new(), options).await;
    let mut connection = Connection::to(running.addr).await;
    connection.raw(b"POST /wsman HT").await;
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn further_connections_wait_for_a_place() {
    let options = Options {
        max_connections: 1,
        ..Options::default()
    };
    let running = start_with(Scripted::new(), options).await;
    let mut first = Connection::to(running.addr).await;
    assert_eq!(
        first
            .post("/wsman", &basic(), invoke("Echo").as_bytes())
            .await
            .status,
        200
    );
    let text = invoke("Wait");
    let mut second = Connection::to(running.addr).await;
    let head = format!(
        "POST /wsman HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{}\r\n{text}",
        text.len(),
        basic()
    );
    second.raw(head.as_bytes()).await;
    assert_eq!(
        first
            .post("/wsman", &basic(), invoke("Echo").as_bytes())
            .await
            .status,
        200
    );
    assert_eq!(
        running.handler.begun.load(Ordering::SeqCst),
        0,
        "the second is not served yet"
    );
    drop(first);
    running.handler.gate.add_permits(1);
    assert_eq!(second.answer().await.status, 200);
}

#[tokio::test]
async fn plain_http_stays_on_loopback_unless_allowed() {
    let listen = || Listen::Tcp {
        addr: ([0, 0, 0, 0], 0).into(),
        tls: None,
        protocols: Protocols::BOTH,
    };
    let server = |options| Server::new(Arc::new(Scripted::new()), Arc::new(OneUser), options);
    let refused = server(Options::default()).listen(listen()).await;
    assert!(matches!(refused, Err(ListenError::PlainOffLoopback { .. })));
    let options = Options {
        plain_off_loopback: true,
        ..Options::default()
    };
    assert!(server(options).listen(listen()).await.is_ok());
}

#[tokio::test]
async fn a_listener_answers_only_its_protocols() {
    let mut server = Server::new(
        Arc::new(Scripted::new()),
        Arc::new(OneUser),
        Options::default(),
    );
    let mut addrs = Vec::new();
    for protocols in [Protocols::WSMAN, Protocols::CIMXML] {
        let listen = Listen::Tcp {
            addr: ([127, 0, 0, 1], 0).into(),
            tls: None,
            protocols,
        };
        addrs.push(
            server
                .listen(listen)
                .await
                .expect("listen")
                .addr()
                .expect("addr"),
        );
    }
    tokio::spawn(server.run(std::future::pending()));
    assert_eq!(
        post(addrs[0], "/wsman", "", &invoke("Echo")).await.status,
        200
    );
    assert_eq!(post(addrs[0], "/cimom", "", "").await.status, 404);
    assert_eq!(
        post(addrs[1], "/wsman", "", &invoke("Echo")).await.status,
        404
    );
    assert_eq!(post(addrs[1], "/cimom", "", "").await.status, 400);
}

#[tokio::test]
async fn a_dead_local_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("s");
    let listen = || Listen::Unix { path: path.clone() };
    let server = || {
        Server::new(
            Arc::new(Scripted::new()),
            Arc::new(OneUser),
            Options::default(),
        )
    };
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
    let mut first = server();
    first.listen(listen()).await.expect("replaces the dead one");
    let refused = server().listen(listen()).await;
    assert!(matches!(refused, Err(ListenError::InUse { .. })));
    drop(first);
    assert!(!path.exists(), "nothing is left behind");
    std::fs::write(&path, "precious").expect("file");
    assert!(server().listen(listen()).await.is_err());
    assert_eq!(std::fs::read_to_string(&path).expect("file"), "precious");
}
