//! Reaching another host.

use std::time::Duration;

use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

use crate::error::{Error, Result};
use crate::wire::in_time;
use crate::{Fingerprint, Identity, VERSION, Wire, tls};

/// The first thing a listener says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Welcome {
    /// Go on. With its version.
    Come(u8),
    /// It is not trusted.
    Stranger,
    /// There are too many.
    Busy,
    /// It came to an address where nobody is let in, with the reason.
    Closed(String),
}

/// Connects to the host with that certificate.
///
/// # Errors
/// [`Error::Unreachable`], [`Error::Silent`], [`Error::Stranger`], [`Error::Distrusted`], [`Error::Busy`], [`Error::Closed`],
/// [`Error::Version`].
pub async fn dial(
    identity: &Identity,
    address: &str,
    expected: &Fingerprint,
    within: Duration,
) -> Result<Wire> {
    let meet = async {
        let mut wire = shake(identity, address).await?;
        if wire.who != *expected {
            return Err(Error::Stranger {
                expected: *expected,
                found: wire.who,
            });
        }
        match wire.hear::<Welcome>(within).await? {
            Some(Welcome::Come(VERSION)) => Ok(wire),
            Some(Welcome::Come(other)) => Err(Error::Version(other)),
            Some(Welcome::Stranger) => Err(Error::Distrusted),
            Some(Welcome::Busy) => Err(Error::Busy),
            Some(Welcome::Closed(why)) => Err(Error::Closed(why)),
            None => Err(Error::Broken(std::io::ErrorKind::UnexpectedEof.into())),
        }
    };
    in_time("being let in", within, meet).await
}

/// The fingerprint of whoever listens there. Nothing is asked.
///
/// # Errors
/// [`Error::Unreachable`], [`Error::Silent`], [`Error::Broken`].
pub async fn look_at(identity: &Identity, address: &str, within: Duration) -> Result<Fingerprint> {
    let seen = async { Ok(shake(identity, address).await?.who) };
    in_time("its certificate", within, seen).await
}

async fn shake(identity: &Identity, address: &str) -> Result<Wire> {
    let config = tls::client(identity)?;
    let unreachable = |source| Error::Unreachable {
        address: address.to_owned(),
        source,
    };
    let stream = TcpStream::connect(address).await.map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    // Names count for nothing here.
    let name = ServerName::try_from("kvmms-host").map_err(|e| Error::Garbled(e.to_string()))?;
    let stream = TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(Error::Broken)?;
    let who = stream.get_ref().1.peer_certificates();
    let who = who.and_then(|chain| chain.first()).map(Fingerprint::of);
    let who = who.ok_or_else(|| Error::Garbled("it showed no certificate".to_owned()))?;
    Ok(Wire {
        stream: TlsStream::Client(stream),
        who,
    })
}
