//! One HTTP request: who calls, what is asked for, which protocol answers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Method, StatusCode};

use super::listen::Protocols;
use super::pace::Pace;
use super::{Shared, origin};
use crate::Caller;
use crate::auth::{CHALLENGE, Credentials, Verdict};
use crate::limit::{Limit, Origin, seconds};
use crate::wire::{Ask, Reply};

/// Without credentials only Identify is answered; it is far smaller.
const MAX_UNKNOWN_BODY: usize = 64 * 1024;

/// The other end of a connection.
pub(super) struct Peer {
    /// Known from the connection itself (local sockets).
    pub(super) caller: Option<Caller>,
    pub(super) origin: Origin,
    pub(super) protocols: Protocols,
    /// The address it connected to; local sockets have none.
    pub(super) local: Option<SocketAddr>,
}

#[derive(Clone, Copy, PartialEq)]
enum Route {
    Wsman,
    CimXml,
}

pub(super) async fn serve(
    request: hyper::Request<Incoming>,
    peer: &Peer,
    shared: &Shared,
    pace: &Pace,
) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    pace.begun();
    let mut known = false;
    let reply = answer(request, peer, shared, &mut known).await;
    pace.answered(known);
    Ok(to_http(reply))
}

fn to_http(reply: Reply) -> hyper::Response<Full<Bytes>> {
    let mut response = hyper::Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in reply.headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

async fn answer(
    request: hyper::Request<Incoming>,
    peer: &Peer,
    shared: &Shared,
    known: &mut bool,
) -> Reply {
    let (head, body) = request.into_parts();
    if let Err(foreign) = origin::check(&head, peer.local, &shared.options.host_names) {
        tracing::warn!(why = foreign.why, "a request was not looked at");
        return Reply::text(foreign.status.as_u16(), &foreign.why);
    }
    let route = match head.uri.path().trim_end_matches('/') {
        path if path.eq_ignore_ascii_case("/wsman") && peer.protocols.wsman => Route::Wsman,
        "/cimom" | "" if peer.protocols.cimxml => Route::CimXml,
        _ => return Reply::text(404, "nothing is served here; try /wsman or /cimom"),
    };
    if head.method != Method::POST {
        return Reply::text(405, "only POST is served here").header(ALLOW.as_str(), "POST");
    }
    let caller = match &peer.caller {
        Some(caller) => Some(caller.clone()),
        None => match authenticate(&head.headers, peer.origin, shared).await {
            Ok(caller) => caller,
            Err(reply) => return reply,
        },
    };
    *known = caller.is_some();
    let (limit, within) = if caller.is_some() {
        (shared.options.max_body, shared.options.body_timeout)
    } else {
        (MAX_UNKNOWN_BODY, shared.options.head_timeout)
    };
    // An announced length is refused before anything is read; the connection ends with the answer.
    let body = if body.size_hint().lower() > limit as u64 {
        None
    } else {
        let collected = Limited::new(body, limit).collect();
        match tokio::time::timeout(within, collected).await {
            Ok(Ok(body)) => Some(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => None,
            Ok(Err(error)) => {
                return Reply::text(400, &format!("the body cannot be read: {error}"));
            }
            Err(_) => {
                // What is left of it would be taken for the next request.
                let why = shared.handler.limit(&Limit::SlowBody { within }).message;
                return Reply::text(408, &why).header(CONNECTION.as_str(), "close");
            }
        }
    };
    let ask = |caller| Ask {
        caller,
        request_key: text_header(&head.headers, "kvmms-request-key"),
        cim_operation: text_header(&head.headers, "cimoperation"),
        cim_method: text_header(&head.headers, "cimmethod"),
        cim_object: text_header(&head.headers, "cimobject"),
        body: body.clone().unwrap_or_default(),
    };
    match (caller, route) {
        (None, Route::Wsman) => {
            // Everyone may ask what this is; wsman clients do so before they authenticate.
            let identified = shared.wsman.identify(body.as_deref().unwrap_or_default());
            identified.unwrap_or_else(unauthorized)
        }
        (None, Route::CimXml) => unauthorized(),
        (Some(_), Route::Wsman) if body.is_none() => shared.wsman.too_large(limit),
        (Some(_), Route::CimXml) if body.is_none() => {
            Reply::text(413, &format!("a request may have {limit} bytes"))
        }
        (Some(caller), Route::Wsman) => shared.wsman.answer(ask(caller)).await,
        (Some(caller), Route::CimXml) => shared.cimxml.answer(ask(caller)).await,
    }
}

fn unauthorized() -> Reply {
    Reply::text(401, "").header(WWW_AUTHENTICATE.as_str(), CHALLENGE)
}

fn text_header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers
        .get(name)
        .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
}

/// Who asks; `None` without credentials and with wrong ones. The answer where they were not looked at.
async fn authenticate(
    headers: &HeaderMap,
    origin: Origin,
    shared: &Shared,
) -> Result<Option<Caller>, Reply> {
    let header = headers.get(AUTHORIZATION);
    let Some(given) = header.and_then(|h| Credentials::from_header(h.as_bytes())) else {
        return Ok(None);
    };
    let verdict = shared
        .authenticator
        .check(origin, &given.user, &given.password)
        .await;
    let refused = |status, retry: Duration, limit: &Limit| {
        Reply::text(status, &shared.handler.limit(limit).message)
            .header(RETRY_AFTER.as_str(), seconds(retry).to_string())
            .header(CONNECTION.as_str(), "close")
    };
    match verdict {
        Verdict::Caller(caller) => Ok(Some(caller)),
        Verdict::Wrong => Ok(None),
        Verdict::Wait(wait) => Err(refused(429, wait, &Limit::Guesses { wait })),
        Verdict::Busy => Err(refused(503, Duration::from_secs(1), &Limit::PasswordChecks)),
    }
}
