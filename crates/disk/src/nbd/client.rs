//! One connection.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::handshake::{Agreed, handshake};
use super::wire::{self, ChunkKind, Head};
use super::{NbdAddress, NbdError};
use crate::error::{Error, Result};
use crate::map::ChangeMap;
use crate::source::check_range;

/// How long a server may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// Length of one read request: large reads are cut, so that several are in flight.
const READ: u64 = 256 << 10;
/// Requests in flight.
const IN_FLIGHT: usize = 16;

pub(super) type Answer<T> = std::result::Result<T, NbdError>;

/// A connection's byte stream.
pub(crate) trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One connection to an export, in the transmission phase. Blocking; one caller at a time.
pub struct NbdClient {
    address: String,
    pub(super) stream: Box<dyn Stream>,
    pub(super) agreed: Agreed,
    cookie: u64,
    broken: bool,
}

impl std::fmt::Debug for NbdClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NbdClient")
            .field("address", &self.address)
            .field("agreed", &self.agreed)
            .finish()
    }
}

/// One read request in flight.
struct Part<'b> {
    cookie: u64,
    offset: u64,
    buf: &'b mut [u8],
    filled: ChangeMap,
    error: Option<NbdError>,
}

impl NbdClient {
    /// Connects, and asks for the contexts. Those the export does not offer are left out: see [`NbdClient::has_context`].
    ///
    /// # Errors
    /// [`Error::Nbd`].
    pub fn connect(address: &NbdAddress, contexts: &[&str]) -> Result<Self> {
        let shown = address.to_string();
        let stream = open(address).map_err(|source| Error::Nbd {
            address: shown.clone(),
            source,
        })?;
        Self::over(shown, stream, address.export(), contexts)
    }

    /// The same over any stream.
    pub(crate) fn over(
        address: String,
        mut stream: Box<dyn Stream>,
        export: &str,
        contexts: &[&str],
    ) -> Result<Self> {
        match handshake(&mut *stream, export, contexts) {
            Ok(agreed) => Ok(Self {
                address,
                stream,
                agreed,
                cookie: 0,
                broken: false,
            }),
            Err(source) => Err(Error::Nbd { address, source }),
        }
    }

    /// Size of the export in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.agreed.size
    }

    /// True when several connections see the same content.
    #[must_use]
    pub fn multi_conn(&self) -> bool {
        self.agreed.multi_conn
    }

    /// True when the export offers the context (and it was asked for).
    #[must_use]
    pub fn has_context(&self, name: &str) -> bool {
        self.agreed.contexts.iter().any(|(_, n)| n == name)
    }

    pub(super) fn wrap<T>(&mut self, result: Answer<T>) -> Result<T> {
        // After an error number from the server the connection is still in step; after anything else it is not.
        if let Err(error) = &result
            && !matches!(error, NbdError::Server { .. } | NbdError::NoContext(_))
        {
            self.broken = true;
        }
        result.map_err(|source| Error::Nbd {
            address: self.address.clone(),
            source,
        })
    }

    /// Reads exactly `buf.len()` bytes.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] outside the export, [`Error::Nbd`].
    pub fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size())?;
        let min = u64::from(self.agreed.min_block);
        let end = offset + buf.len() as u64;
        if offset.is_multiple_of(min) && (end.is_multiple_of(min) || end == self.size()) {
            let result = self.read(buf, offset);
            return self.wrap(result);
        }
        // The server wants whole blocks: read them, keep what was asked for.
        let start = offset / min * min;
        let stop = end.next_multiple_of(min).min(self.size());
        let mut whole = vec![0u8; (stop - start) as usize];
        let result = self.read(&mut whole, start);
        self.wrap(result)?;
        let skip = (offset - start) as usize;
        buf.copy_from_slice(whole.get(skip..skip + buf.len()).unwrap_or_default());
        Ok(())
    }

    fn read(&mut self, buf: &mut [u8], offset: u64) -> Answer<()> {
        let max = u64::from(self.agreed.max_block)
            .min(READ)
            .max(u64::from(self.agreed.min_block));
        let mut rest = buf.chunks_mut(max as usize);
        let mut next = offset;
        let mut flying: Vec<Part<'_>> = Vec::with_capacity(IN_FLIGHT);
        let mut failed = None;
        loop {
            while failed.is_none()
                && flying.len() < IN_FLIGHT
                && let Some(part) = rest.next()
            {
                let len = part.len() as u32;
                let cookie = self.send(wire::CMD_READ, next, len)?;
                let filled = ChangeMap::new();
                flying.push(Part {
                    cookie,
                    offset: next,
                    buf: part,
                    filled,
                    error: None,
                });
                next += u64::from(len);
            }
            if flying.is_empty() {
                return failed.map_or(Ok(()), Err);
            }
            // All requests in flight are answered before an error is returned, so that the connection stays in step.
            if let Some(error) = self.receive_read(&mut flying)? {
                failed.get_or_insert(error);
            }
        }
    }

    /// Takes one reply or chunk. Returns the error of a read that has ended with one.
    fn receive_read(&mut self, flying: &mut Vec<Part<'_>>) -> Answer<Option<NbdError>> {
        let head = self.head()?;
        let cookie = match head {
            Head::Simple { cookie, .. } | Head::Chunk { cookie, .. } => cookie,
        };
        let unknown = NbdError::Protocol("a reply to nothing that was asked");
        let index = flying
            .iter()
            .position(|p| p.cookie == cookie)
            .ok_or(unknown)?;
        let Some(part) = flying.get_mut(index) else {
            return Ok(None);
        };
        let last = match head {
            Head::Simple { error: 0, .. } if !self.agreed.structured => {
                self.stream.read_exact(part.buf).map_err(NbdError::io)?;
                part.filled = ChangeMap::of(0..part.buf.len() as u64);
                true
            }
            Head::Simple { error: 0, .. } => {
                return Err(NbdError::Protocol(
                    "a simple reply to a read, though structured ones were agreed",
                ));
            }
            Head::Simple { error, .. } => {
                part.error = Some(failed("read", part.offset, error, String::new()));
                true
            }
            Head::Chunk {
                last, kind, len, ..
            } => {
                Self::read_chunk(&mut *self.stream, part, kind, len)?;
                last
            }
        };
        if !last {
            return Ok(None);
        }
        let part = flying.swap_remove(index);
        if part.error.is_none() && part.filled.total() != part.buf.len() as u64 {
            return Err(NbdError::Protocol("a read that was answered in part"));
        }
        Ok(part.error)
    }

    fn read_chunk(
        stream: &mut dyn Stream,
        part: &mut Part<'_>,
        kind: ChunkKind,
        len: u32,
    ) -> Answer<()> {
        match kind {
            ChunkKind::None => {}
            ChunkKind::Data => {
                let mut offset = [0u8; 8];
                stream.read_exact(&mut offset).map_err(NbdError::io)?;
                let target = part.claim(u64::from_be_bytes(offset), u64::from(len - 8))?;
                stream.read_exact(target).map_err(NbdError::io)?;
            }
            ChunkKind::Hole => {
                let mut data = [0u8; 12];
                stream.read_exact(&mut data).map_err(NbdError::io)?;
                let (offset, len) = wire::hole(&data);
                part.claim(offset, u64::from(len))?.fill(0);
            }
            ChunkKind::Error => {
                let mut data = vec![0u8; len as usize];
                stream.read_exact(&mut data).map_err(NbdError::io)?;
                let (number, text) = wire::error(&data)?;
                part.error
                    .get_or_insert(failed("read", part.offset, number, text));
            }
            ChunkKind::BlockStatus => {
                return Err(NbdError::Protocol("a block status in answer to a read"));
            }
        }
        Ok(())
    }

    pub(super) fn send(&mut self, command: u16, offset: u64, len: u32) -> Answer<u64> {
        if self.broken {
            return Err(NbdError::Broken);
        }
        self.cookie += 1;
        let bytes = wire::request(command, self.cookie, offset, len);
        self.stream.write_all(&bytes).map_err(NbdError::io)?;
        Ok(self.cookie)
    }

    pub(super) fn head(&mut self) -> Answer<Head> {
        let mut start = [0u8; 16];
        self.stream.read_exact(&mut start).map_err(NbdError::io)?;
        let rest = if wire::is_structured(&start)? {
            let mut rest = [0u8; wire::STRUCTURED_REST];
            self.stream.read_exact(&mut rest).map_err(NbdError::io)?;
            Some(rest)
        } else {
            None
        };
        wire::head(&start, rest)
    }
}

impl Drop for NbdClient {
    fn drop(&mut self) {
        // A polite end; a server that is gone does not mind.
        let _ = self.send(wire::CMD_DISCONNECT, 0, 0);
    }
}

impl Part<'_> {
    /// The bytes of the buffer a chunk fills; they must lie in the request and not have been filled before.
    fn claim(&mut self, offset: u64, len: u64) -> Answer<&mut [u8]> {
        let bad = || NbdError::Protocol("a chunk outside its request, or one sent twice");
        let start = offset.checked_sub(self.offset).ok_or_else(bad)?;
        let end = start
            .checked_add(len)
            .filter(|end| *end <= self.buf.len() as u64)
            .ok_or_else(bad)?;
        let before = self.filled.total();
        self.filled.insert(start..end);
        if len == 0 || self.filled.total() != before + len {
            return Err(bad());
        }
        self.buf
            .get_mut(start as usize..end as usize)
            .ok_or_else(bad)
    }
}

pub(super) fn failed(action: &'static str, offset: u64, number: u32, message: String) -> NbdError {
    NbdError::Server {
        action,
        offset,
        message,
        source: wire::server_error(number),
    }
}

fn open(address: &NbdAddress) -> Answer<Box<dyn Stream>> {
    match address {
        NbdAddress::Unix { path, .. } => {
            let stream = UnixStream::connect(path).map_err(NbdError::io)?;
            stream
                .set_read_timeout(Some(SILENCE))
                .map_err(NbdError::io)?;
            stream
                .set_write_timeout(Some(SILENCE))
                .map_err(NbdError::io)?;
            Ok(Box::new(stream))
        }
        NbdAddress::Tcp { host, port, .. } => {
            let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
            for target in (host.as_str(), *port)
                .to_socket_addrs()
                .map_err(NbdError::io)?
            {
                match TcpStream::connect_timeout(&target, SILENCE) {
                    Ok(stream) => {
                        stream.set_nodelay(true).map_err(NbdError::io)?;
                        stream
                            .set_read_timeout(Some(SILENCE))
                            .map_err(NbdError::io)?;
                        stream
                            .set_write_timeout(Some(SILENCE))
                            .map_err(NbdError::io)?;
                        return Ok(Box::new(stream));
                    }
                    Err(error) => last = error,
                }
            }
            Err(NbdError::io(last))
        }
    }
}
