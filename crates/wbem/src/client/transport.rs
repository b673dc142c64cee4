//! One kept connection: HTTP over TCP, TLS or a local socket.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT, WWW_AUTHENTICATE};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use super::trust;
use super::{ClientError, Endpoint};
use crate::auth::Credentials;

/// An answer larger than this is a mistake of the server.
const MAX_ANSWER: usize = 256 << 20;

type Sender = SendRequest<Full<Bytes>>;

pub(super) struct Transport {
    endpoint: Endpoint,
    credentials: Option<Credentials>,
    tls: Option<Arc<ClientConfig>>,
    timeout: Duration,
    connection: Mutex<Option<Sender>>,
}

impl Transport {
    pub(super) fn new(
        endpoint: Endpoint,
        credentials: Option<Credentials>,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let tls = match &endpoint {
            Endpoint::Https { trust, .. } => Some(trust::config(trust)?),
            _ => None,
        };
        Ok(Transport {
            endpoint,
            credentials,
            tls,
            timeout,
            connection: Mutex::new(None),
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
        let mut slot = self.connection.lock().await;
        let kept = slot.take().filter(|c| !c.is_closed());
        let was_kept = kept.is_some();
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let response = match connection.send_request(self.request(text.clone())?).await {
            // The server closed the kept connection, in the first two cases before it saw the request.
            Err(error)
                if was_kept
                    && (error.is_canceled()
                        || error.is_closed()
                        || repeatable && error.is_incomplete_message()) =>
            {
                connection = self.connect().await?;
                connection.send_request(self.request(text)?).await
            }
            other => other,
        };
        let response = response.map_err(|e| self.http(e))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|e| self.http(e))?.to_bytes();
        *slot = Some(connection);
        match head.status.as_u16() {
            200 => Ok(body),
            401 => Err(ClientError::Unauthorized {
                at: self.endpoint.to_string(),
                user: self.credentials.as_ref().map(|c| c.user.clone()),
                offered: offered(&head.headers),
            }),
            status if body.is_empty() => Err(ClientError::Status {
                at: self.endpoint.to_string(),
                status,
            }),
            // Faults come as 500 or 400.
            400 | 500 => Ok(body),
            status => Err(ClientError::Status {
                at: self.endpoint.to_string(),
                status,
            }),
        }
    }

    fn request(&self, text: Bytes) -> Result<hyper::Request<Full<Bytes>>, ClientError> {
        let url = self.endpoint.url();
        let host = url
            .split("://")
            .nth(1)
            .and_then(|rest| rest.strip_suffix("/wsman"))
            .unwrap_or("localhost");
        let mut request = hyper::Request::post("/wsman")
            .header(HOST, host)
            .header(CONTENT_TYPE, "application/soap+xml;charset=UTF-8")
            .header(USER_AGENT, concat!("kvmms/", env!("CARGO_PKG_VERSION")));
        if let Some(credentials) = &self.credentials {
            request = request.header(AUTHORIZATION, credentials.to_header());
        }
        request.body(Full::new(text)).map_err(|e| self.http(e))
    }

    async fn connect(&self) -> Result<Sender, ClientError> {
        let failed = |source| ClientError::Connect {
            at: self.endpoint.to_string(),
            source,
        };
        match &self.endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                self.handshake(stream).await
            }
            Endpoint::Http { host, port } | Endpoint::Https { host, port, .. } => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                let Some(config) = &self.tls else {
                    return self.handshake(stream).await;
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
                self.handshake(stream).await
            }
        }
    }

    async fn handshake(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Sender, ClientError> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.http(e))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection");
            }
        });
        Ok(sender)
    }
}

fn offered(headers: &hyper::HeaderMap) -> String {
    let schemes: Vec<_> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .filter_map(|v| v.split_whitespace().next())
        .collect();
    match schemes.as_slice() {
        [] => "nothing".to_owned(),
        some => some.join(", "),
    }
}
