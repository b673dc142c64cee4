//! The real Python clients, unmodified, where `scripts/venv` has put them; `./test` always does.

use std::path::Path;
use std::process::Stdio;

use crate::wire::start;

async fn run(script: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join(".cache/venv/bin/python");
    if !python.exists() {
        eprintln!("no Python clients here: scripts/venv installs them");
        return;
    }
    let running = start().await;
    let output = tokio::process::Command::new(python)
        .arg(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/protocols")
                .join(script),
        )
        .arg(running.addr.port().to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("python");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn pywbem_is_served() {
    run("pywbem_client.py").await;
}

#[tokio::test]
async fn pypsrp_is_served() {
    run("pypsrp_client.py").await;
}
