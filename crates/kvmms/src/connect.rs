//! Which server to talk to, and as whom.

use std::path::{Path, PathBuf};

use wbem::auth::Credentials;
use wbem::client::{Authentication, Client, ClientOptions, Endpoint, Trust};

use crate::cli::{Auth, Global};
use crate::error::{Error, Result};

/// The local service's socket where none is named: root's run directory, or the user's.
fn default_socket() -> PathBuf {
    let uid = rustix::process::getuid();
    let dir = if uid.is_root() {
        PathBuf::from("/run")
    } else {
        std::env::var_os("XDG_RUNTIME_DIR").map_or_else(
            || std::env::temp_dir().join(format!("kvmms-{}", uid.as_raw())),
            PathBuf::from,
        )
    };
    dir.join("kvmms").join("kvmms.sock")
}

/// The server the arguments name.
pub(crate) fn endpoint(global: &Global) -> Result<Endpoint> {
    if let Some(path) = &global.socket {
        let path = std::path::absolute(path).map_err(|e| Error::file("use", path, e))?;
        return Ok(Endpoint::Unix(path));
    }
    let Some(host) = global.host.as_ref().filter(|h| !h.trim().is_empty()) else {
        return Ok(Endpoint::Unix(default_socket()));
    };
    let trust = match (&global.ca, global.insecure) {
        (Some(ca), _) => Trust::Ca(ca.clone()),
        (None, true) => Trust::Insecure,
        (None, false) => Trust::System,
    };
    Ok(Endpoint::parse(host, trust)?)
}

/// The first line of the password file.
fn password(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::file("read", path, e))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(Error::usage(format!(
            "the first line of {} is empty; it must be the password",
            path.display()
        ))),
    }
}

fn credentials(global: &Global, endpoint: &Endpoint) -> Result<Option<Credentials>> {
    // The local socket knows who calls.
    if matches!(endpoint, Endpoint::Unix(_)) {
        return Ok(None);
    }
    match (&global.user, &global.password_file) {
        (None, None) => Ok(None),
        (Some(user), Some(file)) => Ok(Some(Credentials {
            user: user.clone(),
            password: password(file)?,
        })),
        (Some(_), None) => Err(Error::usage(
            "a user needs a password: --password-file or KVMMS_PASSWORD_FILE",
        )),
        (None, Some(_)) => Err(Error::usage(
            "a password needs a user: --user or KVMMS_USER",
        )),
    }
}

/// Connects.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    global: &Global,
    namespace: &str,
) -> Result<Client> {
    let options = ClientOptions {
        namespace: cim::normal_namespace(namespace),
        authentication: match global.auth {
            None | Some(Auth::Auto) => Authentication::Auto,
            Some(Auth::Basic) => Authentication::Basic,
            Some(Auth::Negotiate) => Authentication::Negotiate,
        },
        ..ClientOptions::default()
    };
    let credentials = credentials(global, endpoint)?;
    let client = Client::connect(endpoint.clone(), credentials, options).await?;
    Ok(match msvm::namespace(namespace) {
        Some(schema) => client.with_schema(schema),
        None => client,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn global(line: &str) -> Global {
        crate::cli::Cli::try_parse_from(line.split_whitespace())
            .expect("a line")
            .global
    }

    #[test]
    fn a_host_may_be_a_url_or_a_socket() {
        let at = |line: &str| endpoint(&global(line)).expect("a place").to_string();
        assert_eq!(at("kvmms vm list --socket /run/a.sock"), "/run/a.sock");
        assert_eq!(at("kvmms vm list --host /run/a.sock"), "/run/a.sock");
        assert_eq!(at("kvmms vm list --host https://h/wsman"), "https://h:5986");
    }

    #[test]
    fn user_and_password_file_belong_together() {
        let place = Endpoint::parse("http://h", Trust::System).expect("a place");
        let of = |line: &str| credentials(&global(line), &place);
        assert!(of("kvmms vm list --host http://h --user u").is_err());
        assert!(of("kvmms vm list --host http://h --password-file /f").is_err());
    }

    #[test]
    fn the_first_line_of_the_file_is_the_password() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "se cret\nmore\n").expect("write");
        assert_eq!(password(file.path()).expect("a password"), "se cret");
        std::fs::write(file.path(), "\n").expect("write");
        assert!(password(file.path()).is_err());
    }
}
