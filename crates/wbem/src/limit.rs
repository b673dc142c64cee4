//! The bounds of the server a client can run into, and where clients come from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Where a client sits, as far as sharing goes: what one client can have many of is one origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// At the local socket.
    Local,
    /// Anywhere else. All of loopback is one, and so is a /64 of IPv6, which is what a host gets.
    Address(IpAddr),
}

impl Origin {
    /// The origin of a peer.
    pub fn of(peer: SocketAddr) -> Self {
        Origin::Address(match peer.ip().to_canonical() {
            ip if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            ip => ip,
        })
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Local => f.write_str("the local socket"),
            Origin::Address(IpAddr::V6(ip)) => write!(f, "{ip}/64"),
            Origin::Address(ip) => ip.fmt(f),
        }
    }
}

/// A bound that was reached. The service behind puts it into its own words ([`crate::Handler::limit`]).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    /// All connections of a listener are taken.
    #[error("all {allowed} connections of this listener are in use")]
    Connections {
        /// How many there may be.
        allowed: usize,
    },
    /// All connections of an origin are taken.
    #[error("{origin} has {allowed} connections open, more are not allowed")]
    ConnectionsFrom {
        /// The origin.
        origin: Origin,
        /// How many there may be.
        allowed: usize,
    },
    /// Too many wrong passwords.
    #[error("too many wrong passwords; the next is looked at in {} s", seconds(*wait))]
    Guesses {
        /// Until when none is looked at.
        wait: Duration,
    },
    /// Too many passwords wait to be checked.
    #[error("too many passwords are being checked")]
    PasswordChecks,
    /// Too many enumerations are open.
    #[error(
        "{open} enumerations of this {} are open, more are not allowed; pull them to their end or release them",
        of(*own)
    )]
    Enumerations {
        /// How many are open.
        open: usize,
        /// Of this user; else of all users.
        own: bool,
    },
    /// Open enumerations hold too much.
    #[error(
        "the open enumerations of this {} hold {held} bytes, more than {allowed} are not allowed; pull them to their end or release them",
        of(*own)
    )]
    EnumerationBytes {
        /// What they hold, the new one included.
        held: usize,
        /// What they may hold.
        allowed: usize,
        /// Of this user; else of all users.
        own: bool,
    },
    /// Too many handshakes were begun on one connection.
    #[error("a connection may begin {allowed} handshakes")]
    Handshakes {
        /// How many there may be.
        allowed: u32,
    },
    /// A request came in the clear where it has to be sealed.
    #[error("over plain HTTP a caller who authenticated by Negotiate seals what is sent")]
    Unsealed,
    /// A sealed request could not be opened.
    #[error("the sealed request could not be opened")]
    Unopened,
    /// The body of a request did not come in time.
    #[error("the body of the request did not come within {} s", seconds(*within))]
    SlowBody {
        /// The time it had.
        within: Duration,
    },
}

fn of(own: bool) -> &'static str {
    if own { "user" } else { "server" }
}

/// Whole seconds, begun ones included.
pub(crate) fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_client_can_have_many_of_is_one_origin() {
        let of = |text: &str| Origin::of(text.parse().expect("address"));
        assert_eq!(of("127.0.0.1:1"), of("127.3.2.1:9"));
        assert_eq!(of("127.0.0.1:1"), of("[::1]:9"));
        assert_eq!(of("192.0.2.1:1"), of("[::ffff:192.0.2.1]:9"));
        assert_ne!(of("192.0.2.1:1"), of("192.0.2.2:1"));
        assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::ffff:1]:1"));
        assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
        assert_eq!(of("[2001:db8::7]:1").to_string(), "2001:db8::/64");
    }

    #[test]
    fn a_second_that_has_begun_counts() {
        assert_eq!(seconds(Duration::from_millis(1)), 1);
        assert_eq!(seconds(Duration::from_secs(2)), 2);
    }
}
