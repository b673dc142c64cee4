//! Hosts that machines may come from and go to.

use std::sync::Arc;

use peer::{Fingerprint, Identity};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::link;
use crate::{Result, Vmms, fault, names};

/// The port that hosts listen on for each other.
pub const PORT: u16 = 6600;

/// A trusted host as it is stored under `trusted-host/<guid>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Made of its name.
    pub id: Uuid,
    /// What it is called here.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// And on which port.
    pub port: u16,
    /// The SHA-256 fingerprint of its certificate: pairs of hexadecimal digits with colons.
    pub fingerprint: String,
}

impl Host {
    pub(crate) fn pin(&self) -> Result<Fingerprint> {
        parse(&self.fingerprint)
    }
}

impl store::Versioned for Host {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}

fn parse(fingerprint: &str) -> Result<Fingerprint> {
    fingerprint.parse().map_err(|_| {
        let why = "it is 64 hexadecimal digits, with or without colons";
        fault!(InvalidValue, "the fingerprint", fingerprint, why)
    })
}

fn id_of(name: &str) -> Uuid {
    let name = format!("kvmms-host:{}", name.to_lowercase());
    Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes())
}

/// Trusts a host; one of that name is replaced.
///
/// # Errors
/// A name or a fingerprint that cannot be one; the store.
pub async fn trust(
    vmms: &Arc<Vmms>,
    name: &str,
    address: &str,
    port: u16,
    fingerprint: &str,
) -> Result<Arc<Host>> {
    names::check("the name of a host", name)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
    if address.is_empty() || !address.chars().all(plain) {
        let why = "it is a host name or an address";
        return Err(fault!(InvalidValue, "the address of a host", address, why));
    }
    let host = Host {
        id: id_of(name),
        name: name.to_owned(),
        address: address.to_owned(),
        port,
        fingerprint: parse(fingerprint)?.to_string(),
    };
    let stored = host.clone();
    vmms.db
        .change(|draft| {
            draft.put(stored);
            Ok(())
        })
        .await?;
    Ok(Arc::new(host))
}

/// Trusts a host no longer. What is under way with it goes on to its end.
///
/// # Errors
/// [`crate::Message::HostUnknown`]; the store.
pub async fn forget(vmms: &Arc<Vmms>, name: &str) -> Result<()> {
    let host = named(vmms, name)?;
    vmms.db
        .change(|draft| {
            draft.delete::<Host>(host.id);
            Ok(())
        })
        .await
}

/// The trusted hosts, by name.
pub fn hosts(vmms: &Vmms) -> Vec<Arc<Host>> {
    let mut hosts = vmms.db.all::<Host>();
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    hosts
}

/// The trusted host of that name, or else at that address.
pub(crate) fn named(vmms: &Vmms, name: &str) -> Result<Arc<Host>> {
    let hosts = hosts(vmms);
    let by = |same: &dyn Fn(&Host) -> bool| hosts.iter().find(|h| same(h)).cloned();
    by(&|h| h.name.eq_ignore_ascii_case(name))
        .or_else(|| by(&|h| h.address.eq_ignore_ascii_case(name)))
        .or_else(|| by(&|h| format!("{}:{}", h.address, h.port).eq_ignore_ascii_case(name)))
        .ok_or_else(|| fault!(HostUnknown, name))
}

/// The trusted host with that certificate.
pub(crate) fn with_pin(vmms: &Vmms, pin: &Fingerprint) -> Option<Arc<Host>> {
    let shown = pin.to_string();
    hosts(vmms).into_iter().find(|h| h.fingerprint == shown)
}

/// The fingerprint of whoever answers there, to be compared by a person before [`trust`]. Nothing else is asked or told.
///
/// # Errors
/// [`crate::Message::HostUnreachable`], [`crate::Message::HostSilent`].
pub async fn look_at(vmms: &Vmms, address: &str, port: u16) -> Result<String> {
    let shown = format!("{address}:{port}");
    let seen = peer::look_at(&identity(vmms)?, &shown, link::DIAL).await;
    let seen = seen.map_err(|e| link::fault(vmms, address, &shown, &e))?;
    Ok(seen.to_string())
}

/// The fingerprint of this host's own certificate, which is made when it is asked for first.
///
/// # Errors
/// [`crate::Message::HostKeyUnusable`].
pub fn fingerprint(vmms: &Vmms) -> Result<String> {
    Ok(identity(vmms)?.fingerprint().to_string())
}

/// The certificate and the key of this host.
pub(crate) fn identity(vmms: &Vmms) -> Result<Identity> {
    let dir = vmms.dirs.state.join("peer");
    vmms.moves.identity(|| {
        Identity::load_or_make(&dir, &vmms.host)
            .map_err(|e| fault!(HostKeyUnusable, dir.display(), e))
    })
}
