//! Negotiate on one connection: where its handshake is, and the keys it left. Whoever proved themselves is known on this connection
//! only; over plain HTTP everything they and we say afterwards is sealed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ntlm::{Acceptor, ChannelBinding, Fresh, MAX_TOKEN, Names, Refused, Session, Step};

use crate::auth::{Authenticator, Proof, Ticket, Verdict};
use crate::limit::Limit;
use crate::sealed;
use crate::wire::Reply;
use crate::{Caller, Origin};

/// How many handshakes may begin on one connection. One is what it takes, a second where a password was mistyped.
const HANDSHAKES: u32 = 8;
/// How long a challenge may be answered.
const CHALLENGE: Duration = Duration::from_secs(30);

/// The handshake of one connection.
pub(super) struct Negotiation {
    /// That of the TLS below; without it what is said is sealed.
    binding: Option<ChannelBinding>,
    origin: Origin,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    begun: u32,
    pending: Option<(Acceptor, Instant)>,
    known: Option<Known>,
}

/// Who proved themselves on this connection.
struct Known {
    ticket: Ticket,
    session: Session,
}

/// What came of a token.
pub(super) enum Outcome {
    /// The next token of the handshake, for the client.
    Goes(String),
    /// The caller is who they say; with the header that ends the handshake.
    Known(Caller, String),
    /// They are not, or there was no such handshake.
    Nobody,
    /// It was not looked at.
    Refused(Verdict),
    /// Too many were begun.
    TooMany(Limit),
}

/// What a caller who is known by this connection asked.
pub(super) enum Request {
    /// The body, opened where it was sealed; and whether the answer is to be sealed.
    Body(Bytes, bool),
    /// It cannot be taken, and the handshake is over.
    Broken(Limit),
}

impl Negotiation {
    pub(super) fn new(binding: Option<ChannelBinding>, origin: Origin) -> Self {
        Negotiation {
            binding,
            origin,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panic elsewhere leaves is a handshake or keys: those of one connection, which it ends.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether bodies have to be sealed here.
    pub(super) fn seals(&self) -> bool {
        self.binding.is_none()
    }

    /// The caller, where they proved themselves on this connection and nothing has changed about them since.
    pub(super) fn caller(&self, authenticator: &dyn Authenticator) -> Option<Caller> {
        let mut state = self.state();
        let caller = state
            .known
            .as_ref()
            .and_then(|known| authenticator.still(&known.ticket));
        if caller.is_none() {
            state.known = None;
        }
        caller
    }

    /// Takes a token of an `Authorization` header of the scheme `scheme`.
    pub(super) async fn token(
        &self,
        scheme: &str,
        token: &str,
        computer: &str,
        is_ours: impl Fn(&str) -> bool,
        authenticator: &dyn Authenticator,
    ) -> Outcome {
        let Some(token) = (token.len() <= MAX_TOKEN.div_ceil(3) * 4)
            .then(|| STANDARD.decode(token.trim()).ok())
            .flatten()
        else {
            self.state().known = None;
            return Outcome::Nobody;
        };
        let claim = {
            let mut state = self.state();
            // Whoever begins anew is nobody until the end.
            state.known = None;
            let begins = Acceptor::begins(&token);
            if begins {
                state.begun = state.begun.saturating_add(1);
                if state.begun > HANDSHAKES {
                    return Outcome::TooMany(Limit::Handshakes {
                        allowed: HANDSHAKES,
                    });
                }
            }
            let acceptor = match state.pending.take() {
                _ if begins => Some(Acceptor::default()),
                Some((acceptor, since)) if since.elapsed() < CHALLENGE => Some(acceptor),
                _ => None,
            };
            let Some(mut acceptor) = acceptor else {
                tracing::debug!(origin = %self.origin, "a token without its handshake");
                return Outcome::Nobody;
            };
            let step = fresh().and_then(|fresh| {
                acceptor
                    .step(&token, Names { computer }, fresh)
                    .map_err(Some)
            });
            match step {
                Ok(Step::Answer(answer)) => {
                    state.pending = Some((acceptor, Instant::now()));
                    return Outcome::Goes(format!("{scheme} {}", STANDARD.encode(answer)));
                }
                Ok(Step::Claim(claim)) => claim,
                Err(Some(refused)) => return self.refused(refused),
                Err(None) => return Outcome::Refused(Verdict::Busy),
            }
        };
        // A proof meant for another service, passed on to us.
        if let Some(target) = claim.target()
            && !target.split('/').nth(1).is_none_or(is_ours)
        {
            tracing::warn!(origin = %self.origin, "a handshake was meant for another host");
            return Outcome::Nobody;
        }
        match authenticator.prove(self.origin, claim, self.binding).await {
            Ok(Proof {
                caller,
                ticket,
                proved,
            }) => {
                if self.seals() && !proved.session.can_seal() {
                    return self.refused(Refused::Missing("sealing"));
                }
                let ended = match proved.answer {
                    Some(answer) => format!("{scheme} {}", STANDARD.encode(answer)),
                    None => scheme.to_owned(),
                };
                self.state().known = Some(Known {
                    ticket,
                    session: proved.session,
                });
                Outcome::Known(caller, ended)
            }
            Err(Verdict::Wrong | Verdict::Caller(_)) => Outcome::Nobody,
            Err(verdict) => Outcome::Refused(verdict),
        }
    }

    fn refused(&self, refused: Refused) -> Outcome {
        tracing::debug!(origin = %self.origin, %refused, "a handshake was refused");
        Outcome::Nobody
    }

    /// Opens a body of the caller who is known here.
    pub(super) fn open(&self, content_type: &str, body: Bytes) -> Request {
        let mut state = self.state();
        if !sealed::is_sealed(content_type) {
            if !self.seals() {
                return Request::Body(body, false);
            }
            state.known = None;
            tracing::warn!(origin = %self.origin, "a request that should have been sealed was not");
            return Request::Broken(Limit::Unsealed);
        }
        let opened = state
            .known
            .as_mut()
            .map(|known| sealed::open(&mut known.session, content_type, &body));
        match opened {
            Some(Ok(opened)) => Request::Body(opened.into(), true),
            Some(Err(error)) => {
                state.known = None;
                let error = &error as &dyn std::error::Error;
                tracing::warn!(origin = %self.origin, error, "a sealed request was not opened");
                Request::Broken(Limit::Unopened)
            }
            None => Request::Broken(Limit::Unopened),
        }
    }

    /// Seals an answer; with another in its place where the keys are gone.
    pub(super) fn seal(&self, reply: Reply) -> Reply {
        let mut state = self.state();
        let original = reply.content_type().unwrap_or_default().to_owned();
        let sealed = state
            .known
            .as_mut()
            .map(|known| sealed::seal(&mut known.session, &original, &reply.body));
        match sealed {
            Some(Ok(body)) => reply.packed(sealed::CONTENT_TYPE, body),
            _ => Reply::text(500, "the answer could not be sealed").header("connection", "close"),
        }
    }
}

/// A challenge and the time. `None` where the system has no random numbers.
fn fresh() -> Result<Fresh, Option<Refused>> {
    use ring::rand::SecureRandom as _;
    let mut challenge = [0; 8];
    ring::rand::SystemRandom::new()
        .fill(&mut challenge)
        .map_err(|_| {
            tracing::error!("the system has no random numbers");
            None
        })?;
    Ok(Fresh {
        challenge,
        time: windows_time(SystemTime::now()),
    })
}

/// A time as Windows counts it: steps of 100 ns since 1601.
pub(crate) fn windows_time(at: SystemTime) -> u64 {
    const BEFORE_1970: u64 = 116_444_736_000_000_000;
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let steps = u64::try_from(since.as_nanos() / 100).unwrap_or_default();
    BEFORE_1970.saturating_add(steps)
}
