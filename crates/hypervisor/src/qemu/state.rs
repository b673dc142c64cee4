//! Memory and devices into a file and back, by QEMU's own migration.
//!
//! The service opens the file and hands it over: QEMU needs no way to it. QEMU from 8.2 on takes it as `file:` of a set of descriptors,
//! older ones as `fd:` with a name.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::layers::sync_with_dir;
use super::machine::QemuMachine;
use crate::error::{Error, Result};
use crate::machine::{MachineStatus, SavedState};
use crate::qmp::codec::{number, text};

/// What the open file is called in QEMU.
const STATE: &str = "state";

/// Migration is looked at this often.
const LOOK: Duration = Duration::from_millis(20);

/// Bytes per second: as fast as the disk takes them.
const UNLIMITED: u64 = 1 << 40;

/// How long QEMU may take to end once its state is written.
const QUIT_DEADLINE: Duration = Duration::from_secs(30);

/// What an interrupted attempt of ours left QEMU doing.
enum Left {
    Nothing,
    Writing,
    Written,
}

pub(super) async fn save(machine: &QemuMachine, path: &Path) -> Result<SavedState> {
    crate::config::check_path(path)?;
    super::migrate::check_no_move(machine).await?;
    let partial = partial_name(path);
    let started = Instant::now();
    let left = left(machine, &partial).await?;
    if matches!(left, Left::Nothing) {
        create_private(&partial)?;
    }
    machine.execute("stop", Value::Null).await?;
    let stopped_at = SystemTime::now();
    let written = async {
        if matches!(left, Left::Nothing) {
            start(machine, &partial).await?;
        }
        if !matches!(left, Left::Written) {
            finished(machine, "saving the state").await?;
        }
        // Several machines may be saved at once, their guests standing still: none waits for the disk of another.
        let written = partial.clone();
        blocking(move || synced_length(&written)).await
    };
    let bytes = match written.await {
        Ok(bytes) => bytes,
        Err(error) => {
            // Best effort: the first error is the one that matters.
            let _ = std::fs::remove_file(&partial);
            return Err(error);
        }
    };
    let whole = path.to_owned();
    blocking(move || {
        std::fs::rename(&partial, &whole)
            .map_err(|source| Error::io("rename", &partial, source))?;
        sync_with_dir(&whole)
    })
    .await?;
    machine.end(QUIT_DEADLINE).await?;
    Ok(SavedState {
        path: path.to_owned(),
        bytes,
        stopped_at,
        took: started.elapsed(),
    })
}

/// Waits for storage on a thread made for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::conflict(format!("a thread ended: {error}"))),
    }
}

/// Ends the writing of a state that somebody began and did not wait for. Cheap where there is none.
pub(super) async fn abandon(machine: &QemuMachine) -> Result<()> {
    let mut asked = false;
    loop {
        let migration = machine.execute("query-migrate", Value::Null).await?;
        match text(&migration, "status") {
            Some(
                "setup" | "active" | "device" | "pre-switchover" | "wait-unplug" | "cancelling",
            ) => {}
            _ => return Ok(()),
        }
        if !asked {
            asked = true;
            machine.execute("migrate_cancel", Value::Null).await?;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The service may have died while QEMU was writing; QEMU goes on by itself.
async fn left(machine: &QemuMachine, partial: &Path) -> Result<Left> {
    if !partial.is_file() {
        return Ok(Left::Nothing);
    }
    let status = machine.query_status().await?;
    let migration = machine.execute("query-migrate", Value::Null).await?;
    Ok(match (text(&migration, "status"), status) {
        (Some("setup" | "active" | "device" | "pre-switchover" | "wait-unplug"), _) => {
            Left::Writing
        }
        (Some("completed"), MachineStatus::Saved) => Left::Written,
        _ => Left::Nothing,
    })
}

async fn start(machine: &QemuMachine, partial: &Path) -> Result<()> {
    // What a move that broke off left set is not for files.
    super::migrate::plain(machine).await?;
    let file = std::fs::OpenOptions::new().write(true).open(partial);
    let file = file.map_err(|source| Error::io("open", partial, source))?;
    let uri = hand_over(machine, file).await?;
    machine
        .execute(
            "migrate-set-parameters",
            json!({ "max-bandwidth": UNLIMITED }),
        )
        .await?;
    machine
        .execute("migrate", json!({ "uri": uri }))
        .await
        .map(drop)
}

fn synced_length(partial: &Path) -> Result<u64> {
    let file = std::fs::File::open(partial).map_err(|source| Error::io("open", partial, source))?;
    file.sync_all()
        .map_err(|source| Error::io("sync", partial, source))?;
    file.metadata()
        .map(|metadata| metadata.len())
        .map_err(|source| Error::io("read", partial, source))
}

pub(super) async fn restore(machine: &QemuMachine, path: &Path) -> Result<()> {
    crate::config::check_path(path)?;
    let file = std::fs::File::open(path).map_err(|source| Error::io("open", path, source))?;
    let uri = hand_over(machine, file).await?;
    machine
        .execute("migrate-incoming", json!({ "uri": uri }))
        .await?;
    finished(machine, "restoring the state").await
}

/// Gives QEMU an open file; what it is called there. QEMU closes it when it has used it, or with the monitor's connection.
async fn hand_over(machine: &QemuMachine, file: std::fs::File) -> Result<String> {
    if machine.features().migrate_file {
        let about = json!({ "opaque": STATE });
        let added = machine.execute_with("add-fd", about, file.into()).await?;
        let set = number(&added, "fdset-id").ok_or_else(|| Error::Protocol {
            peer: "QMP",
            detail: "add-fd names no set".into(),
        })?;
        return Ok(format!("file:/dev/fdset/{set}"));
    }
    let name = json!({ "fdname": STATE });
    machine.execute_with("getfd", name, file.into()).await?;
    Ok(format!("fd:{STATE}"))
}

async fn finished(machine: &QemuMachine, what: &str) -> Result<()> {
    loop {
        let migration = machine.execute("query-migrate", Value::Null).await?;
        match text(&migration, "status") {
            Some("completed") => return Ok(()),
            Some(status @ ("failed" | "cancelled")) => {
                let desc = text(&migration, "error-desc").unwrap_or(status).to_owned();
                return Err(Error::Job {
                    job: what.to_owned(),
                    desc,
                });
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// The file holds the guest's memory.
fn create_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|source| Error::io("create", path, source))
}
