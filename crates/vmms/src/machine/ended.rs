//! How a process ended that nobody had told to end: kept with its machine until the next start.

use std::path::Path;
use std::time::SystemTime;

use hypervisor::Exit;
use hypervisor::console::visible;
use hypervisor::host::OutOfMemory;
use serde::{Deserialize, Serialize};

/// How many of the last lines of QEMU's log are kept, and how many characters of each.
const LINES: usize = 8;
const COLUMNS: usize = 240;

/// How a machine's process ended though nobody had asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When it was noticed.
    pub at: SystemTime,
    /// How, in words.
    pub how: String,
    /// Its exit code, where it is known.
    #[serde(default)]
    pub code: Option<i32>,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// The last lines of its log.
    #[serde(default)]
    pub log: Vec<String>,
}

impl Ended {
    /// From how a process ended and what QEMU said of it before. `None`: the guest has switched itself off, as guests do.
    pub(super) fn of(exit: &Exit, said: Option<&str>, memory: OutOfMemory) -> Option<Self> {
        let crashed = exit.signal.is_some() || exit.code.is_some_and(|code| code != 0);
        let how = match said {
            Some("guest-shutdown") if !crashed => return None,
            // A guest that resets while it may not; it never asked for its end.
            Some("guest-panic") => "its guest reported a crash".to_owned(),
            Some("host-signal") if !crashed => "another process told QEMU to end".to_owned(),
            Some("host-qmp-quit") if !crashed => {
                "somebody else told QEMU to quit, by its monitor".to_owned()
            }
            _ => exit_words(exit, memory),
        };
        Some(Self::new(how, exit.code, exit.signal, &exit.log_tail))
    }

    /// Of a process that ended while no service was there to see it.
    pub(super) fn unseen(rebooted: bool, log: &Path) -> Self {
        let how = if rebooted {
            "the host went down, or was restarted, while it ran"
        } else {
            "QEMU ended while the service was not there to see how"
        };
        let log = hypervisor::process::log_tail(log);
        Self::new(how.to_owned(), None, None, &log)
    }

    fn new(how: String, code: Option<i32>, signal: Option<i32>, log: &str) -> Self {
        let shown = visible(log.as_bytes());
        let mut lines: Vec<String> = shown
            .lines()
            .map(str::trim_end)
            .filter(|l| !l.is_empty())
            .map(|l| l.chars().take(COLUMNS).collect())
            .collect();
        lines.drain(..lines.len().saturating_sub(LINES));
        Ended {
            at: SystemTime::now(),
            how,
            code,
            signal,
            log: lines,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let at = jiff::Timestamp::try_from(self.at)
            .map_or_else(|_| "an unknown instant".to_owned(), |t| format!("{t:.0}"));
        let mut text = format!("The machine ended by itself at {at}: {}", self.how);
        if !self.log.is_empty() {
            text.push_str(&format!("; QEMU's last words: {}", self.log.join(" | ")));
        }
        text
    }
}

fn exit_words(exit: &Exit, memory: OutOfMemory) -> String {
    match (exit.signal, exit.code) {
        (Some(9), _) => {
            let why = match memory {
                OutOfMemory::Yes => ": the host ran out of memory, and its kernel chose this process",
                OutOfMemory::No => ": not by the host's kernel for lack of memory, but by another process",
                OutOfMemory::Maybe => ": by another process, or by the host's kernel, which ran out of memory meanwhile",
            };
            format!("QEMU was killed (signal 9){why}")
        }
        (Some(signal), _) => format!("QEMU crashed (signal {signal}{})", signal_name(signal)),
        (None, Some(0)) => "QEMU ended (exit code 0) though its guest had not switched off".to_owned(),
        (None, Some(code)) => format!("QEMU failed (exit code {code})"),
        (None, None) => match memory {
            OutOfMemory::Yes => "QEMU was killed: the host ran out of memory, and its kernel chose this process".to_owned(),
            OutOfMemory::No => "QEMU ended; its exit code is unknown, since another run of the service had started it".to_owned(),
            OutOfMemory::Maybe => "QEMU ended; its exit code is unknown, since another run of the service had started it, and the host's kernel has ended processes for lack of memory meanwhile".to_owned(),
        },
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => ", illegal instruction",
        6 => ", abort",
        7 => ", bus error",
        8 => ", arithmetic error",
        11 => ", segmentation fault",
        15 => ", termination",
        24 => ", processor time limit",
        25 => ", file size limit",
        31 => ", forbidden system call",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: Option<i32>, signal: Option<i32>, log: &str) -> Exit {
        Exit {
            code,
            signal,
            log_tail: log.to_owned(),
        }
    }

    #[test]
    fn a_guest_that_switched_itself_off_leaves_no_note() {
        let off = exit(Some(0), None, "");
        assert_eq!(
            Ended::of(&off, Some("guest-shutdown"), OutOfMemory::No),
            None
        );
        // After a restart of the service the exit code is not known.
        let off = exit(None, None, "");
        assert_eq!(
            Ended::of(&off, Some("guest-shutdown"), OutOfMemory::No),
            None
        );
        let crashed = exit(None, Some(11), "");
        assert!(Ended::of(&crashed, Some("guest-shutdown"), OutOfMemory::No).is_some());
    }

    #[test]
    fn a_kill_says_whether_memory_was_the_reason() {
        let killed = exit(None, Some(9), "");
        let how = |memory| {
            Ended::of(&killed, None, memory)
                .map(|e| e.how)
                .unwrap_or_default()
        };
        assert!(how(OutOfMemory::Yes).contains("ran out of memory, and its kernel chose"));
        assert!(how(OutOfMemory::No).contains("another process"));
        assert!(how(OutOfMemory::Maybe).contains("or by the host's kernel"));
    }

    #[test]
    fn the_last_words_are_bounded_and_harmless() {
        let log = format!("{}\x1b[2Jend\n", "line\n".repeat(100));
        let ended = Ended::of(&exit(Some(1), None, &log), None, OutOfMemory::No).unwrap();
        assert_eq!(ended.log.len(), LINES);
        assert_eq!(ended.log.last().map(String::as_str), Some("\\x1b[2Jend"));
        assert!(ended.text().contains("exit code 1"), "{}", ended.text());
    }
}
