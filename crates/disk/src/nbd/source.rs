//! An export as a source: a pool of connections, one per reader.

use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

use super::{BASE_ALLOCATION, NbdAddress, NbdClient, NbdError};
use crate::error::{Error, Result};
use crate::source::{Source, SourceExtent, check_range, push_extent};

/// An NBD export that does not change while it is read.
#[derive(Debug)]
pub struct NbdSource {
    address: NbdAddress,
    size: u64,
    has_extents: bool,
    idle: Mutex<Vec<NbdClient>>,
    returned: Condvar,
}

impl NbdSource {
    /// Opens up to `connections` connections; just one where the server does not promise that several see the same.
    ///
    /// # Errors
    /// [`Error::Nbd`].
    pub fn connect(address: &NbdAddress, connections: usize) -> Result<Self> {
        let first = NbdClient::connect(address, &[BASE_ALLOCATION])?;
        let (size, multi) = (first.size(), first.multi_conn());
        let has_extents = first.has_context(BASE_ALLOCATION);
        let mut idle = vec![first];
        while multi && idle.len() < connections {
            let next = NbdClient::connect(address, &[BASE_ALLOCATION])?;
            if next.size() != size {
                let source =
                    NbdError::Protocol("connections to one export disagree about its size");
                return Err(Error::Nbd {
                    address: address.to_string(),
                    source,
                });
            }
            idle.push(next);
        }
        let (idle, returned) = (Mutex::new(idle), Condvar::new());
        Ok(Self {
            address: address.clone(),
            size,
            has_extents,
            idle,
            returned,
        })
    }

    /// Where the export is.
    #[must_use]
    pub fn address(&self) -> &NbdAddress {
        &self.address
    }

    /// Does something with a connection nobody else uses meanwhile.
    fn with<T>(&self, act: impl FnOnce(&mut NbdClient) -> Result<T>) -> Result<T> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut client = loop {
            if let Some(client) = idle.pop() {
                break client;
            }
            idle = self
                .returned
                .wait(idle)
                .unwrap_or_else(PoisonError::into_inner);
        };
        drop(idle);
        let result = act(&mut client);
        // A broken one goes back too: it fails the next caller at once, instead of making all wait for ever.
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(client);
        self.returned.notify_one();
        result
    }
}

impl Source for NbdSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.with(|client| client.read_at(buf, offset))
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>> {
        let len = range.end.saturating_sub(range.start);
        check_range(range.start, len, self.size)?;
        if len == 0 {
            return Ok(Vec::new());
        }
        if !self.has_extents {
            return Ok(vec![SourceExtent {
                start: range.start,
                len,
                zero: false,
            }]);
        }
        let mut list = Vec::new();
        for extent in self.with(|client| client.status(BASE_ALLOCATION, range))? {
            let zero = extent.flags & 2 != 0;
            push_extent(
                &mut list,
                SourceExtent {
                    start: extent.start,
                    len: extent.len,
                    zero,
                },
            );
        }
        Ok(list)
    }
}
