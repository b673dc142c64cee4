//! Accepting connections and keeping each of them going.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::Shared;
use super::listen::{Listener, Protocols, peer};
use super::route::{Peer, serve};
use super::stall::Stall;

/// A connection just accepted, with its place among the allowed ones.
enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

pub(super) async fn accept(
    listener: Listener,
    shared: Arc<Shared>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopping.changed() => break,
            // Ended connections are collected while waiting for new ones.
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = next(&listener, &shared.connections) => match accepted {
                Ok((permit, accepted)) => {
                    let (shared, stopping) = (Arc::clone(&shared), stopping.clone());
                    let handled = handle(&listener, accepted, shared, stopping);
                    connections.spawn(async move {
                        let _permit = permit;
                        handled.await;
                    });
                }
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

async fn next(
    listener: &Listener,
    places: &Arc<Semaphore>,
) -> io::Result<(OwnedSemaphorePermit, Accepted)> {
    let permit = Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let accepted = match listener {
        Listener::Tcp { listener, .. } => {
            let (stream, from) = listener.accept().await?;
            Accepted::Tcp(stream, from)
        }
        Listener::Unix { listener, .. } => Accepted::Unix(listener.accept().await?.0),
    };
    Ok((permit, accepted))
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
                    protocols,
                    local: None,
                };
                keep(stream, peer, shared, stopping).await;
            }
            (Accepted::Tcp(stream, from), tls) => {
                // Answers are written whole; waiting for more to send only delays them.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%from, %error, "TCP_NODELAY");
                }
                // A connection that is gone already has no address; neither will it be answered.
                let Ok(local) = stream.local_addr() else {
                    return;
                };
                let peer = Peer {
                    caller: None,
                    protocols,
                    local: Some(local),
                };
                let Some(tls) = tls else {
                    return keep(stream, peer, shared, stopping).await;
                };
                let limit = shared.options.head_timeout;
                match tokio::time::timeout(limit, tls.accept(stream)).await {
                    Ok(Ok(stream)) => keep(stream, peer, shared, stopping).await,
                    Ok(Err(error)) => tracing::debug!(%from, %error, "TLS handshake"),
                    Err(_) => tracing::debug!(%from, "TLS handshake took too long"),
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
    let io = TokioIo::new(Stall::new(stream, options.write_timeout));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(options.head_timeout)
        .max_buf_size(64 * 1024)
        .max_headers(64);
    let shared = Arc::clone(&shared);
    let service = service_fn(|request| serve(request, &peer, &shared));
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
            _ = stopping.changed(), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
