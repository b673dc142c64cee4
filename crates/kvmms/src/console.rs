//! The first serial port of a machine: attached to the terminal, or its log.
//!
//! Both are files of the service's host, so this works only there.

use std::io::{self, IsTerminal as _, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use msvm::class;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::find::Machine;
use crate::inspect::{some_text, text};
use crate::session::{Session, quoted};
use crate::visible::Visible;

/// Ctrl-]
const LEAVE: u8 = 0x1d;

fn local(session: &Session) -> Result<PathBuf> {
    let socket = session.local_socket().ok_or_else(|| {
        Error::usage(
            "the console is a file of the service's host: run kvmms there, over its socket",
        )
    })?;
    Ok(socket.parent().map_or_else(PathBuf::new, PathBuf::from))
}

fn guid(machine: &Machine) -> Result<Uuid> {
    Uuid::parse_str(machine.id.trim_matches(['{', '}'])).map_err(|_| {
        Error::Answer(
            "the list of machines".to_owned(),
            "an id is no GUID".to_owned(),
        )
    })
}

/// Where the port's socket is: where the user put it, else in the machine's part of the run directory.
async fn socket(session: &Session, machine: &Machine) -> Result<PathBuf> {
    let run = local(session)?;
    let wql = format!(
        "SELECT * FROM {} WHERE InstanceID LIKE {}",
        class::MSVM_SERIAL_PORT_SETTING_DATA,
        quoted(&format!("Microsoft:{}%", machine.id))
    );
    let ports = session.client.query(&wql).await?;
    let first = ports.iter().find(|p| text(p, "ElementName").ends_with('1'));
    if let Some(path) = first.and_then(|p| some_text(p, "Connection")) {
        return Ok(path.into());
    }
    let name: String = guid(machine)?
        .simple()
        .to_string()
        .chars()
        .take(16)
        .collect();
    Ok(run.join(name).join("com1.sock"))
}

/// The terminal without echo and line editing, until dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn new() -> Result<Self> {
        let input = io::stdin();
        if !input.is_terminal() {
            return Ok(Raw(None));
        }
        let failed = |e: rustix::io::Errno| Error::io("change", "the terminal", e.into());
        let before = tcgetattr(&input).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&input, OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Raw(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The terminal may have gone; then there is nothing to put right.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Connects the terminal to the port until Ctrl-], the end of the machine, or the end of a piped input.
pub(crate) async fn attach(session: &Session, machine: &Machine) -> Result<()> {
    let path = socket(session, machine).await?;
    let stream = UnixStream::connect(&path).await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::usage(format!(
            "{} has no console now: is it running? (kvmms vm start {}; what it said is in kvmms vm console {} --log)",
            machine.name, machine.name, machine.name
        )),
        _ => Error::file("connect to", &path, source),
    })?;
    let terminal = io::stdin().is_terminal();
    if terminal {
        session
            .output
            .remark(&format!("Console of {}; Ctrl-] leaves it.", machine.name));
    }
    let raw = Raw::new()?;
    let (mut from, mut to) = stream.into_split();
    let broken = |source| Error::io("use", "the console", source);
    let reading = async {
        let mut buffer = [0u8; 4096];
        loop {
            match from.read(&mut buffer).await.map_err(broken)? {
                0 => return Ok("The machine has closed its console."),
                n => session.output.raw(buffer.get(..n).unwrap_or_default())?,
            }
        }
    };
    let mut keys = keys();
    let writing = async {
        loop {
            let typed = keys.recv().await.unwrap_or_default();
            let n = typed.len();
            let leave = typed.iter().position(|b| terminal && *b == LEAVE);
            let sent = typed.get(..leave.unwrap_or(n)).unwrap_or_default();
            to.write_all(sent).await.map_err(broken)?;
            if leave.is_some() {
                return Ok("");
            }
            if n == 0 {
                // A piped input has ended: what the guest says still counts.
                std::future::pending::<()>().await;
            }
        }
    };
    let ended: Result<&str> = tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    };
    drop(raw);
    let words = ended?;
    if terminal {
        session.output.remark(&format!("\n{words}"));
    }
    Ok(())
}

/// What is typed, as it comes; the channel closes at the end of the input. Reading a terminal blocks, and
/// nothing can wake it but a key: the thread ends with the process.
fn keys() -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0u8; 1024];
        while let Ok(n @ 1..) = io::stdin().read(&mut buffer) {
            let typed = buffer.get(..n).unwrap_or_default().to_vec();
            if send.blocking_send(typed).is_err() {
                return;
            }
        }
    });
    receive
}

/// The last lines of a text.
fn tail(text: &[u8], lines: usize) -> &[u8] {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut newlines = body.iter().enumerate().rev().filter(|(_, b)| **b == b'\n');
    match (lines, lines.checked_sub(1).and_then(|n| newlines.nth(n))) {
        (0, _) => &[],
        (_, Some((at, _))) => text.get(at + 1..).unwrap_or_default(),
        (_, None) => text,
    }
}

/// Prints what the port has said.
pub(crate) async fn log(
    session: &Session,
    machine: &Machine,
    lines: Option<usize>,
    follow: bool,
) -> Result<()> {
    local(session)?;
    let settings = session.client.get(&machine.settings_path()).await?;
    let path = PathBuf::from(text(&settings, "ConfigurationDataRoot")).join("console.log");
    let mut file = match std::fs::File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::usage(format!(
                "{} has said nothing yet: it has no console log",
                machine.name
            )));
        }
        other => other.map_err(|e| Error::file("read", &path, e))?,
    };
    let failed = |e| Error::file("read", &path, e);
    // A log that became long was cut; its end lies beside it.
    let mut said = std::fs::read(path.with_extension("log.1")).unwrap_or_default();
    file.read_to_end(&mut said).map_err(failed)?;
    let shown = lines.map_or(said.as_slice(), |n| tail(&said, n));
    // A terminal obeys what a guest writes: it is shown, not done.
    let mut visible = Visible::default();
    session.output.raw(visible.text(shown).as_bytes())?;
    if !follow {
        return Ok(());
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let length = file.metadata().map_err(failed)?.len();
        if length < file.stream_position().map_err(failed)? {
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
        }
        said.clear();
        file.read_to_end(&mut said).map_err(failed)?;
        session.output.raw(visible.text(&said).as_bytes())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_whole_lines() {
        let text = b"one\ntwo\nthree\n";
        assert_eq!(tail(text, 1), b"three\n");
        assert_eq!(tail(text, 2), b"two\nthree\n");
        assert_eq!(tail(text, 9), text);
        assert_eq!(tail(text, 0), b"");
        assert_eq!(tail(b"a\nunfinished", 1), b"unfinished");
        assert_eq!(tail(b"", 3), b"");
    }
}
