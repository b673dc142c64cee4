//! Connections between fakes: real sockets, over which they find each other, so that relays and broken links can be tested without QEMU.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::machine::State;
use super::script::locked;
use crate::error::{Error, Result};
use crate::migration::{Address, Channel};

/// What a fake says to its peer: its own number.
type Number = u64;

static NEXT: AtomicU64 = AtomicU64::new(1);

fn known() -> &'static Mutex<HashMap<Number, Weak<Mutex<State>>>> {
    static KNOWN: OnceLock<Mutex<HashMap<Number, Weak<Mutex<State>>>>> = OnceLock::new();
    KNOWN.get_or_init(Mutex::default)
}

/// Makes a fake known under a number of its own.
pub(super) fn introduce(state: &Arc<Mutex<State>>) -> Number {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    locked(known()).insert(number, Arc::downgrade(state));
    number
}

/// The fake of that number, while it is there.
pub(super) fn find(number: Number) -> Option<Arc<Mutex<State>>> {
    locked(known()).get(&number)?.upgrade()
}

/// A connection whose end is seen.
#[derive(Debug)]
pub(super) struct Wire(UnixStream);

impl Wire {
    /// Any stream socket: what is read and written is all the same.
    fn new(fd: OwnedFd) -> std::io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(stream)?))
    }

    /// Says a number and hears one.
    pub(super) async fn greet(&mut self, number: Number) -> std::io::Result<Number> {
        self.0.write_all(&number.to_be_bytes()).await?;
        self.0.read_u64().await
    }

    async fn answer(&mut self, number: Number) -> std::io::Result<Number> {
        let heard = self.0.read_u64().await?;
        self.0.write_all(&number.to_be_bytes()).await?;
        Ok(heard)
    }

    /// Whether neither the other side nor anything between has closed it.
    pub(super) fn is_whole(&self) -> bool {
        let mut byte = [0];
        match self.0.try_read(&mut byte) {
            Ok(count) => count > 0,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }

    /// Waits until it is closed.
    async fn closed(&mut self) {
        // Nobody says anything after the greeting.
        let _ = self.0.read_u8().await;
    }
}

pub(super) async fn connect(channel: Channel) -> Result<Wire> {
    let fd = crate::qemu::connected(channel).await?;
    Wire::new(fd).map_err(|source| Error::io("use", "a stream", source))
}

/// Waits for peers in the background until dropped.
#[derive(Debug)]
pub(super) struct Waiting(JoinHandle<()>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

enum Door {
    Tcp(TcpListener),
    Unix(UnixListener),
    Open(Option<Wire>),
}

impl Door {
    async fn next(&mut self) -> std::io::Result<Wire> {
        match self {
            Self::Tcp(listener) => Wire::new(listener.accept().await?.0.into_std()?.into()),
            Self::Unix(listener) => Wire::new(listener.accept().await?.0.into_std()?.into()),
            Self::Open(wire) => match wire.take() {
                Some(wire) => Ok(wire),
                None => std::future::pending().await,
            },
        }
    }
}

/// Waits on that channel; `met` hears of each peer that came and of each that went.
pub(super) async fn wait(
    channel: Channel,
    number: Number,
    met: impl Fn(Number, bool) + Clone + Send + 'static,
) -> Result<(Waiting, Option<Address>)> {
    let failed = |source| Error::io("listen on", "a channel", source);
    let (mut door, address) = match channel {
        Channel::Stream(fd) => (Door::Open(Some(Wire::new(fd).map_err(failed)?)), None),
        Channel::Address(address) => {
            let (fd, there) = crate::qemu::listening(&address).await?;
            let door = match &there {
                Address::Tcp { .. } => {
                    let listener = std::net::TcpListener::from(fd);
                    listener.set_nonblocking(true).map_err(failed)?;
                    Door::Tcp(TcpListener::from_std(listener).map_err(failed)?)
                }
                Address::Unix(_) => {
                    let listener = std::os::unix::net::UnixListener::from(fd);
                    listener.set_nonblocking(true).map_err(failed)?;
                    Door::Unix(UnixListener::from_std(listener).map_err(failed)?)
                }
            };
            (door, Some(there))
        }
    };
    let waiting = tokio::spawn(async move {
        let mut peers = tokio::task::JoinSet::new();
        while let Ok(mut wire) = door.next().await {
            let met = met.clone();
            peers.spawn(async move {
                if let Ok(peer) = wire.answer(number).await {
                    met(peer, true);
                    wire.closed().await;
                    met(peer, false);
                }
            });
        }
    });
    Ok((Waiting(waiting), address))
}
