//! Watching a machine that boots, until it shows life.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, SystemTime};

use hypervisor::{ErrorKind, Machine, MachineEvent, console};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::time::Instant;

use super::evidence::{console_text, last_lines, says_something};
use super::{BootEvidence, Sign, SignKind, Wanted, millis};
use crate::job::JobContext;
use crate::{Result, fault};

/// How often is looked.
const TURN: Duration = Duration::from_millis(200);
/// How long the agent may take to one question.
const QUESTION: Duration = Duration::from_secs(2);
/// How long a console's log may grow, and how much of it is read at a time, in bytes.
const BOUND: u64 = 16 << 20;
/// Lines of the console in an error.
const LINES: usize = 12;

/// A machine being watched.
pub(super) struct Watch<'a> {
    machine: &'a dyn Machine,
    events: Receiver<MachineEvent>,
    log: &'a Path,
    /// How far the console has been read.
    read: u64,
    /// What was read last and may begin the text.
    held: Vec<u8>,
    wanted: &'a Wanted,
    evidence: &'a mut BootEvidence,
    began: SystemTime,
    deadline: Instant,
    channel: bool,
    crashed: bool,
}

impl<'a> Watch<'a> {
    /// To be made before the guest runs.
    pub(super) fn new(
        machine: &'a dyn Machine,
        log: &'a Path,
        wanted: &'a Wanted,
        evidence: &'a mut BootEvidence,
    ) -> Self {
        Watch {
            events: machine.events(),
            machine,
            log,
            read: 0,
            held: Vec::new(),
            wanted,
            evidence,
            began: SystemTime::now(),
            deadline: Instant::now() + Duration::from_secs(wanted.seconds),
            channel: true,
            crashed: false,
        }
    }

    /// Watches until what is wanted was seen. The failure tells what was missing.
    pub(super) async fn until_alive(&mut self, ctx: &JobContext) -> Result<()> {
        loop {
            self.look().await;
            if self.enough() {
                return Ok(());
            }
            let ended = tokio::select! {
                stop = ctx.stop_asked() => return Err(stop),
                _ = self.machine.exited() => true,
                () = tokio::time::sleep(TURN) => false,
            };
            if ended {
                self.look().await;
                let why = "it switched itself off";
                return if self.enough() {
                    Ok(())
                } else {
                    Err(self.missing(why))
                };
            }
            if self.crashed {
                return Err(self.missing("its guest reported a crash"));
            }
            if Instant::now() >= self.deadline {
                return self.at_the_end();
            }
        }
    }

    async fn look(&mut self) {
        loop {
            match self.events.try_recv() {
                Ok(MachineEvent::Reset { guest: true }) => self.evidence.restarts += 1,
                Ok(MachineEvent::GuestCrashed) => self.crashed = true,
                Ok(_) | Err(TryRecvError::Lagged(_)) => {}
                Err(_) => break,
            }
        }
        self.read_console();
        if !self.channel
            || self.evidence.has(SignKind::Agent)
            || (!self.wanted.agent && self.wanted.text.is_some())
        {
            return;
        }
        match self.machine.guest_ping(QUESTION).await {
            Ok(()) => {
                self.sign(SignKind::Agent);
                // What an agent does not tell stays unknown; that it answered is the sign.
                self.evidence.agent = self.machine.guest_info(QUESTION).await.ok();
            }
            Err(error) => self.channel = error.kind() != ErrorKind::Unsupported,
        }
    }

    fn sign(&mut self, kind: SignKind) {
        if !self.evidence.has(kind) {
            let after_ms = millis(self.began);
            self.evidence.signs.push(Sign { kind, after_ms });
        }
    }

    /// Reads what came since the last look.
    fn read_console(&mut self) {
        let fresh = match read_from(self.log, self.read) {
            Ok(fresh) => fresh,
            // There is no file before the process has made it.
            Err(_) => return,
        };
        self.read += fresh.len() as u64;
        if says_something(&fresh) {
            self.sign(SignKind::Console);
        }
        // A guest that writes without end fills no disk.
        if matches!(console::bound(self.log, BOUND), Ok(true)) {
            self.read = 0;
        }
        let Some(text) = &self.wanted.text else {
            return;
        };
        self.held.extend_from_slice(&fresh);
        if self.held.windows(text.len()).any(|w| w == text.as_bytes()) {
            self.sign(SignKind::Text);
        }
        let keep = self.held.len().saturating_sub(text.len());
        self.held.drain(..keep);
    }

    /// Whether the wait is over because all that is wanted is there.
    fn enough(&self) -> bool {
        let agent = self.evidence.has(SignKind::Agent);
        match (&self.wanted.text, self.wanted.agent) {
            (Some(_), wanted) => self.evidence.has(SignKind::Text) && (agent || !wanted),
            (None, _) => agent,
        }
    }

    fn at_the_end(&mut self) -> Result<()> {
        if let Some(text) = &self.wanted.text
            && !self.evidence.has(SignKind::Text)
        {
            let why = format!("{text:?} did not appear on its console");
            return Err(self.missing(&why));
        }
        if self.wanted.agent {
            return Err(self.missing("its agent did not answer"));
        }
        if !self.evidence.has(SignKind::Console) {
            return Err(
                self.missing("its agent did not answer, and nothing appeared on its console")
            );
        }
        // A guest that starts over and over writes to its console too.
        if self.evidence.restarts > 0 {
            let why = format!("it restarted itself {} times", self.evidence.restarts);
            return Err(self.missing(&why));
        }
        Ok(())
    }

    fn missing(&mut self, why: &str) -> crate::Fault {
        self.note_console();
        let evidence = &self.evidence;
        let failed = fault!(NoSignOfLife, evidence.directory, self.wanted.seconds, why);
        let lines = last_lines(&evidence.console, LINES);
        if lines.is_empty() {
            return failed;
        }
        failed.caused_by(fault!(
            Driver,
            format!("the last lines on its console:\n{lines}")
        ))
    }

    /// Keeps the end of the console.
    pub(super) fn note_console(&mut self) {
        if let Ok(end) = console::end(self.log, super::evidence::CONSOLE as u64) {
            self.evidence.console = console_text(&end);
        }
    }
}

fn read_from(path: &Path, from: u64) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(BOUND).read_to_end(&mut bytes)?;
    Ok(bytes)
}
