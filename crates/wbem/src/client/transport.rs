//! One kept connection: HTTP over TCP, TLS or a local socket.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Response;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::http::response::Parts;
use hyper_util::rt::TokioIo;
use ntlm::{ChannelBinding, Session};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use super::handshake::{Way, offers, offers_basic, offers_negotiate};
use super::trust;
use super::{Authentication, ClientError, Endpoint};
use crate::auth::Credentials;
use crate::sealed;

/// An answer larger than this is a mistake of the server.
const MAX_ANSWER: usize = 256 << 20;
const SOAP: &str = "application/soap+xml;charset=UTF-8";

type Sender = SendRequest<Full<Bytes>>;

/// A connection, and who we are on it.
pub(super) struct Connection {
    pub(super) sender: Sender,
    /// What ties a handshake to it, over TLS.
    pub(super) binding: Option<ChannelBinding>,
    way: Way,
    /// The keys everything is sealed with, over plain HTTP.
    session: Option<Session>,
}

#[derive(Default)]
struct Slot {
    kept: Option<Connection>,
    /// How we say who we are; decided with the first connection.
    way: Option<Way>,
}

pub(super) struct Transport {
    pub(super) endpoint: Endpoint,
    credentials: Option<Credentials>,
    authentication: Authentication,
    tls: Option<Arc<ClientConfig>>,
    timeout: Duration,
    slot: Mutex<Slot>,
}

impl Transport {
    pub(super) fn new(
        endpoint: Endpoint,
        credentials: Option<Credentials>,
        authentication: Authentication,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let tls = match &endpoint {
            Endpoint::Https { trust, .. } => Some(trust::config(trust)?),
            _ => None,
        };
        Ok(Transport {
            endpoint,
            credentials,
            authentication,
            tls,
            timeout,
            slot: Mutex::default(),
        })
    }

    pub(super) fn url(&self) -> String {
        self.endpoint.url()
    }

    /// Sends one envelope and gives the envelope of the answer, a fault's too. A repeatable one is sent
    /// again when a kept connection breaks, as it does when the server restarts.
    pub(super) async fn send(&self, text: String, repeatable: bool) -> Result<Bytes, ClientError> {
        tokio::time::timeout(self.timeout, self.exchange(Bytes::from(text), repeatable))
            .await
            .unwrap_or_else(|_| {
                Err(ClientError::Timeout {
                    at: self.endpoint.to_string(),
                    limit: self.timeout,
                })
            })
    }

    fn http(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Http {
            at: self.endpoint.to_string(),
            source: source.into(),
        }
    }

    async fn exchange(&self, text: Bytes, repeatable: bool) -> Result<Bytes, ClientError> {
        // The lock is held over the exchange: HTTP/1.1 answers one request after the other. A task that is
        // dropped meanwhile leaves no connection behind, since it was taken out.
        let mut slot = self.slot.lock().await;
        let kept = slot.kept.take().filter(|c| !c.sender.is_closed());
        let was_kept = kept.is_some();
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.ready(&mut slot.way).await?,
        };
        let mut answered = match self.ask(&mut connection, text.clone()).await {
            // The server closed the kept connection, in the first two cases before it saw the request.
            Err(Broken::Connection(error))
                if was_kept
                    && (error.is_canceled()
                        || error.is_closed()
                        || repeatable && error.is_incomplete_message()) =>
            {
                connection = self.ready(&mut slot.way).await?;
                self.ask(&mut connection, text.clone()).await
            }
            other => other,
        };
        if let Ok((head, _)) = &answered
            && head.status.as_u16() == 401
        {
            // Not looked at, so it may be sent once more: by the other way where the server takes no passwords themselves, or after
            // another handshake where it has forgotten an old one.
            let otherwise = connection.way == Way::Basic
                && self.authentication == Authentication::Auto
                && offers_negotiate(&head.headers)
                && !offers_basic(&head.headers);
            if otherwise {
                slot.way = Some(Way::Negotiate);
            }
            if otherwise || was_kept && connection.way == Way::Negotiate {
                connection = self.ready(&mut slot.way).await?;
                answered = self.ask(&mut connection, text).await;
            }
        }
        let (head, body) = answered.map_err(|broken| match broken {
            Broken::Connection(error) => self.http(error),
            Broken::Otherwise(error) => error,
        })?;
        slot.kept = Some(connection);
        match head.status.as_u16() {
            200 => Ok(body),
            // Faults come as 500 or 400.
            400 | 500 if !body.is_empty() => Ok(body),
            _ => Err(self.refused(&head)),
        }
    }

    /// What an answer means that is none to a request.
    pub(super) fn refused(&self, head: &Parts) -> ClientError {
        match head.status.as_u16() {
            401 => ClientError::Unauthorized {
                at: self.endpoint.to_string(),
                user: self.credentials.as_ref().map(|c| c.user.clone()),
                offered: offered(&head.headers),
            },
            status => ClientError::Status {
                at: self.endpoint.to_string(),
                status,
            },
        }
    }

    /// Sends one envelope on a connection, sealed where everything is.
    async fn ask(
        &self,
        connection: &mut Connection,
        text: Bytes,
    ) -> Result<(Parts, Bytes), Broken> {
        let sealing = |source| {
            Broken::Otherwise(ClientError::Handshake {
                at: self.endpoint.to_string(),
                source,
            })
        };
        let (kind, body) = match &mut connection.session {
            Some(session) => {
                let sealed = sealed::seal(session, SOAP, &text).map_err(sealing)?;
                (sealed::CONTENT_TYPE, Bytes::from(sealed))
            }
            None => (SOAP, text),
        };
        let mut request = self
            .request(body.clone(), kind)
            .map_err(Broken::Otherwise)?;
        if let (Way::Basic, Some(credentials)) = (connection.way, &self.credentials) {
            request = request.header(AUTHORIZATION, credentials.to_header());
        }
        let request = request.body(Full::new(body));
        let request = request.map_err(|e| Broken::Otherwise(self.http(e)))?;
        let sent = connection.sender.send_request(request).await;
        let response = sent.map_err(Broken::Connection)?;
        let (head, body) = self.read(response).await.map_err(Broken::Otherwise)?;
        let Some(session) = &mut connection.session else {
            return Ok((head, body));
        };
        let kind = head.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let unsealed = || {
            Broken::Otherwise(ClientError::Unsealed {
                at: self.endpoint.to_string(),
            })
        };
        match kind.filter(|kind| sealed::is_sealed(kind)) {
            Some(kind) => {
                let opened = sealed::open(session, kind, &body).map_err(|error| {
                    tracing::debug!(%error, "a sealed answer");
                    unsealed()
                })?;
                Ok((head, opened.into()))
            }
            // Anybody in between could have written it.
            None if head.status.is_success() => Err(unsealed()),
            None => Ok((head, Bytes::new())),
        }
    }

    /// Sends a request that carries nothing but its headers.
    pub(super) async fn whole(
        &self,
        sender: &mut Sender,
        request: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<(Parts, Bytes), ClientError> {
        let request = request.body(Full::new(body)).map_err(|e| self.http(e))?;
        let response = sender.send_request(request).await;
        self.read(response.map_err(|e| self.http(e))?).await
    }

    async fn read(&self, response: Response<Incoming>) -> Result<(Parts, Bytes), ClientError> {
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        Ok((head, body.map_err(|e| self.http(e))?.to_bytes()))
    }

    pub(super) fn request(
        &self,
        body: Bytes,
        kind: &str,
    ) -> Result<hyper::http::request::Builder, ClientError> {
        let url = self.endpoint.url();
        let host = url
            .split("://")
            .nth(1)
            .and_then(|rest| rest.strip_suffix("/wsman"))
            .unwrap_or("localhost");
        let request = hyper::Request::post("/wsman")
            .header(HOST, host)
            .header(USER_AGENT, concat!("kvmms/", env!("CARGO_PKG_VERSION")));
        Ok(match body.is_empty() {
            // A length is told also where there is none; some servers wait for it.
            true => request.header(CONTENT_LENGTH, 0),
            false => request.header(CONTENT_TYPE, kind),
        })
    }

    /// A fresh connection on which we have said who we are, as far as that is once for all.
    async fn ready(&self, way: &mut Option<Way>) -> Result<Connection, ClientError> {
        let mut connection = self.connect().await?;
        connection.way = match *way {
            Some(way) => way,
            None => *way.insert(self.decide(&mut connection).await?),
        };
        if let (Way::Negotiate, Some(credentials)) = (connection.way, &self.credentials) {
            let session = self.prove(&mut connection, credentials).await?;
            // TLS does what sealing would.
            connection.session = (!self.endpoint.is_tls()).then_some(session);
        }
        Ok(connection)
    }

    async fn decide(&self, connection: &mut Connection) -> Result<Way, ClientError> {
        if self.credentials.is_none() {
            return Ok(Way::Nothing);
        }
        match (self.authentication, &self.endpoint) {
            (Authentication::Basic, _) | (Authentication::Auto, Endpoint::Https { .. }) => {
                Ok(Way::Basic)
            }
            (_, Endpoint::Unix(_)) => Ok(Way::Basic),
            (Authentication::Negotiate, _) => Ok(Way::Negotiate),
            (Authentication::Auto, Endpoint::Http { host, .. }) => {
                let nothing = Bytes::new();
                let request = self.request(nothing.clone(), "")?;
                let (head, _) = self.whole(&mut connection.sender, request, nothing).await?;
                if connection.sender.is_closed() {
                    *connection = self.connect().await?;
                }
                if offers_negotiate(&head.headers) {
                    Ok(Way::Negotiate)
                } else if is_this_host(host) {
                    Ok(Way::Basic)
                } else {
                    Err(ClientError::InClear {
                        at: self.endpoint.to_string(),
                    })
                }
            }
        }
    }

    async fn connect(&self) -> Result<Connection, ClientError> {
        let failed = |source| ClientError::Connect {
            at: self.endpoint.to_string(),
            source,
        };
        match &self.endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                self.http_on(stream, None).await
            }
            Endpoint::Http { host, port } | Endpoint::Https { host, port, .. } => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                let Some(config) = &self.tls else {
                    return self.http_on(stream, None).await;
                };
                let name =
                    ServerName::try_from(host.clone()).map_err(|_| ClientError::Endpoint {
                        text: host.clone(),
                        why: "no certificate can carry this name",
                    })?;
                let stream = TlsConnector::from(Arc::clone(config))
                    .connect(name, stream)
                    .await
                    .map_err(|source| ClientError::Tls {
                        at: self.endpoint.to_string(),
                        source,
                    })?;
                let shown = stream.get_ref().1.peer_certificates();
                let binding = shown
                    .and_then(<[_]>::first)
                    .map(|own| ChannelBinding::of_certificate(own));
                self.http_on(stream, binding).await
            }
        }
    }

    async fn http_on(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        binding: Option<ChannelBinding>,
    ) -> Result<Connection, ClientError> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.http(e))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection");
            }
        });
        Ok(Connection {
            sender,
            binding,
            way: Way::Nothing,
            session: None,
        })
    }
}

/// Why a request was not answered.
enum Broken {
    /// The connection broke, or was closed before.
    Connection(hyper::Error),
    Otherwise(ClientError),
}

/// Whether what is sent there never leaves this host.
fn is_this_host(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

fn offered(headers: &hyper::HeaderMap) -> String {
    let schemes: Vec<_> = offers(headers).map(|(scheme, _)| scheme).collect();
    match schemes.as_slice() {
        [] => "nothing".to_owned(),
        some => some.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_this_host() {
        for host in [
            "localhost",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_this_host(host), "{host}");
        }
        for host in [
            "10.0.0.1",
            "host",
            "localhost.example.org",
            "127.0.0.1.example.org",
        ] {
            assert!(!is_this_host(host), "{host}");
        }
    }
}
