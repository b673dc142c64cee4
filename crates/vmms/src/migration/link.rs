//! A link to a host, as a source uses it.

use std::sync::Arc;
use std::time::Duration;

use peer::{Error, Wire};

use super::said::{Answer, Ask};
use super::{Host, hosts};
use crate::{Element, Fault, Result, Vmms, fault};

/// How long reaching a host may take.
pub(crate) const DIAL: Duration = Duration::from_secs(10);
/// How long an answer may take that needs no long work.
pub(crate) const ANSWER: Duration = Duration::from_secs(60);

/// An open link to a destination.
pub(crate) struct Link {
    host: Arc<Host>,
    address: String,
    fingerprint: String,
    wire: Wire,
}

/// What is wrong with a link, in the catalogue's words. `fingerprint` is this host's own.
fn told(fingerprint: &str, host: &str, address: &str, error: &Error) -> Fault {
    let peer = Element::Peer(host.to_owned());
    let causes = || {
        let mut causes = Vec::new();
        let mut at = std::error::Error::source(error);
        while let Some(cause) = at {
            causes.push(match cause.downcast_ref::<std::io::Error>() {
                Some(io) => {
                    let code = io.raw_os_error();
                    let code = code.map_or_else(|| "none".to_owned(), |code| code.to_string());
                    fault!(Os, format!("connection to {address}"), io, code)
                }
                None => fault!(Block, cause),
            });
            at = cause.source();
        }
        causes
    };
    let mut fault = match error {
        Error::Unreachable { .. } => fault!(HostUnreachable, host, address),
        Error::Silent { what, within } => {
            fault!(HostSilent, host, address, what, format!("{within:?}"))
        }
        Error::Stranger { expected, found } => fault!(HostChanged, host, address, found, expected),
        Error::Distrusted => fault!(HostDistrusts, host, fingerprint),
        Error::Busy => fault!(HostBusy, host),
        Error::Closed(why) => fault!(AddressClosed, host, address, why),
        Error::Broken(_) => fault!(LinkBroke, host),
        Error::Key { .. } => fault!(HostKeyUnusable, address, error),
        other => fault!(LinkGarbled, host, other),
    };
    fault.causes = causes();
    fault.about(peer)
}

/// What is wrong with a link, in the catalogue's words.
pub(crate) fn fault(vmms: &Vmms, host: &str, address: &str, error: &Error) -> Fault {
    let own = hosts::fingerprint(vmms).unwrap_or_default();
    told(&own, host, address, error)
}

/// Whether the same may succeed a moment later: the link is at fault, or the other service starts again.
pub(crate) fn passes(fault: &Fault) -> bool {
    use crate::Message as M;
    matches!(
        fault.message,
        M::HostUnreachable | M::HostSilent | M::HostBusy | M::LinkBroke
    )
}

impl Link {
    /// Reaches a host at one of these addresses, or at its own.
    pub(crate) async fn to(vmms: &Vmms, host: &Arc<Host>, addresses: &[String]) -> Result<Self> {
        let identity = hosts::identity(vmms)?;
        let fingerprint = identity.fingerprint().to_string();
        let pin = host.pin()?;
        let with_port = |address: &str| match address.rsplit_once(':') {
            // An IPv6 address without brackets is all colons.
            Some((before, port))
                if port.parse::<u16>().is_ok()
                    && (!before.contains(':') || before.ends_with(']')) =>
            {
                address.to_owned()
            }
            _ if address.contains(':') && !address.starts_with('[') => {
                format!("[{address}]:{}", host.port)
            }
            _ => format!("{address}:{}", host.port),
        };
        let own = [host.address.clone()];
        let addresses = if addresses.is_empty() {
            &own[..]
        } else {
            addresses
        };
        let mut failed: Option<Fault> = None;
        for address in addresses {
            let address = with_port(address);
            match peer::dial(&identity, &address, &pin, DIAL).await {
                Ok(wire) => {
                    return Ok(Link {
                        host: Arc::clone(host),
                        address,
                        fingerprint,
                        wire,
                    });
                }
                Err(error) => {
                    let why = told(&fingerprint, &host.name, &address, &error);
                    failed = Some(match failed {
                        Some(first) => first.caused_by(why),
                        None => why,
                    });
                }
            }
        }
        Err(failed.unwrap_or_else(|| fault!(HostUnreachable, host.name, "no address")))
    }

    fn broken(&self, error: &Error) -> Fault {
        told(&self.fingerprint, &self.host.name, &self.address, error)
    }

    /// Asks something. What the other host says against it is a failure with its words beneath.
    pub(crate) async fn ask(&mut self, ask: &Ask, within: Duration) -> Result<Answer> {
        let answer = self.wire.ask::<Answer>(ask, within).await;
        self.heard(answer)
    }

    fn heard(&self, answer: peer::Result<Answer>) -> Result<Answer> {
        match answer {
            Ok(Answer::Failed(said)) => Err(self.says(*said)),
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.broken(&error)),
        }
    }

    /// What the other host said, as a cause beneath its name. What its words are about is there, not here.
    pub(crate) fn says(&self, said: Fault) -> Fault {
        says(&self.host.name, said)
    }

    /// The connection as it is.
    pub(crate) fn into_stream(self) -> peer::Stream {
        self.wire.into_stream()
    }

    /// Sends bytes.
    pub(crate) async fn send(&mut self, parts: &[&[u8]]) -> Result<()> {
        let sent = self.wire.send(parts).await;
        sent.map_err(|e| self.broken(&e))
    }

    /// Whether something was said that was not heard yet.
    pub(crate) async fn is_answered(&self) -> bool {
        self.wire.is_waiting().await
    }

    /// Hears an answer.
    pub(crate) async fn hear(&mut self, within: Duration) -> Result<Answer> {
        let heard = self.wire.hear::<Answer>(within).await;
        let end = || Error::Broken(std::io::ErrorKind::UnexpectedEof.into());
        self.heard(heard.and_then(|answer| answer.ok_or_else(end)))
    }
}

/// What a host said, as a cause beneath its name.
pub(crate) fn says(host: &str, said: Fault) -> Fault {
    fault!(PeerSaid, host)
        .about(Element::Peer(host.to_owned()))
        .caused_by(said.from_host(host))
}
