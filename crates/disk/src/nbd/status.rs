//! Asking a connection what is allocated, zero or dirty where.

use std::ops::Range;

use super::client::{Answer, NbdClient, failed};
use super::wire::{self, ChunkKind, Head};
use super::{BASE_ALLOCATION, NbdError, QEMU_ALLOCATION_DEPTH};
use crate::error::Result;
use crate::map::ChangeMap;
use crate::source::check_range;

/// Length of one block status request.
const STATUS: u64 = 1 << 30;

/// A run of bytes with the flags a context gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusExtent {
    /// First byte.
    pub start: u64,
    /// Length in bytes, at least 1.
    pub len: u64,
    /// The context's flags, or its value.
    pub flags: u32,
}

impl NbdClient {
    /// What a context says about a range: ascending, without gaps, neighbours with equal flags merged.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] outside the export; [`crate::Error::Nbd`], also when the context was not agreed.
    pub fn status(&mut self, context: &str, range: Range<u64>) -> Result<Vec<StatusExtent>> {
        check_range(
            range.start,
            range.end.saturating_sub(range.start),
            self.size(),
        )?;
        let result = self.status_of(context, range);
        self.wrap(result)
    }

    fn status_of(&mut self, context: &str, range: Range<u64>) -> Answer<Vec<StatusExtent>> {
        let known = self
            .agreed
            .contexts
            .iter()
            .find(|(_, name)| name == context);
        let Some(id) = known.map(|(id, _)| *id) else {
            return Err(NbdError::NoContext(context.to_owned()));
        };
        let mut list: Vec<StatusExtent> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let min = u64::from(self.agreed.min_block);
            let start = at / min * min;
            let end = range
                .end
                .next_multiple_of(min)
                .min(self.size())
                .min(start + STATUS);
            let descriptors = self.ask_status(id, start, (end - start) as u32)?;
            let mut from = start;
            for (len, flags) in descriptors {
                // The last descriptor may reach beyond what was asked for.
                let to = (from + u64::from(len)).min(end).min(range.end);
                if to > at {
                    match list.last_mut() {
                        Some(last) if last.flags == flags => last.len += to - at,
                        _ => list.push(StatusExtent {
                            start: at,
                            len: to - at,
                            flags,
                        }),
                    }
                    at = to;
                }
                from += u64::from(len);
            }
            if from <= start {
                return Err(NbdError::Protocol("a block status without progress"));
            }
        }
        Ok(list)
    }

    /// One block status request; the descriptors of context `id`.
    fn ask_status(&mut self, id: u32, offset: u64, len: u32) -> Answer<Vec<(u32, u32)>> {
        let cookie = self.send(wire::CMD_BLOCK_STATUS, offset, len)?;
        let mut found = None;
        let mut error = None;
        // One chunk per context, perhaps an error, perhaps an empty last one.
        for _ in 0..self.agreed.contexts.len() + 8 {
            let last = match self.head()? {
                Head::Simple { cookie: c, .. } | Head::Chunk { cookie: c, .. } if c != cookie => {
                    return Err(NbdError::Protocol("a reply to nothing that was asked"));
                }
                Head::Simple { error: number, .. } => {
                    error = Some(failed(
                        "tell the block status",
                        offset,
                        number,
                        String::new(),
                    ));
                    true
                }
                Head::Chunk {
                    last, kind, len, ..
                } => {
                    if !matches!(
                        kind,
                        ChunkKind::None | ChunkKind::BlockStatus | ChunkKind::Error
                    ) {
                        return Err(NbdError::Protocol("data in answer to a block status"));
                    }
                    let mut data = vec![0u8; len as usize];
                    self.stream.read_exact(&mut data).map_err(NbdError::io)?;
                    if kind == ChunkKind::BlockStatus {
                        let (context, list) = wire::block_status(&data)?;
                        if context == id && found.replace(list).is_some() {
                            return Err(NbdError::Protocol("two answers for one context"));
                        }
                    } else if kind == ChunkKind::Error {
                        let (number, text) = wire::error(&data)?;
                        error.get_or_insert(failed("tell the block status", offset, number, text));
                    }
                    last
                }
            };
            if last {
                return match (error, found) {
                    (Some(error), _) => Err(error),
                    (None, Some(list)) => Ok(list),
                    (None, None) => Err(NbdError::Protocol("a block status without an answer")),
                };
            }
        }
        Err(NbdError::Protocol("endless chunks"))
    }

    /// The bytes the ACTIVE layer of the export itself defines: those that [`QEMU_ALLOCATION_DEPTH`] puts at depth 1. The context
    /// must have been asked for.
    ///
    /// # Errors
    /// As [`NbdClient::status`].
    pub fn allocation_map_depth1(&mut self) -> Result<ChangeMap> {
        self.map_where(QEMU_ALLOCATION_DEPTH, |depth| depth == 1)
    }

    /// The dirty bytes of a bitmap (`qemu:dirty-bitmap:NAME`). The context must have been asked for.
    ///
    /// # Errors
    /// As [`NbdClient::status`].
    pub fn dirty_map(&mut self, bitmap: &str) -> Result<ChangeMap> {
        self.map_where(&format!("qemu:dirty-bitmap:{bitmap}"), |flags| {
            flags & 1 != 0
        })
    }

    /// The bytes that do not read as zeros, as far as [`BASE_ALLOCATION`] knows.
    ///
    /// # Errors
    /// As [`NbdClient::status`].
    pub fn data_map(&mut self) -> Result<ChangeMap> {
        self.map_where(BASE_ALLOCATION, |flags| flags & 2 == 0)
    }

    fn map_where(&mut self, context: &str, keep: impl Fn(u32) -> bool) -> Result<ChangeMap> {
        let list = self.status(context, 0..self.size())?;
        Ok(list
            .into_iter()
            .filter(|e| keep(e.flags))
            .map(|e| e.start..e.start + e.len)
            .collect())
    }
}
