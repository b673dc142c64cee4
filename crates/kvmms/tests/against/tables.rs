//! What is printed.

use crate::scripted::{Answer, Call, Host, VM, World, vm};

fn quiet() -> Host {
    Host::new(vm(), |_: &World, _: &Call| -> Answer { (0, Vec::new()) })
}

#[test]
fn machines_are_listed_and_the_host_is_none_of_them() {
    let ran = quiet().run(&["vm", "list"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        ran.out,
        format!(
            "NAME  STATE    CPUS  MEMORY   UPTIME  ID\n\
             web   running  2     512 MiB  1m01s   {VM}\n"
        )
    );
}

#[test]
fn programs_get_bytes_and_milliseconds() {
    let ran = quiet().run(&["vm", "list", "-o", "json"]);
    let web = &ran.json()[0];
    assert_eq!(web["memory"], 512 << 20);
    assert_eq!(web["uptimeMs"], 61_000);
    assert_eq!(web["id"], VM);
}

#[test]
fn an_empty_list_is_said_to_people_and_is_an_array_to_programs() {
    let host = Host::new([], |_: &World, _: &Call| -> Answer { (0, Vec::new()) });
    assert!(host.run(&["vm", "list"]).out.starts_with("No machines"));
    assert_eq!(host.run(&["vm", "list", "-o", "json"]).out, "[]\n");
}

#[test]
fn a_query_prints_what_was_selected() {
    let query = "SELECT ElementName, EnabledState FROM Msvm_ComputerSystem WHERE EnabledState = 2";
    let ran = quiet().run(&["cim", "query", query]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out, "ELEMENTNAME  ENABLEDSTATE\nweb          2\n");
    let ran = quiet().run(&["cim", "query", query, "-o", "json"]);
    assert_eq!(ran.json()[0]["EnabledState"], 2);
}

#[test]
fn without_a_service_the_way_to_one_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let ran = crate::scripted::run(&dir.path().join("none.sock"), &["vm", "list"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("cannot connect"), "{ran:?}");
    assert!(ran.err.contains("Is the service running?"), "{ran:?}");
}

#[test]
fn completions_and_manual_pages_need_no_service() {
    let dir = tempfile::tempdir().expect("a directory");
    let none = dir.path().join("none.sock");
    let ran = crate::scripted::run(&none, &["completions", "bash"]);
    assert_eq!(ran.code, 0);
    assert!(
        ran.out.contains("remove-data"),
        "completions know the verbs"
    );
    let ran = crate::scripted::run(&none, &["man"]);
    assert!(ran.out.contains(".TH kvmms 1"));
    let pages = dir.path().join("man1");
    let to = pages.to_str().expect("a path");
    assert_eq!(crate::scripted::run(&none, &["man", "--to", to]).code, 0);
    assert!(pages.join("kvmms-point-export.1").exists());
}

#[test]
fn a_reader_who_leaves_is_no_error() {
    let host = quiet();
    let mut child =
        crate::scripted::command(&host.socket(), &["cim", "list", "Msvm_ComputerSystem"])
            .spawn()
            .expect("a process");
    drop(child.stdout.take());
    let status = child.wait().expect("an end");
    assert!(status.success());
}
