//! What a tool may do, seen from the tool: scripts stand in for it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::run::{Args, Limits, Running};
use super::*;
use crate::confine::steps::leave_network;

/// A tool that does what the script says.
fn tool(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("tool");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn written(path: &Path) -> String {
    until("the tool writes its pid", || {
        std::fs::read_to_string(path).is_ok_and(|text| text.ends_with('\n'))
    });
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

/// The service's part in the next test, in a process of its own.
#[tokio::test]
#[ignore = "run by the next test"]
async fn a_service_with_a_tool() {
    let tool = std::env::var_os("KVMMS_TEST_TOOL").unwrap();
    let error = ImageTool::new(PathBuf::from(tool))
        .info_as(Path::new("/x"), Some(ImageFormat::Qcow2), false)
        .await;
    panic!("the tool never ends: {error:?}");
}

#[test]
fn a_tool_dies_with_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let noted = dir.path().join("pid");
    let tool = tool(
        dir.path(),
        &format!("echo $$ > {}; exec sleep 600", noted.display()),
    );
    let mut service = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "image::confined::a_service_with_a_tool",
            "--ignored",
        ])
        .env("KVMMS_TEST_TOOL", tool)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = written(&noted);
    assert!(alive(&pid));
    service.kill().unwrap();
    service.wait().unwrap();
    until("the tool is gone", || !alive(&pid));
}

#[test]
fn a_tool_outlives_the_thread_that_asked_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let noted = dir.path().join("pid");
    let script = format!("echo $$ > {}; exec sleep 600", noted.display());
    let tool = tool(dir.path(), &script);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    let asked = std::thread::spawn(move || {
        let mut args = Args::new("info");
        args.push("/x");
        handle
            .block_on(Running::start(&tool, args, Limits::quick()))
            .unwrap()
    });
    let running = asked.join().unwrap();
    let pid = written(&noted);
    // The kernel signals at the end of the thread, which join has seen.
    assert!(alive(&pid));
    runtime.block_on(running.end()).unwrap();
    assert!(!alive(&pid));
}

#[tokio::test]
async fn a_time_limit_ends_the_tool_and_what_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let noted = dir.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}; wait", noted.display());
    let limits = Limits {
        time: Duration::from_secs(2),
        ..Limits::quick()
    };
    let running = Running::start(&tool(dir.path(), &script), Args::new("info"), limits).await;
    let Err(error) = running.unwrap().finish().await else {
        panic!("it never ends by itself")
    };
    let Error::Image { status, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(status, "ended at its time limit of 2 s");
    let pid = written(&noted);
    until("what it started is gone", || !alive(&pid));
}

#[tokio::test]
async fn a_dropped_run_leaves_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let noted = dir.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}; wait", noted.display());
    let running = Running::start(
        &tool(dir.path(), &script),
        Args::new("info"),
        Limits::quick(),
    )
    .await;
    let pid = written(&noted);
    drop(running);
    until("what it started is gone", || !alive(&pid));
}

#[tokio::test]
async fn a_tool_has_no_environment_no_network_and_bounded_means() {
    let dir = tempfile::tempdir().unwrap();
    let told = dir.path().join("told");
    let script = format!(
        "{{ cat /proc/self/status; cat /proc/self/limits; echo environment; tr '\\0' '\\n' < /proc/self/environ; \
         echo network; tail -n +3 /proc/self/net/dev; pwd; }} > {}; exit 1",
        told.display()
    );
    let error = ImageTool::new(tool(dir.path(), &script))
        .info_as(Path::new("/x"), Some(ImageFormat::Qcow2), false)
        .await;
    error.unwrap_err();
    let told = std::fs::read_to_string(told).unwrap();
    let words: String = told.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "NoNewPrivs: 1",
        "Max core file size 0 0",
        "Max open files 256 256",
        "Max address space 1073741824 1073741824",
        "Max cpu time 300 300",
    ] {
        assert!(words.contains(expected), "{expected}: {told}");
    }
    let environment = told.split("environment\n").nth(1).unwrap();
    let (environment, network) = environment.split_once("network\n").unwrap();
    let names: Vec<&str> = environment
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .collect();
    // The shell adds its directory.
    let known = ["LANG", "MALLOC_ARENA_MAX", "PATH", "PWD"];
    assert!(names.iter().all(|name| known.contains(name)), "{names:?}");
    // Asked in the same way as for a tool, by a thread that leaves nothing behind.
    if std::thread::spawn(leave_network).join().unwrap().is_ok() {
        let devices = network.lines().filter_map(|line| line.split_once(':'));
        let devices: Vec<&str> = devices.map(|(name, _)| name.trim()).collect();
        // The kernel may put its own, unused tunnels into each namespace.
        let kernels = |name: &str| name == "lo" || (name.ends_with('0') && !name.starts_with('e'));
        assert!(
            devices.contains(&"lo") && devices.iter().all(|name| kernels(name)),
            "{devices:?}"
        );
    }
    assert!(network.ends_with("/\n"), "{network}");
}

#[tokio::test]
async fn an_endless_answer_is_an_error_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let tool = tool(dir.path(), "head -c 67108865 /dev/zero");
    let error = ImageTool::new(tool)
        .info_as(Path::new("/x"), Some(ImageFormat::Qcow2), false)
        .await
        .unwrap_err();
    let Error::Image { status, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(status, "its answer is longer than 64 MiB");
}
