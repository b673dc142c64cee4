//! Who is calling: HTTP Basic credentials or a proof of NTLM, and whoever can tell whether they are right.

mod check;
mod guard;
pub mod users;

use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ntlm::{ChannelBinding, Claim, Proved};

use crate::{Caller, Origin};

pub use check::{Accounts, AccountsOptions};

/// The challenge sent with every 401.
pub(crate) const CHALLENGE: &str = "Basic realm=\"kvmms\"";
/// The other one, where some user may take it.
pub(crate) const NEGOTIATE: &str = "Negotiate";

/// Tells whether a user name and password are right, and what that user may do.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// Who it is. An implementation bounds guessing itself; the server bounds how many connections may wait here.
    async fn check(&self, origin: Origin, user: &str, password: &str) -> Verdict;

    /// Whether some user may prove themselves by NTLM. Where none may, it is not offered.
    fn knows_ntlm(&self) -> bool {
        false
    }

    /// Who it is that claims to be somebody by NTLM, over a connection with that binding. Guessing is bounded like that of passwords.
    async fn prove(
        &self,
        _origin: Origin,
        _claim: Box<Claim>,
        _binding: Option<ChannelBinding>,
    ) -> Result<Proof, Verdict> {
        Err(Verdict::Wrong)
    }

    /// The same caller later on, with the rights they have now; `None` once their password was changed or they were removed.
    fn still(&self, _ticket: &Ticket) -> Option<Caller> {
        None
    }
}

/// Somebody who proved who they are by NTLM.
#[derive(Debug)]
pub struct Proof {
    /// Who.
    pub caller: Caller,
    /// By what they are known later on, on the same connection.
    pub ticket: Ticket,
    /// The keys of the handshake.
    pub proved: Proved,
}

/// That somebody proved who they are, with the password they had then.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The user.
    pub user: String,
    /// What stands for the password.
    pub stamp: [u8; 32],
}

/// What became of a user name and a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are right.
    Caller(Caller),
    /// One of them is wrong.
    Wrong,
    /// They were not looked at: too many wrong ones came before, and none is looked at for that long.
    Wait(Duration),
    /// They were not looked at: too many others are being looked at.
    Busy,
}

/// Nobody: for listeners whose callers are all known otherwise (the local socket).
#[derive(Clone, Copy, Debug, Default)]
pub struct Nobody;

#[async_trait]
impl Authenticator for Nobody {
    async fn check(&self, _origin: Origin, _user: &str, _password: &str) -> Verdict {
        Verdict::Wrong
    }
}

/// A user name and a password, as a client sends them.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads the value of an `Authorization` header (RFC 7617); `None` for another scheme or anything
    /// malformed.
    pub fn from_header(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?.trim();
        let (scheme, token) = text.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = STANDARD.decode(token.trim()).ok()?;
        // Clients encode as UTF-8 or, older ones, as Latin-1.
        let decoded = String::from_utf8(decoded)
            .unwrap_or_else(|e| e.as_bytes().iter().map(|b| char::from(*b)).collect());
        let (user, password) = decoded.split_once(':')?;
        // Windows clients put a domain or host before the name; there are no domains here.
        let user = user.rsplit_once('\\').map_or(user, |(_, name)| name);
        Some(Credentials {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    /// The value of the `Authorization` header.
    pub fn to_header(&self) -> String {
        let token = STANDARD.encode(format!("{}:{}", self.user, self.password));
        format!("Basic {token}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_credentials_survive_the_header() {
        let given = Credentials {
            user: "alice".to_owned(),
            password: "p:w:ü".to_owned(),
        };
        let header = given.to_header();
        assert_eq!(Credentials::from_header(header.as_bytes()), Some(given));
    }

    #[test]
    fn a_domain_before_the_name_is_dropped() {
        let header = Credentials {
            user: "HOST\\bob".to_owned(),
            password: "x".to_owned(),
        }
        .to_header();
        let read = Credentials::from_header(header.as_bytes()).map(|c| c.user);
        assert_eq!(read.as_deref(), Some("bob"));
    }

    #[test]
    fn other_schemes_and_rubbish_are_no_credentials() {
        for value in ["", "Basic", "Negotiate YII=", "Basic !!!", "Basic YWJj"] {
            assert_eq!(Credentials::from_header(value.as_bytes()), None, "{value}");
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        let c = Credentials {
            user: "u".to_owned(),
            password: "secret".to_owned(),
        };
        assert!(!format!("{c:?}").contains("secret"));
    }
}
