//! Two services that trust each other, and a link between them that can be cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU16, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use uuid::Uuid;
use vmms::job::Job;
use vmms::machine::Asked;
use vmms::migration::{self, MigrationKind, MoveOptions, Patience, Request};
use vmms::{Options, Vmms};

use super::{Bench, options};

pub fn hasty() -> Options {
    Options {
        patience: Patience {
            source: Duration::ZERO,
            destination: Duration::from_secs(5),
            ..Patience::default()
        },
        ..options()
    }
}

/// Two hosts.
pub struct Hosts {
    pub here: Bench,
    pub there: Bench,
}

pub fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// `vmms` trusts the other under that name, at the port where it listens, or at another.
pub async fn trust(vmms: &Arc<Vmms>, name: &str, other: &Vmms, port: Option<u16>) {
    let port = port.unwrap_or_else(|| migration::listening(other)[0].port());
    let pin = migration::fingerprint(other).unwrap();
    migration::trust(vmms, name, "127.0.0.1", port, &pin)
        .await
        .unwrap();
}

impl Hosts {
    pub async fn new(options: Options) -> Self {
        let hosts = Hosts {
            here: Bench::with(options.clone()).await,
            there: Bench::with(options).await,
        };
        for bench in [&hosts.here, &hosts.there] {
            std::fs::create_dir_all(bench.path("images")).unwrap();
        }
        hosts.meet().await;
        hosts
    }

    /// Both listen and trust each other.
    pub async fn meet(&self) {
        let (here, there) = (&self.here.vmms, &self.there.vmms);
        migration::listen(here, &[anywhere()]).await.unwrap();
        migration::listen(there, &[anywhere()]).await.unwrap();
        trust(here, "there", there, None).await;
        trust(there, "here", here, None).await;
    }

    pub fn request(&self, vm: Uuid) -> Request {
        Request {
            vm,
            destination: "there".to_owned(),
            kind: MigrationKind::LiveAndStorage,
            options: MoveOptions {
                disk_root: Some(self.there.path("images")),
                ..MoveOptions::default()
            },
        }
    }

    pub async fn go(&self, request: Request) -> Job {
        let job = migration::migrate(&self.here.vmms, request, &Asked::default()).await;
        self.here.vmms.wait(job.unwrap()).await.unwrap()
    }

    /// The same two, seen from the other side.
    pub fn turned(self) -> Self {
        Hosts {
            here: self.there,
            there: self.here,
        }
    }
}

/// A way to a port that ends after so many bytes in either direction, for good; or is cut, and mended.
pub struct Way {
    pub port: u16,
    pub left: Arc<AtomicI64>,
    target: Arc<AtomicU16>,
    cut: watch::Sender<bool>,
}

impl Way {
    pub async fn to(port: u16, bytes: i64) -> Self {
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let left = Arc::new(AtomicI64::new(bytes));
        let target = Arc::new(AtomicU16::new(port));
        let cut = watch::channel(false).0;
        let way = Way {
            port: own,
            left: Arc::clone(&left),
            target: Arc::clone(&target),
            cut: cut.clone(),
        };
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if left.load(Ordering::SeqCst) <= 0 || *cut.borrow() {
                    continue;
                }
                let (left, mut cut) = (Arc::clone(&left), cut.subscribe());
                let target = target.load(Ordering::SeqCst);
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await else {
                        return;
                    };
                    let ((a, b), (c, d)) = (near.into_split(), far.into_split());
                    tokio::select! {
                        () = pass(a, d, &left) => {}
                        () = pass(c, b, &left) => {}
                        _ = cut.wait_for(|cut| *cut) => {}
                    }
                });
            }
        });
        way
    }

    /// It ends all connections and takes no others, until it is mended.
    pub fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    /// It leads to another port.
    pub fn leads_to(&self, port: u16) {
        self.target.store(port, Ordering::SeqCst);
    }
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    left: &AtomicI64,
) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(read) = from.read(&mut bytes).await {
        let much = i64::try_from(read).unwrap();
        if read == 0 || left.fetch_sub(much, Ordering::SeqCst) < much {
            return;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
