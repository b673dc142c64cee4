//! Ways between two hosts, and what both ends must agree on.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::check_path;
use crate::error::{Error, Result};

/// Where something listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Address {
    /// TCP.
    Tcp {
        /// Name or address; IPv6 without brackets.
        host: String,
        /// Port; 0 for a listener lets the system choose.
        port: u16,
    },
    /// A Unix socket, for example of a relay of the service.
    Unix(PathBuf),
}

impl Address {
    /// QEMU's migration address.
    pub(crate) fn uri(&self) -> Result<String> {
        self.check()?;
        Ok(match self {
            Self::Tcp { host, port } if host.contains(':') => format!("tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => format!("tcp:{host}:{port}"),
            Self::Unix(path) => format!("unix:{}", path.display()),
        })
    }

    /// What QEMU would read as something else is refused.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Tcp { host, .. } => {
                let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:%".contains(&b);
                if host.is_empty() || !host.bytes().all(plain) {
                    return Err(Error::config(format!(
                        "`{host}` is neither a host name nor an address"
                    )));
                }
                Ok(())
            }
            Self::Unix(path) => {
                check_path(path)?;
                crate::names::check_socket(path)
            }
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A way to the other side.
#[derive(Debug)]
pub enum Channel {
    /// QEMU listens there, or is connected to it.
    Address(Address),
    /// One stream socket that is connected already and belongs to QEMU from then on. Set `TCP_NODELAY` on a TCP socket of the
    /// destination, or the downtime grows by 40 ms. Several channels ([`Multifd`]) need an address.
    Stream(OwnedFd),
}

impl From<Address> for Channel {
    fn from(address: Address) -> Self {
        Self::Address(address)
    }
}

/// A way and how it is secured.
#[derive(Debug)]
pub struct Link {
    /// The way.
    pub channel: Channel,
    /// QEMU's own TLS. Without it whoever reaches an address is let in, and the memory travels in the clear: then the way itself must be
    /// secured (a relay of the service).
    pub tls: Option<Tls>,
}

/// TLS of QEMU (`docs/system/tls.rst`), for memory and disks alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Directory with the files that `credentials` name, mode 0600 each. QEMU reads them when a move begins; a QEMU with a user
    /// of its own is let in to these files until it ends, so make them for one move.
    pub dir: PathBuf,
    /// Their kind.
    pub credentials: Credentials,
    /// At the source: the name (or IP address) that the destination's certificate must have. `None`: that of the TCP address.
    pub server_name: Option<String>,
}

/// What proves who is who.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Certificates: `ca-cert.pem` (whom to believe: an authority, or the other side's own self-signed certificate), and
    /// `server-cert.pem`, `server-key.pem` at the destination, `client-cert.pem`, `client-key.pem` at the source. The other side is always
    /// verified. QEMU's check of their form is off, since it refuses self-signed ones; it is not what keeps strangers out.
    X509 {
        /// At the destination: the distinguished name of the one client that is let in, whole and in the order of its certificate
        /// (`O=shop,CN=alpha`). `None`: all whom `ca-cert.pem` vouches for; right where that is the client's own certificate.
        authorized: Option<String>,
    },
    /// A shared key: `keys.psk` with one line `user:hexdigits`.
    Psk {
        /// The user of that line.
        user: String,
    },
}

/// How several channels pack the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// Not at all.
    None,
    /// Zstandard.
    Zstd,
}

impl Compression {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zstd => "zstd",
        }
    }
}

/// Memory over several channels at once. Needs an [`Address`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Multifd {
    /// How many, 1 to 255, besides the main one.
    pub channels: u8,
    /// How they pack it.
    pub compression: Compression,
}

/// What both ends must be told alike. [`crate::migration::MigrationFeatures::agree`] makes one that both QEMUs have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Terms {
    /// Several channels; `None` is one.
    pub multifd: Option<Multifd>,
    /// Dirty bitmaps go along, from nodes to nodes of the same name.
    #[serde(default)]
    pub bitmaps: bool,
}

/// What a source may take; can be changed while it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes per second of memory; `None` is unlimited.
    pub bandwidth: Option<u64>,
    /// The rest of the memory is sent with the guest standing still once it is expected to take no longer than this. At most
    /// 2,000 seconds. The time that the caller takes between [`super::Migrate::send`] and [`super::Migrate::switch_over`] comes on top.
    pub downtime: Duration,
    /// Slows the guest's processors down, more and more, where it changes memory faster than it can be sent. Set when a sending
    /// begins; without effect later.
    pub auto_converge: bool,
}

impl Default for Limits {
    /// QEMU's downtime, no limit of bandwidth, a guest that is slowed down where it must be.
    fn default() -> Self {
        Self {
            bandwidth: None,
            downtime: Duration::from_millis(300),
            auto_converge: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_cannot_smuggle_options() {
        let tcp = |host: &str| Address::Tcp {
            host: host.into(),
            port: 9,
        };
        assert_eq!(tcp("::1").uri().unwrap(), "tcp:[::1]:9");
        assert_eq!(tcp("a.example").uri().unwrap(), "tcp:a.example:9");
        for host in ["", "a,b", "a b", "h:1,ipv4=on"] {
            assert!(tcp(host).uri().is_err(), "{host}");
        }
        assert!(Address::Unix("relative".into()).uri().is_err());
    }
}
