//! What passes between the HTTP server and the two protocols.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::{Caller, Error, Handler, Request, Response, Status};

/// One HTTP request of a known caller.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) caller: Caller,
    pub(crate) request_key: Option<String>,
    pub(crate) cim_operation: Option<String>,
    pub(crate) cim_method: Option<String>,
    pub(crate) cim_object: Option<String>,
    pub(crate) body: Bytes,
}

/// One HTTP answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn new(status: u16, content_type: &str, body: Vec<u8>) -> Self {
        Reply {
            status,
            headers: vec![("content-type", content_type.to_owned())],
            body,
        }
    }

    pub(crate) fn text(status: u16, text: &str) -> Self {
        Reply::new(
            status,
            "text/plain; charset=utf-8",
            text.as_bytes().to_vec(),
        )
    }
}

impl Reply {
    /// The type of its body.
    pub(crate) fn content_type(&self) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(name, _)| *name == "content-type");
        found.map(|(_, value)| value.as_str())
    }

    /// The same with its body in another form.
    pub(crate) fn packed(mut self, content_type: &str, body: Vec<u8>) -> Self {
        self.headers.retain(|(name, _)| *name != "content-type");
        self.body = body;
        self.header("content-type", content_type)
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Hands a request to the handler in a task of its own, so that it ends even when the client goes away.
/// With a limit the caller waits no longer than that; the operation goes on.
pub(crate) async fn run(
    handler: &Arc<dyn Handler>,
    request: Request,
    limit: Option<Duration>,
) -> Result<Response, Error> {
    let handler = Arc::clone(handler);
    let task = tokio::spawn(async move { handler.handle(request).await });
    let ended = match limit {
        None => task.await,
        Some(limit) => match tokio::time::timeout(limit, task).await {
            Ok(ended) => ended,
            Err(_) => {
                return Err(Error::new(
                    Status::OperationTimeout,
                    format!(
                        "The operation did not end within {} s; it goes on.",
                        limit.as_secs_f64()
                    ),
                ));
            }
        },
    };
    ended.unwrap_or_else(|failed| {
        tracing::error!(error = %failed, "an operation failed inside the service");
        Err(Error::new(
            Status::Failed,
            "The service failed inside this operation; its log says where.",
        ))
    })
}
