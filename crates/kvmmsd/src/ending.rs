//! Why the service is told to end. The host going down takes all machines with it: they are ended first, each as its
//! settings say. Otherwise machines run on.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use vmms::Vmms;
use vmms::machine::Asked;

/// How long systemd may take to say what it does.
const QUESTION: Duration = Duration::from_secs(5);

/// Whether the host goes down, as far as its service manager says: `booted` is there only where systemd runs the host, and
/// `systemctl` is asked.
async fn host_goes_down(booted: &Path, systemctl: &Path, patience: Duration) -> bool {
    if !booted.exists() {
        return false;
    }
    let asked = tokio::process::Command::new(systemctl)
        .arg("is-system-running")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(patience, asked).await {
        // Its exit code only says that the host is not just running.
        Ok(Ok(told)) => told.stdout.trim_ascii() == b"stopping",
        Ok(Err(error)) => {
            tracing::warn!(%error, "systemctl cannot be asked whether the host goes down: machines keep running");
            false
        }
        Err(_) => {
            tracing::warn!(
                "systemctl does not say whether the host goes down: machines keep running"
            );
            false
        }
    }
}

/// What is done before the service ends.
pub(crate) async fn prepare(vmms: &Arc<Vmms>) {
    let (booted, systemctl) = (Path::new("/run/systemd/system"), Path::new("systemctl"));
    if !host_goes_down(booted, systemctl, QUESTION).await {
        return;
    }
    let asked = Asked {
        owner: "the host goes down".to_owned(),
        request_key: None,
    };
    let ended = async {
        let job = vmms::machine::shut_down_guests(vmms, None, &asked).await?;
        vmms.wait(job).await
    };
    if let Err(error) = ended.await {
        tracing::error!(%error, "machines could not be ended before the host goes down");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// What is made of a service manager that does what the script says.
    async fn told(script: &str, patience: Duration) -> bool {
        let dir = tempfile::tempdir().expect("a directory");
        let systemctl = dir.path().join("systemctl");
        std::fs::write(&systemctl, format!("#!/bin/sh\n{script}\n")).expect("a script");
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&systemctl, executable).expect("a mode");
        host_goes_down(dir.path(), &systemctl, patience).await
    }

    #[tokio::test]
    async fn machines_end_only_with_a_host_that_says_it_goes_down() {
        let long = Duration::from_secs(60);
        // systemctl fails in every state but "running".
        assert!(
            told(
                "[ \"$1\" = is-system-running ] && echo stopping; exit 1",
                long
            )
            .await
        );
        assert!(!told("echo running", long).await);
        assert!(!told("echo degraded; exit 1", long).await);
        assert!(!told("exit 1", long).await);
        let started = std::time::Instant::now();
        assert!(!told("exec sleep 600", Duration::from_millis(50)).await);
        assert!(started.elapsed() < Duration::from_secs(300));
        let nowhere = Path::new("/nonexistent/kvmms");
        assert!(!host_goes_down(nowhere, Path::new("/bin/false"), long).await);
        assert!(!host_goes_down(Path::new("/"), nowhere, long).await);
    }
}
