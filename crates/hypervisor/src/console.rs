//! What guests write to their consoles: kept within bounds, shown without doing anything to a terminal.
//!
//! QEMU appends to the log of a console without end. A log that has grown past its bound is moved aside by copying its
//! end and cutting the file, because QEMU keeps it open: it goes on at the new end, since it opens logs for appending.
//! What a guest writes between the copy and the cut (microseconds) is lost; nothing else is.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where the end of what was cut away lies.
#[must_use]
pub fn older(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Cuts a log that is longer than `bound` bytes and keeps the last `bound` bytes of it in [`older`]. Whether it was cut.
/// Fine if there is no log.
///
/// # Errors
/// [`Error::Io`]; the log is whole then.
pub fn bound(log: &Path, bound: u64) -> Result<bool> {
    // The cheap look: nearly always there is nothing to do.
    match std::fs::symlink_metadata(log) {
        Ok(metadata) if metadata.is_file() && metadata.len() > bound => {}
        _ => return Ok(false),
    }
    let failed = |what: &'static str| move |source| Error::io(what, log, source);
    let nofollow = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nofollow.bits().cast_signed())
        .open(log)
        .map_err(failed("open"))?;
    let metadata = file.metadata().map_err(failed("read"))?;
    // Another name of the file would be cut as well.
    if !metadata.is_file() || metadata.nlink() != 1 || metadata.len() <= bound {
        return Ok(false);
    }
    let from = metadata.len().saturating_sub(bound);
    let mut kept = keep_end(&mut file, from, &older(log));
    if is_full(&kept) {
        // The older part makes room for the newer one. The bound holds in any case: a console must not fill a disk.
        let removed = std::fs::remove_file(older(log));
        tracing::warn!(log = %log.display(), ?removed, "no room for the end of a console's log: its older part goes");
        kept = keep_end(&mut file, from, &older(log));
    }
    if !is_full(&kept) {
        kept?;
    }
    file.set_len(0).map_err(failed("cut"))?;
    Ok(true)
}

fn is_full(kept: &Result<()>) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(kept, Err(Error::Io { source, .. }) if matches!(source.kind(), StorageFull | QuotaExceeded))
}

/// Copies what comes after `from` to `target`, whole or not at all.
fn keep_end(file: &mut File, from: u64, target: &Path) -> Result<()> {
    let mut partial = target.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let failed = |what: &'static str| {
        let partial = partial.clone();
        move |source| Error::io(what, partial, source)
    };
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("remove")(error));
        }
        _ => {}
    }
    let copied = (|| {
        file.seek(SeekFrom::Start(from))?;
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)?;
        std::io::copy(file, &mut out)?;
        out.flush()
    })();
    if let Err(error) = copied {
        // Half a copy helps nobody, least of all on a full disk.
        let _ = std::fs::remove_file(&partial);
        return Err(failed("write")(error));
    }
    std::fs::rename(&partial, target).map_err(failed("rename"))
}

/// The last `most` bytes of a console: of what was cut away, and of the log.
///
/// # Errors
/// [`Error::Io`] where there is no log at all.
pub fn end(log: &Path, most: u64) -> Result<Vec<u8>> {
    let newer = tail(log, most).map_err(|source| Error::io("read", log, source))?;
    let left = most.saturating_sub(newer.len() as u64);
    if left == 0 {
        return Ok(newer);
    }
    let mut all = tail(&older(log), left).unwrap_or_default();
    all.extend_from_slice(&newer);
    Ok(all)
}

fn tail(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let nofollow = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(nofollow.bits().cast_signed())
        .open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Bytes of a guest as text that does nothing to a terminal and hides nothing: line ends and tabs stay, every other
/// control character is written out (`\x1b`), as is what changes the direction of text or has no width (`\u{202e}`).
#[must_use]
pub fn visible(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => out.push(c),
            // The usual end of a line on a serial port.
            '\r' if chars.peek().is_none_or(|next| matches!(next, '\n' | '\r')) => {}
            c if (c as u32) < 0x100 && c.is_control() => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c if hides(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Characters that turn text around, hide it, or have no place in XML.
fn hides(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_shown_as_text() {
        assert_eq!(
            visible(b"\x1b[2J\x1b]0;root\x07login:\r\n\tnext\x00 \xff\x7f"),
            "\\x1b[2J\\x1b]0;root\\x07login:\n\tnext\\x00 \u{fffd}\\x7f"
        );
        assert_eq!(visible("a\u{202e}b\u{9b}c".as_bytes()), "a\\u{202e}b\\x9bc");
        assert_eq!(visible(b"50%\r100%\r\n"), "50%\\x0d100%\n");
    }

    #[test]
    fn a_log_is_cut_and_its_end_stays_and_whoever_appends_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        assert!(!bound(&log, 8).unwrap(), "no log is fine");
        let mut guest = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        guest.write_all(b"0123456789abcdef").unwrap();
        assert!(!bound(&log, 16).unwrap(), "it is not longer than its bound");
        assert!(bound(&log, 8).unwrap());
        guest.write_all(b"on it goes").unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), b"on it goes");
        assert_eq!(std::fs::read(older(&log)).unwrap(), b"89abcdef");
        assert_eq!(end(&log, 12).unwrap(), b"efon it goes");
        assert_eq!(end(&log, 4).unwrap(), b"goes");
        assert!(bound(&log, 8).unwrap());
        assert_eq!(std::fs::read(older(&log)).unwrap(), b" it goes");
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
    }

    #[test]
    fn a_log_that_was_put_there_by_somebody_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let foreign = dir.path().join("foreign");
        std::fs::write(&foreign, [b'x'; 64]).unwrap();
        let log = dir.path().join("console.log");
        std::os::unix::fs::symlink(&foreign, &log).unwrap();
        assert!(!bound(&log, 8).unwrap());
        std::fs::remove_file(&log).unwrap();
        std::fs::hard_link(&foreign, &log).unwrap();
        assert!(!bound(&log, 8).unwrap());
        assert_eq!(std::fs::metadata(&foreign).unwrap().len(), 64);
        std::fs::remove_file(&log).unwrap();
        // A FIFO does not stop the service either.
        let made = std::process::Command::new("mkfifo").arg(&log).status();
        assert!(made.unwrap().success());
        assert!(!bound(&log, 8).unwrap());
    }

    #[test]
    fn a_log_is_whole_where_its_end_cannot_be_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        std::fs::write(&log, [b'x'; 64]).unwrap();
        std::fs::create_dir(older(&log)).unwrap();
        bound(&log, 8).unwrap_err();
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 64);
    }
}
