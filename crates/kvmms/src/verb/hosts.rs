//! `kvmms host list`, `trust` and `forget`: the hosts that machines move to and come from.

use cim::Value;
use serde_json::json;

use crate::cli::TrustArgs;
use crate::error::{Error, Result};
use crate::inspect::{boolean, number, text};
use crate::output::Row;
use crate::session::{Session, parameters, service};
use crate::vendor;

/// Lists this host and those it trusts.
pub(super) async fn list(session: &Session) -> Result<()> {
    session.needs_kvmms("host list")?;
    let mut all = session.client.enumerate(vendor::TRUSTED_HOST).await?;
    all.sort_by_key(|i| (boolean(i, "Local") != Some(true), text(i, "Name")));
    let rows: Vec<Row> = all
        .iter()
        .map(|i| {
            let local = boolean(i, "Local").unwrap_or(false);
            let port = number(i, "Port").filter(|p| *p > 0);
            let address = match (local, port) {
                (true, None) => "does not listen".to_owned(),
                (_, Some(port)) => format!("{}:{port}", text(i, "Address")),
                (false, None) => text(i, "Address"),
            };
            Row::new()
                .text("name", "Name", text(i, "Name"))
                .text("address", "Address", address)
                .both(
                    "local",
                    "",
                    if local { "this host" } else { "" }.to_owned(),
                    json!(local),
                )
                .text("fingerprint", "Fingerprint", text(i, "Fingerprint"))
        })
        .collect();
    session.output.list(&rows, "No host is trusted.")
}

/// Trusts a host whose fingerprint was said; else shows both, for people to compare.
pub(super) async fn trust(session: &Session, arguments: TrustArgs) -> Result<()> {
    session.needs_kvmms("host trust")?;
    let path = service(vendor::MIGRATION_SERVICE);
    let address = arguments.address.as_deref().unwrap_or(&arguments.name);
    let port = arguments.port.map_or(Value::Null, Value::from);
    let given = parameters([("Address", address.into()), ("Port", port.clone())]);
    let looked = session.call(&path, "LookAtHost", &given).await?;
    let said = |name| {
        let value = looked.invoked.get(name);
        value.as_str().unwrap_or_default().to_owned()
    };
    let (theirs, own) = (said("Fingerprint"), said("OwnFingerprint"));
    let row = Row::new()
        .text("name", "Host", &arguments.name)
        .text("address", "Address", address)
        .text("fingerprint", "It shows", &theirs)
        .text("ownFingerprint", "This host shows", &own);
    let Some(expected) = arguments.fingerprint else {
        session.output.remark(&format!(
            "Nothing is trusted yet. If {} shows {theirs} for itself in kvmms host list, say the same again with --fingerprint {theirs}",
            arguments.name
        ));
        return session
            .output
            .one(&row.yes("trusted", "Trusted", Some(false)));
    };
    if bare(&expected) != bare(&theirs) {
        return Err(Error::usage(format!(
            "{address} shows the fingerprint {theirs}, not {expected}: it is another host, or somebody sits in between. Nothing is trusted"
        )));
    }
    let given = parameters([
        ("Name", arguments.name.as_str().into()),
        ("Address", address.into()),
        ("Port", port),
        ("Fingerprint", theirs.as_str().into()),
    ]);
    session.call(&path, "TrustHost", &given).await?;
    let line = format!(
        "{} is trusted. It has to trust this host too: there, kvmms host trust THIS-HOST --fingerprint {own}",
        arguments.name
    );
    let row = row.yes("trusted", "Trusted", Some(true));
    session.output.done(&line, &row)?;
    if let Some(hint) = unreachable(session, address).await? {
        session.output.remark(&hint);
    }
    Ok(())
}

/// Why nothing can come here from a host at that address, where this host's own listener tells.
async fn unreachable(session: &Session, address: &str) -> Result<Option<String>> {
    if is_loopback(address) {
        return Ok(None);
    }
    let all = session.client.enumerate(vendor::TRUSTED_HOST).await?;
    let own = all.iter().find(|i| boolean(i, "Local") == Some(true));
    let Some(own) = own else { return Ok(None) };
    let listens = match number(own, "Port").filter(|port| *port > 0) {
        None => "does not listen for other hosts".to_owned(),
        Some(port) if is_loopback(&text(own, "Address")) => {
            format!("listens for other hosts on loopback only, on port {port}")
        }
        Some(_) => return Ok(None),
    };
    Ok(Some(format!(
        "This host {listens}: machines go to {address}, but none can come from there until `listen` in the configuration here names an address that is reached from there, such as migration+tls://0.0.0.0:6600"
    )))
}

fn is_loopback(address: &str) -> bool {
    let parsed = address.parse::<std::net::IpAddr>();
    parsed.map_or_else(
        |_| address.eq_ignore_ascii_case("localhost"),
        |ip| ip.is_loopback(),
    )
}

/// A fingerprint without what people put between its digits.
fn bare(fingerprint: &str) -> String {
    let digits = fingerprint.chars().filter(char::is_ascii_hexdigit);
    digits.map(|c| c.to_ascii_uppercase()).collect()
}

/// Trusts a host no longer.
pub(super) async fn forget(session: &Session, name: &str) -> Result<()> {
    session.needs_kvmms("host forget")?;
    let path = service(vendor::MIGRATION_SERVICE);
    let given = parameters([("Name", name.into())]);
    session.call(&path, "ForgetHost", &given).await?;
    let row = Row::new().text("name", "Host", name);
    session
        .output
        .done(&format!("{name} is not trusted any more"), &row)
}
