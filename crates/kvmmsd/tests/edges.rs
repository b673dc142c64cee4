//! Who may call whom, and how long a file may get.
#![expect(
    clippy::expect_used,
    reason = "a workspace that cannot be read is a failed test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What each crate depends on, of ours. What only feeds hostile input to the others stands beside them.
const EDGES: [(&str, &[&str]); 13] = [
    ("cim", &[]),
    ("disk", &[]),
    ("engine", &["disk", "store"]),
    ("fuzz", &["cim", "disk", "hypervisor", "ntlm", "wbem"]),
    ("hypervisor", &[]),
    ("kvmms", &["cim", "msvm", "wbem"]),
    ("kvmmsd", &["cim", "msvm", "vmms", "wbem"]),
    ("msvm", &["cim"]),
    ("ntlm", &[]),
    ("peer", &[]),
    ("store", &[]),
    ("vmms", &["disk", "engine", "hypervisor", "peer", "store"]),
    ("wbem", &["cim", "ntlm"]),
];

/// Most lines of a source file.
const MOST_LINES: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .expect("cargo metadata");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    list(&metadata, "packages").to_vec()
}

#[test]
fn crates_depend_on_each_other_as_designed_and_not_otherwise() {
    let packages = packages();
    let ours: BTreeSet<&str> = packages.iter().map(|p| text(p, "name")).collect();
    let wanted: BTreeMap<&str, BTreeSet<&str>> = EDGES
        .iter()
        .map(|(name, edges)| (*name, edges.iter().copied().collect()))
        .collect();
    assert_eq!(ours, wanted.keys().copied().collect());
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut for_tests = Vec::new();
    for package in &packages {
        let name = text(package, "name");
        let edges = found.entry(name).or_default();
        for dependency in list(package, "dependencies") {
            let other = text(dependency, "name");
            if !ours.contains(other) {
                continue;
            }
            if text(dependency, "kind") == "dev" {
                for_tests.push((name, other));
            } else {
                edges.insert(other);
            }
        }
    }
    assert_eq!(found, wanted);
    for (name, other) in for_tests {
        let allowed = wanted.get(name).is_some_and(|edges| edges.contains(other));
        assert!(allowed, "the tests of {name} use {other}");
    }
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn no_source_file_is_longer_than_800_lines() {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root().join("crates")).expect("crates") {
        let src = entry.expect("a crate").path().join("src");
        if src.is_dir() {
            sources(&src, &mut files);
        }
    }
    assert!(files.len() > 100, "{} files", files.len());
    let lines = |path: &PathBuf| {
        std::fs::read_to_string(path)
            .expect("a source")
            .lines()
            .count()
    };
    let long: Vec<_> = files
        .iter()
        .map(|f| (f, lines(f)))
        .filter(|(_, n)| *n > MOST_LINES)
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn no_module_has_a_name_that_says_nothing() {
    let mut files = Vec::new();
    sources(&root().join("crates"), &mut files);
    let empty = [
        "util", "utils", "common", "base", "helper", "helpers", "misc",
    ];
    let bad: Vec<_> = files
        .iter()
        .filter(|f| f.components().any(|c| c.as_os_str() == "src"))
        .filter(|f| {
            f.file_stem()
                .is_some_and(|stem| empty.iter().any(|e| stem == *e))
        })
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn providers_read_records_through_the_view_which_asks_who_may_see_them() {
    let mut files = Vec::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    sources(&src.join("provider"), &mut files);
    files.push(src.join("association.rs"));
    assert!(files.len() > 20, "{} files", files.len());
    let reads = ["all", "get", "past_job", "history", "newest_history"];
    let jobs = ["vmms.jobs()", "vmms.job("];
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a source");
        let code: String = text.split_whitespace().collect();
        let direct = reads.map(|read| format!("vmms.db.{read}"));
        if direct.iter().any(|d| code.contains(d)) || jobs.iter().any(|j| code.contains(j)) {
            found.push(file);
        }
    }
    assert!(found.is_empty(), "{found:?}");
}
