//! From the greeting to the transmission phase.

use std::io::{Read, Write};

use super::NbdError;
use super::wire::{self, Info};

type Result<T> = std::result::Result<T, NbdError>;

/// Replies to one option that are read at most; a server could go on for ever.
const MAX_REPLIES: usize = 256;

/// What was agreed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) size: u64,
    pub(super) min_block: u32,
    pub(super) max_block: u32,
    pub(super) multi_conn: bool,
    pub(super) structured: bool,
    /// Number and name of each context.
    pub(super) contexts: Vec<(u32, String)>,
}

pub(super) fn handshake<S: Read + Write + ?Sized>(
    stream: &mut S,
    export: &str,
    contexts: &[&str],
) -> Result<Agreed> {
    // The protocol bounds names to 4 KiB.
    if export.len() > 4096 || contexts.iter().any(|c| c.len() > 4096) {
        return Err(NbdError::Protocol("a name longer than the protocol allows"));
    }
    let mut greeting = [0u8; 18];
    stream.read_exact(&mut greeting).map_err(NbdError::io)?;
    let answer = wire::greeting(&greeting)?;
    stream.write_all(&answer).map_err(NbdError::io)?;

    send(stream, wire::OPT_STRUCTURED_REPLY, &[])?;
    let (kind, data) = reply(stream, wire::OPT_STRUCTURED_REPLY)?;
    // A server without structured replies can still be read from.
    let structured = wire::refusal("structured replies", kind, &data).is_none();

    let mut agreed = Vec::new();
    if structured && !contexts.is_empty() {
        agreed = negotiate_contexts(stream, export, contexts)?;
    }
    send(stream, wire::OPT_GO, &wire::go_data(export))?;
    let (mut found, mut min_block, mut max_block) = (None, 1, u32::MAX);
    for _ in 0..MAX_REPLIES {
        let (kind, data) = reply(stream, wire::OPT_GO)?;
        if let Some(error) = wire::refusal("the export", kind, &data) {
            // A polite end; that it may not arrive does not matter.
            let _ = send(stream, wire::OPT_ABORT, &[]);
            return Err(error);
        }
        match kind {
            wire::REP_ACK => {
                let (size, multi_conn) =
                    found.ok_or(NbdError::Protocol("an export without a size"))?;
                let contexts = agreed;
                return Ok(Agreed {
                    size,
                    min_block,
                    max_block,
                    multi_conn,
                    structured,
                    contexts,
                });
            }
            wire::REP_INFO => match wire::info(&data)? {
                Info::Export { size, multi_conn } => found = Some((size, multi_conn)),
                Info::BlockSize { min, max } => (min_block, max_block) = (min, max),
                Info::Other => {}
            },
            _ => return Err(NbdError::Protocol("an unknown reply to an option")),
        }
    }
    Err(NbdError::Protocol("endless replies to an option"))
}

fn negotiate_contexts<S: Read + Write + ?Sized>(
    stream: &mut S,
    export: &str,
    contexts: &[&str],
) -> Result<Vec<(u32, String)>> {
    send(
        stream,
        wire::OPT_SET_META_CONTEXT,
        &wire::contexts_data(export, contexts),
    )?;
    let mut agreed = Vec::new();
    for _ in 0..MAX_REPLIES {
        let (kind, data) = reply(stream, wire::OPT_SET_META_CONTEXT)?;
        if let Some(error) = wire::refusal("meta contexts", kind, &data) {
            return Err(error);
        }
        match kind {
            wire::REP_ACK => return Ok(agreed),
            wire::REP_META_CONTEXT => agreed.push(wire::meta_context(&data)?),
            _ => return Err(NbdError::Protocol("an unknown reply to an option")),
        }
    }
    Err(NbdError::Protocol("endless replies to an option"))
}

fn send<S: Write + ?Sized>(stream: &mut S, kind: u32, data: &[u8]) -> Result<()> {
    stream
        .write_all(&wire::option(kind, data))
        .map_err(NbdError::io)
}

fn reply<S: Read + ?Sized>(stream: &mut S, option: u32) -> Result<(u32, Vec<u8>)> {
    let mut head = [0u8; 20];
    stream.read_exact(&mut head).map_err(NbdError::io)?;
    let (kind, len) = wire::option_reply(&head, option)?;
    let mut data = vec![0u8; len as usize];
    stream.read_exact(&mut data).map_err(NbdError::io)?;
    Ok((kind, data))
}
