//! What a client can take of the service at most: the `[limits]` of the configuration, and the words for whoever reaches one.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use wbem::auth::AccountsOptions;
use wbem::server::Options;
use wbem::{ContextLimits, Limit};

/// `[limits]` of the configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Connections at once of each TCP listener.
    pub(crate) max_connections: usize,
    /// How many of them from one address.
    pub(crate) max_connections_per_address: usize,
    /// Connections at once of the local socket.
    pub(crate) max_local_connections: usize,
    /// Seconds the head of a request or a TLS handshake may take.
    pub(crate) head_seconds: u64,
    /// Seconds the body of a request may take.
    pub(crate) body_seconds: u64,
    /// Seconds a connection may be idle whose last caller was known.
    pub(crate) idle_seconds: u64,
    /// Open enumerations of each protocol.
    pub(crate) enumerations: usize,
    /// Of them of one user.
    pub(crate) enumerations_per_user: usize,
    /// MiB they hold together.
    pub(crate) enumeration_mib: usize,
    /// MiB those of one user hold.
    pub(crate) enumeration_mib_per_user: usize,
    /// Seconds an enumeration nobody pulls stays.
    pub(crate) enumeration_seconds: u64,
    /// Passwords hashed at once, 19 MiB each.
    pub(crate) password_checks: usize,
    /// Seconds a query may compute.
    pub(crate) query_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let server = Options::default();
        let contexts = ContextLimits::default();
        Limits {
            max_connections: server.max_connections,
            max_connections_per_address: server.max_connections_per_address,
            max_local_connections: server.max_local,
            head_seconds: server.head_timeout.as_secs(),
            body_seconds: server.body_timeout.as_secs(),
            idle_seconds: server.idle_timeout.as_secs(),
            enumerations: contexts.total,
            enumerations_per_user: contexts.per_user,
            enumeration_mib: contexts.bytes >> 20,
            enumeration_mib_per_user: contexts.bytes_per_user >> 20,
            enumeration_seconds: contexts.idle.as_secs(),
            password_checks: AccountsOptions::default().parallel,
            query_seconds: 10,
        }
    }
}

/// Descriptors that are not for connections: the store, images, machines' sockets and pipes.
const RESERVED: usize = 256;

impl Limits {
    /// The server's options. Connections never take the last descriptors of the process, of which there are `descriptors`.
    pub(crate) fn server(&self, listeners: usize, descriptors: usize) -> Result<Options> {
        for (name, value) in [
            ("max_connections", self.max_connections),
            (
                "max_connections_per_address",
                self.max_connections_per_address,
            ),
            ("max_local_connections", self.max_local_connections),
            ("enumerations", self.enumerations),
            ("enumerations_per_user", self.enumerations_per_user),
            ("password_checks", self.password_checks),
            ("head_seconds", usize::try_from(self.head_seconds)?),
            ("body_seconds", usize::try_from(self.body_seconds)?),
            ("idle_seconds", usize::try_from(self.idle_seconds)?),
            (
                "enumeration_seconds",
                usize::try_from(self.enumeration_seconds)?,
            ),
            ("query_seconds", usize::try_from(self.query_seconds)?),
        ] {
            if !(1..=1_000_000).contains(&value) {
                bail!("{name} in [limits] goes from 1 to 1000000, not {value}");
            }
        }
        let room = descriptors
            .saturating_sub(RESERVED + self.max_local_connections)
            .max(16);
        let most = room / listeners.max(1);
        if most < self.max_connections {
            tracing::warn!(
                descriptors,
                "each listener has {most} connections instead of {}: the process may not have more descriptors (ulimit -n, LimitNOFILE=)",
                self.max_connections
            );
        }
        Ok(Options {
            max_connections: self.max_connections.min(most),
            max_connections_per_address: self.max_connections_per_address.min(most),
            max_local: self.max_local_connections,
            head_timeout: Duration::from_secs(self.head_seconds),
            body_timeout: Duration::from_secs(self.body_seconds),
            idle_timeout: Duration::from_secs(self.idle_seconds),
            contexts: ContextLimits {
                total: self.enumerations,
                per_user: self.enumerations_per_user,
                bytes: self.enumeration_mib.saturating_mul(1 << 20),
                bytes_per_user: self.enumeration_mib_per_user.saturating_mul(1 << 20),
                idle: Duration::from_secs(self.enumeration_seconds),
            },
            ..Options::default()
        })
    }

    /// How accounts are checked.
    pub(crate) fn accounts(&self) -> AccountsOptions {
        AccountsOptions {
            parallel: self.password_checks,
            ..AccountsOptions::default()
        }
    }
}

/// The catalogue's entry for a limit.
pub(crate) fn fault(limit: &Limit) -> vmms::Fault {
    let whose = |own: bool| if own { "this user" } else { "all users" };
    let seconds = |d: &Duration| d.as_secs() + u64::from(d.subsec_nanos() > 0);
    match limit {
        Limit::Connections { allowed } => vmms::fault!(ConnectionsTaken, "this listener", allowed),
        Limit::ConnectionsFrom { origin, allowed } => {
            vmms::fault!(ConnectionsTaken, origin, allowed)
        }
        Limit::Guesses { wait } => vmms::fault!(TooManyGuesses, seconds(wait)),
        Limit::PasswordChecks => vmms::fault!(PasswordChecksBusy),
        Limit::Enumerations { open, own } => vmms::fault!(TooManyEnumerations, open, whose(*own)),
        Limit::EnumerationBytes { held, allowed, own } => vmms::fault!(
            EnumerationsTooLarge,
            whose(*own),
            held.div_ceil(1 << 20),
            allowed >> 20
        ),
        Limit::Handshakes { allowed } => vmms::fault!(TooManyHandshakes, allowed),
        Limit::Unsealed => vmms::fault!(RequestUnsealed),
        Limit::Unopened => vmms::fault!(RequestUnopened),
        Limit::SlowBody { within } => vmms::fault!(SlowBody, seconds(within)),
    }
}

/// Lets the process have as many descriptors as it is allowed at all, and says how many those are: the soft limit of a login shell is
/// 1024, for the sake of programs that use select().
pub(crate) fn raise_descriptors() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // More than that nobody needs, and some systems have no bound at all.
    const MOST: u64 = 1 << 16;
    let now = getrlimit(Resource::Nofile);
    let wanted = now
        .maximum
        .unwrap_or(MOST)
        .min(MOST)
        .max(now.current.unwrap_or(MOST).min(MOST));
    let raised = Rlimit {
        current: Some(wanted),
        maximum: now.maximum,
    };
    let got = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, "the limit of descriptors could not be raised");
            now.current.unwrap_or(MOST)
        }
    };
    usize::try_from(got).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        let limits = Limits::default();
        let options = limits.server(4, 1024).expect("options");
        assert!(options.max_connections * 4 + options.max_local + RESERVED <= 1024);
        let options = limits.server(4, 65_536).expect("options");
        assert_eq!(options.max_connections, limits.max_connections);
    }

    #[test]
    fn no_limit_can_be_nothing() {
        let limits = Limits {
            head_seconds: 0,
            ..Limits::default()
        };
        assert!(limits.server(1, 1024).is_err());
    }

    #[test]
    fn every_limit_has_its_words() {
        for limit in [
            Limit::Connections { allowed: 7 },
            Limit::Guesses {
                wait: Duration::from_millis(1500),
            },
            Limit::PasswordChecks,
            Limit::Enumerations { open: 7, own: true },
            Limit::EnumerationBytes {
                held: 7 << 20,
                allowed: 6 << 20,
                own: false,
            },
            Limit::SlowBody {
                within: Duration::from_secs(7),
            },
        ] {
            let text = fault(&limit).text();
            assert!(!text.contains('{'), "{text}");
        }
        let guesses = Limit::Guesses {
            wait: Duration::from_millis(1500),
        };
        assert!(fault(&guesses).text().ends_with("for 2 s"));
    }
}
