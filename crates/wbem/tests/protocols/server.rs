//! HTTP: who may call, what connections may do, how the server stops.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
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
        "POST /wsman HTTP/1.1\r\nhost: localhost\r\nCONTENT-length: {:010}\r\nTE: chunked, trailers\r\n{}\r\n",
        text.len(),
        basic()
    );
    connection.raw(head.as_bytes()).await;
    connection.raw(text.as_bytes()).await;
    assert_eq!(connection.answer().await.status, 200);
    let head = format!(
        "POST /wsman/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nExpect: 100-continue\r\n{}\r\n",
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
        .raw(b"GET /wsman HTTP/1.1\r\nHost: localhost\r\n\r\n")
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
        "POST /wsman HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n{}\r\n{text}",
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
        "POST /wsman HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n{}\r\n{text}",
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
async fn silent_and_slow_connections_are_ended_and_one_that_is_known_is_not() {
    let options = Options {
        head_timeout: Duration::from_secs(2),
        idle_timeout: Duration::from_secs(600),
        ..Options::default()
    };
    let running = start_with(Scripted::new(), options).await;
    let text = invoke("Echo");
    let mut known = Connection::to(running.addr).await;
    let got = known.post("/wsman", &basic(), text.as_bytes()).await;
    assert_eq!(got.status, 200);
    let mut stranger = Connection::to(running.addr).await;
    assert_eq!(stranger.post("/wsman", "", b"").await.status, 401);
    let mut silent = Connection::to(running.addr).await;
    assert!(silent.is_closed().await, "no head");
    assert!(stranger.is_closed().await, "idle, and nobody knows who");
    let got = known.post("/wsman", &basic(), text.as_bytes()).await;
    assert_eq!(got.status, 200, "idle for longer than a head may take");
    // A head that trickles in ends a known connection too.
    known.raw(b"POST /wsman HT").await;
    assert!(known.is_closed().await);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_told_and_the_connection_ends() {
    let options = Options {
        body_timeout: Duration::from_millis(50),
        ..Options::default()
    };
    let running = start_with(Scripted::new(), options).await;
    let mut connection = Connection::to(running.addr).await;
    let head = format!(
        "POST /wsman HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n{}\r\nhalf",
        basic()
    );
    connection.raw(head.as_bytes()).await;
    let got = connection.answer().await;
    assert_eq!(got.status, 408);
    assert!(got.text().contains("did not come within"), "{}", got.text());
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn further_connections_are_told_so_and_the_local_socket_is_apart() {
    let options = Options {
        max_connections: 3,
        max_connections_per_address: 2,
        max_local: 1,
        ..Options::default()
    };
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("s");
    let handler = Arc::new(Scripted::new());
    let mut server = Server::new(handler, Arc::new(OneUser), options);
    let tcp = || Listen::Tcp {
        addr: ([127, 0, 0, 1], 0).into(),
        tls: None,
        protocols: Protocols::BOTH,
    };
    let mut addrs = Vec::new();
    for _ in 0..2 {
        let bound = server.listen(tcp()).await.expect("listen");
        addrs.push(bound.addr().expect("address"));
    }
    let local = Listen::Unix { path: path.clone() };
    server.listen(local).await.expect("listen");
    tokio::spawn(server.run(std::future::pending()));

    let mut first = Connection::to(addrs[0]).await;
    let second = Connection::to(addrs[0]).await;
    let text = invoke("Echo");
    let mut third = Connection::to(addrs[0]).await;
    let got = third.post("/wsman", &basic(), text.as_bytes()).await;
    assert_eq!(got.status, 503);
    let head = got.head.to_ascii_lowercase();
    assert!(head.contains("retry-after: 5") && head.contains("connection: close"));
    assert!(
        got.text().contains("127.0.0.1 has 2 connections open"),
        "{}",
        got.text()
    );
    assert!(third.is_closed().await);

    let got = first.post("/wsman", &basic(), text.as_bytes()).await;
    assert_eq!(got.status, 200, "whoever has a place keeps it");
    assert_eq!(
        post(addrs[1], "/wsman", "", &text).await.status,
        200,
        "another listener"
    );
    let stream = tokio::net::UnixStream::connect(&path)
        .await
        .expect("connect");
    assert!(stream.peer_cred().is_ok());
    let mut local = Connection::over(stream);
    let got = local.post("/wsman", "", text.as_bytes()).await;
    assert_eq!(got.status, 200, "the local socket");
    drop(second);
    until_async(async || post(addrs[0], "/wsman", "", &text).await.status == 200).await;
}

/// Tries until it is so.
async fn until_async(reached: impl AsyncFn() -> bool) {
    while !reached().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_handshake_that_does_not_come_ends_and_a_full_listener_closes() {
    let dir = tempfile::tempdir().expect("dir");
    let options = Options {
        head_timeout: Duration::from_millis(200),
        max_connections: 1,
        ..Options::default()
    };
    let tls = wbem::tls::load_or_make(dir.path(), &["localhost".to_owned()]).expect("tls");
    let mut server = Server::new(Arc::new(Scripted::new()), Arc::new(OneUser), options);
    let listen = Listen::Tcp {
        addr: ([127, 0, 0, 1], 0).into(),
        tls: Some(tls),
        protocols: Protocols::BOTH,
    };
    let bound = server.listen(listen).await.expect("listen");
    tokio::spawn(server.run(std::future::pending()));
    let addr = bound.addr().expect("address");
    let mut silent = Connection::to(addr).await;
    let mut refused = Connection::to(addr).await;
    assert!(refused.is_closed().await, "no place");
    assert!(silent.is_closed().await, "no handshake");
}

#[tokio::test]
async fn a_password_that_was_not_looked_at_is_told_apart_from_a_wrong_one() {
    let running = start().await;
    let token = STANDARD.encode("alice:again and again");
    let mut connection = Connection::to(running.addr).await;
    let headers = format!("Authorization: Basic {token}\r\n");
    let got = connection.post("/wsman", &headers, b"").await;
    assert_eq!(got.status, 429);
    assert!(got.head.to_ascii_lowercase().contains("retry-after: 3\r\n"));
    assert!(
        got.text().contains("too many wrong passwords"),
        "{}",
        got.text()
    );
    assert!(connection.is_closed().await);
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
