//! The owner's line in a layer's own header.
//!
//! A header extension of a kind that QEMU does not know: it carries such along whenever it writes the header anew (tried with commit,
//! rebase, resize and live commits), and every other reader passes over it.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Error, Result};

/// The extension's number: "kvms".
const OWNER: u32 = 0x6b76_6d73;
/// What of a header is looked at: QEMU keeps all it writes there far below this.
const HEAD: usize = 16 << 10;
const MAGIC: u32 = 0x5146_49fb;
/// The longest line.
const LONGEST: usize = 1000;

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// The header with this owner's line, instead of the one it has, if any. `None` where it is none that could carry one.
fn with_owner(head: &[u8], owner: &str) -> Option<Vec<u8>> {
    if word(head, 0)? != MAGIC || word(head, 4)? < 3 || owner.len() > LONGEST {
        return None;
    }
    let cluster = 1_u64.checked_shl(word(head, 20)?)?;
    let length = usize::try_from(word(head, 100)?).ok()?;
    let name_at = usize::try_from(long(head, 8)?).ok()?;
    let name_len = usize::try_from(word(head, 16)?).ok()?;
    let name = match name_at {
        0 => &[][..],
        at => head.get(at..at.checked_add(name_len)?)?,
    };
    let mut out = head.get(..length)?.to_vec();
    let mut at = length;
    loop {
        let (kind, len) = (word(head, at)?, usize::try_from(word(head, at + 4)?).ok()?);
        if kind == 0 {
            break;
        }
        let end = at
            .checked_add(8)?
            .checked_add(len.checked_next_multiple_of(8)?)?;
        let whole = head.get(at..end)?;
        if kind != OWNER {
            out.extend(whole);
        }
        at = end;
    }
    out.extend(OWNER.to_be_bytes());
    out.extend(u32::try_from(owner.len()).ok()?.to_be_bytes());
    out.extend(owner.as_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
    // The end of the extensions.
    out.extend([0; 8]);
    if !name.is_empty() {
        let place = u64::try_from(out.len()).ok()?.to_be_bytes();
        out.get_mut(8..16)?.copy_from_slice(&place);
        out.extend(name);
    }
    // What was there and is longer must not be left behind it.
    let before = name_at.checked_add(name_len)?.max(at + 8);
    out.resize(out.len().max(before), 0);
    let fits = u64::try_from(out.len()).ok()? <= cluster && out.len() <= HEAD;
    fits.then_some(out)
}

/// Writes the owner's line into the header of a qcow2 file that nobody has open, durably.
///
/// # Errors
/// [`Error::Io`]; [`Error::Conflict`] where the file is no qcow2 image with room for it.
pub fn write_owner(path: &Path, owner: &str) -> Result<()> {
    let io = |action| move |source| Error::io(action, path, source);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(io("open"))?;
    let mut head = vec![0; HEAD];
    let mut have = 0;
    while let Some(rest) = head.get_mut(have..).filter(|r| !r.is_empty()) {
        match file.read_at(rest, have as u64).map_err(io("read"))? {
            0 => break,
            n => have += n,
        }
    }
    head.truncate(have);
    let new = with_owner(&head, owner).ok_or_else(|| {
        Error::conflict(format!(
            "the header of {} has no room for its owner",
            path.display()
        ))
    })?;
    file.write_all_at(&new, 0).map_err(io("write"))?;
    file.sync_data().map_err(io("sync"))
}
