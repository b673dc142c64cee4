//! Capabilities, parameters and credentials of a move, and back to none.

use std::path::Path;

use serde_json::{Value, json};

use super::super::machine::QemuMachine;
use crate::config::{check_path, path_text};
use crate::confine::grants::Access;
use crate::error::{Error, Result};
use crate::migration::{
    Address, Channel, Credentials, Limits, Link, MigrationFeatures, Side, Terms, Tls,
};

/// The credentials' id in QEMU, for memory and disks.
pub(super) const TLS: &str = "move-tls";
/// The id of who is let in.
const AUTHORIZED: &str = "move-client";

/// Every capability that a move of ours can turn on.
const OURS: [&str; 8] = [
    "events",
    "return-path",
    "pause-before-switchover",
    "late-block-activate",
    "multifd",
    "auto-converge",
    "dirty-bitmaps",
    "validate-uuid",
];

/// QEMU's own defaults, to which parameters go back.
const BANDWIDTH: u64 = 128 << 20;
const DOWNTIME_MS: u64 = 300;
const CHANNELS: u8 = 2;
/// Bytes per second: as fast as it goes.
const UNLIMITED: u64 = 1 << 40;
/// QEMU takes no longer one.
const MOST_DOWNTIME_MS: u64 = 2_000_000;

/// Refuses what this QEMU cannot do, before anything is changed.
pub(super) fn check(machine: &QemuMachine, link: &Link, terms: &Terms) -> Result<()> {
    let has = &machine.features().migration;
    let lacks = |what: String| Error::Unsupported {
        what: format!("{what} (QEMU {})", machine.features().version),
        remedy: "move without it, or install a newer QEMU built as distributions build it".into(),
    };
    let mut needed = MigrationFeatures::NEEDED.to_vec();
    needed.extend(terms.multifd.map(|_| "multifd"));
    needed.extend(terms.bitmaps.then_some("dirty-bitmaps"));
    if let Some(missing) = needed.into_iter().find(|capability| !has.has(capability)) {
        return Err(lacks(format!("the migration capability `{missing}`")));
    }
    if let Some(multifd) = &terms.multifd {
        if multifd.channels == 0 {
            return Err(Error::config(
                "a move over several channels needs at least one",
            ));
        }
        if multifd.compression == crate::migration::Compression::Zstd && !has.zstd {
            return Err(lacks("migration packed with Zstandard".into()));
        }
        if matches!(link.channel, Channel::Stream(_)) {
            return Err(Error::config(
                "several channels need an address, a stream is one channel",
            ));
        }
    }
    if link.tls.is_some() && !has.tls {
        return Err(lacks("TLS".into()));
    }
    match &link.channel {
        Channel::Address(address) => address.check(),
        Channel::Stream(_) => Ok(()),
    }
}

/// Turns on what that side needs, and nothing else.
pub(super) async fn capabilities(
    machine: &QemuMachine,
    side: Side,
    terms: &Terms,
    auto_converge: bool,
) -> Result<()> {
    let wanted = |name: &str| match name {
        "events" | "return-path" | "validate-uuid" => true,
        "pause-before-switchover" => side == Side::Source,
        "late-block-activate" => side == Side::Destination,
        "multifd" => terms.multifd.is_some(),
        "auto-converge" => side == Side::Source && auto_converge,
        "dirty-bitmaps" => terms.bitmaps,
        _ => false,
    };
    set(machine, wanted).await
}

async fn set(machine: &QemuMachine, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let has = &machine.features().migration;
    let list: Vec<Value> = OURS
        .into_iter()
        .filter(|name| has.has(name))
        .map(|name| json!({ "capability": name, "state": wanted(name) }))
        .collect();
    let arguments = json!({ "capabilities": list });
    machine
        .execute("migrate-set-capabilities", arguments)
        .await
        .map(drop)
}

/// What both sides are told about the channels.
pub(super) async fn channels(machine: &QemuMachine, terms: &Terms, link: &Link) -> Result<()> {
    let mut parameters = json!({
        "tls-creds": link.tls.as_ref().map_or("", |_| TLS),
        "tls-hostname": server_name(link).unwrap_or_default(),
    });
    let identity = link.tls.as_ref().and_then(authorized);
    if let (Some(_), Some(members)) = (identity, parameters.as_object_mut()) {
        // Never an empty one: QEMU would look for it and let nobody in. It is never unset either: a process is a destination once.
        members.insert("tls-authz".into(), AUTHORIZED.into());
    }
    if let (Some(multifd), Some(members)) = (&terms.multifd, parameters.as_object_mut()) {
        members.insert("multifd-channels".into(), multifd.channels.into());
        members.insert(
            "multifd-compression".into(),
            multifd.compression.as_str().into(),
        );
    }
    machine
        .execute("migrate-set-parameters", parameters)
        .await
        .map(drop)
}

/// The name the destination's certificate must have.
pub(super) fn server_name(link: &Link) -> Option<String> {
    let named = link.tls.as_ref()?.server_name.clone();
    named.or_else(|| match &link.channel {
        Channel::Address(Address::Tcp { host, .. }) => Some(host.clone()),
        _ => None,
    })
}

pub(super) async fn limit(machine: &QemuMachine, limits: &Limits) -> Result<()> {
    let downtime = u64::try_from(limits.downtime.as_millis()).unwrap_or(u64::MAX);
    if downtime > MOST_DOWNTIME_MS {
        return Err(Error::config("a downtime of more than 2,000 seconds"));
    }
    let parameters = json!({
        // 0 would be no bandwidth at all.
        "max-bandwidth": limits.bandwidth.unwrap_or(UNLIMITED).max(1),
        "downtime-limit": downtime,
    });
    machine
        .execute("migrate-set-parameters", parameters)
        .await
        .map(drop)
}

/// Everything back to how a QEMU starts: a saved state or another move must not inherit it. Only while no migration runs.
pub(in crate::qemu) async fn plain(machine: &QemuMachine) -> Result<()> {
    set(machine, |_| false).await?;
    let parameters = json!({
        "tls-creds": "", "tls-hostname": "",
        "multifd-channels": CHANNELS, "multifd-compression": "none",
        "max-bandwidth": BANDWIDTH, "downtime-limit": DOWNTIME_MS,
    });
    machine
        .execute("migrate-set-parameters", parameters)
        .await?;
    forget_credentials(machine).await
}

fn authorized(tls: &Tls) -> Option<&str> {
    match &tls.credentials {
        Credentials::X509 { authorized } => authorized.as_deref(),
        Credentials::Psk { .. } => None,
    }
}

/// Has QEMU read the credentials. Those of an earlier attempt are read anew, unless they are in use.
pub(super) async fn credentials(
    machine: &QemuMachine,
    side: Side,
    tls: Option<&Tls>,
) -> Result<()> {
    let Some(tls) = tls else { return Ok(()) };
    if !machine.features().migration.tls {
        return Err(Error::Unsupported {
            what: "TLS: QEMU was built without it".into(),
            remedy: "install a QEMU with GnuTLS, as distributions build it".into(),
        });
    }
    check_path(&tls.dir)?;
    let endpoint = match side {
        Side::Source => "client",
        Side::Destination => "server",
    };
    let mut object = json!({
        "id": TLS, "endpoint": endpoint, "dir": path_text(&tls.dir)?, "verify-peer": true,
    });
    let (files, kind): (Vec<String>, _) = match &tls.credentials {
        Credentials::X509 { .. } => {
            let own = ["cert", "key"].map(|kind| format!("{endpoint}-{kind}.pem"));
            let files = own.into_iter().chain(["ca-cert.pem".to_owned()]);
            (files.collect(), "tls-creds-x509")
        }
        Credentials::Psk { .. } => (vec!["keys.psk".to_owned()], "tls-creds-psk"),
    };
    if let Some(members) = object.as_object_mut() {
        members.insert("qom-type".into(), kind.into());
        match &tls.credentials {
            Credentials::X509 { .. } => drop(members.insert("sanity-check".into(), false.into())),
            // A server takes every user of its file.
            Credentials::Psk { user } if side == Side::Source => {
                members.insert("username".into(), user.as_str().into());
            }
            Credentials::Psk { .. } => {}
        }
    }
    open_files(machine, &tls.dir, &files)?;
    forget_credentials(machine).await?;
    machine.execute("object-add", object).await?;
    if let Some(identity) = authorized(tls) {
        let object = json!({ "qom-type": "authz-simple", "id": AUTHORIZED, "identity": identity });
        machine.execute("object-add", object).await?;
    }
    Ok(())
}

/// What the NBD server is told: the credentials, and who is let in.
pub(super) fn secured(mut arguments: Value, tls: Option<&Tls>) -> Value {
    if let (Some(tls), Some(members)) = (tls, arguments.as_object_mut()) {
        members.insert("tls-creds".into(), TLS.into());
        if authorized(tls).is_some() {
            members.insert("tls-authz".into(), AUTHORIZED.into());
        }
    }
    arguments
}

fn open_files(machine: &QemuMachine, dir: &Path, files: &[String]) -> Result<()> {
    for name in files {
        let path = dir.join(name);
        // Said here, since QEMU's user may not even be able to see whether it is there.
        std::fs::metadata(&path).map_err(|source| Error::io("read", &path, source))?;
        machine.grant(&path, Access::Read)?;
    }
    Ok(())
}

async fn forget_credentials(machine: &QemuMachine) -> Result<()> {
    for id in [TLS, AUTHORIZED] {
        match machine.execute("object-del", json!({ "id": id })).await {
            // Not there.
            Ok(_) | Err(Error::Qmp { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
