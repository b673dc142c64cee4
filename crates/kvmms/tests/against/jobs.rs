//! Jobs: followed, left, failed, cancelled, lost and found.

use std::io::{BufRead as _, BufReader};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::scripted::{
    Answer, Call, Host, JOB, VM, World, command, errors, job, losing, run, started, vm,
};

/// A state change whose job ends in that state when it is first asked for.
fn ending_in(state: u16) -> Host {
    Host::new(vm(), move |world: &World, call: &Call| -> Answer {
        match call.method.as_str() {
            "RequestStateChange" => {
                world.add(job(state));
                world.change(VM, |i| {
                    i.set("EnabledState", 3u16);
                });
                started()
            }
            "GetErrorEx" if state == 10 => (
                0,
                vec![(
                    "Errors",
                    errors(&[("KVMMS-0001", "It broke."), ("KVMMS-0002", "The disk did.")]),
                )],
            ),
            _ => (0, Vec::new()),
        }
    })
}

#[test]
fn a_job_that_completes_is_success() {
    let host = ending_in(7);
    let ran = host.run(&["vm", "stop", "web"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out, "web is switched off\n");
    assert_eq!(ran.err, "");
    let ran = ending_in(7).run(&["vm", "stop", "web", "-o", "json"]);
    assert_eq!(ran.json()["state"], "off");
}

#[test]
fn a_job_that_fails_tells_every_cause_and_remedy() {
    let ran = ending_in(10).run(&["vm", "stop", "web"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
    assert_eq!(
        ran.err,
        format!(
            "error: Doing something: failed\n  because: It broke. [KVMMS-0001]\n    \
             because: The disk did. [KVMMS-0002]\nwhat to do:\n  - Mend KVMMS-0001.\n  \
             - Mend KVMMS-0002.\njob: {JOB}\nmore: kvmms error explain KVMMS-0001\n"
        )
    );
}

#[test]
fn programs_get_the_failure_as_json_on_standard_error() {
    let ran = ending_in(10).run(&["vm", "stop", "web", "--output", "json"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
    let error: serde_json::Value = serde_json::from_str(&ran.err).expect("json");
    assert_eq!(error["error"]["kind"], "job");
    assert_eq!(error["error"]["chain"][1]["message"], "The disk did.");
}

#[test]
fn without_waiting_the_job_is_printed_at_once() {
    let host = ending_in(4);
    let ran = host.run(&["vm", "stop", "web", "--no-wait"]);
    assert_eq!((ran.code, ran.out), (0, format!("{JOB}\n")));
    let ran = host.run(&["vm", "stop", "web", "--no-wait", "-o", "json"]);
    assert_eq!(ran.json()["job"], JOB);
}

#[test]
fn ctrl_c_leaves_the_job_running_and_says_how_to_stop_it() {
    let host = ending_in(4);
    let mut child = command(&host.socket(), &["vm", "stop", "web"])
        .spawn()
        .expect("a process");
    // Whoever asks for the job a second time is following it, and listens for the key.
    while host.world.gets.load(Ordering::SeqCst) < 2 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a signal");
    let status = child.wait().expect("an end");
    assert_eq!(status.code(), Some(130));
    let lines: Vec<_> = BufReader::new(child.stderr.take().expect("a pipe"))
        .lines()
        .map(|l| l.expect("a line"))
        .collect();
    assert!(
        lines[0].contains(&format!("job {JOB} goes on")),
        "{lines:?}"
    );
    assert!(
        lines.iter().any(|l| l.contains("kvmms job cancel")),
        "{lines:?}"
    );
    assert_eq!(host.world.methods(), ["RequestStateChange"]);
}

#[test]
fn a_lost_answer_is_asked_for_again_with_the_same_key() {
    let host = ending_in(7);
    let front = losing(&host, "RequestStateChange_INPUT");
    let ran = run(&front, &["vm", "stop", "web"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let calls = host.world.calls_of("RequestStateChange");
    assert_eq!(calls.len(), 2);
    assert!(calls[0].key.is_some());
    assert_eq!(calls[0].key, calls[1].key);
}

#[test]
fn what_has_no_job_is_not_sent_twice() {
    let host = Host::new(vm(), |_: &World, _: &Call| -> Answer { (0, Vec::new()) });
    let front = losing(&host, "DefineSystem_INPUT");
    let ran = run(&front, &["vm", "create", "new"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("not known"), "{ran:?}");
    assert_eq!(host.world.methods(), ["DefineSystem"]);
}

#[test]
fn following_a_job_survives_a_break_of_the_connection() {
    let host = ending_in(7);
    let front = losing(&host, "Name=\"InstanceID\"");
    let ran = run(&front, &["vm", "stop", "web"]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "web is switched off\n"),
        "{ran:?}"
    );
    assert_eq!(host.world.calls_of("RequestStateChange").len(), 1);
}

#[test]
fn a_cancelled_job_is_what_cancel_was_for() {
    let host = Host::new([job(4)], |world: &World, _: &Call| -> Answer {
        world.change(JOB, |i| {
            i.set("JobState", 8u16);
        });
        (0, Vec::new())
    });
    let ran = host.run(&["job", "cancel", JOB]);
    let ran_short = host.run(&["job", "cancel", "9999"]);
    assert_eq!(
        ran_short.code, 1,
        "its beginning cancels nothing: {ran_short:?}"
    );
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "Doing something: cancelled\n"),
        "{ran:?}"
    );
    let asked = host.world.calls_of("RequestStateChange");
    assert_eq!(
        asked[0].get("RequestedState").to_text().as_deref(),
        Some("4")
    );
}

#[test]
fn watching_a_failed_job_fails_and_showing_it_does_not() {
    let host = Host::new([job(10)], |_: &World, _: &Call| -> Answer {
        (0, vec![("Errors", errors(&[("KVMMS-0001", "It broke.")]))])
    });
    assert_eq!(host.run(&["job", "watch", JOB]).code, 1);
    let ran = host.run(&["job", "show", JOB]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("It broke. [KVMMS-0001]"), "{ran:?}");
    let ran = host.run(&["job", "errors", JOB]);
    assert!(ran.out.contains("- Mend KVMMS-0001."), "{ran:?}");
}

#[test]
fn a_job_that_has_gone_is_found_in_the_history() {
    let record = cim::Instance::new("Kvmms_JobRecord")
        .with("InstanceID", JOB)
        .with("ElementName", "Doing something")
        .with("JobState", 10u16)
        .with("ErrorText", vec!["It broke. [KVMMS-0001]".to_owned()])
        .with("RecommendedActions", vec!["Mend it.".to_owned()]);
    let host = Host::new([record], |_: &World, _: &Call| -> Answer {
        (0, Vec::new())
    });
    let ran = host.run(&["job", "errors", JOB]);
    assert_eq!(
        ran.out,
        "Doing something: failed\n  because: It broke. [KVMMS-0001]\nwhat to do:\n  - Mend it.\n",
        "{ran:?}"
    );
    let ran = host.run(&["job", "watch", "999999"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("KVMMS-0001"), "{ran:?}");
    assert!(host.run(&["job", "list"]).out.starts_with("No jobs"));
    assert!(host.run(&["job", "list", "--all"]).out.contains(JOB));
}
