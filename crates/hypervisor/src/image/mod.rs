//! Images of machines that do not run, through `qemu-img`.
//!
//! Every call is one process that dies with the service; arguments never pass through a shell, and a path can never be taken for an option.
//! Reading commands look past locks (`-U`) only where the caller says so.

#[cfg(test)]
mod confined;
mod fold;
mod locks;
mod owner;
mod run;
mod tag;
#[cfg(test)]
mod tests;
mod types;

use std::ffi::OsString;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use self::locks::{free_within, in_use};
pub use self::tag::write_owner;
pub use self::types::{CheckReport, ConvertOptions, ImageInfo, NewImage};

use self::run::{Args, Limits, Output, Running, file_argument};
use crate::config::{ImageFormat, path_text};
use crate::error::{Error, Result};
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
        // Where a file system cannot allocate room, the tool writes zeros.
        let limits = if image.fixed {
            Limits::copying()
        } else {
            Limits::quick()
        };
        let mut result = self.run(args, limits).await.map(drop);
        if let (Ok(()), Some(owner)) = (&result, &image.owner) {
            result = write_owner(&image.path, owner);
        }
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
        self.create(image).await?;
        owner::take_after(image)
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
        let raw = self.run_json(args, Limits::quick()).await?;
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
        self.run(args, Limits::tables(path)).await.map(drop)
    }

    /// Makes the topmost of these images larger. They are given base first, each with its format; what their headers say of each other is
    /// not followed.
    ///
    /// # Errors
    /// As [`ImageTool::resize`].
    pub async fn resize_chain(&self, chain: &[(&Path, ImageFormat)], bytes: u64) -> Result<()> {
        let mut args = Args::new("resize");
        args.push("-q");
        args.push(chain_argument(chain)?).push(bytes.to_string());
        let top = chain.last().map_or(Path::new("/"), |(path, _)| path);
        self.run(args, Limits::tables(top)).await.map(drop)
    }

    /// Checks one qcow2 layer without opening what lies beneath it, which a machine may have open.
    ///
    /// # Errors
    /// [`Error::Image`] where the layer cannot be checked at all, also where something has it open itself.
    pub async fn check_layer(&self, path: &Path) -> Result<CheckReport> {
        self.check_one(path, ImageFormat::Qcow2).await
    }

    /// Checks a qcow2, VHDX or VMDK image for consistency, without what lies beneath it. Damage is in the report, not an error.
    ///
    /// # Errors
    /// [`Error::Image`] where it cannot be checked at all.
    pub async fn check_one(&self, path: &Path, format: ImageFormat) -> Result<CheckReport> {
        let mut args = Args::new("check");
        args.push("--output=json");
        args.push(chain_argument(&[(path, format)])?);
        let output = self.output(args, Limits::tables(path)).await?;
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
        let mut args = Args::new("convert");
        args.push("-q").share(options.share);
        args.push("-f").push(source.1.as_str());
        args.push("-O").push(target.1.as_str());
        self.convert_with(args, file_argument(source.0)?, target, options)
            .await
    }

    /// Copies the disk that these images make up, base first, each with its format, into a new file of its own. What their headers say of
    /// each other is not followed.
    ///
    /// # Errors
    /// As [`ImageTool::convert`].
    pub async fn convert_chain(
        &self,
        chain: &[(&Path, ImageFormat)],
        target: (&Path, ImageFormat),
        options: &ConvertOptions,
    ) -> Result<()> {
        let mut args = Args::new("convert");
        args.push("-q").share(options.share);
        args.push("-O").push(target.1.as_str());
        self.convert_with(args, chain_argument(chain)?.into(), target, options)
            .await
    }

    async fn convert_with(
        &self,
        mut args: Args,
        source: OsString,
        target: (&Path, ImageFormat),
        options: &ConvertOptions,
    ) -> Result<()> {
        if target.0.symlink_metadata().is_ok() {
            return Err(Error::conflict(format!(
                "{} exists already",
                target.0.display()
            )));
        }
        if options.compressed {
            args.push("-c");
        }
        for option in creation_options(target.1, options.fixed, false) {
            args.push("-o").push(option);
        }
        args.push(source).file(target.0)?;
        let result = self.run(args, Limits::copying()).await.map(drop);
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
        let output = self.output(args, Limits::copying()).await?;
        match output.code {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => Err(output.into_error()),
        }
    }

    /// Starts folding `top` and everything between into `base`, which must lie beneath it; `top` stays unchanged.
    async fn start_commit(&self, top: &Path, base: &Path) -> Result<Running> {
        let mut args = Args::new("commit");
        args.push("-p")
            .push("-d")
            .push("-f")
            .push(ImageFormat::Qcow2.as_str());
        args.push("-b").file(base)?.file(top)?;
        Running::start(&self.program, args, Limits::copying()).await
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
        self.run(args, Limits::quick()).await.map(drop)
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
        self.run_json(args, Limits::tables(path)).await
    }

    async fn run(&self, args: Args, limits: Limits) -> Result<Output> {
        self.output(args, limits).await?.successful()
    }

    async fn run_json(&self, args: Args, limits: Limits) -> Result<Value> {
        self.run(args, limits).await?.json()
    }

    async fn output(&self, args: Args, limits: Limits) -> Result<Output> {
        let running = Running::start(&self.program, args, limits).await?;
        running.finish().await
    }
}

/// A qcow2 layer as the tool is to open it: without what lies beneath it.
fn layer_alone(path: &Path) -> Result<String> {
    chain_argument(&[(path, ImageFormat::Qcow2)])
}

/// A chain, base first, as one argument that says everything: nothing is probed, no name in a header is followed.
fn chain_argument(chain: &[(&Path, ImageFormat)]) -> Result<String> {
    let mut below = Value::Null;
    for (path, format) in chain {
        let device = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
        let driver = if device { "host_device" } else { "file" };
        let file = serde_json::json!({ "driver": driver, "filename": path_text(path)? });
        let mut node = serde_json::json!({ "driver": format.as_str(), "file": file });
        match (format, node.as_object_mut()) {
            (ImageFormat::Qcow2 | ImageFormat::Vmdk, Some(fields)) => {
                fields.insert("backing".to_owned(), below);
            }
            _ if !below.is_null() => {
                return Err(Error::config(format!(
                    "{} cannot lie on another image",
                    path.display()
                )));
            }
            _ => {}
        }
        below = node;
    }
    Ok(format!("json:{below}"))
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
