//! Merging layers of a machine that does not run, with the meaning of [`crate::Machine::commit`].
//!
//! Order of steps: data into the base, made durable, then the header of the layer above, made durable. Dying anywhere in between
//! leaves a chain that reads the same, whatever that header says, as long as the file that was to go is still there: nothing of it is
//! changed. Whether the merge is done is for the caller's record to say, never for a header. The files that went stay for
//! the caller to delete, after its record says that they are gone.

use std::path::{Path, PathBuf};

use tokio::io::AsyncReadExt;

use super::run::{Args, Limits, Running};
use super::{ImageTool, layer_alone};
use crate::block::{JobControl, Progress};
use crate::config::{ImageFormat, LayerFile};
use crate::error::{Error, Result};
use crate::layers::relative_name;
use crate::written::Written;

impl ImageTool {
    /// Merges everything above `base_node` up to `top_node` into the base. `chain` is base first. Where a layer lies
    /// above `top_node`, it then records the base beneath it. When this answers, all of it is durable. Safe to repeat as long as
    /// nobody has written to the base since: also where an earlier attempt got as far as the header.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] where a file records another neighbour than `chain` says;
    /// [`Error::Image`]; [`Error::Cancelled`]; [`Error::Io`].
    pub async fn fold(
        &self,
        chain: &[LayerFile],
        base_node: &str,
        top_node: &str,
        control: &JobControl,
    ) -> Result<()> {
        let place = |name: &str| {
            let found = chain.iter().position(|layer| layer.node_name == name);
            found.ok_or_else(|| Error::not_found(format!("layer `{name}`")))
        };
        let (base, top) = (place(base_node)?, place(top_node)?);
        if top <= base {
            return Err(Error::conflict(format!(
                "layer `{top_node}` does not lie above `{base_node}`"
            )));
        }
        let (Some(base_layer), Some(top_layer)) = (chain.get(base), chain.get(top)) else {
            return Err(Error::not_found("the layers"));
        };
        let above = chain.get(top + 1);
        // QEMU's tool follows the names in the files: make sure that they say what we mean.
        let folded = chain.get(base..=top).unwrap_or_default();
        for pair in folded.windows(2) {
            if let [below, layer] = pair {
                self.expect_beneath(layer, &[below]).await?;
            }
        }
        if let Some(above) = above {
            self.expect_beneath(above, &[top_layer, base_layer]).await?;
        }
        let base = Written::open(&base_layer.path)?;
        self.cut_to_smallest(folded).await?;
        self.commit_with_progress(&top_layer.path, &base_layer.path, control)
            .await?;
        base.sync().await?;
        if let Some(above) = above {
            let name = relative_name(&above.path, &base_layer.path)?;
            let header = Written::open(&above.path)?;
            self.rebase_unsafe(&above.path, Some((&name, base_layer.format)))
                .await?;
            header.sync().await?;
        }
        Ok(())
    }

    /// Gives back the clusters that a tool or a QEMU which was killed had taken in a qcow2 and not linked yet. Nothing that can be read
    /// changes.
    ///
    /// # Errors
    /// [`Error::Image`], also where the image is damaged: then nothing is touched.
    pub async fn reclaim_leaks(&self, path: &Path) -> Result<()> {
        let found = self.check_layer(path).await?;
        if found.corruptions > 0 {
            return Err(Error::Image {
                command: format!("qemu-img check {}", path.display()),
                status: "damage was found".to_owned(),
                stderr: format!("{} clusters are damaged", found.corruptions),
            });
        }
        if found.leaks == 0 {
            return Ok(());
        }
        let mut args = Args::new("check");
        args.push("-q").push("-r").push("leaks");
        args.push(layer_alone(path)?);
        self.run(args, Limits::tables(path)).await.map(drop)
    }

    /// A disk that had been made smaller for a while reads zero beyond; the base must not bring its old bytes back.
    async fn cut_to_smallest(&self, folded: &[LayerFile]) -> Result<()> {
        let Some((base, layers)) = folded.split_first() else {
            return Ok(());
        };
        let size = self
            .info_as(&base.path, Some(base.format), false)
            .await?
            .virtual_size;
        let mut smallest = size;
        for layer in layers {
            smallest = smallest.min(
                self.info_as(&layer.path, Some(layer.format), false)
                    .await?
                    .virtual_size,
            );
        }
        if smallest < size {
            self.resize(&base.path, base.format, smallest, true).await?;
        }
        Ok(())
    }

    async fn recorded_beneath(&self, layer: &LayerFile) -> Result<PathBuf> {
        let info = self
            .info_as(&layer.path, Some(ImageFormat::Qcow2), true)
            .await?;
        let name = info.backing.ok_or_else(|| {
            Error::conflict(format!(
                "{} records nothing beneath it",
                layer.path.display()
            ))
        })?;
        let dir = layer.path.parent().unwrap_or(Path::new("/"));
        canonical(&dir.join(name))
    }

    async fn expect_beneath(&self, layer: &LayerFile, any: &[&LayerFile]) -> Result<()> {
        let recorded = self.recorded_beneath(layer).await?;
        for below in any {
            if recorded == canonical(&below.path)? {
                return Ok(());
            }
        }
        let expected = any.first().map(|below| below.path.display().to_string());
        Err(Error::conflict(format!(
            "{} records {} beneath it, not {}",
            layer.path.display(),
            recorded.display(),
            expected.unwrap_or_default()
        )))
    }

    async fn commit_with_progress(
        &self,
        top: &Path,
        base: &Path,
        control: &JobControl,
    ) -> Result<()> {
        let mut running = self.start_commit(top, base).await?;
        let deadline = running.deadline();
        let total = std::fs::metadata(top)
            .map_err(|source| Error::io("read", top, source))?
            .len();
        let finished = tokio::select! {
            // Biased: a tool that is done is done.
            biased;
            () = watch(&mut running, total, control) => true,
            // It is told so when it is asked for its end.
            () = tokio::time::sleep_until(deadline) => true,
            // The layers above still hold all data.
            () = control.cancelled() => false,
        };
        if !finished {
            // Whoever cancelled wants the files: a tool on its way out still has its locks on them.
            running.end().await?;
            return Err(Error::Cancelled);
        }
        let output = running.finish().await?;
        control.report(Progress { done: total, total });
        output.successful().map(drop)
    }
}

/// Follows the tool's output to its end.
async fn watch(running: &mut Running, total: u64, control: &JobControl) {
    let mut chunk = [0_u8; 256];
    let mut text = String::new();
    control.report(Progress { done: 0, total });
    while let Some(stdout) = running.stdout() {
        let count = stdout.read(&mut chunk).await.unwrap_or(0);
        if count == 0 {
            break;
        }
        text.push_str(&String::from_utf8_lossy(
            chunk.get(..count).unwrap_or_default(),
        ));
        if let Some(percent) = last_percent(&text) {
            let done = (total as f64 * percent / 100.0) as u64;
            control.report(Progress {
                done: done.min(total),
                total,
            });
        }
        // Only the newest figure matters.
        if let Some(at) = text.rfind('\r') {
            text.drain(..at);
        } else if text.len() > 4096 {
            text.clear();
        }
    }
}

/// The tool prints `    (12.34/100%)\r`.
fn last_percent(text: &str) -> Option<f64> {
    let end = text.rfind("/100%")?;
    let before = text.get(..end)?;
    before.get(before.rfind('(')? + 1..)?.trim().parse().ok()
}

fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .map_err(|source| Error::io("find", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::NewImage;

    const MIB: u64 = 1 << 20;

    struct Chain {
        dir: tempfile::TempDir,
        images: ImageTool,
        layers: Vec<LayerFile>,
    }

    impl Chain {
        async fn new(sizes: &[u64]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let images = ImageTool::default();
            let mut layers: Vec<LayerFile> = Vec::new();
            for (depth, size) in sizes.iter().enumerate() {
                let format = if depth == 0 {
                    ImageFormat::Raw
                } else {
                    ImageFormat::Qcow2
                };
                let layer = LayerFile::new(
                    format!("l{depth}"),
                    dir.path().join(format!("l{depth}.img")),
                    format,
                );
                let image = match layers.last() {
                    None => NewImage::new(&layer.path, format, *size),
                    Some(below) => {
                        let name = relative_name(&layer.path, &below.path).unwrap();
                        NewImage::overlay(&layer.path, name, below.format, *size)
                    }
                };
                images.create(&image).await.unwrap();
                layers.push(layer);
            }
            Self {
                dir,
                images,
                layers,
            }
        }

        fn write(&self, layer: usize, byte: u8, offset: u64, length: u64) {
            let layer = &self.layers[layer];
            let done = std::process::Command::new("qemu-io")
                .args([
                    "-f",
                    layer.format.as_str(),
                    "-c",
                    &format!("write -P {byte} {offset} {length}"),
                ])
                .arg(&layer.path)
                .output()
                .unwrap();
            assert!(
                done.status.success(),
                "{}",
                String::from_utf8_lossy(&done.stdout)
            );
        }

        async fn contents(&self, layer: usize) -> Vec<u8> {
            let layer = &self.layers[layer];
            let raw = self.dir.path().join("contents");
            let to = (raw.as_path(), ImageFormat::Raw);
            self.images
                .convert(
                    (&layer.path, layer.format),
                    to,
                    &crate::image::ConvertOptions::default(),
                )
                .await
                .unwrap();
            let bytes = std::fs::read(&raw).unwrap();
            std::fs::remove_file(raw).unwrap();
            bytes
        }

        async fn fold(&self, base: &str, top: &str) -> Result<()> {
            self.images
                .fold(&self.layers, base, top, &JobControl::new())
                .await
        }
    }

    #[tokio::test]
    async fn a_middle_layer_folds_and_the_one_above_reads_the_same() {
        let chain = Chain::new(&[MIB, MIB, MIB]).await;
        chain.write(0, 1, 0, MIB);
        chain.write(1, 2, 4096, 4096);
        chain.write(2, 3, 65536, 512);
        let (point, disk) = (chain.contents(1).await, chain.contents(2).await);
        chain.fold("l0", "l1").await.unwrap();
        // Asked again, as after a crash before the record: it is done again, and nothing else changes.
        chain.fold("l0", "l1").await.unwrap();
        std::fs::rename(&chain.layers[1].path, chain.dir.path().join("gone")).unwrap();
        assert!(chain.contents(0).await == point);
        assert!(chain.contents(2).await == disk);
        let info = chain
            .images
            .info_as(&chain.layers[2].path, Some(ImageFormat::Qcow2), false)
            .await
            .unwrap();
        assert_eq!(
            (info.backing.as_deref(), info.backing_format.as_deref()),
            (Some("./l0.img"), Some("raw"))
        );
        assert!(
            chain.fold("l0", "l1").await.is_err(),
            "without the layer nothing is proven"
        );
    }

    #[tokio::test]
    async fn several_layers_fold_at_once_into_a_base_that_grows() {
        let chain = Chain::new(&[MIB, MIB, 2 * MIB]).await;
        chain.write(1, 2, 0, 4096);
        chain.write(2, 3, MIB + 512, 512);
        let disk = chain.contents(2).await;
        chain.fold("l0", "l2").await.unwrap();
        assert!(chain.contents(0).await == disk);
    }

    #[tokio::test]
    async fn bytes_cut_off_by_a_smaller_layer_do_not_come_back() {
        let chain = Chain::new(&[2 * MIB, MIB, 2 * MIB]).await;
        chain.write(0, 1, 0, 2 * MIB);
        let disk = chain.contents(2).await;
        assert!(disk[MIB as usize..].iter().all(|&byte| byte == 0));
        chain.fold("l0", "l1").await.unwrap();
        assert!(chain.contents(2).await == disk);
    }

    #[tokio::test]
    async fn a_file_that_records_another_neighbour_is_not_followed() {
        let mut chain = Chain::new(&[MIB, MIB]).await;
        let stranger = LayerFile::new("s", chain.dir.path().join("stranger"), ImageFormat::Raw);
        chain
            .images
            .create(&NewImage::new(&stranger.path, ImageFormat::Raw, MIB))
            .await
            .unwrap();
        chain.layers[0] = stranger;
        let error = chain.fold("s", "l1").await.unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Conflict, "{error}");
    }

    #[tokio::test]
    async fn a_cancelled_fold_can_be_done_again() {
        let chain = Chain::new(&[MIB, MIB]).await;
        chain.write(1, 2, 0, 4096);
        let disk = chain.contents(1).await;
        let control = JobControl::new();
        control.cancel();
        let error = chain.images.fold(&chain.layers, "l0", "l1", &control).await;
        // It may have been done before the cancel was seen; either way the disk reads the same.
        assert!(matches!(error, Err(Error::Cancelled) | Ok(())));
        assert!(chain.contents(1).await == disk);
        chain.fold("l0", "l1").await.unwrap();
        assert!(chain.contents(0).await == disk);
    }

    #[tokio::test]
    async fn after_a_cancelled_fold_no_tool_has_the_files() {
        let chain = Chain::new(&[64 * MIB, 64 * MIB]).await;
        for round in 0..8 {
            chain.write(1, round + 1, 0, 64 * MIB);
            let control = JobControl::new();
            let fold = chain.images.fold(&chain.layers, "l0", "l1", &control);
            let cancel = async {
                while control.progress().total == 0 {
                    tokio::task::yield_now().await;
                }
                control.cancel();
            };
            let (_, ()) = tokio::join!(fold, cancel);
            // Takes the locks a QEMU would take; fails where somebody still has them.
            chain.write(1, 99, 0, 4096);
        }
    }

    #[test]
    fn progress_is_read_from_the_tool() {
        assert_eq!(
            last_percent("    (0.00/100%)\r    (12.50/100%)\r"),
            Some(12.5)
        );
        assert_eq!(last_percent("nothing"), None);
    }
}
