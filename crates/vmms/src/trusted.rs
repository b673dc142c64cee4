//! Which image files are opened, as what, and on what.
//!
//! A header is the word of whoever wrote the file last, and that may have been a guest: what it says is followed nowhere. The format of an image is
//! asked of its first bytes once, when it is used for the first time; from then on it is remembered, also when no machine has it any
//! more. Backing files are looked for when an image is attached, below known directories only. Every image is looked at by our own reader before QEMU or
//! its tools see it, again at each start, since something else may have written to it.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use disk::look::{Beneath, Format, Look, Refusal, Told};
use hypervisor::ImageFormat;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::machine::{Disk, Vm};
use crate::{Fault, Result, Use, Vmms, fault};

/// An image that was used once, and as what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnownImage {
    /// Made of its path.
    pub id: Uuid,
    /// Its path.
    pub path: PathBuf,
    /// What it is.
    pub format: ImageFormat,
    /// Which file it was.
    pub file: Option<FileId>,
}

/// A file, whatever its name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    /// Its number in its file system.
    pub inode: u64,
    /// When it was made: numbers are used again.
    pub born: SystemTime,
}

impl store::Versioned for KnownImage {
    const VERSION: u32 = 1;
    type Previous = store::FirstVersion;
    fn upgrade(previous: store::FirstVersion) -> Self {
        match previous {}
    }
}

impl FileId {
    /// `None` where the file system does not tell when files were made.
    fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok().filter(|m| m.is_file())?;
        Some(FileId {
            inode: meta.ino(),
            born: meta.created().ok()?,
        })
    }
}

/// What is to be remembered of an image: to be put into a draft.
pub(crate) fn known(path: &Path, format: ImageFormat) -> KnownImage {
    KnownImage {
        id: Uuid::new_v5(&Uuid::NAMESPACE_URL, path.as_os_str().as_encoded_bytes()),
        path: path.to_owned(),
        format,
        file: FileId::of(path),
    }
}

/// The same of the files that a disk was attached with.
pub(crate) fn known_files(disk: &Disk) -> Vec<KnownImage> {
    let files = disk.layers.nodes.values().filter_map(|n| n.file.as_ref());
    let shared = files.filter(|f| f.shared).map(|f| known(&f.path, f.format));
    shared.chain([known(&disk.path, disk.format)]).collect()
}

/// Refuses an image as what a new one lies on that could not be attached afterwards.
pub(crate) fn check_parent(vmms: &Vmms, parent: &Path, image: &Path) -> Result<()> {
    let home = image.parent().unwrap_or(Path::new("/"));
    within(parent, image, home, &vmms.options.places.images)
}

/// A file of an image: what it was looked at as.
pub(crate) struct Seen {
    pub(crate) path: PathBuf,
    pub(crate) format: ImageFormat,
    /// Length of the file or device in bytes.
    pub(crate) length: u64,
    /// Whether it is a block device.
    pub(crate) device: bool,
}

impl Seen {
    pub(crate) fn file(&self) -> (&Path, ImageFormat) {
        (&self.path, self.format)
    }
}

/// An image and what lies beneath it, base first. `most` files are allowed.
pub(crate) fn chain(vmms: &Vmms, path: &Path) -> Result<Vec<Seen>> {
    let home = path.parent().unwrap_or(Path::new("/"));
    let mut seen: Vec<Seen> = Vec::new();
    let mut files = BTreeSet::new();
    let mut at = path.to_owned();
    let mut claimed: Option<ImageFormat> = None;
    named(vmms, path)?;
    loop {
        let canonical = at.canonicalize().map_err(|e| Fault::io("open", &at, &e))?;
        if !files.insert(canonical) {
            return Err(fault!(ImageLoop, path.display(), at.display()));
        }
        let look = look(&at)?;
        let format = format_of(vmms, &at, &look, claimed)?;
        let beneath = check(&look, &at, format)?;
        seen.push(Seen {
            path: at.clone(),
            format,
            length: look.length(),
            device: look.is_device(),
        });
        let Some(Beneath {
            name,
            format: named,
        }) = beneath
        else {
            break;
        };
        if seen.len() >= vmms.options.max_layers {
            let most = vmms.options.max_layers;
            return Err(fault!(ChainTooLong, path.display(), most + 1, most));
        }
        let below = at.parent().unwrap_or(Path::new("/")).join(&name);
        within(&below, &at, home, &vmms.options.places.images)?;
        claimed = match named.as_deref() {
            Some(named) => Some(ImageFormat::from_driver(named).ok_or_else(|| {
                fault!(
                    NotServed,
                    format!("the image format {named} of {}", below.display())
                )
            })?),
            None => None,
        };
        at = below;
    }
    seen.reverse();
    Ok(seen)
}

/// Looks at the files of a disk that is about to be opened, base first, each as what it is known to be.
pub(crate) fn check_known<'a>(
    layers: impl IntoIterator<Item = (&'a Path, ImageFormat)>,
) -> Result<()> {
    for (depth, (path, format)) in layers.into_iter().enumerate() {
        let beneath = check(&look(path)?, path, format)?;
        if let Some(beneath) = beneath.filter(|_| depth == 0) {
            let why = format!(
                "its header names {:?} beneath it, which it did not when it was attached",
                beneath.name
            );
            return Err(fault!(ImageRefused, path.display(), why));
        }
    }
    Ok(())
}

/// Refuses what is no medium for a DVD drive: anything but a file or a block device where images may lie.
pub(crate) fn check_medium(vmms: &Vmms, path: &Path) -> Result<()> {
    named(vmms, path)?;
    look(path).map(drop)
}

/// Refuses an image where none may lie, unless a machine has it already: it was put there when that was allowed.
pub(crate) fn named(vmms: &Vmms, path: &Path) -> Result<()> {
    match attached_as(vmms, path) {
        Some(_) => Ok(()),
        None => vmms.may_use(Use::Image, path),
    }
}

/// Looks at an image alone, and tells what it is and what it names beneath it.
pub(crate) fn top(vmms: &Vmms, path: &Path) -> Result<(Seen, Option<Beneath>)> {
    named(vmms, path)?;
    let look = look(path)?;
    let format = format_of(vmms, path, &look, None)?;
    let beneath = check(&look, path, format)?;
    let seen = Seen {
        path: path.to_owned(),
        format,
        length: look.length(),
        device: look.is_device(),
    };
    Ok((seen, beneath))
}

fn look(path: &Path) -> Result<Look> {
    Look::at(path).map_err(Fault::from)
}

fn check(look: &Look, path: &Path, format: ImageFormat) -> Result<Option<Beneath>> {
    let shown = path.display();
    match look.check(as_told(format)) {
        Ok(checked) => Ok(checked.backing),
        Err(Refusal::Header(e)) if e.is_unsupported() => {
            Err(fault!(NotServed, format!("the image {shown}: {e}")))
        }
        Err(refusal @ (Refusal::Header(_) | Refusal::Mark(_))) => {
            Err(fault!(ImageUnreadable, shown).caused_by(fault!(Block, refusal)))
        }
        Err(refusal) => Err(fault!(ImageRefused, shown, refusal)),
    }
}

fn as_told(format: ImageFormat) -> Format {
    match format {
        ImageFormat::Raw => Format::Raw,
        ImageFormat::Qcow2 => Format::Qcow2,
        ImageFormat::Vpc => Format::Vhd,
        ImageFormat::Vhdx => Format::Vhdx,
        ImageFormat::Vmdk => Format::Vmdk,
    }
}

/// What an image is: as it was used before; as the image above it says; else as it begins.
fn format_of(
    vmms: &Vmms,
    path: &Path,
    look: &Look,
    claimed: Option<ImageFormat>,
) -> Result<ImageFormat> {
    let told = told(look, path);
    let known = attached_as(vmms, path).or_else(|| known_as(vmms, path, told.as_ref().ok()));
    let contradiction = |known: ImageFormat, other: String| {
        Err(fault!(FormatContradiction, path.display(), known, other))
    };
    match (known, claimed) {
        (Some(Known::Surely(known)), Some(claimed)) if known != claimed => {
            contradiction(known, format!("is named as {claimed} by the image on it"))
        }
        (Some(Known::Surely(known)), _) => Ok(known),
        (Some(Known::Replaced(known)), None) => {
            let now = told.map_or_else(|_| "something else".to_owned(), |f| f.to_string());
            contradiction(known, format!("begins as {now} does"))
        }
        (_, Some(claimed)) => Ok(claimed),
        // What a guest was given whole was given as it is.
        (None, None) if look.is_device() => Ok(ImageFormat::Raw),
        (None, None) => told,
    }
}

enum Known {
    /// It was used as that.
    Surely(ImageFormat),
    /// Another file of its name was used as that, and this one begins differently.
    Replaced(ImageFormat),
}

fn attached_as(vmms: &Vmms, path: &Path) -> Option<Known> {
    vmms.db.all::<Vm>().iter().find_map(|vm| {
        vm.disks().find_map(|(_, disk)| {
            let mut files = disk.layers.nodes.values().filter_map(|n| n.file.as_ref());
            let file = files.find(|f| f.path == path);
            file.map(|f| Known::Surely(f.format))
        })
    })
}

fn known_as(vmms: &Vmms, path: &Path, told: Option<&ImageFormat>) -> Option<Known> {
    let all = vmms.db.all::<KnownImage>();
    let id = FileId::of(path);
    if let Some(same) = all.iter().find(|k| id.is_some() && k.file == id) {
        return Some(Known::Surely(same.format));
    }
    let named = all.iter().find(|k| k.path == path)?;
    Some(match told == Some(&named.format) {
        true => Known::Surely(named.format),
        false => Known::Replaced(named.format),
    })
}

fn told(look: &Look, path: &Path) -> Result<ImageFormat> {
    match look.told() {
        Told::Format(Format::Raw) => Ok(ImageFormat::Raw),
        Told::Format(Format::Qcow2) => Ok(ImageFormat::Qcow2),
        Told::Format(Format::Vhd) => Ok(ImageFormat::Vpc),
        Told::Format(Format::Vhdx) => Ok(ImageFormat::Vhdx),
        Told::Format(Format::Vmdk) => Ok(ImageFormat::Vmdk),
        Told::Other(name) => Err(fault!(
            NotServed,
            format!("the image format {name} of {}", path.display())
        )),
    }
}

/// Refuses a backing file outside of the roots; without roots, outside of the directory of the image that was named.
fn within(below: &Path, above: &Path, home: &Path, roots: &[PathBuf]) -> Result<()> {
    let canonical = |p: &Path| p.canonicalize().map_err(|e| Fault::io("open", p, &e));
    let found = canonical(below)?;
    let home = canonical(home)?;
    let inside = match roots {
        [] => found.starts_with(&home) && home != Path::new("/"),
        roots => roots
            .iter()
            .filter_map(|r| r.canonicalize().ok())
            .any(|root| found.starts_with(root)),
    };
    if inside {
        return Ok(());
    }
    let allowed = match roots {
        [] => home.display().to_string(),
        roots => {
            let names: Vec<String> = roots.iter().map(|r| r.display().to_string()).collect();
            names.join(", ")
        }
    };
    Err(fault!(
        BackingOutside,
        above.display(),
        found.display(),
        allowed
    ))
}
