//! The monitor client: one task reads, one writes, callers wait for the reply with their id.
//!
//! Concurrency: any number of tasks may execute commands; QEMU answers them in order. Dropping the last handle
//! closes the connection. A reply whose caller gave up is dropped.

use std::collections::HashMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::codec::{Fault, LineDecoder, Message, QmpEvent, Version, decode};
use crate::error::{Error, Result};

/// Deadline of a command unless told otherwise. Draining slow storage can take long.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// How long to wait where QEMU's socket is full.
const FULL: Duration = Duration::from_millis(1);

/// Events kept for a slow reader.
const EVENT_BACKLOG: usize = 1024;

/// A command on its way.
#[derive(Debug)]
struct Line {
    bytes: Vec<u8>,
    /// Goes along with the first byte.
    descriptor: Option<OwnedFd>,
}

type Answer = std::result::Result<Value, Fault>;

/// A connection to one QEMU's monitor. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Qmp {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    lines: mpsc::Sender<Line>,
    shared: Arc<Shared>,
    next_id: AtomicU64,
    version: Version,
    oob: bool,
    /// A command with a descriptor is answered before the next one goes: QEMU keeps only the descriptor that came last.
    descriptors: tokio::sync::Mutex<()>,
    tasks: [tokio::task::AbortHandle; 2],
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    events: broadcast::Sender<QmpEvent>,
    closed: watch::Sender<Option<String>>,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    callers: HashMap<u64, oneshot::Sender<Answer>>,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // A panic while the map was held leaves a usable map.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, why: String) {
        let callers = {
            let mut waiting = self.waiting();
            waiting.closed = true;
            std::mem::take(&mut waiting.callers)
        };
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            if first {
                *closed = Some(why);
            }
            first
        });
        drop(callers);
    }
}

impl Qmp {
    /// Connects to the monitor socket and negotiates.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no socket, [`Error::Timeout`] where nobody greets (another client holds it).
    pub async fn connect(socket_path: &Path, within: Duration) -> Result<Self> {
        let connecting = async {
            let stream = UnixStream::connect(socket_path)
                .await
                .map_err(|source| Error::io("connect to", socket_path, source))?;
            let socket = stream.as_fd().try_clone_to_owned();
            let socket = socket.map_err(|source| Error::io("connect to", socket_path, source))?;
            let (reader, writer) = stream.into_split();
            Self::over(reader, writer, Some(socket)).await
        };
        match tokio::time::timeout(within, connecting).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout {
                command: "monitor greeting".into(),
                after: within,
            }),
        }
    }

    /// Negotiates over any byte stream.
    ///
    /// # Errors
    /// [`Error::Protocol`] where the peer is not QEMU.
    pub async fn negotiate<R, W>(reader: R, writer: W) -> Result<Self>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        Self::over(reader, writer, None).await
    }

    /// `socket` is what the writer writes to, where descriptors can go along.
    async fn over<R, W>(mut reader: R, writer: W, socket: Option<OwnedFd>) -> Result<Self>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let mut decoder = LineDecoder::default();
        let (version, oob) = loop {
            match next_message(&mut reader, &mut decoder).await {
                Ok(Message::Greeting { version, oob }) => break (version, oob),
                Ok(_) => {}
                Err(detail) => {
                    return Err(Error::Protocol {
                        peer: "QMP",
                        detail,
                    });
                }
            }
        };
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            events: broadcast::Sender::new(EVENT_BACKLOG),
            closed: watch::Sender::new(None),
        });
        let (lines, queue) = mpsc::channel(64);
        let reading = tokio::spawn(read_all(reader, decoder, Arc::clone(&shared)));
        let writing = tokio::spawn(write_all(writer, socket, queue, Arc::clone(&shared)));
        let tasks = [reading.abort_handle(), writing.abort_handle()];
        let next_id = AtomicU64::new(1);
        let qmp = Self {
            inner: Arc::new(Inner {
                lines,
                shared,
                next_id,
                version,
                oob,
                descriptors: tokio::sync::Mutex::new(()),
                tasks,
            }),
        };
        // Can be asked for here only, and is the one way to a monitor that hangs.
        let enable = match oob {
            true => json!({ "enable": ["oob"] }),
            false => Value::Null,
        };
        qmp.execute("qmp_capabilities", enable).await?;
        Ok(qmp)
    }

    /// QEMU's version, from its greeting.
    #[must_use]
    pub fn version(&self) -> Version {
        self.inner.version
    }

    /// Events from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<QmpEvent> {
        self.inner.shared.events.subscribe()
    }

    /// Tells when and why the connection is closed, without keeping it open.
    #[must_use]
    pub fn closing(&self) -> watch::Receiver<Option<String>> {
        self.inner.shared.closed.subscribe()
    }

    /// Waits until the connection is closed, and says why.
    pub async fn closed(&self) -> String {
        let mut receiver = self.inner.shared.closed.subscribe();
        match receiver.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "the client was dropped".to_owned(),
        }
    }

    /// Executes a command with the usual deadline. `arguments` is an object, or null for none.
    ///
    /// # Errors
    /// [`Error::Qmp`], [`Error::Timeout`], [`Error::ProcessGone`].
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_within(command, arguments, COMMAND_DEADLINE)
            .await
    }

    /// Executes a command with its own deadline.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn execute_within(
        &self,
        command: &str,
        arguments: Value,
        within: Duration,
    ) -> Result<Value> {
        self.exchange("execute", command, arguments, None, within)
            .await
    }

    /// Executes a command out of band: at once, even while another one hangs. QEMU takes few commands so.
    ///
    /// # Errors
    /// As [`Qmp::execute`]; [`Error::Unsupported`] where QEMU did not offer it.
    pub async fn execute_out_of_band(
        &self,
        command: &str,
        arguments: Value,
        within: Duration,
    ) -> Result<Value> {
        if !self.inner.oob {
            return Err(Error::Unsupported {
                what: "commands out of band: QEMU's monitor did not offer them".into(),
                remedy: "end the process that does not answer".into(),
            });
        }
        self.exchange("exec-oob", command, arguments, None, within)
            .await
    }

    /// Executes a command that takes a descriptor along: `add-fd` or `getfd`.
    ///
    /// # Errors
    /// As [`Qmp::execute`]; [`Error::ProcessGone`] also where the monitor is not a socket.
    pub async fn execute_with(
        &self,
        command: &str,
        arguments: Value,
        descriptor: OwnedFd,
    ) -> Result<Value> {
        let _one = self.inner.descriptors.lock().await;
        self.exchange(
            "execute",
            command,
            arguments,
            Some(descriptor),
            COMMAND_DEADLINE,
        )
        .await
    }

    async fn exchange(
        &self,
        how: &str,
        command: &str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
        within: Duration,
    ) -> Result<Value> {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let mut request = json!({ how: command, "id": id });
        if let (Some(members), false) = (request.as_object_mut(), arguments.is_null()) {
            members.insert("arguments".to_owned(), arguments);
        }
        let mut bytes = request.to_string().into_bytes();
        bytes.push(b'\n');
        let line = Line { bytes, descriptor };

        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.inner.shared.waiting();
            if waiting.closed {
                return Err(gone());
            }
            waiting.callers.insert(id, sender);
        }
        let _forget = Forget {
            shared: &self.inner.shared,
            id,
        };
        tracing::trace!(command, id, "qmp command");
        let exchange = async {
            self.inner.lines.send(line).await.map_err(|_| gone())?;
            receiver.await.map_err(|_| gone())
        };
        match tokio::time::timeout(within, exchange).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(fault))) => Err(Error::Qmp {
                command: command.to_owned(),
                class: fault.class,
                desc: fault.desc,
            }),
            Ok(Err(gone)) => Err(gone),
            Err(_) => Err(Error::Timeout {
                command: command.to_owned(),
                after: within,
            }),
        }
    }
}

/// Takes the caller off the list however its wait ends.
struct Forget<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.waiting().callers.remove(&self.id);
    }
}

fn gone() -> Error {
    Error::ProcessGone {
        log_tail: String::new(),
    }
}

async fn next_message<R: AsyncRead + Unpin>(
    reader: &mut R,
    decoder: &mut LineDecoder,
) -> std::result::Result<Message, String> {
    let mut chunk = vec![0_u8; 64 * 1024];
    loop {
        while let Some(line) = decoder.next_line().map_err(|error| error.to_string())? {
            if !line.iter().all(u8::is_ascii_whitespace) {
                return decode(&line);
            }
        }
        let count = reader
            .read(&mut chunk)
            .await
            .map_err(|error| error.to_string())?;
        if count == 0 {
            return Err("the connection was closed".to_owned());
        }
        decoder.feed(chunk.get(..count).unwrap_or_default());
    }
}

async fn read_all<R: AsyncRead + Unpin>(
    mut reader: R,
    mut decoder: LineDecoder,
    shared: Arc<Shared>,
) {
    loop {
        match next_message(&mut reader, &mut decoder).await {
            Ok(Message::Reply {
                id: Some(id),
                result,
            }) => {
                let caller = shared.waiting().callers.remove(&id);
                if let Some(caller) = caller {
                    // A caller that gave up meanwhile is no fault.
                    let _ = caller.send(result);
                }
            }
            Ok(Message::Event(event)) => {
                tracing::debug!(event = %event.name, "qmp event");
                let _ = shared.events.send(event);
            }
            Ok(Message::Reply { id: None, result }) => {
                tracing::warn!(?result, "QEMU answered without an id");
            }
            Ok(Message::Greeting { .. } | Message::Unknown) => {}
            Err(why) => {
                shared.close(why);
                return;
            }
        }
    }
}

/// Sends the beginning of a line with a descriptor; how much of it went.
async fn send_with(
    socket: Option<&OwnedFd>,
    bytes: &[u8],
    descriptor: &OwnedFd,
) -> std::io::Result<usize> {
    let Some(socket) = socket else {
        return Err(std::io::Error::other(
            "descriptors travel over sockets only",
        ));
    };
    loop {
        let sent = {
            let rights = [descriptor.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&rights));
            let parts = [IoSlice::new(bytes)];
            rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL)
        };
        match sent {
            Ok(sent) => return Ok(sent),
            // QEMU is slow to read; nobody else writes meanwhile.
            Err(Errno::AGAIN | Errno::INTR) => tokio::time::sleep(FULL).await,
            Err(error) => return Err(error.into()),
        }
    }
}

async fn write_all<W: AsyncWrite + Unpin>(
    mut writer: W,
    socket: Option<OwnedFd>,
    mut queue: mpsc::Receiver<Line>,
    shared: Arc<Shared>,
) {
    while let Some(Line { bytes, descriptor }) = queue.recv().await {
        let written = async {
            let sent = match descriptor {
                Some(descriptor) => send_with(socket.as_ref(), &bytes, &descriptor).await?,
                None => 0,
            };
            writer
                .write_all(bytes.get(sent..).unwrap_or_default())
                .await?;
            writer.flush().await
        };
        if let Err(error) = written.await {
            shared.close(error.to_string());
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream, split};

    use super::*;

    const GREETING: &[u8] =
        b"{\"QMP\":{\"version\":{\"qemu\":{\"micro\":1,\"minor\":2,\"major\":9}}}}\n";

    /// Plays QEMU: greets, then answers each command with what `answer` makes of it.
    async fn play<F>(stream: DuplexStream, mut answer: F)
    where
        F: FnMut(&str, u64) -> String,
    {
        let (reader, mut writer) = split(stream);
        writer.write_all(GREETING).await.unwrap();
        let mut lines = BufReader::new(reader).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let request: Value = serde_json::from_str(&line).unwrap();
            let command = request["execute"].as_str().unwrap().to_owned();
            let id = request["id"].as_u64().unwrap();
            let reply = match command.as_str() {
                "qmp_capabilities" => format!("{{\"return\":{{}},\"id\":{id}}}\n"),
                _ => answer(&command, id),
            };
            if reply == "hang up" {
                return;
            }
            if writer.write_all(reply.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    async fn client<F>(answer: F) -> Qmp
    where
        F: FnMut(&str, u64) -> String + Send + 'static,
    {
        let (ours, theirs) = tokio::io::duplex(4096);
        tokio::spawn(play(theirs, answer));
        let (reader, writer) = split(ours);
        Qmp::negotiate(reader, writer).await.unwrap()
    }

    #[tokio::test]
    async fn the_greeting_tells_the_version() {
        let qmp = client(|_, _| String::new()).await;
        assert_eq!(
            qmp.version(),
            Version {
                major: 9,
                minor: 2,
                micro: 1
            }
        );
    }

    #[tokio::test]
    async fn an_error_keeps_class_and_text() {
        let qmp = client(|_, id| {
            format!(
                "{{\"error\":{{\"class\":\"DeviceNotFound\",\"desc\":\"no d0\"}},\"id\":{id}}}\n"
            )
        })
        .await;
        let error = qmp
            .execute("blockdev-del", json!({ "node-name": "d0" }))
            .await
            .unwrap_err();
        let Error::Qmp {
            command,
            class,
            desc,
        } = error
        else {
            panic!("{error}")
        };
        assert_eq!(
            (command.as_str(), class.as_str(), desc.as_str()),
            ("blockdev-del", "DeviceNotFound", "no d0")
        );
    }

    #[tokio::test]
    async fn events_between_replies_reach_their_readers() {
        let qmp = client(|_, id| {
            format!(
                "{{\"event\":\"ODD_NEWS\",\"timestamp\":{{\"seconds\":1,\"microseconds\":2}}}}\n{{\"unheard-of\":1}}\n{{\"return\":{id},\"id\":{id}}}\n"
            )
        })
        .await;
        let mut events = qmp.events();
        let answer = qmp.execute("query-x", Value::Null).await.unwrap();
        assert!(answer.is_u64());
        assert_eq!(events.recv().await.unwrap().name, "ODD_NEWS");
    }

    #[tokio::test]
    async fn a_lost_connection_fails_those_who_wait_and_those_who_come() {
        let qmp = client(|_, _| "hang up".to_owned()).await;
        assert!(matches!(
            qmp.execute("stop", Value::Null).await,
            Err(Error::ProcessGone { .. })
        ));
        qmp.closed().await;
        assert!(matches!(
            qmp.execute("cont", Value::Null).await,
            Err(Error::ProcessGone { .. })
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_command_times_out_and_a_later_one_still_works() {
        let mut calls = 0;
        let qmp = client(move |_, id| {
            calls += 1;
            if calls == 1 {
                String::new()
            } else {
                format!("{{\"return\":{{}},\"id\":{id}}}\n")
            }
        })
        .await;
        let error = qmp.execute("stop", Value::Null).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        qmp.execute("cont", Value::Null).await.unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_is_not_qemu_is_refused() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        theirs
            .write_all(b"220 mail.example ESMTP\r\n")
            .await
            .unwrap();
        let (reader, writer) = split(ours);
        let error = Qmp::negotiate(reader, writer).await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
    }
}
