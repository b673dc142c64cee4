//! The HTTP/1.1 server of both protocols.
//!
//! ```text
//! listener (TCP, TLS, unix socket) -> connection task -> who calls? -> /wsman | /cimom -> Operation
//!                                                                            -> spawned task -> Handler
//! ```
//!
//! One task per listener, one per connection, one per operation: an operation runs to its end when its client
//! goes away, and a panic inside it becomes an internal-error fault. Connections, header and body sizes, reading
//! and writing times are bounded by [`Options`]. Plain HTTP listens on loopback only unless allowed.

mod connection;
mod listen;
pub(crate) mod negotiation;
mod origin;
mod pace;
mod places;
mod route;
mod stall;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Handler;
use crate::auth::Authenticator;
use crate::cimxml;
use crate::contexts::ContextLimits;
use crate::wsman;

pub use listen::{Bound, Listen, ListenError, Protocols};

/// The bounds of a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Connections at once of each TCP listener; further ones are told 503, behind TLS closed.
    pub max_connections: usize,
    /// How many of them from one address (loopback is one, and a /64 of IPv6).
    pub max_connections_per_address: usize,
    /// Connections at once of a local socket.
    pub max_local: usize,
    /// The largest request body in bytes.
    pub max_body: usize,
    /// How long the head of a request may take from its first byte, the first of a connection from the connection's beginning, a TLS
    /// handshake, and all a caller who is not known sends.
    pub head_timeout: Duration,
    /// How long a connection whose last caller was known may be idle.
    pub idle_timeout: Duration,
    /// How long a body may take.
    pub body_timeout: Duration,
    /// How long a client may leave a part of an answer unread.
    pub write_timeout: Duration,
    /// How long requests under way may take to end once the server stops.
    pub stop_timeout: Duration,
    /// Whether plain HTTP may listen on other addresses than loopback.
    pub plain_off_loopback: bool,
    /// Names and addresses of this host, besides the address a connection came to, that a request may be sent to (its `Host`).
    pub host_names: Vec<String>,
    /// Bounds on open enumerations, of each protocol.
    pub contexts: ContextLimits,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_connections: 512,
            max_connections_per_address: 256,
            max_local: 128,
            max_body: 8 * 1024 * 1024,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            stop_timeout: Duration::from_secs(10),
            plain_off_loopback: false,
            host_names: Vec::new(),
            contexts: ContextLimits::default(),
        }
    }
}

/// A server with its listeners.
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<listen::Listener>,
}

pub(crate) struct Shared {
    authenticator: Arc<dyn Authenticator>,
    options: Options,
    wsman: wsman::Service,
    cimxml: cimxml::Service,
    handler: Arc<dyn Handler>,
}

impl Server {
    /// A server without listeners.
    pub fn new(
        handler: Arc<dyn Handler>,
        authenticator: Arc<dyn Authenticator>,
        options: Options,
    ) -> Self {
        Server {
            shared: Arc::new(Shared {
                authenticator,
                wsman: wsman::Service::new(Arc::clone(&handler), options.contexts.clone()),
                cimxml: cimxml::Service::new(Arc::clone(&handler), options.contexts.clone()),
                handler,
                options,
            }),
            listeners: Vec::new(),
        }
    }

    /// Binds a listener; clients can connect from now on and are served once [`Server::run`] runs.
    pub async fn listen(&mut self, listen: Listen) -> Result<Bound, ListenError> {
        let listener = listen::bind(listen, self.shared.options.plain_off_loopback).await?;
        let bound = listener.bound();
        self.listeners.push(listener);
        Ok(bound)
    }

    /// Serves until `shutdown` is ready, then lets what is under way end, for `stop_timeout` at most.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let (stop, stopping) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for listener in self.listeners {
            let shared = Arc::clone(&self.shared);
            tasks.spawn(connection::accept(listener, shared, stopping.clone()));
        }
        // A timer of its own: what a client left open goes also when no other ever comes.
        let contexts = sweep(Arc::clone(&self.shared));
        tokio::select! {
            () = shutdown => {}
            never = contexts => match never {},
        }
        // Fails only where no listener is left to hear it.
        let _ = stop.send(true);
        let ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(self.shared.options.stop_timeout, ended)
            .await
            .is_err()
        {
            tracing::warn!("requests were still under way when the server stopped");
        }
    }
}

/// Ends the enumerations nobody pulls, for ever.
async fn sweep(shared: Arc<Shared>) -> Infallible {
    let idle = shared.options.contexts.idle;
    let every = (idle / 10).clamp(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        tokio::time::sleep(every).await;
        let ended = shared.wsman.contexts.sweep() + shared.cimxml.contexts.sweep();
        if ended > 0 {
            tracing::debug!(ended, "enumerations nobody pulled");
        }
    }
}
