//! Accepting connections and keeping each of them going. Whoever finds no place is told so: nobody waits unseen in a queue of the
//! kernel behind silent ones.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Shared;
use super::listen::{Listener, Protocols, peer};
use super::negotiation::Negotiation;
use super::pace::Pace;
use super::places::Places;
use super::route::{Peer, serve};
use super::stall::Stall;
use crate::limit::{Limit, Origin};

/// A connection just accepted.
enum Accepted {
    Tcp(TcpStream, Origin),
    Unix(UnixStream),
}

impl Accepted {
    fn origin(&self) -> Origin {
        match self {
            Accepted::Tcp(_, origin) => *origin,
            Accepted::Unix(_) => Origin::Local,
        }
    }
}

/// How many that were refused may linger until they have read it.
const REFUSALS: usize = 32;
const LINGER: Duration = Duration::from_secs(2);

pub(super) async fn accept(
    listener: Listener,
    shared: Arc<Shared>,
    mut stopping: watch::Receiver<bool>,
) {
    let options = &shared.options;
    let places = match &listener {
        Listener::Tcp { .. } => {
            Places::new(options.max_connections, options.max_connections_per_address)
        }
        // Its own: whatever happens outside, root gets in.
        Listener::Unix { .. } => Places::new(options.max_local, options.max_local),
    };
    let refusals = Places::new(REFUSALS, REFUSALS);
    let mut connections = JoinSet::new();
    let mut refused = 0u64;
    loop {
        tokio::select! {
            _ = stopping.changed() => break,
            // Ended connections are collected while waiting for new ones.
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = next(&listener) => match accepted {
                Ok(accepted) => match places.take(accepted.origin()) {
                    Ok(place) => {
                        let (shared, stopping) = (Arc::clone(&shared), stopping.clone());
                        let handled = handle(&listener, accepted, shared, stopping);
                        connections.spawn(async move {
                            let _place = place;
                            handled.await;
                        });
                    }
                    Err(limit) => {
                        refused += 1;
                        // The first, and then ever fewer: a flood of connections is none of the log.
                        if refused.is_power_of_two() {
                            tracing::warn!(%limit, refused, "connections are refused");
                        }
                        let lingering = refusals.take(Origin::Local).ok();
                        if let Some(told) = refuse(&listener, accepted, &limit, &shared)
                            && let Some(lingering) = lingering
                        {
                            connections.spawn(async move {
                                let _lingering = lingering;
                                let _ = tokio::time::timeout(LINGER, told).await;
                            });
                        }
                    }
                },
                Err(error) => {
                    // Out of file descriptors, mostly: it passes, and a busy loop would not help.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn next(listener: &Listener) -> io::Result<Accepted> {
    Ok(match listener {
        Listener::Tcp { listener, .. } => {
            let (stream, from) = listener.accept().await?;
            Accepted::Tcp(stream, Origin::of(from))
        }
        Listener::Unix { listener, .. } => Accepted::Unix(listener.accept().await?.0),
    })
}

/// Tells a connection that there is no place for it. What is left to do is to wait until the other side has read that: a socket
/// closed with a request unread takes the answer with it. Behind TLS nothing can be told; the connection is closed.
fn refuse(
    listener: &Listener,
    accepted: Accepted,
    limit: &Limit,
    shared: &Shared,
) -> Option<impl Future<Output = ()> + Send + use<>> {
    if let Listener::Tcp { tls: Some(_), .. } = listener {
        return None;
    }
    let why = shared.handler.limit(limit).message;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\n\r\n{why}",
        why.len()
    );
    // A fresh socket takes that much at once.
    let written = match &accepted {
        Accepted::Tcp(stream, _) => stream.try_write(answer.as_bytes()),
        Accepted::Unix(stream) => stream.try_write(answer.as_bytes()),
    };
    written.ok()?;
    Some(async move {
        match accepted {
            Accepted::Tcp(stream, _) => linger(stream).await,
            Accepted::Unix(stream) => linger(stream).await,
        }
    })
}

async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut nowhere = [0; 4096];
    while matches!(stream.read(&mut nowhere).await, Ok(n) if n > 0) {}
}

/// What a connection does from its acceptance to its end.
fn handle(
    listener: &Listener,
    accepted: Accepted,
    shared: Arc<Shared>,
    stopping: watch::Receiver<bool>,
) -> impl Future<Output = ()> + Send + use<> {
    let (protocols, own_uid, tls) = match listener {
        Listener::Tcp { tls, protocols, .. } => (*protocols, None, tls.clone()),
        Listener::Unix { own_uid, .. } => (Protocols::BOTH, Some(*own_uid), None),
    };
    async move {
        match (accepted, tls) {
            (Accepted::Unix(stream), _) => {
                let caller = own_uid.and_then(|uid| peer(&stream, uid));
                let peer = Peer {
                    caller,
                    origin: Origin::Local,
                    protocols,
                    local: None,
                    // Root needs none, and others have their password.
                    negotiation: None,
                };
                keep(stream, peer, shared, stopping).await;
            }
            (Accepted::Tcp(stream, origin), tls) => {
                // Answers are written whole; waiting for more to send only delays them.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%origin, %error, "TCP_NODELAY");
                }
                // A connection that is gone already has no address; neither will it be answered.
                let Ok(local) = stream.local_addr() else {
                    return;
                };
                let binding = tls.as_ref().map(|(_, binding)| *binding);
                let peer = Peer {
                    caller: None,
                    origin,
                    protocols,
                    local: Some(local),
                    negotiation: Some(Negotiation::new(binding, origin)),
                };
                let Some((tls, _)) = tls else {
                    return keep(stream, peer, shared, stopping).await;
                };
                let limit = shared.options.head_timeout;
                match tokio::time::timeout(limit, tls.accept(stream)).await {
                    Ok(Ok(stream)) => keep(stream, peer, shared, stopping).await,
                    Ok(Err(error)) => tracing::debug!(%origin, %error, "TLS handshake"),
                    Err(_) => tracing::debug!(%origin, "TLS handshake took too long"),
                }
            }
        }
    }
}

async fn keep(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: Peer,
    shared: Arc<Shared>,
    mut stopping: watch::Receiver<bool>,
) {
    let options = &shared.options;
    let pace = Arc::new(Pace::new(options.head_timeout, options.idle_timeout));
    let io = TokioIo::new(Stall::new(stream, options.write_timeout, Arc::clone(&pace)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        // The pace bounds that, and tells a slow head from an idle connection.
        .header_read_timeout(None)
        .max_buf_size(64 * 1024)
        .max_headers(64);
    let shared = Arc::clone(&shared);
    let service = service_fn(|request| serve(request, &peer, &shared, &pace));
    let mut connection = std::pin::pin!(http.serve_connection(io, service));
    let mut told = *stopping.borrow();
    if told {
        connection.as_mut().graceful_shutdown();
    }
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error = &error as &dyn std::error::Error, "connection");
                }
                return;
            }
            () = pace.too_slow() => {
                tracing::debug!(origin = %peer.origin, "a connection was too slow");
                return;
            }
            _ = stopping.changed(), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
