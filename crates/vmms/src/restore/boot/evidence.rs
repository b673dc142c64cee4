//! What a machine showed that was booted from an export; kept with the job, also in its history.

use std::path::Path;

use disk::verify::Export;
use hypervisor::agent::GuestInfo;
use serde::{Deserialize, Serialize};

/// How much of a console is kept, in bytes: the end of it.
pub(super) const CONSOLE: usize = 16 * 1024;

/// What one throw-away machine showed. Instants are RFC 3339 in UTC, hashes BLAKE3 in hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BootEvidence {
    /// GUID of the exported machine.
    pub machine: String,
    /// Its name.
    pub name: String,
    /// GUID of the exported point.
    pub point: String,
    /// The point's name.
    pub point_name: Option<String>,
    /// The instant its disks are of.
    pub instant: String,
    /// The directory with the manifest.
    pub directory: String,
    /// How many exports make up the disks: 1 for a full one.
    pub exports: usize,
    /// Hash of the manifest.
    pub manifest: String,
    /// The disks.
    pub disks: Vec<BootedDisk>,
    /// Whether every block was proven before the boot.
    pub proven: bool,
    /// What the exported machine had and the throw-away one did not.
    pub left_out: Vec<String>,
    /// When it was switched on.
    pub started: String,
    /// When it was taken away.
    pub ended: String,
    /// The signs of life, in the order they came.
    pub signs: Vec<Sign>,
    /// What the guest's agent told of its system.
    pub agent: Option<GuestInfo>,
    /// How often the guest restarted itself.
    pub restarts: u32,
    /// The end of what it wrote to its first serial port, without control characters.
    pub console: String,
    /// Why it counts as not alive: the summary first. Empty where it came up.
    pub failure: Vec<String>,
}

/// A disk of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BootedDisk {
    /// Its identifier.
    pub id: String,
    /// The exported image.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// Hash over the hashes of all blocks of the disk; of a differential export that does not carry it, the hash of its block list.
    pub hash: String,
}

/// A sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sign {
    /// Which.
    pub kind: SignKind,
    /// Milliseconds after the machine was switched on.
    pub after_ms: u64,
}

/// What can be seen of a guest from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SignKind {
    /// It wrote to its first serial port.
    Console,
    /// It wrote the text that was waited for.
    Text,
    /// Its agent answered.
    Agent,
}

impl SignKind {
    fn words(self) -> &'static str {
        match self {
            SignKind::Console => "wrote to its console",
            SignKind::Text => "wrote the expected text",
            SignKind::Agent => "its agent answered",
        }
    }
}

impl BootEvidence {
    pub(super) fn of_chain(&mut self, chain: &[Export]) {
        let Some(last) = chain.last() else { return };
        let (machine, point) = (&last.manifest.machine, &last.manifest.point);
        self.machine.clone_from(&machine.id);
        self.name.clone_from(&machine.name);
        self.point.clone_from(&point.id);
        self.point_name.clone_from(&point.name);
        self.instant.clone_from(&point.instant);
        self.exports = chain.len();
        self.manifest = last.hash.to_hex().to_string();
        self.disks = last
            .manifest
            .disks
            .iter()
            .map(|d| BootedDisk {
                id: d.instance_id.clone(),
                file: last.dir.join(&d.file).display().to_string(),
                bytes: d.virtual_size,
                hash: d
                    .digest
                    .map_or(d.block_list.blake3.0, |h| h.0)
                    .to_hex()
                    .to_string(),
            })
            .collect();
    }

    pub(super) fn has(&self, kind: SignKind) -> bool {
        self.signs.iter().any(|s| s.kind == kind)
    }

    /// For people.
    pub(super) fn line(&self, export: &Path) -> String {
        let name = if self.name.is_empty() {
            export.display().to_string()
        } else {
            format!("{} at {}", self.name, self.instant)
        };
        if let Some(why) = self.failure.first() {
            return format!("{name}: {why}");
        }
        let signs = self.signs.iter().map(|s| {
            let (seconds, tenths) = (s.after_ms / 1000, s.after_ms % 1000 / 100);
            format!("{} after {seconds}.{tenths} s", s.kind.words())
        });
        let signs: Vec<String> = signs.collect();
        let proven = if self.proven {
            ", every block proven"
        } else {
            ""
        };
        format!("{name}: came up ({}){proven}", signs.join(", "))
    }
}

pub(super) fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

/// The end of a console as text: escapes and control characters are shown, none is left that does anything.
pub(super) fn console_text(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(CONSOLE);
    hypervisor::console::visible(bytes.get(from..).unwrap_or(bytes))
}

/// Whether anything was written that a person would see: firmware that only clears the screen has said nothing.
pub(super) fn says_something(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            if chars.next_if_eq(&'[').is_some() {
                // Up to and with the letter that ends it.
                while chars
                    .next_if(|c| !('\u{40}'..='\u{7e}').contains(c))
                    .is_some()
                {}
            }
            chars.next();
        } else if !c.is_whitespace() && !c.is_control() {
            return true;
        }
    }
    false
}

/// The last lines of a console that hold anything.
pub(super) fn last_lines(console: &str, most: usize) -> String {
    let lines: Vec<&str> = console
        .lines()
        .map(str::trim_end)
        .filter(|l| !l.is_empty())
        .collect();
    lines
        .get(lines.len().saturating_sub(most)..)
        .unwrap_or_default()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_shows_its_control_characters_and_loses_no_text() {
        let told = console_text(b"\x1b[1;32mlogin\x1b[0m:\r\n\x07\tnext\x00 line \xff\x1bcdone");
        assert_eq!(
            told,
            "\\x1b[1;32mlogin\\x1b[0m:\n\\x07\tnext\\x00 line \u{fffd}\\x1bcdone"
        );
    }

    #[test]
    fn a_screen_that_is_only_cleared_says_nothing() {
        assert!(!says_something(b"\x1b[2J\x1b[1;1H\r\n\x1bc \x00"));
        assert!(says_something(b"\x1b[2Jx"));
    }

    #[test]
    fn only_the_end_of_a_long_console_is_kept() {
        let mut long = vec![b'a'; CONSOLE];
        long.extend_from_slice(b"the end");
        let told = console_text(&long);
        assert_eq!(told.len(), CONSOLE);
        assert!(told.ends_with("the end"));
        assert_eq!(last_lines("one\n\ntwo \n\nthree\n", 2), "two\nthree");
    }
}
