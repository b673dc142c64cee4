//! `manifest.json`: what an export directory holds, and what it must hash to.
//!
//! Written last; a directory without it is unfinished. JSON, so that it can be read without kvmms; read strictly: unknown fields,
//! paths that leave the directory, and contradictions are errors. The hash of every block is in the block list beside each image
//! ([`crate::blocks`]), whose own hash stands here.

mod entries;
mod names;

pub use entries::{
    BlockListEntry, CollectionIdentity, Consistency, Decision, DiskEntry, ImageFormat,
    MachineIdentity, PlainFile, PointIdentity, PointType,
};
pub use names::{HexHash, RelativePath};

use std::collections::HashSet;
use std::path::Path;

use blake3::Hash;
use serde::{Deserialize, Serialize};

use crate::atomic::{AtomicFile, Slot};
use crate::error::{Error, Result};
use crate::open;
use crate::zero::BLOCK_SIZE;

/// Name of the file in the export's directory.
pub const MANIFEST_NAME: &str = "manifest.json";
/// Value of [`Manifest::format`].
pub const FORMAT: &str = "kvmms-export";
/// The version written and read here.
pub const VERSION: u32 = 1;
/// Largest manifest that is read.
const MAX_BYTES: u64 = 16 << 20;

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, a field missing, of the wrong type, or unknown.
    #[error("it is not well formed")]
    Json(#[source] serde_json::Error),
    /// Another kind of file.
    #[error("it is of the kind {0:?}, not an export of kvmms")]
    Format(String),
    /// A later version of the format.
    #[error("it has version {0}, only {VERSION} is known")]
    Version(u32),
    /// Larger than any manifest.
    #[error("it is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// Changed after it was written.
    #[error("it was changed after it was written: its seal does not fit")]
    Seal,
    /// Fields that contradict each other.
    #[error("{0}")]
    Contradiction(String),
}

impl ManifestError {
    pub(crate) fn is_unsupported(&self) -> bool {
        matches!(self, Self::Version(_))
    }
}

/// The manifest of one exported point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always [`FORMAT`].
    pub format: String,
    /// Always [`VERSION`].
    pub version: u32,
    /// The program that wrote it, with its version.
    pub producer: String,
    /// The machine.
    pub machine: MachineIdentity,
    /// The point.
    pub point: PointIdentity,
    /// The point of a collection it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collection: Option<CollectionIdentity>,
    /// Other files of the export: configuration, runtime state, guest state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PlainFile>,
    /// The disks.
    pub disks: Vec<DiskEntry>,
    /// Decisions taken on the caller's behalf, with their reasons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<Decision>,
    /// BLAKE3 of the file with zeros in place of these digits: a manifest that was damaged is not believed. It stands last. Manifests of
    /// earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seal: Option<HexHash>,
}

impl Manifest {
    /// A manifest without disks.
    #[must_use]
    pub fn new(
        producer: impl Into<String>,
        machine: MachineIdentity,
        point: PointIdentity,
    ) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            producer: producer.into(),
            machine,
            point,
            collection: None,
            files: Vec::new(),
            disks: Vec::new(),
            decisions: Vec::new(),
            seal: None,
        }
    }

    /// Reads a manifest from its bytes.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn decode(bytes: &[u8]) -> std::result::Result<Self, ManifestError> {
        /// What is asked before the rest is believed.
        #[derive(Deserialize)]
        struct Kind {
            format: String,
            version: u32,
        }
        let kind: Kind = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        if kind.format != FORMAT {
            return Err(ManifestError::Format(kind.format));
        }
        if kind.version != VERSION {
            return Err(ManifestError::Version(kind.version));
        }
        let mut manifest: Self = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        if manifest.seal.take().is_some() {
            let mut copy = bytes.to_vec();
            // As it is written: in small letters.
            let written = digits(&mut copy).map(|d| d.to_vec());
            let hash = sealed(&mut copy).map(|hash| hash.to_hex().as_bytes().to_vec());
            if written.is_none() || written != hash {
                return Err(ManifestError::Seal);
            }
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// Its bytes.
    ///
    /// # Errors
    /// [`ManifestError::Contradiction`] for one that [`Manifest::decode`] would refuse.
    pub fn encode(&self) -> std::result::Result<Vec<u8>, ManifestError> {
        self.check()?;
        let zero = Self {
            seal: Some(HexHash(Hash::from_bytes([0; 32]))),
            ..self.clone()
        };
        let mut bytes = serde_json::to_vec_pretty(&zero).map_err(ManifestError::Json)?;
        bytes.push(b'\n');
        let hash = sealed(&mut bytes).ok_or(ManifestError::Seal)?;
        if let Some(digits) = digits(&mut bytes) {
            digits.copy_from_slice(hash.to_hex().as_bytes());
        }
        Ok(bytes)
    }

    fn check(&self) -> std::result::Result<(), ManifestError> {
        let no = |text: String| Err(ManifestError::Contradiction(text));
        if self.machine.id.is_empty() || self.point.id.is_empty() {
            return no("machine and point need an identifier".into());
        }
        if !is_instant(&self.point.instant) {
            return no(format!("{:?} is not an instant in UTC", self.point.instant));
        }
        if self.point.base_manifest.is_some() && self.point.base_id.is_none() {
            return no("there is the hash of a base's manifest, but no base".into());
        }
        let (mut ids, mut paths) = (HashSet::new(), HashSet::new());
        let files = self.files.iter().map(|f| &f.path);
        let images = self
            .disks
            .iter()
            .flat_map(|d| [&d.file, &d.block_list.file]);
        for path in files.chain(images) {
            if !paths.insert(path) || path.as_str() == MANIFEST_NAME {
                return no(format!("the file {:?} is named twice", path.as_str()));
            }
        }
        for disk in &self.disks {
            let id = &disk.instance_id;
            if id.is_empty() || !ids.insert(id) {
                return no(format!("the disk {id:?} has no identifier of its own"));
            }
            if disk.block_size != BLOCK_SIZE {
                return no(format!(
                    "the disk {id:?} has blocks of {} bytes",
                    disk.block_size
                ));
            }
            match &disk.base_file {
                Some(_) if self.point.base_id.is_none() => {
                    return no(format!("the disk {id:?} has a base, its point has none"));
                }
                Some(base) if base.as_str().contains('/') => {
                    return no(format!(
                        "the base of the disk {id:?} is not a plain file name"
                    ));
                }
                None if disk.digest.is_none() => {
                    return no(format!("the full disk {id:?} has no digest"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes `manifest.json` into a directory, atomically; returns the hash of the file. To be called last.
    ///
    /// # Errors
    /// [`Error::Io`], also when there is one already; [`Error::Manifest`] for contradictions.
    pub fn save(&self, dir: &Path) -> Result<Hash> {
        self.save_to(&dir.join(MANIFEST_NAME).into())
    }

    /// As [`Manifest::save`], into a slot of that name.
    ///
    /// # Errors
    /// As [`Manifest::save`].
    pub fn save_to(&self, slot: &Slot) -> Result<Hash> {
        let bytes = self.encode().map_err(|source| Error::Manifest {
            path: slot.target().to_owned(),
            source,
        })?;
        AtomicFile::fill(slot, &bytes)?;
        Ok(blake3::hash(&bytes))
    }

    /// Reads the manifest of a directory, and its hash.
    ///
    /// # Errors
    /// [`Error::Unfinished`] when there is none, [`Error::Io`], [`Error::Manifest`].
    pub fn load(dir: &Path) -> Result<(Self, Hash)> {
        let path = dir.join(MANIFEST_NAME);
        let file = match open::below(dir, &RelativePath::new(MANIFEST_NAME)?) {
            Err(e) if open::is_missing(&e) && dir.is_dir() => {
                return Err(Error::Unfinished {
                    path: dir.to_owned(),
                });
            }
            opened => opened?,
        };
        let bad = |source| Error::Manifest {
            path: path.clone(),
            source,
        };
        let bytes = match open::whole(file, &path, MAX_BYTES) {
            Err(Error::TooLarge { .. }) => return Err(bad(ManifestError::TooLarge)),
            read => read?,
        };
        Ok((Self::decode(&bytes).map_err(bad)?, blake3::hash(&bytes)))
    }
}

/// The place of the seal in the bytes of a manifest: its last field.
fn digits(bytes: &mut [u8]) -> Option<&mut [u8]> {
    let name = b"\"seal\": \"";
    let at = bytes.windows(name.len()).rposition(|w| w == name)? + name.len();
    bytes.get_mut(at..at.checked_add(64)?)
}

/// What the seal of these bytes has to be; its digits are zeros afterwards.
fn sealed(bytes: &mut [u8]) -> Option<Hash> {
    digits(bytes)?.fill(b'0');
    Some(blake3::hash(bytes))
}

/// `YYYY-MM-DDTHH:MM:SS[.f]Z`, with fields in their ranges.
fn is_instant(text: &str) -> bool {
    let Some((seconds, fraction)) = text.strip_suffix('Z').and_then(|t| t.split_at_checked(19))
    else {
        return false;
    };
    let shape = seconds
        .bytes()
        .zip(b"dddd-dd-ddTdd:dd:dd")
        .all(|(c, s)| match s {
            b'd' => c.is_ascii_digit(),
            s => c == *s,
        });
    let field = |at: usize| seconds.get(at..at + 2).and_then(|t| t.parse::<u32>().ok());
    let within = [
        (5, 1, 12),
        (8, 1, 31),
        (11, 0, 23),
        (14, 0, 59),
        (17, 0, 60),
    ]
    .into_iter()
    .all(|(at, low, high)| field(at).is_some_and(|n| (low..=high).contains(&n)));
    let fraction_fits = fraction.is_empty()
        || fraction.strip_prefix('.').is_some_and(|digits| {
            (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
        });
    shape && within && fraction_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelativePath {
        RelativePath::new(text).unwrap()
    }

    fn sample() -> Manifest {
        let mut manifest = Manifest::new(
            "kvmms 0.1.0",
            MachineIdentity {
                id: "A".into(),
                name: "vm \"1\"".into(),
            },
            PointIdentity {
                id: "P".into(),
                name: Some("monday".into()),
                instant: "2026-11-20T19:00:00.123Z".into(),
                consistency: Consistency::Crash,
                kind: PointType::RctBased,
                base_id: Some("O".into()),
                base_manifest: Some(HexHash(blake3::hash(b"m"))),
            },
        );
        manifest.disks.push(DiskEntry {
            instance_id: "Microsoft:A\\D\\0".into(),
            file: path("Virtual Hard Disks/d.qcow2"),
            format: ImageFormat::Qcow2,
            file_bytes: 1,
            virtual_size: 2,
            base_file: Some(path("b.qcow2")),
            extents: 3,
            data_blocks: 4,
            zero_blocks: 5,
            block_size: BLOCK_SIZE,
            block_list: BlockListEntry {
                file: path("Virtual Hard Disks/d.map"),
                bytes: 6,
                blocks: 7,
                blake3: HexHash(blake3::hash(b"l")),
            },
            digest: None,
        });
        manifest.decisions.push(Decision {
            disk: None,
            decision: "full".into(),
            reason: "why".into(),
        });
        manifest
    }

    #[test]
    fn a_manifest_comes_back_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let hash = sample().save(dir.path()).unwrap();
        assert_eq!(Manifest::load(dir.path()).unwrap(), (sample(), hash));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(
            sample().save(dir.path()).is_err(),
            "a manifest is never overwritten"
        );
    }

    #[test]
    fn a_directory_without_a_manifest_is_unfinished() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Manifest::load(dir.path()),
            Err(Error::Unfinished { .. })
        ));
        assert!(matches!(
            Manifest::load(&dir.path().join("none")),
            Err(Error::Io { .. })
        ));
    }

    #[test]
    fn paths_that_leave_the_directory_are_refused() {
        for text in [
            "",
            "/etc/passwd",
            "..",
            "a/../b",
            "./a",
            "a//b",
            "a/",
            "a\\b",
            "a\0b",
        ] {
            assert!(RelativePath::new(text).is_err(), "{text:?}");
        }
        assert_eq!(
            path("Virtual Hard Disks/a.qcow2").as_str(),
            "Virtual Hard Disks/a.qcow2"
        );
        let text = String::from_utf8(sample().encode().unwrap()).unwrap();
        let bad = text.replace("Virtual Hard Disks/d.qcow2", "../d.qcow2");
        assert!(matches!(
            Manifest::decode(bad.as_bytes()),
            Err(ManifestError::Json(_))
        ));
    }

    #[test]
    fn unknown_fields_kinds_and_versions_are_refused() {
        let text = String::from_utf8(sample().encode().unwrap()).unwrap();
        let change = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}");
            Manifest::decode(text.replacen(from, to, 1).as_bytes()).unwrap_err()
        };
        assert!(matches!(
            change("\"producer\"", "\"producers\""),
            ManifestError::Json(_)
        ));
        assert!(matches!(
            change("kvmms-export", "other"),
            ManifestError::Format(_)
        ));
        assert!(matches!(
            change("\"version\": 1", "\"version\": 2"),
            ManifestError::Version(2)
        ));
        assert!(matches!(
            change("rct-based", "magic"),
            ManifestError::Json(_)
        ));
    }

    #[test]
    fn every_change_of_a_single_byte_is_noticed() {
        let bytes = sample().encode().unwrap();
        assert_eq!(Manifest::decode(&bytes).unwrap(), sample());
        for at in 0..bytes.len() {
            for mask in [1, 0x20] {
                let mut bad = bytes.clone();
                bad[at] ^= mask;
                let found = Manifest::decode(&bad);
                assert!(found.is_err(), "byte {at}: {:?}", char::from(bad[at]));
            }
        }
        // One without a seal is of an earlier version.
        let text = String::from_utf8(bytes).unwrap();
        let at = text.rfind(",\n  \"seal\"").unwrap();
        let old = format!("{}\n}}\n", &text[..at]);
        assert_eq!(Manifest::decode(old.as_bytes()).unwrap(), sample());
    }

    #[test]
    fn contradictions_are_refused() {
        let cases: [fn(&mut Manifest); 7] = [
            |m| m.point.base_id = None,
            |m| m.disks[0].base_file = None,
            |m| m.disks[0].block_size = 4096,
            |m| m.disks[0].block_list.file = m.disks[0].file.clone(),
            |m| m.disks.push(m.disks[0].clone()),
            |m| m.point.instant = "yesterday".into(),
            |m| m.disks[0].base_file = Some(path("a/b")),
        ];
        for (n, edit) in cases.into_iter().enumerate() {
            let mut manifest = sample();
            edit(&mut manifest);
            assert!(
                matches!(manifest.encode(), Err(ManifestError::Contradiction(_))),
                "{n}"
            );
        }
    }

    #[test]
    fn instants_are_checked_field_by_field() {
        for good in ["2026-11-20T19:00:00Z", "2026-01-31T23:59:60.5Z"] {
            assert!(is_instant(good), "{good}");
        }
        for bad in [
            "2026-13-20T19:00:00Z",
            "2026-11-20T24:00:00Z",
            "2026-11-20 19:00:00Z",
            "2026-11-20T19:00:00+01:00",
            "2026-11-20T19:00:00.Z",
            "2026-11-20T19:00:00",
            "é026-11-20T19:00:00Z",
        ] {
            assert!(!is_instant(bad), "{bad}");
        }
    }
}
