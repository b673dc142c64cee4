//! Sockets: where the server listens and who sits at the other end of a local one.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::PathBuf;

use ntlm::ChannelBinding;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;

use crate::tls::Tls;
use crate::{Caller, Role};

/// Which protocols a listener answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    /// WS-Management on `/wsman`.
    pub wsman: bool,
    /// CIM-XML on `/cimom` and `/`.
    pub cimxml: bool,
}

impl Protocols {
    /// WS-Management only.
    pub const WSMAN: Protocols = Protocols {
        wsman: true,
        cimxml: false,
    };
    /// CIM-XML only.
    pub const CIMXML: Protocols = Protocols {
        wsman: false,
        cimxml: true,
    };
    /// Both.
    pub const BOTH: Protocols = Protocols {
        wsman: true,
        cimxml: true,
    };
}

/// Where to listen.
#[derive(Clone, Debug)]
pub enum Listen {
    /// A TCP address; port 0 takes a free one.
    Tcp {
        /// The address.
        addr: SocketAddr,
        /// TLS, or plain HTTP.
        tls: Option<Tls>,
        /// The protocols answered there.
        protocols: Protocols,
    },
    /// A local socket. It answers both protocols; root and the user the service runs as are administrators
    /// there without a password. A dead socket at the path is replaced, a live one is an error.
    Unix {
        /// Its path.
        path: PathBuf,
    },
}

/// What a listener is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// A TCP address with its real port.
    Tcp(SocketAddr),
    /// A local socket.
    Unix(PathBuf),
}

impl Bound {
    /// The TCP address, if it is one.
    pub fn addr(&self) -> Option<SocketAddr> {
        match self {
            Bound::Tcp(addr) => Some(*addr),
            Bound::Unix(_) => None,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bound::Tcp(addr) => addr.fmt(f),
            Bound::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Plain HTTP off loopback would send passwords in the clear.
    #[error(
        "plain HTTP on {addr} would send passwords in the clear: use TLS, a loopback address, or allow it"
    )]
    PlainOffLoopback {
        /// The address.
        addr: SocketAddr,
    },
    /// Another process answers on the local socket.
    #[error("{} is in use by another process", .path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {at}")]
    Bind {
        /// The address or path.
        at: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

pub(super) enum Listener {
    Tcp {
        listener: TcpListener,
        addr: SocketAddr,
        tls: Option<(TlsAcceptor, ChannelBinding)>,
        protocols: Protocols,
    },
    Unix {
        listener: UnixListener,
        path: PathBuf,
        own_uid: u32,
    },
}

impl Listener {
    pub(super) fn bound(&self) -> Bound {
        match self {
            Listener::Tcp { addr, .. } => Bound::Tcp(*addr),
            Listener::Unix { path, .. } => Bound::Unix(path.clone()),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix { path, .. } = self {
            // A socket file nobody answers on would only mislead.
            let _ = std::fs::remove_file(path);
        }
    }
}

pub(super) async fn bind(
    listen: Listen,
    plain_off_loopback: bool,
) -> Result<Listener, ListenError> {
    match listen {
        Listen::Tcp {
            addr,
            tls,
            protocols,
        } => {
            if tls.is_none() && !addr.ip().is_loopback() && !plain_off_loopback {
                return Err(ListenError::PlainOffLoopback { addr });
            }
            let failed = |source| ListenError::Bind {
                at: addr.to_string(),
                source,
            };
            let listener = TcpListener::bind(addr).await.map_err(failed)?;
            let addr = listener.local_addr().map_err(failed)?;
            Ok(Listener::Tcp {
                listener,
                addr,
                tls: tls.map(|tls| (TlsAcceptor::from(tls.config), tls.binding)),
                protocols,
            })
        }
        Listen::Unix { path } => {
            let failed = |source| ListenError::Bind {
                at: path.display().to_string(),
                source,
            };
            if UnixStream::connect(&path).await.is_ok() {
                return Err(ListenError::InUse { path });
            }
            let stale = std::fs::symlink_metadata(&path).is_ok_and(|m| m.file_type().is_socket());
            if stale {
                std::fs::remove_file(&path).map_err(failed)?;
            }
            let listener = UnixListener::bind(&path).map_err(failed)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
                .map_err(failed)?;
            Ok(Listener::Unix {
                listener,
                path,
                own_uid: rustix::process::geteuid().as_raw(),
            })
        }
    }
}

/// Who sits at the other end of a local socket: root and the service's own user are administrators, anyone
/// else has to show a password.
pub(super) fn peer(stream: &UnixStream, own_uid: u32) -> Option<Caller> {
    let uid = stream.peer_cred().ok()?.uid();
    (uid == 0 || uid == own_uid).then(|| Caller {
        user: if uid == 0 {
            "root".to_owned()
        } else {
            format!("uid{uid}")
        },
        role: Role::Admin,
    })
}
