//! Images of machines that do not run, through `qemu-img`.
//!
//! Every call is one process; arguments never pass through a shell, and a path can never be taken for an option.
//! Reading commands look past locks (`-U`) only where the caller says so.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::process::{Child, ChildStdout, Command};

use crate::config::{ImageFormat, path_text};
use crate::error::{Error, Result};
use crate::probe::find_program;
use crate::qmp::codec::{flag, number, text};

/// The image tool.
#[derive(Debug, Clone)]
pub struct ImageTool {
    program: PathBuf,
}

impl Default for ImageTool {
    fn default() -> Self {
        Self::new("qemu-img")
    }
}

/// What a new image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewImage {
    /// Where; must not exist yet.
    pub path: PathBuf,
    /// Format.
    pub format: ImageFormat,
    /// Virtual size in bytes; may be left out where there is a backing file.
    pub size: Option<u64>,
    /// All space allocated at once ("fixed").
    pub fixed: bool,
    /// Recorded backing file and its format. The name is recorded as given, so relative stays relative.
    pub backing: Option<(String, ImageFormat)>,
    /// qcow2 only: allocation in parts of a cluster, so that the change map is fine.
    pub extended_l2: bool,
}

impl NewImage {
    /// An empty dynamic image.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, format: ImageFormat, size: u64) -> Self {
        Self {
            path: path.into(),
            format,
            size: Some(size),
            fixed: false,
            backing: None,
            extended_l2: false,
        }
    }

    /// An empty layer that records `backing` beneath it.
    #[must_use]
    pub fn overlay(
        path: impl Into<PathBuf>,
        backing: impl Into<String>,
        format: ImageFormat,
        size: u64,
    ) -> Self {
        Self {
            backing: Some((backing.into(), format)),
            extended_l2: true,
            ..Self::new(path, ImageFormat::Qcow2, size)
        }
    }
}

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Format.
    pub format: String,
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// Bytes allocated on the host.
    pub actual_size: u64,
    /// Recorded backing file, as recorded.
    pub backing: Option<String>,
    /// Recorded format of the backing file.
    pub backing_format: Option<String>,
    /// Cluster or block size in bytes.
    pub cluster_size: Option<u64>,
    /// The image was not closed properly.
    pub dirty: bool,
    /// QEMU found it corrupt.
    pub corrupt: bool,
    /// Encrypted.
    pub encrypted: bool,
    /// qcow2 with allocation in parts of a cluster.
    pub extended_l2: bool,
    /// Everything the tool said.
    pub raw: Value,
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CheckReport {
    /// Damage: contents may be wrong.
    pub corruptions: u64,
    /// Space that is lost, harmless otherwise.
    pub leaks: u64,
    /// Errors of the check itself.
    pub check_errors: u64,
    /// Allocated clusters (qcow2).
    pub allocated_clusters: u64,
}

/// How a conversion writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConvertOptions {
    /// All space allocated at once.
    pub fixed: bool,
    /// Compressed clusters (qcow2).
    pub compressed: bool,
    /// Look past a lock on the source. Only right for a source that nobody writes.
    pub share: bool,
}

impl ImageTool {
    /// That program: a path, or a name looked up on `PATH`.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
        }
    }

    /// Creates an image. A half-made file is removed.
    ///
    /// # Errors
    /// [`Error::Conflict`] where the file exists; [`Error::Image`].
    pub async fn create(&self, image: &NewImage) -> Result<()> {
        if image.path.symlink_metadata().is_ok() {
            return Err(Error::conflict(format!(
                "{} exists already",
                image.path.display()
            )));
        }
        let mut args = Args::new("create");
        args.push("-q").push("-f").push(image.format.as_str());
        if let Some((name, format)) = &image.backing {
            // The backing file may be open for writing in a machine, or not there yet: its name is only recorded.
            args.push("-u")
                .push("-b")
                .push(name)
                .push("-F")
                .push(format.as_str());
        }
        for option in creation_options(image.format, image.fixed, image.extended_l2) {
            args.push("-o").push(option);
        }
        args.file(&image.path)?;
        if let Some(size) = image.size {
            args.push(size.to_string());
        }
        let result = self.run(args).await.map(drop);
        if result.is_err() {
            // Best effort: the error that matters is the first one.
            let _ = std::fs::remove_file(&image.path);
        }
        result
    }

    /// Creates an overlay that is already an empty leftover of ours, or new. See [`crate::block::NewOverlay`].
    ///
    /// # Errors
    /// [`Error::Conflict`] where the file has content of its own; [`Error::Image`].
    pub async fn create_or_reuse_overlay(&self, image: &NewImage) -> Result<()> {
        if image.path.symlink_metadata().is_ok() {
            // Anything else than a qcow2 fails the check; so does a layer that somebody has open.
            let empty = match self.check_layer(&image.path).await {
                Ok(report) => report.allocated_clusters == 0 && report.corruptions == 0,
                Err(Error::Image { stderr, .. }) => {
                    tracing::info!(path = %image.path.display(), stderr, "a file in the way");
                    false
                }
                Err(error) => return Err(error),
            };
            if !empty {
                return Err(Error::conflict(format!(
                    "{} exists already and is not an empty layer",
                    image.path.display()
                )));
            }
            std::fs::remove_file(&image.path)
                .map_err(|source| Error::io("remove", &image.path, source))?;
        }
        self.create(image).await
    }

    /// What the image is. The format is told by its content, so do not use this on a file a guest wrote as raw.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn info(&self, path: &Path, share: bool) -> Result<ImageInfo> {
        self.info_as(path, None, share).await
    }

    /// What the image is, opened as that format.
    ///
    /// # Errors
    /// [`Error::Image`] where it is not of that format.
    pub async fn info_as(
        &self,
        path: &Path,
        format: Option<ImageFormat>,
        share: bool,
    ) -> Result<ImageInfo> {
        let mut args = Args::new("info");
        args.push("--output=json").share(share);
        if let Some(format) = format {
            args.push("-f").push(format.as_str());
        }
        args.file(path)?;
        let raw = self.run_json(args).await?;
        let specific = raw.pointer("/format-specific/data").unwrap_or(&Value::Null);
        Ok(ImageInfo {
            format: text(&raw, "format").unwrap_or_default().to_owned(),
            virtual_size: number(&raw, "virtual-size").unwrap_or(0),
            actual_size: number(&raw, "actual-size").unwrap_or(0),
            backing: text(&raw, "backing-filename").map(str::to_owned),
            backing_format: text(&raw, "backing-filename-format").map(str::to_owned),
            cluster_size: number(&raw, "cluster-size"),
            dirty: flag(&raw, "dirty-flag"),
            corrupt: flag(specific, "corrupt"),
            encrypted: flag(&raw, "encrypted"),
            extended_l2: flag(specific, "extended-l2"),
            raw,
        })
    }

    /// Changes the virtual size.
    ///
    /// # Errors
    /// [`Error::Image`]: some formats cannot; shrinking needs `allow_shrink`.
    pub async fn resize(
        &self,
        path: &Path,
        format: ImageFormat,
        bytes: u64,
        allow_shrink: bool,
    ) -> Result<()> {
        let mut args = Args::new("resize");
        args.push("-q").push("-f").push(format.as_str());
        if allow_shrink {
            args.push("--shrink");
        }
        args.file(path)?.push(bytes.to_string());
        self.run(args).await.map(drop)
    }

    /// Checks a qcow2, VHDX or VHD image for consistency. Damage is in the report, not an error.
    ///
    /// # Errors
    /// [`Error::Image`] where it cannot be checked at all.
    pub async fn check(&self, path: &Path) -> Result<CheckReport> {
        let mut args = Args::new("check");
        args.push("--output=json").file(path)?;
        self.check_with(args).await
    }

    /// Checks one qcow2 layer without opening what lies beneath it, which a machine may have open.
    ///
    /// # Errors
    /// [`Error::Image`] where the layer cannot be checked at all, also where something has it open itself.
    pub async fn check_layer(&self, path: &Path) -> Result<CheckReport> {
        let file = serde_json::json!({ "driver": "file", "filename": path_text(path)? });
        let node = serde_json::json!({ "driver": "qcow2", "backing": null, "file": file });
        let mut args = Args::new("check");
        args.push("--output=json").push(format!("json:{node}"));
        self.check_with(args).await
    }

    async fn check_with(&self, args: Args) -> Result<CheckReport> {
        let output = self.output(args).await?;
        // 2 is damage, 3 is leaks: both come with a report.
        if !matches!(output.code, Some(0 | 2 | 3)) {
            return Err(output.into_error());
        }
        let report = output.json()?;
        let count = |name| number(&report, name).unwrap_or(0);
        Ok(CheckReport {
            corruptions: count("corruptions"),
            leaks: count("leaks"),
            check_errors: count("check-errors"),
            allocated_clusters: count("allocated-clusters"),
        })
    }

    /// Copies an image with all that lies beneath it into a new file of its own.
    ///
    /// # Errors
    /// [`Error::Conflict`] where the target exists; [`Error::Image`].
    pub async fn convert(
        &self,
        source: (&Path, ImageFormat),
        target: (&Path, ImageFormat),
        options: &ConvertOptions,
    ) -> Result<()> {
        if target.0.symlink_metadata().is_ok() {
            return Err(Error::conflict(format!(
                "{} exists already",
                target.0.display()
            )));
        }
        let mut args = Args::new("convert");
        args.push("-q")
            .share(options.share)
            .push("-f")
            .push(source.1.as_str())
            .push("-O")
            .push(target.1.as_str());
        if options.compressed {
            args.push("-c");
        }
        for option in creation_options(target.1, options.fixed, false) {
            args.push("-o").push(option);
        }
        args.file(source.0)?.file(target.0)?;
        let result = self.run(args).await.map(drop);
        if result.is_err() {
            let _ = std::fs::remove_file(target.0);
        }
        result
    }

    /// Whether two images show the same contents, each read with all that lies beneath it.
    ///
    /// # Errors
    /// [`Error::Image`] where one cannot be read.
    pub async fn same_contents(
        &self,
        one: (&Path, ImageFormat),
        other: (&Path, ImageFormat),
        share: bool,
    ) -> Result<bool> {
        let mut args = Args::new("compare");
        args.push("-q")
            .share(share)
            .push("-f")
            .push(one.1.as_str())
            .push("-F")
            .push(other.1.as_str());
        args.file(one.0)?.file(other.0)?;
        let output = self.output(args).await?;
        match output.code {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => Err(output.into_error()),
        }
    }

    /// Starts folding `top` and everything between into `base`, which must lie beneath it; `top` stays unchanged.
    pub(crate) fn start_commit(&self, top: &Path, base: &Path) -> Result<Running> {
        let mut args = Args::new("commit");
        args.push("-p")
            .push("-d")
            .push("-f")
            .push(ImageFormat::Qcow2.as_str());
        args.push("-b").file(base)?.file(top)?;
        self.start(args)
    }

    /// Rewrites the recorded backing file in the header, touching nothing else. `None` makes it stand alone.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn rebase_unsafe(
        &self,
        path: &Path,
        backing: Option<(&str, ImageFormat)>,
    ) -> Result<()> {
        let mut args = Args::new("rebase");
        args.push("-q")
            .push("-u")
            .push("-f")
            .push(ImageFormat::Qcow2.as_str())
            .push("-b");
        match backing {
            Some((name, format)) => args.push(name).push("-F").push(format.as_str()),
            None => args.push(""),
        };
        args.file(path)?;
        self.run(args).await.map(drop)
    }

    /// Where an image has data of its own, as `qemu-img map` tells (whole chain).
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn map(&self, path: &Path, format: ImageFormat, share: bool) -> Result<Value> {
        let mut args = Args::new("map");
        args.push("--output=json")
            .share(share)
            .push("-f")
            .push(format.as_str())
            .file(path)?;
        self.run_json(args).await
    }

    async fn run(&self, args: Args) -> Result<Output> {
        self.output(args).await?.successful()
    }

    async fn run_json(&self, args: Args) -> Result<Value> {
        self.run(args).await?.json()
    }

    async fn output(&self, args: Args) -> Result<Output> {
        self.start(args)?.finish().await
    }

    fn start(&self, args: Args) -> Result<Running> {
        let program = find_program(&self.program).ok_or_else(|| Error::Unsupported {
            what: format!("{} is not installed", self.program.display()),
            remedy: "install QEMU's image tools (Debian: apt-get install qemu-utils)".into(),
        })?;
        let child = Command::new(&program)
            .args(&args.list)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| Error::Spawn {
                program: program.clone(),
                source,
            })?;
        Ok(Running {
            program,
            command: args.for_people(),
            child,
        })
    }
}

/// A started tool; dropping it ends it.
pub(crate) struct Running {
    program: PathBuf,
    command: String,
    child: Child,
}

impl Running {
    /// Its output so far unread.
    pub(crate) fn stdout(&mut self) -> Option<&mut ChildStdout> {
        self.child.stdout.as_mut()
    }

    pub(crate) async fn finish(self) -> Result<Output> {
        let Self {
            program,
            command,
            child,
        } = self;
        let output = child
            .wait_with_output()
            .await
            .map_err(|source| Error::Spawn { program, source })?;
        Ok(Output {
            command,
            code: output.status.code(),
            status: output.status.to_string(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr)
                .trim_end()
                .to_owned(),
        })
    }
}

/// What an ended tool left.
pub(crate) struct Output {
    command: String,
    code: Option<i32>,
    status: String,
    stdout: Vec<u8>,
    stderr: String,
}

impl Output {
    fn into_error(self) -> Error {
        Error::Image {
            command: self.command,
            status: self.status,
            stderr: self.stderr,
        }
    }

    pub(crate) fn successful(self) -> Result<Self> {
        if self.code == Some(0) {
            Ok(self)
        } else {
            Err(self.into_error())
        }
    }

    fn json(self) -> Result<Value> {
        serde_json::from_slice(&self.stdout).map_err(|error| Error::Image {
            command: self.command,
            status: self.status,
            stderr: format!("its answer is not JSON: {error}"),
        })
    }
}

struct Args {
    list: Vec<OsString>,
}

impl Args {
    fn new(command: &str) -> Self {
        Self {
            list: vec![command.into()],
        }
    }

    fn push(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.list.push(arg.as_ref().to_owned());
        self
    }

    fn share(&mut self, share: bool) -> &mut Self {
        if share { self.push("-U") } else { self }
    }

    fn file(&mut self, path: &Path) -> Result<&mut Self> {
        let argument = file_argument(path)?;
        Ok(self.push(argument))
    }

    fn for_people(&self) -> String {
        let words = self
            .list
            .iter()
            .map(|word| word.to_string_lossy().into_owned());
        std::iter::once("qemu-img".to_owned())
            .chain(words)
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// An absolute path can be taken neither for an option nor for a protocol (`nbd:…`), whatever its name contains.
fn file_argument(path: &Path) -> Result<OsString> {
    if path.is_absolute() {
        return Ok(path.as_os_str().to_owned());
    }
    Err(Error::config(format!(
        "{} is not an absolute path",
        path.display()
    )))
}

fn creation_options(format: ImageFormat, fixed: bool, extended_l2: bool) -> Vec<&'static str> {
    let mut options = Vec::new();
    match (format, fixed) {
        (ImageFormat::Qcow2 | ImageFormat::Raw, true) => options.push("preallocation=falloc"),
        (ImageFormat::Vhdx | ImageFormat::Vpc, true) => options.push("subformat=fixed"),
        // A VHD otherwise gets a size rounded to what its old geometry can say.
        (ImageFormat::Vhdx | ImageFormat::Vpc, false) => options.push("subformat=dynamic"),
        _ => {}
    }
    if format == ImageFormat::Vpc {
        options.push("force_size=on");
    }
    if format == ImageFormat::Qcow2 && extended_l2 {
        options.push("extended_l2=on");
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn images_of_every_format_have_the_size_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageTool::default();
        let size = 3 * 1024 * 1024 + 512;
        for format in [
            ImageFormat::Qcow2,
            ImageFormat::Raw,
            ImageFormat::Vpc,
            ImageFormat::Vhdx,
        ] {
            for fixed in [false, true] {
                let path = dir.path().join(format!("{format}, fixed={fixed}"));
                images
                    .create(&NewImage {
                        fixed,
                        ..NewImage::new(&path, format, size)
                    })
                    .await
                    .unwrap();
                let info = images.info_as(&path, Some(format), false).await.unwrap();
                assert_eq!(
                    (info.format.as_str(), info.virtual_size),
                    (format.as_str(), size)
                );
            }
        }
    }

    #[tokio::test]
    async fn a_failure_carries_what_the_tool_said() {
        let error = ImageTool::default()
            .info(Path::new("/no/such/image"), false)
            .await
            .unwrap_err();
        let Error::Image {
            command, stderr, ..
        } = &error
        else {
            panic!("{error}")
        };
        assert!(command.starts_with("qemu-img info"), "{command}");
        assert!(stderr.contains("No such file"), "{stderr}");
        let error = ImageTool::new("/no/qemu-img")
            .info(Path::new("/x"), false)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
    }

    #[tokio::test]
    async fn no_file_is_ever_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "precious").unwrap();
        let images = ImageTool::default();
        let new = NewImage::new(&path, ImageFormat::Qcow2, 1 << 20);
        assert_eq!(
            images.create(&new).await.unwrap_err().kind(),
            crate::ErrorKind::Conflict
        );
        let overlay = images.create_or_reuse_overlay(&new).await.unwrap_err();
        assert_eq!(overlay.kind(), crate::ErrorKind::Conflict);
        let convert = images
            .convert(
                (&path, ImageFormat::Raw),
                (&path, ImageFormat::Qcow2),
                &ConvertOptions::default(),
            )
            .await
            .unwrap_err();
        assert_eq!(convert.kind(), crate::ErrorKind::Conflict);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn growing_works_and_shrinking_must_be_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let images = ImageTool::default();
        images
            .create(&NewImage::new(&path, ImageFormat::Qcow2, 1 << 20))
            .await
            .unwrap();
        images
            .resize(&path, ImageFormat::Qcow2, 2 << 20, false)
            .await
            .unwrap();
        assert!(
            images
                .resize(&path, ImageFormat::Qcow2, 1 << 20, false)
                .await
                .is_err()
        );
        images
            .resize(&path, ImageFormat::Qcow2, 1 << 20, true)
            .await
            .unwrap();
        assert_eq!(
            images.info(&path, false).await.unwrap().virtual_size,
            1 << 20
        );
    }

    #[tokio::test]
    async fn a_copy_stands_alone_and_compares_equal() {
        let dir = tempfile::tempdir().unwrap();
        let (base, layer, copy) = (
            dir.path().join("base"),
            dir.path().join("layer"),
            dir.path().join("copy"),
        );
        std::fs::write(&base, vec![7_u8; 1 << 20]).unwrap();
        let images = ImageTool::default();
        images
            .create(&NewImage::overlay(
                &layer,
                "base",
                ImageFormat::Raw,
                1 << 20,
            ))
            .await
            .unwrap();
        let (from, to) = (
            (layer.as_path(), ImageFormat::Qcow2),
            (copy.as_path(), ImageFormat::Vhdx),
        );
        images
            .convert(from, to, &ConvertOptions::default())
            .await
            .unwrap();
        assert!(images.same_contents(from, to, false).await.unwrap());
        std::fs::write(&base, vec![8_u8; 1 << 20]).unwrap();
        assert!(!images.same_contents(from, to, false).await.unwrap());
    }
}
