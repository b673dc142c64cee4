//! One HTTP request: who calls, what is asked for, which protocol answers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    ALLOW, AUTHORIZATION, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::{HeaderMap, Method, StatusCode};

use super::listen::Protocols;
use super::negotiation::{Negotiation, Outcome, Request as Opened};
use super::pace::Pace;
use super::{Shared, origin};
use crate::Caller;
use crate::auth::{CHALLENGE, Credentials, NEGOTIATE, Verdict};
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
    /// Where Negotiate is on this connection; local sockets have none.
    pub(super) negotiation: Option<Negotiation>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
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
            // Ways to authenticate stand each in a line of their own.
            response.headers_mut().append(name, value);
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
    let who = match &peer.caller {
        Some(caller) => Who::Known(caller.clone()),
        None => match identify(&head.headers, peer, route, shared).await {
            Ok(who) => who,
            Err(reply) => return reply,
        },
    };
    *known = matches!(who, Who::Known(_) | Who::Negotiated(..));
    if let Who::Beginning(challenge) = who {
        return match drained(body, &shared.options).await {
            true => Reply::text(401, "").header(WWW_AUTHENTICATE.as_str(), challenge),
            false => Reply::text(413, "").header(CONNECTION.as_str(), "close"),
        };
    }
    let (limit, within) = if *known {
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
    match (who, route) {
        (Who::Negotiated(caller, ended), _) => {
            let asked = Asked {
                caller,
                route,
                limit,
                head: &head.headers,
            };
            let reply = negotiated(asked, ended.is_some(), body, peer, shared).await;
            match ended {
                Some(ended) => reply.header(WWW_AUTHENTICATE.as_str(), ended),
                None => reply,
            }
        }
        (Who::Known(caller), _) => {
            let asked = Asked {
                caller,
                route,
                limit,
                head: &head.headers,
            };
            asked.answer(body, shared).await
        }
        (_, Route::Wsman) => {
            // Everyone may ask what this is; wsman clients do so before they authenticate.
            let identified = shared.wsman.identify(body.as_deref().unwrap_or_default());
            identified.unwrap_or_else(|| unauthorized(peer, route, shared))
        }
        (_, Route::CimXml) => unauthorized(peer, route, shared),
    }
}

/// A request of a known caller, but for its body.
struct Asked<'a> {
    caller: Caller,
    route: Route,
    limit: usize,
    head: &'a HeaderMap,
}

impl Asked<'_> {
    /// `None`: the body was too large to be read.
    async fn answer(self, body: Option<Bytes>, shared: &Shared) -> Reply {
        let limit = self.limit;
        let Some(body) = body else {
            return match self.route {
                Route::Wsman => shared.wsman.too_large(limit),
                Route::CimXml => Reply::text(413, &format!("a request may have {limit} bytes")),
            };
        };
        let ask = Ask {
            caller: self.caller,
            request_key: text_header(self.head, "kvmms-request-key"),
            cim_operation: text_header(self.head, "cimoperation"),
            cim_method: text_header(self.head, "cimmethod"),
            cim_object: text_header(self.head, "cimobject"),
            body,
        };
        match self.route {
            Route::Wsman => shared.wsman.answer(ask).await,
            Route::CimXml => shared.cimxml.answer(ask).await,
        }
    }
}

/// Answers a caller who is known by Negotiate; `ended` where the handshake has just ended, with or without a first request.
async fn negotiated(
    asked: Asked<'_>,
    ended: bool,
    body: Option<Bytes>,
    peer: &Peer,
    shared: &Shared,
) -> Reply {
    let Some(negotiation) = &peer.negotiation else {
        return unauthorized(peer, asked.route, shared);
    };
    let Some(body) = body else {
        let reply = asked.answer(None, shared).await;
        return match negotiation.seals() {
            true => negotiation.seal(reply),
            false => reply,
        };
    };
    if ended && body.is_empty() {
        return Reply::text(200, "");
    }
    let content_type = text_header(asked.head, CONTENT_TYPE.as_str()).unwrap_or_default();
    match negotiation.open(&content_type, body) {
        Opened::Body(body, sealed) => {
            let reply = asked.answer(Some(body), shared).await;
            match sealed {
                true => negotiation.seal(reply),
                false => reply,
            }
        }
        Opened::Broken(limit) => Reply::text(400, &shared.handler.limit(&limit).message)
            .header(CONNECTION.as_str(), "close"),
    }
}

/// Reads a body nobody will look at: some clients send their request along with every step of the handshake.
async fn drained(mut body: Incoming, options: &super::Options) -> bool {
    let all = async {
        let mut read = 0usize;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return false;
            };
            read = read.saturating_add(frame.data_ref().map_or(0, Bytes::len));
            if read > options.max_body {
                return false;
            }
        }
        true
    };
    let ended = tokio::time::timeout(options.body_timeout, all).await;
    ended.unwrap_or(false)
}

fn unauthorized(peer: &Peer, route: Route, shared: &Shared) -> Reply {
    let mut reply = Reply::text(401, "");
    if offers_negotiate(peer, route, shared) {
        reply = reply.header(WWW_AUTHENTICATE.as_str(), NEGOTIATE);
    }
    reply.header(WWW_AUTHENTICATE.as_str(), CHALLENGE)
}

fn offers_negotiate(peer: &Peer, route: Route, shared: &Shared) -> bool {
    route == Route::Wsman && peer.negotiation.is_some() && shared.authenticator.knows_ntlm()
}

fn text_header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers
        .get(name)
        .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
}

/// Who asks.
enum Who {
    /// Nobody: no credentials, or wrong ones.
    Nobody,
    /// Somebody with a password, or at the local socket.
    Known(Caller),
    /// Somebody who proved themselves on this connection; with the header that ends the handshake where this request did.
    Negotiated(Caller, Option<String>),
    /// Nobody yet: the header that goes on with the handshake.
    Beginning(String),
}

/// Who asks; an answer where the credentials were not looked at.
async fn identify(
    headers: &HeaderMap,
    peer: &Peer,
    route: Route,
    shared: &Shared,
) -> Result<Who, Reply> {
    // What a connection has proved counts for WS-Management only, where bodies are sealed.
    let negotiation = peer.negotiation.as_ref().filter(|_| route == Route::Wsman);
    let Some(header) = headers.get(AUTHORIZATION) else {
        let caller = negotiation.and_then(|n| n.caller(&*shared.authenticator));
        return Ok(caller.map_or(Who::Nobody, |caller| Who::Negotiated(caller, None)));
    };
    let text = header.to_str().unwrap_or_default().trim();
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    let scheme = [NEGOTIATE, "NTLM"]
        .into_iter()
        .find(|own| scheme.eq_ignore_ascii_case(own));
    if let (Some(scheme), Some(negotiation)) = (scheme, negotiation) {
        if !shared.authenticator.knows_ntlm() {
            return Ok(Who::Nobody);
        }
        let names = &shared.options.host_names;
        let ours = |host: &str| origin::is_meant(host, peer.local, names);
        let outcome = negotiation
            .token(
                scheme,
                token,
                shared.handler.host(),
                ours,
                &*shared.authenticator,
            )
            .await;
        return match outcome {
            Outcome::Goes(challenge) => Ok(Who::Beginning(challenge)),
            Outcome::Known(caller, ended) => Ok(Who::Negotiated(caller, Some(ended))),
            Outcome::Nobody => Ok(Who::Nobody),
            Outcome::Refused(verdict) => judged(verdict, shared),
            Outcome::TooMany(limit) => Err(refused(429, Duration::from_secs(1), &limit, shared)),
        };
    }
    let Some(given) = Credentials::from_header(header.as_bytes()) else {
        return Ok(Who::Nobody);
    };
    if let Some(negotiation) = negotiation.filter(|n| n.seals())
        && negotiation.caller(&*shared.authenticator).is_some()
    {
        // Two callers on one connection, one of them in the clear: somebody mixes them up.
        let why = shared.handler.limit(&Limit::Unsealed).message;
        return Err(Reply::text(400, &why).header(CONNECTION.as_str(), "close"));
    }
    let verdict = shared
        .authenticator
        .check(peer.origin, &given.user, &given.password)
        .await;
    judged(verdict, shared)
}

fn judged(verdict: Verdict, shared: &Shared) -> Result<Who, Reply> {
    match verdict {
        Verdict::Caller(caller) => Ok(Who::Known(caller)),
        Verdict::Wrong => Ok(Who::Nobody),
        Verdict::Wait(wait) => Err(refused(429, wait, &Limit::Guesses { wait }, shared)),
        Verdict::Busy => {
            let (wait, limit) = (Duration::from_secs(1), Limit::PasswordChecks);
            Err(refused(503, wait, &limit, shared))
        }
    }
}

fn refused(status: u16, retry: Duration, limit: &Limit, shared: &Shared) -> Reply {
    Reply::text(status, &shared.handler.limit(limit).message)
        .header(RETRY_AFTER.as_str(), seconds(retry).to_string())
        .header(CONNECTION.as_str(), "close")
}
