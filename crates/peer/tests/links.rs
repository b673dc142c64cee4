//! Hosts that reach each other, and hosts that do not.
#![allow(clippy::allow_attributes, clippy::unwrap_used, reason = "tests")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use peer::{Error, Fingerprint, Identity, Listener, Serve, Wire, dial, look_at};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SOON: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Echo {
    trusted: Mutex<Vec<Fingerprint>>,
    served: Mutex<usize>,
    closed: Mutex<Option<String>>,
}

#[async_trait]
impl Serve for Echo {
    fn trusts(&self, who: &Fingerprint) -> bool {
        self.trusted.lock().unwrap().contains(who)
    }

    fn closed(&self, local: std::net::IpAddr) -> Option<String> {
        assert!(local.is_loopback());
        self.closed.lock().unwrap().clone()
    }

    async fn serve(&self, mut wire: Wire) {
        *self.served.lock().unwrap() += 1;
        while let Ok(Some(text)) = wire.hear::<String>(SOON).await {
            if text == "raw" {
                let mut stream = wire.into_stream();
                let mut bytes = [0; 4];
                stream.read_exact(&mut bytes).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
                stream.flush().await.unwrap();
                return;
            }
            wire.say(&text).await.unwrap();
        }
    }
}

struct Hosts {
    _dir: tempfile::TempDir,
    here: Identity,
    there: Identity,
    echo: Arc<Echo>,
    listener: Listener,
}

impl Hosts {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = |name| Identity::load_or_make(&dir.path().join(name), name).unwrap();
        let (here, there) = (identity("here"), identity("there"));
        let echo = Arc::new(Echo::default());
        let any = "127.0.0.1:0".parse().unwrap();
        let serve = Arc::clone(&echo);
        let listener = Listener::bind(&there, any, serve).await.unwrap();
        Self {
            here,
            there,
            echo,
            listener,
            _dir: dir,
        }
    }

    fn trusting(self) -> Self {
        self.echo
            .trusted
            .lock()
            .unwrap()
            .push(self.here.fingerprint());
        self
    }

    async fn dial(&self) -> Result<Wire, Error> {
        let address = self.listener.address().to_string();
        dial(&self.here, &address, &self.there.fingerprint(), SOON).await
    }
}

#[tokio::test]
async fn hosts_that_trust_each_other_talk_and_then_pass_bytes() {
    let hosts = Hosts::new().await.trusting();
    let mut wire = hosts.dial().await.unwrap();
    assert_eq!(wire.who(), hosts.there.fingerprint());
    let long = "x".repeat(1 << 20);
    let heard: String = wire.ask(&long, SOON).await.unwrap();
    assert_eq!(heard, long);
    wire.say(&"raw").await.unwrap();
    let mut stream = wire.into_stream();
    stream.write_all(b"abcd").await.unwrap();
    stream.flush().await.unwrap();
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"abcd");
}

#[tokio::test]
async fn a_host_that_is_not_trusted_is_told_so_and_nothing_it_says_is_read() {
    let hosts = Hosts::new().await;
    let refused = hosts.dial().await;
    assert!(matches!(refused, Err(Error::Distrusted)), "{refused:?}");
    assert_eq!(*hosts.echo.served.lock().unwrap(), 0);
}

#[tokio::test]
async fn an_address_that_is_closed_says_why_to_those_that_are_trusted_only() {
    let hosts = Hosts::new().await;
    *hosts.echo.closed.lock().unwrap() = Some("another network".to_owned());
    let stranger = hosts.dial().await;
    assert!(matches!(stranger, Err(Error::Distrusted)), "{stranger:?}");
    let hosts = hosts.trusting();
    match hosts.dial().await {
        Err(Error::Closed(why)) => assert_eq!(why, "another network"),
        other => panic!("{other:?}"),
    }
    assert_eq!(*hosts.echo.served.lock().unwrap(), 0);
}

#[tokio::test]
async fn a_host_that_is_another_than_the_pinned_one_is_not_spoken_to() {
    let hosts = Hosts::new().await.trusting();
    let address = hosts.listener.address().to_string();
    let wrong = hosts.here.fingerprint();
    match dial(&hosts.here, &address, &wrong, SOON).await {
        Err(Error::Stranger { expected, found }) => {
            assert_eq!((expected, found), (wrong, hosts.there.fingerprint()));
        }
        other => panic!("{other:?}"),
    }
    // What a person compares before trusting it.
    let seen = look_at(&hosts.here, &address, SOON).await.unwrap();
    assert_eq!(seen, hosts.there.fingerprint());
}

#[tokio::test]
async fn nobody_there_and_nobody_answering_are_told_apart() {
    let hosts = Hosts::new().await.trusting();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pin = hosts.there.fingerprint();
    let address = silent.local_addr().unwrap().to_string();
    let short = Duration::from_millis(300);
    let found = dial(&hosts.here, &address, &pin, short).await;
    assert!(matches!(found, Err(Error::Silent { .. })), "{found:?}");
    drop(silent);
    let found = dial(&hosts.here, &address, &pin, SOON).await;
    assert!(matches!(found, Err(Error::Unreachable { .. })), "{found:?}");
}

#[tokio::test]
async fn one_without_a_certificate_is_not_let_in() {
    let hosts = Hosts::new().await.trusting();
    let mut plain = tokio::net::TcpStream::connect(hosts.listener.address())
        .await
        .unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    // At most an alert; nothing was served.
    assert!(answer.len() < 64, "{answer:?}");
    assert_eq!(*hosts.echo.served.lock().unwrap(), 0);
}

#[tokio::test]
async fn links_are_cut_when_the_listener_goes() {
    let hosts = Hosts::new().await.trusting();
    let mut wire = hosts.dial().await.unwrap();
    drop(hosts.listener);
    let gone = wire.ask::<String>(&"are you there", SOON).await;
    assert!(matches!(gone, Err(Error::Broken(_))), "{gone:?}");
}
