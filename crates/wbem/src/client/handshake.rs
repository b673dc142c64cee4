//! The client's side of Negotiate on one connection.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use ntlm::{Initiator, Login, Random, Refused, Session};

use super::ClientError;
use super::transport::{Connection, Transport};
use crate::auth::{Credentials, NEGOTIATE};
use crate::server::negotiation::windows_time;

/// How a client says who it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authentication {
    /// As the server offers: over TLS the password itself, or Negotiate where it does not take that; over plain HTTP Negotiate, which
    /// seals everything, or to this host the password itself.
    #[default]
    Auto,
    /// The password itself; over plain HTTP whoever is in between can read it.
    Basic,
    /// Negotiate with NTLM: the password never leaves, and over plain HTTP everything is sealed.
    Negotiate,
}

/// What was decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Nothing,
    Basic,
    Negotiate,
}

/// The ways a server offers, with a token where there is one.
pub(super) fn offers(headers: &HeaderMap) -> impl Iterator<Item = (&str, Option<&str>)> {
    headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        // Some put several into one line; no token has a comma in it.
        .flat_map(|value| value.split(','))
        .map(|offer| match offer.trim().split_once(' ') {
            Some((scheme, token)) => (scheme, Some(token.trim())),
            None => (offer.trim(), None),
        })
}

pub(super) fn offers_negotiate(headers: &HeaderMap) -> bool {
    offers(headers).any(|(scheme, _)| scheme.eq_ignore_ascii_case(NEGOTIATE))
}

pub(super) fn offers_basic(headers: &HeaderMap) -> bool {
    offers(headers).any(|(scheme, _)| scheme.eq_ignore_ascii_case("Basic"))
}

/// The token a server answers with.
fn token(headers: &HeaderMap) -> Result<Option<Vec<u8>>, Refused> {
    let found = offers(headers)
        .find(|(scheme, token)| scheme.eq_ignore_ascii_case(NEGOTIATE) && token.is_some())
        .and_then(|(_, token)| token);
    found
        .map(|token| {
            STANDARD
                .decode(token)
                .map_err(|_| Refused::Malformed("a token that is not base64"))
        })
        .transpose()
}

fn random() -> Result<Random, Refused> {
    use ring::rand::SecureRandom as _;
    let system = ring::rand::SystemRandom::new();
    let (mut challenge, mut session_key) = ([0; 8], [0; 16]);
    let filled = system
        .fill(&mut challenge)
        .and_then(|()| system.fill(&mut session_key));
    filled.map_err(|_| Refused::Missing("random numbers (this system does not)"))?;
    Ok(Random {
        challenge,
        session_key,
        time: windows_time(SystemTime::now()),
    })
}

impl Transport {
    /// Proves on a fresh connection who we are.
    pub(super) async fn prove(
        &self,
        connection: &mut Connection,
        credentials: &Credentials,
    ) -> Result<Session, ClientError> {
        let failed = |source| ClientError::Handshake {
            at: self.endpoint.to_string(),
            source,
        };
        let mut send = async |token: &[u8]| {
            let value = format!("{NEGOTIATE} {}", STANDARD.encode(token));
            let request = self.request(Bytes::new(), "")?.header(AUTHORIZATION, value);
            self.whole(&mut connection.sender, request, Bytes::new())
                .await
        };
        let (initiator, first) = Initiator::begin().map_err(failed)?;
        let (head, _) = send(&first).await?;
        let challenge = token(&head.headers).map_err(failed)?;
        let (401, Some(challenge)) = (head.status.as_u16(), challenge) else {
            return Err(self.refused(&head));
        };
        let login = Login::new(&credentials.user, &credentials.password);
        let target = format!("HTTP/{}", self.endpoint.host());
        let binding = connection.binding.as_ref();
        let (answer, finish) = initiator
            .answer(
                &challenge,
                &login,
                &target,
                binding,
                random().map_err(failed)?,
            )
            .map_err(failed)?;
        let (head, _) = send(&answer).await?;
        if !head.status.is_success() {
            return Err(self.refused(&head));
        }
        let end = token(&head.headers).map_err(failed)?;
        let session = finish.end(end.as_deref()).map_err(failed)?;
        if !self.endpoint.is_tls() && !session.can_seal() {
            return Err(failed(Refused::Missing("sealing")));
        }
        Ok(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_are_read_from_one_line_and_from_several() {
        let mut headers = HeaderMap::new();
        for value in ["Negotiate", "Basic realm=\"x\", Kerberos"] {
            headers.append(WWW_AUTHENTICATE, value.parse().expect("a value"));
        }
        assert!(offers_negotiate(&headers) && offers_basic(&headers));
        assert_eq!(token(&headers), Ok(None));
        headers.append(WWW_AUTHENTICATE, "negotiate AAE=".parse().expect("a value"));
        assert_eq!(token(&headers), Ok(Some(vec![0, 1])));
        headers.remove(WWW_AUTHENTICATE);
        headers.append(WWW_AUTHENTICATE, "Negotiate !".parse().expect("a value"));
        assert!(token(&headers).is_err());
        assert!(!offers_basic(&headers));
    }
}
