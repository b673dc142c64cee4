//! The messages as bytes. No I/O.

use super::NbdError;

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

pub(super) const OPT_ABORT: u32 = 2;
pub(super) const OPT_GO: u32 = 7;
pub(super) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(super) const OPT_SET_META_CONTEXT: u32 = 10;

pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_INFO: u32 = 3;
pub(super) const REP_META_CONTEXT: u32 = 4;
const REP_ERROR: u32 = 1 << 31;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

pub(super) const CMD_READ: u16 = 0;
pub(super) const CMD_DISCONNECT: u16 = 2;
pub(super) const CMD_BLOCK_STATUS: u16 = 7;

/// Set in the flags of an export that shows the same content on all its connections.
const FLAG_MULTI_CONN: u16 = 1 << 8;

/// Longest data of an option reply that is accepted, in bytes.
const MAX_OPTION_REPLY: u32 = 64 << 10;
/// Longest text of an error chunk: the length field has 16 bits.
const MAX_ERROR_CHUNK: u32 = 6 + 65_535 + 8;
/// Longest block status chunk accepted: a million descriptors.
const MAX_STATUS_CHUNK: u32 = 4 + (8 << 20);

type Result<T> = std::result::Result<T, NbdError>;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The server's first 18 bytes; returns the client's answer.
pub(super) fn greeting(bytes: &[u8; 18]) -> Result<[u8; 4]> {
    let flags = u16_at(bytes, 16).unwrap_or(0);
    if u64_at(bytes, 0) != Some(INIT_MAGIC)
        || u64_at(bytes, 8) != Some(OPTION_MAGIC)
        || flags & FIXED_NEWSTYLE == 0
    {
        return Err(NbdError::NotNbd);
    }
    Ok(u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_be_bytes())
}

/// An option of the handshake.
pub(super) fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = OPTION_MAGIC.to_be_bytes().to_vec();
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

fn counted(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u32).to_be_bytes());
    out.extend(text.as_bytes());
}

/// The data of `GO`: the export, and the wish to know its block sizes.
pub(super) fn go_data(export: &str) -> Vec<u8> {
    let mut out = Vec::new();
    counted(&mut out, export);
    out.extend(1u16.to_be_bytes());
    out.extend(INFO_BLOCK_SIZE.to_be_bytes());
    out
}

/// The data of `SET_META_CONTEXT`.
pub(super) fn contexts_data(export: &str, contexts: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    counted(&mut out, export);
    out.extend((contexts.len() as u32).to_be_bytes());
    for context in contexts {
        counted(&mut out, context);
    }
    out
}

/// Kind and data length of an option reply.
pub(super) fn option_reply(bytes: &[u8; 20], expected: u32) -> Result<(u32, u32)> {
    let (option, kind, len) = (u32_at(bytes, 8), u32_at(bytes, 12), u32_at(bytes, 16));
    if u64_at(bytes, 0) != Some(OPTION_REPLY_MAGIC) || option != Some(expected) {
        return Err(NbdError::Protocol("an option reply that answers no option"));
    }
    match (kind, len) {
        (Some(kind), Some(len)) if len <= MAX_OPTION_REPLY => Ok((kind, len)),
        _ => Err(NbdError::Protocol("an option reply that is too long")),
    }
}

/// The refusal an option reply stands for, if it is one.
pub(super) fn refusal(option: &'static str, kind: u32, data: &[u8]) -> Option<NbdError> {
    if kind & REP_ERROR == 0 {
        return None;
    }
    let reason = match kind & !REP_ERROR {
        1 => "it does not know it",
        2 => "its policy forbids it",
        3 => "it takes it for invalid",
        4 => "its platform does not support it",
        5 => "it demands TLS, which is not spoken here",
        6 => "there is no such export",
        7 => "it is shutting down",
        8 => "it demands that block sizes are respected",
        9 => "the request is too large",
        _ => "it gave an unknown reason",
    };
    let message = String::from_utf8_lossy(data).into_owned();
    Some(NbdError::Refused {
        option,
        reason,
        message,
    })
}

/// What `GO` tells about an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Info {
    Export { size: u64, multi_conn: bool },
    BlockSize { min: u32, max: u32 },
    Other,
}

pub(super) fn info(data: &[u8]) -> Result<Info> {
    let bad = || NbdError::Protocol("export information that makes no sense");
    match u16_at(data, 0).ok_or_else(bad)? {
        INFO_EXPORT => {
            let size = u64_at(data, 2).ok_or_else(bad)?;
            let flags = u16_at(data, 10).ok_or_else(bad)?;
            if data.len() != 12 || size > i64::MAX as u64 {
                return Err(bad());
            }
            Ok(Info::Export {
                size,
                multi_conn: flags & FLAG_MULTI_CONN != 0,
            })
        }
        INFO_BLOCK_SIZE => {
            let min = u32_at(data, 2).ok_or_else(bad)?;
            let max = u32_at(data, 10).ok_or_else(bad)?;
            if data.len() != 14 || !min.is_power_of_two() || min > 65_536 || max < min {
                return Err(bad());
            }
            Ok(Info::BlockSize { min, max })
        }
        _ => Ok(Info::Other),
    }
}

/// Number and name of a negotiated context.
pub(super) fn meta_context(data: &[u8]) -> Result<(u32, String)> {
    let bad = || NbdError::Protocol("a context that makes no sense");
    let id = u32_at(data, 0).ok_or_else(bad)?;
    let name = String::from_utf8(data.get(4..).unwrap_or_default().to_vec()).map_err(|_| bad())?;
    Ok((id, name))
}

/// A request.
pub(super) fn request(command: u16, cookie: u64, offset: u64, len: u32) -> [u8; 28] {
    let mut out = [0u8; 28];
    let (head, rest) = out.split_at_mut(8);
    head.copy_from_slice(&(u64::from(REQUEST_MAGIC) << 32 | u64::from(command)).to_be_bytes());
    let (cookie_part, rest) = rest.split_at_mut(8);
    cookie_part.copy_from_slice(&cookie.to_be_bytes());
    let (offset_part, len_part) = rest.split_at_mut(8);
    offset_part.copy_from_slice(&offset.to_be_bytes());
    len_part.copy_from_slice(&len.to_be_bytes());
    out
}

/// The start of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// An old-style reply: an error number (0: none), and the data of a read behind it.
    Simple { error: u32, cookie: u64 },
    /// One chunk of a structured reply.
    Chunk {
        last: bool,
        kind: ChunkKind,
        cookie: u64,
        len: u32,
    },
}

/// What a chunk carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChunkKind {
    None,
    Data,
    Hole,
    BlockStatus,
    Error,
}

/// Of the 16 bytes every reply begins with, how many more a structured head has.
pub(super) const STRUCTURED_REST: usize = 4;

/// True when the head that begins so is a structured one.
pub(super) fn is_structured(start: &[u8; 16]) -> Result<bool> {
    match u32_at(start, 0) {
        Some(STRUCTURED_REPLY_MAGIC) => Ok(true),
        Some(SIMPLE_REPLY_MAGIC) => Ok(false),
        _ => Err(NbdError::Protocol("something that is no reply")),
    }
}

pub(super) fn head(start: &[u8; 16], rest: Option<[u8; STRUCTURED_REST]>) -> Result<Head> {
    let bad = || NbdError::Protocol("a chunk of impossible kind or length");
    let cookie = u64_at(start, 8).ok_or_else(bad)?;
    let Some(rest) = rest else {
        return Ok(Head::Simple {
            error: u32_at(start, 4).ok_or_else(bad)?,
            cookie,
        });
    };
    let len = u32::from_be_bytes(rest);
    let flags = u16_at(start, 4).ok_or_else(bad)?;
    let (kind, fits) = match u16_at(start, 6).ok_or_else(bad)? {
        0 => (ChunkKind::None, len == 0),
        1 => (ChunkKind::Data, len > 8),
        2 => (ChunkKind::Hole, len == 12),
        5 => (
            ChunkKind::BlockStatus,
            len >= 12 && len % 8 == 4 && len <= MAX_STATUS_CHUNK,
        ),
        kind if kind & 1 << 15 != 0 => (ChunkKind::Error, (6..=MAX_ERROR_CHUNK).contains(&len)),
        _ => return Err(bad()),
    };
    if !fits {
        return Err(bad());
    }
    Ok(Head::Chunk {
        last: flags & 1 != 0,
        kind,
        cookie,
        len,
    })
}

/// Offset and length of a hole chunk.
pub(super) fn hole(data: &[u8; 12]) -> (u64, u32) {
    (u64_at(data, 0).unwrap_or(0), u32_at(data, 8).unwrap_or(0))
}

/// Error number and text of an error chunk.
pub(super) fn error(data: &[u8]) -> Result<(u32, String)> {
    let bad = || NbdError::Protocol("an error chunk that makes no sense");
    let number = u32_at(data, 0).ok_or_else(bad)?;
    let len = usize::from(u16_at(data, 4).ok_or_else(bad)?);
    let text = data.get(6..6 + len).ok_or_else(bad)?;
    Ok((number, String::from_utf8_lossy(text).into_owned()))
}

/// Context and descriptors (length, flags) of a block status chunk; lengths are never zero.
pub(super) fn block_status(data: &[u8]) -> Result<(u32, Vec<(u32, u32)>)> {
    let bad = || NbdError::Protocol("a block status that makes no sense");
    let context = u32_at(data, 0).ok_or_else(bad)?;
    let (pairs, rest) = data.get(4..).unwrap_or_default().as_chunks::<8>();
    let list: Vec<(u32, u32)> = pairs
        .iter()
        .filter_map(|pair| Some((u32_at(pair, 0)?, u32_at(pair, 4)?)))
        .collect();
    if list.is_empty() || !rest.is_empty() || list.iter().any(|(len, _)| *len == 0) {
        return Err(bad());
    }
    Ok((context, list))
}

/// The error numbers of the protocol are those of Linux; this gives them their meaning back.
pub(super) fn server_error(number: u32) -> std::io::Error {
    match number {
        1 | 5 | 12 | 22 | 28 | 75 | 95 | 108 => std::io::Error::from_raw_os_error(number as i32),
        _ => std::io::Error::other(format!("error number {number}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_its_fields_where_the_protocol_wants_them() {
        let bytes = request(CMD_BLOCK_STATUS, 0x0102, 0x0304, 0x0506);
        assert_eq!(bytes[..8], [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 7]);
        assert_eq!(bytes[14..16], [1, 2]);
        assert_eq!(bytes[22..24], [3, 4]);
        assert_eq!(bytes[24..], [0, 0, 5, 6]);
    }

    #[test]
    fn impossible_chunks_are_refused() {
        let mut start = [0u8; 16];
        start[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        for (kind, len) in [
            (0u16, 1u32),
            (1, 8),
            (2, 13),
            (5, 4),
            (5, 13),
            (5, u32::MAX),
            (6, 9),
            (0x8001, 5),
        ] {
            start[6..8].copy_from_slice(&kind.to_be_bytes());
            assert!(
                head(&start, Some(len.to_be_bytes())).is_err(),
                "{kind} {len}"
            );
        }
        assert!(is_structured(&[0; 16]).is_err());
    }

    #[test]
    fn an_empty_or_endless_status_is_refused() {
        assert!(block_status(&[0, 0, 0, 1]).is_err());
        assert!(block_status(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]).is_err());
        assert_eq!(
            block_status(&[0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 3]).unwrap(),
            (1, vec![(512, 3)])
        );
    }
}
