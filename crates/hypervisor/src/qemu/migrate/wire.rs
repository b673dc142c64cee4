//! Sockets of a move: made here where that works, so that QEMU needs no way to them.

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::json;
use tokio::net::{TcpListener, TcpStream, UnixStream};

use super::super::given;
use super::super::machine::QemuMachine;
use crate::error::{Error, Result};
use crate::migration::{Address, Channel};

/// How long a connection to the other host may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);

/// Gives QEMU a descriptor under that name. It is used up by what names it.
pub(super) async fn give(machine: &QemuMachine, name: &str, fd: OwnedFd) -> Result<()> {
    let about = json!({ "fdname": name });
    machine.execute_with("getfd", about, fd).await.map(drop)
}

/// Takes a descriptor back that nothing used.
pub(super) async fn withdraw(machine: &QemuMachine, name: &str) {
    if let Err(error) = machine.execute("closefd", json!({ "fdname": name })).await {
        tracing::debug!(%error, name, "a descriptor was used up already");
    }
}

/// A connection to the other side.
pub(crate) async fn connected(channel: Channel) -> Result<OwnedFd> {
    let address = match channel {
        Channel::Stream(stream) => return Ok(stream),
        Channel::Address(address) => address,
    };
    address.check()?;
    let failed = |source| Error::io("connect to", address.to_string(), source);
    let connecting = async {
        match &address {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Ok(stream.into_std()?.into())
            }
            Address::Unix(path) => Ok(UnixStream::connect(path).await?.into_std()?.into()),
        }
    };
    match tokio::time::timeout(CONNECT_DEADLINE, connecting).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(failed(std::io::ErrorKind::TimedOut.into())),
    }
}

/// A socket that listens there, and where that is.
pub(crate) async fn listening(address: &Address) -> Result<(OwnedFd, Address)> {
    address.check()?;
    let failed = |source| Error::io("listen on", address.to_string(), source);
    match address {
        Address::Tcp { host, port } => {
            let listener = TcpListener::bind((host.as_str(), *port))
                .await
                .map_err(failed)?;
            let port = listener.local_addr().map_err(failed)?.port();
            let there = Address::Tcp {
                host: host.clone(),
                port,
            };
            Ok((listener.into_std().map_err(failed)?.into(), there))
        }
        Address::Unix(path) => Ok((given::listen(path)?, address.clone())),
    }
}
