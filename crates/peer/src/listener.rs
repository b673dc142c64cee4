//! Waiting for other hosts.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::dial::Welcome;
use crate::error::{Error, Result};
use crate::{Fingerprint, Identity, VERSION, Wire, tls};

/// Most connections at a time: a machine that moves has one for each disk and a few more.
const CONNECTIONS: usize = 256;
/// Handshakes at a time, of whoever reaches the port.
const HANDSHAKES: usize = 32;
/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Between two tries where no connection can be taken.
const BREATH: Duration = Duration::from_millis(100);

/// What is served to hosts that are trusted.
#[async_trait]
pub trait Serve: Send + Sync + 'static {
    /// Whether a host with that certificate is let in.
    fn trusts(&self, who: &Fingerprint) -> bool;

    /// Why nobody is let in who came to this address of the host, where that is so. Only those that are trusted hear it.
    fn closed(&self, _local: IpAddr) -> Option<String> {
        None
    }

    /// Serves one link to its end.
    async fn serve(&self, wire: Wire);
}

/// Listens until it is dropped; links that are open then are cut.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    /// Listens there; port 0 lets the system choose.
    ///
    /// # Errors
    /// [`Error::Listen`], [`Error::Key`].
    pub async fn bind(
        identity: &Identity,
        address: SocketAddr,
        serve: Arc<dyn Serve>,
    ) -> Result<Self> {
        let failed = |source| Error::Listen {
            address: address.to_string(),
            source,
        };
        let acceptor = TlsAcceptor::from(tls::server(identity)?);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let task = tokio::spawn(accept(listener, acceptor, serve));
        Ok(Self { address, task })
    }

    /// Where.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, serve: Arc<dyn Serve>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let links = Arc::new(Semaphore::new(CONNECTIONS));
    // They end with the listener.
    let mut open = JoinSet::new();
    loop {
        // Nobody is taken that cannot be attended to: others wait in the system's queue.
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let (stream, from) = tokio::select! {
            Some(_) = open.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection of another host could not be taken");
                    tokio::time::sleep(BREATH).await;
                    continue;
                }
            },
        };
        let (acceptor, serve, links) = (acceptor.clone(), Arc::clone(&serve), Arc::clone(&links));
        open.spawn(async move {
            let met = tokio::time::timeout(HANDSHAKE, meet(stream, &acceptor, &*serve, &links));
            match met.await {
                Ok(Ok(Some((wire, _link)))) => {
                    drop(permit);
                    serve.serve(wire).await;
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::debug!(%from, %error, "a host was not let in"),
                Err(_) => tracing::debug!(%from, "a host did not finish its handshake in time"),
            }
        });
    }
}

async fn meet(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    serve: &dyn Serve,
    links: &Arc<Semaphore>,
) -> Result<Option<(Wire, tokio::sync::OwnedSemaphorePermit)>> {
    stream.set_nodelay(true).map_err(Error::Broken)?;
    let local = stream.local_addr().map_err(Error::Broken)?.ip();
    let stream = acceptor.accept(stream).await.map_err(Error::Broken)?;
    let who = stream.get_ref().1.peer_certificates();
    let who = who.and_then(|chain| chain.first()).map(Fingerprint::of);
    let who = who.ok_or_else(|| Error::Garbled("it showed no certificate".to_owned()))?;
    let mut wire = Wire {
        stream: TlsStream::Server(stream),
        who,
    };
    if !serve.trusts(&who) {
        tracing::warn!(%who, "a host that is not trusted asked to be let in");
        wire.say(&Welcome::Stranger).await?;
        return Ok(None);
    }
    if let Some(why) = serve.closed(local.to_canonical()) {
        tracing::info!(%who, %local, "a host came to an address where nobody is let in");
        wire.say(&Welcome::Closed(why)).await?;
        return Ok(None);
    }
    let Ok(link) = Arc::clone(links).try_acquire_owned() else {
        wire.say(&Welcome::Busy).await?;
        return Ok(None);
    };
    wire.say(&Welcome::Come(VERSION)).await?;
    Ok(Some((wire, link)))
}
