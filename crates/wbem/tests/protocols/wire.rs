//! A server on a loopback port, and an HTTP client that sends exactly what it is told.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wbem::server::{Listen, Options, Protocols, Server};

use crate::scripted::{OneUser, PASSWORD, Scripted, USER};

/// A running server; ends with the test.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) handler: Arc<Scripted>,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) task: JoinHandle<()>,
}

pub(crate) async fn start() -> Running {
    start_with(Scripted::new(), Options::default()).await
}

pub(crate) async fn start_with(scripted: Scripted, options: Options) -> Running {
    let handler = Arc::new(scripted);
    let dynamic: Arc<dyn wbem::Handler> = Arc::<Scripted>::clone(&handler);
    let mut server = Server::new(dynamic, Arc::new(OneUser), options);
    let listen = Listen::Tcp {
        addr: ([127, 0, 0, 1], 0).into(),
        tls: None,
        protocols: Protocols::BOTH,
    };
    let bound = server.listen(listen).await.expect("listen");
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(server.run(async {
        let _ = stopped.await;
    }));
    Running {
        addr: bound.addr().expect("addr"),
        handler,
        stop: Some(stop),
        task,
    }
}

/// One answer.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Got {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("utf-8")
    }
}

pub(crate) fn basic() -> String {
    let token = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    format!("Authorization: Basic {token}\r\n")
}

/// Bytes in both directions.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

pub(crate) struct Connection {
    stream: BufStream<Box<dyn Stream>>,
}

impl Connection {
    pub(crate) async fn to(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        Connection::over(stream)
    }

    pub(crate) fn over(stream: impl Stream + 'static) -> Self {
        Connection {
            stream: BufStream::new(Box::new(stream)),
        }
    }

    /// Sends bytes as they are.
    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("write");
        self.stream.flush().await.expect("flush");
    }

    /// A POST with these header lines and this body.
    pub(crate) async fn post(&mut self, path: &str, headers: &str, body: &[u8]) -> Got {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        self.raw(head.as_bytes()).await;
        self.raw(body).await;
        self.answer().await
    }

    /// The next answer.
    pub(crate) async fn answer(&mut self) -> Got {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.stream.read_u8().await.expect("head"));
        }
        let head = String::from_utf8(head).expect("head");
        let status = head
            .split(' ')
            .nth(1)
            .expect("status")
            .parse()
            .expect("status");
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(0, |(_, value)| value.trim().parse().expect("length"));
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.expect("body");
        Got { status, head, body }
    }

    /// Whether the server has closed.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        self.stream
            .read_to_end(&mut rest)
            .await
            .is_ok_and(|n| n == 0)
    }
}

/// An authenticated POST on a connection of its own.
pub(crate) async fn post(addr: SocketAddr, path: &str, headers: &str, body: &str) -> Got {
    let headers = format!("{}{headers}", basic());
    Connection::to(addr)
        .await
        .post(path, &headers, body.as_bytes())
        .await
}
