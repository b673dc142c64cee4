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

/// Whether the host goes down, as far as its service manager says.
async fn host_goes_down() -> bool {
    // There only where systemd runs the host.
    if !Path::new("/run/systemd/system").exists() {
        return false;
    }
    let asked = tokio::process::Command::new("systemctl")
        .arg("is-system-running")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(QUESTION, asked).await {
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
    if !host_goes_down().await {
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
