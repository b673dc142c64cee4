//! What an image is, and what it names beside itself: told by its first bytes, before any other program sees it.
//!
//! A header is the word of whoever wrote it last, also of a guest. So what may be opened as what is decided by the caller, who remembers it;
//! [`Look::told`] is only for files nobody has used yet. [`Look::check`] refuses every image by whose header another file would
//! be opened, but for a backing file, which it names for the caller to judge.

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::open;
use crate::qcow2::{FormatError, Header, ReadAt};

/// How much of the beginning is looked at.
const PREFIX: usize = Header::PREFIX;
/// A VHD ends with a block of this length, which stands at its beginning too unless it is of fixed size.
const FOOTER: u64 = 512;

/// A format of images that can be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The bytes themselves.
    Raw,
    /// qcow2.
    Qcow2,
    /// VHD.
    Vhd,
    /// VHDX.
    Vhdx,
    /// VMDK.
    Vmdk,
}

/// What a file begins as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A format that is served; without any mark it is raw.
    Format(Format),
    /// The mark of a format that is not served: its name.
    Other(&'static str),
}

/// Why an image is not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It lacks the mark of the format it is to be opened as.
    #[error("it does not begin as {0} does")]
    Mark(&'static str),
    /// Its qcow2 header is damaged or uses what is not served.
    #[error("its header is not accepted: {0}")]
    Header(#[from] FormatError),
    /// Its content would be read from, and written to, another file.
    #[error("its header puts its data into another file, {0:?}")]
    DataFile(String),
    /// Its backing file would be reached by a protocol, or described by options.
    #[error("its header names {0:?} beneath it, which is not a plain file name")]
    Protocol(String),
    /// Its backing file has a name that no file has.
    #[error("its header names {0:?} beneath it, which cannot be a file")]
    Name(String),
    /// A VMDK made of several files, or of other files.
    #[error("it is a description of other files: {0}")]
    Extents(String),
    /// A VMDK that differs from another one.
    #[error("it lies on another VMDK")]
    Parent,
}

/// The first bytes of an image.
#[derive(Debug)]
pub struct Look {
    path: PathBuf,
    prefix: Vec<u8>,
    footer: Vec<u8>,
    length: u64,
    device: bool,
}

/// What an image that may be opened says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Size of the disk in bytes, where the header tells it without the help of other tools: raw and qcow2.
    pub size: Option<u64>,
    /// The file it lies on.
    pub backing: Option<Beneath>,
}

/// A backing file as a header names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beneath {
    /// Its name: a path, relative to the directory of the image.
    pub name: String,
    /// Its format, where the header says it.
    pub format: Option<String>,
}

impl Look {
    /// Reads the beginning of an image.
    ///
    /// # Errors
    /// As [`open::disk`], and [`Error::Io`] from reading.
    pub fn at(path: &Path) -> Result<Self> {
        let file: File = open::disk(path)?;
        let kind = file.metadata().map_err(|e| Error::io("look at", path, e))?;
        let length = ReadAt::size(&file).map_err(|e| Error::io("measure", path, e))?;
        let read = |from: u64, len: u64| {
            let mut bytes = vec![0u8; usize::try_from(len).unwrap_or_default()];
            ReadAt::read_exact_at(&file, &mut bytes, from)
                .map_err(|e| Error::io_at("read", path, from, e))?;
            Ok(bytes)
        };
        Ok(Self {
            path: path.to_owned(),
            prefix: read(0, length.min(PREFIX as u64))?,
            footer: read(length.saturating_sub(FOOTER), length.min(FOOTER))?,
            length,
            device: kind.file_type().is_block_device(),
        })
    }

    /// The same of bytes in memory.
    #[must_use]
    pub fn of(path: &Path, bytes: &[u8]) -> Self {
        let from = bytes.len().saturating_sub(FOOTER as usize);
        Self {
            path: path.to_owned(),
            prefix: bytes.get(..PREFIX).unwrap_or(bytes).to_vec(),
            footer: bytes.get(from..).unwrap_or_default().to_vec(),
            length: bytes.len() as u64,
            device: false,
        }
    }

    /// Length of the file or device in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.device
    }

    /// What it begins as. A guest can make its raw disk begin as anything: not to be asked of a file that may have been one.
    #[must_use]
    pub fn told(&self) -> Told {
        let begins = |mark: &[u8]| self.prefix.starts_with(mark);
        let served = Told::Format;
        if begins(b"QFI\xfb") {
            return match self.prefix.get(4..8) {
                Some([0, 0, 0, 1]) => Told::Other("qcow (version 1)"),
                _ => served(Format::Qcow2),
            };
        }
        if begins(b"vhdxfile") {
            return served(Format::Vhdx);
        }
        if begins(b"KDMV") || begins(b"COWD") || begins(b"# Disk DescriptorFile") {
            return served(Format::Vmdk);
        }
        let vhd = |extension: &std::ffi::OsStr| {
            extension.eq_ignore_ascii_case("vhd") || extension.eq_ignore_ascii_case("vpc")
        };
        let named_vhd = self.path.extension().is_some_and(vhd);
        if begins(b"conectix") || (named_vhd && self.footer.starts_with(b"conectix")) {
            return served(Format::Vhd);
        }
        let others: [(&[u8], usize, &str); 4] = [
            (b"QED\0", 0, "QED"),
            (b"WithoutFreeSpace", 0, "Parallels"),
            (b"WithouFreSpacExt", 0, "Parallels"),
            (b"\x7f\x10\xda\xbe", 0x40, "VDI"),
        ];
        let other = others.iter().find(|(mark, at, _)| {
            let found = self.prefix.get(*at..).unwrap_or_default();
            found.starts_with(mark)
        });
        match other {
            Some((_, _, name)) => Told::Other(name),
            None => served(Format::Raw),
        }
    }

    /// Whether it may be opened as that format, and what it then says of itself.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn check(&self, format: Format) -> std::result::Result<Checked, Refusal> {
        let plain = |size| {
            Ok(Checked {
                size,
                backing: None,
            })
        };
        match format {
            Format::Raw => plain(Some(self.length)),
            Format::Qcow2 => self.check_qcow2(),
            Format::Vhdx if self.prefix.starts_with(b"vhdxfile") => plain(None),
            Format::Vhd
                if self.prefix.starts_with(b"conectix") || self.footer.starts_with(b"conectix") =>
            {
                plain(None)
            }
            Format::Vmdk => {
                check_vmdk(&self.prefix)?;
                plain(None)
            }
            Format::Vhd => Err(Refusal::Mark("VHD")),
            Format::Vhdx => Err(Refusal::Mark("VHDX")),
        }
    }

    fn check_qcow2(&self) -> std::result::Result<Checked, Refusal> {
        let header = Header::parse(&self.prefix)?;
        // Also a name that is not in use at the moment.
        if let Some(name) = header.data_file.or(header.named_data_file) {
            return Err(Refusal::DataFile(name));
        }
        let backing = match header.backing {
            None => None,
            Some(name) => {
                check_name(&name)?;
                Some(Beneath {
                    name,
                    format: header.backing_format,
                })
            }
        };
        Ok(Checked {
            size: Some(header.virtual_size),
            backing,
        })
    }
}

/// QEMU takes a name for a protocol (`nbd:`, `http:`, `json:`) when a colon comes before the first slash.
fn check_name(name: &str) -> std::result::Result<(), Refusal> {
    if name.find([':', '/']).and_then(|at| name.get(at..=at)) == Some(":") {
        return Err(Refusal::Protocol(name.to_owned()));
    }
    let odd = |c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER;
    if name.is_empty() || name.chars().any(odd) {
        return Err(Refusal::Name(name.to_owned()));
    }
    Ok(())
}

/// A VMDK is served as one file by itself: what describes others, or lies on another, is not.
fn check_vmdk(prefix: &[u8]) -> std::result::Result<(), Refusal> {
    let text = |from: usize| {
        let bytes = prefix.get(from..).unwrap_or_default();
        let bytes = bytes.get(..20 * 512).unwrap_or(bytes);
        String::from_utf8_lossy(bytes).into_owned()
    };
    if !prefix.starts_with(b"KDMV") {
        // A text of its own, or an old kind whose description QEMU looks for elsewhere.
        let described = extents(&text(0)).join(", ");
        return Err(match prefix.starts_with(b"# Disk DescriptorFile") {
            true => Refusal::Extents(described),
            false => Refusal::Mark("a VMDK in one file"),
        });
    }
    // Without a capacity of its own QEMU goes on with the description.
    let capacity = prefix.get(12..20).unwrap_or_default();
    let description = text(512);
    let extents = extents(&description);
    if capacity.len() != 8 || capacity.iter().all(|b| *b == 0) || extents.len() > 1 {
        return Err(Refusal::Extents(extents.join(", ")));
    }
    let parent = b"parentFileNameHint";
    if prefix.windows(parent.len()).any(|w| w == parent) {
        return Err(Refusal::Parent);
    }
    Ok(())
}

/// The lines of a description that name files: `RW 4096 SPARSE "name.vmdk"`.
fn extents(description: &str) -> Vec<String> {
    let access = ["RW ", "RDONLY ", "NOACCESS "];
    let lines = description.lines().map(str::trim);
    lines
        .filter(|line| access.iter().any(|a| line.starts_with(a)))
        .map(|line| line.chars().filter(|c| !c.is_control()).take(200).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn look(bytes: &[u8]) -> Look {
        Look::of(Path::new("/x/disk"), bytes)
    }

    fn vmdk(capacity: u64, description: &str) -> Vec<u8> {
        let mut bytes = vec![0u8; 64 << 10];
        bytes[..4].copy_from_slice(b"KDMV");
        bytes[12..20].copy_from_slice(&capacity.to_le_bytes());
        bytes[512..512 + description.len()].copy_from_slice(description.as_bytes());
        bytes
    }

    #[test]
    fn a_file_is_what_its_mark_says_or_raw() {
        let told = |bytes: &[u8]| look(bytes).told();
        assert_eq!(told(b"QFI\xfb\0\0\0\x03"), Told::Format(Format::Qcow2));
        assert_eq!(told(b"QFI\xfb\0\0\0\x01"), Told::Other("qcow (version 1)"));
        assert_eq!(told(b"vhdxfile..."), Told::Format(Format::Vhdx));
        assert_eq!(told(b"KDMV"), Told::Format(Format::Vmdk));
        assert_eq!(told(b"conectix"), Told::Format(Format::Vhd));
        assert_eq!(told(b""), Told::Format(Format::Raw));
        let mut vdi = vec![0u8; 512];
        vdi[0x40..0x44].copy_from_slice(b"\x7f\x10\xda\xbe");
        assert_eq!(told(&vdi), Told::Other("VDI"));
        let mut fixed = vec![0u8; 4096];
        fixed[3584..3592].copy_from_slice(b"conectix");
        assert_eq!(told(&fixed), Told::Format(Format::Raw));
        let named = Look::of(Path::new("/x/disk.VHD"), &fixed);
        assert_eq!(named.told(), Told::Format(Format::Vhd));
        // Whatever a raw image begins as, it can be opened as raw.
        assert_eq!(
            look(b"QFI\xfbrest").check(Format::Raw).unwrap().size,
            Some(8)
        );
    }

    #[test]
    fn names_are_protocols_by_qemus_rule() {
        for bad in [
            "nbd:unix:/x",
            "json:{\"a\":1}",
            "http://h/x",
            "file:x",
            ":x",
            "a:b/c",
        ] {
            let refused = check_name(bad).unwrap_err();
            assert!(matches!(refused, Refusal::Protocol(_)), "{bad}");
        }
        for bad in ["", "a\0b", "a\nb", "\u{fffd}"] {
            assert!(matches!(check_name(bad), Err(Refusal::Name(_))), "{bad:?}");
        }
        for good in ["base.qcow2", "./a:b", "/x/a:b", "../x"] {
            check_name(good).unwrap();
        }
    }

    #[test]
    fn a_vmdk_names_no_other_file() {
        let one = "# Disk DescriptorFile\nRW 8192 SPARSE \"me.vmdk\"\n";
        let check = |bytes: &[u8]| look(bytes).check(Format::Vmdk);
        check(&vmdk(8192, one)).unwrap();
        let two = format!("{one}RW 8192 FLAT \"/etc/shadow\" 0\n");
        for bad in [vmdk(0, one), vmdk(8192, &two), two.clone().into_bytes()] {
            assert!(matches!(check(&bad), Err(Refusal::Extents(_))));
        }
        let child = format!("{one}parentCID=1234\nparentFileNameHint=\"/etc/shadow\"\n");
        assert_eq!(check(&vmdk(8192, &child)), Err(Refusal::Parent));
        assert!(matches!(check(b"COWD...."), Err(Refusal::Mark(_))));
        match check(two.as_bytes()) {
            Err(Refusal::Extents(names)) => assert!(names.contains("/etc/shadow"), "{names}"),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_look_panic(mark in prop::sample::select(vec!["", "QFI\u{fb}", "KDMV", "# Disk DescriptorFile\n", "vhdxfile"]), bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut all: Vec<u8> = mark.chars().map(|c| c as u8).collect();
            all.extend(bytes);
            crate::fuzz::look(&all);
        }
    }
}
