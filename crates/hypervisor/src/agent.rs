//! The guest agent, over its channel's Unix socket.
//!
//! The agent gives no sign of life of its own and may have half an old answer in its pipe, so every conversation
//! starts with `0xFF` and `guest-sync-delimited` with a random number; what comes before the matching answer is
//! dropped. The socket takes one client at a time: one conversation per call, serialised by the owner.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::qmp::codec::{LineDecoder, items, number, text};

/// The channel's name inside the guest.
pub const CHANNEL: &str = "org.qemu.guest_agent.0";

/// An agent's answer is small; more is not from an agent.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// What the agent tells of the guest's operating system. Everything may be missing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestInfo {
    /// `debian`, `mswindows`, …
    pub os_id: Option<String>,
    /// Name for people.
    pub pretty_name: Option<String>,
    /// Version number.
    pub version: Option<String>,
    /// Kernel release.
    pub kernel: Option<String>,
    /// Host name in the guest.
    pub host_name: Option<String>,
    /// The agent's own version.
    pub agent_version: Option<String>,
}

/// One network interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestInterface {
    /// `eth0`.
    pub name: String,
    /// MAC address.
    pub mac: Option<String>,
    /// Addresses with prefix length, `10.0.2.15/24`.
    pub addresses: Vec<String>,
}

/// A guest's agent.
#[derive(Debug)]
pub struct Agent {
    socket: PathBuf,
    turn: Mutex<()>,
}

impl Agent {
    /// The agent behind that socket. Nothing is connected yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            turn: Mutex::new(()),
        }
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// [`Error::AgentAbsent`], [`Error::Io`] where there is no socket.
    pub async fn ping(&self, within: Duration) -> Result<()> {
        self.call("guest-ping", Value::Null, within).await.map(drop)
    }

    /// Freezes file systems; answers how many. If that fails or its answer is late, a thaw has been tried.
    ///
    /// # Errors
    /// [`Error::AgentAbsent`], [`Error::Agent`].
    pub async fn freeze(&self, within: Duration) -> Result<u64> {
        match self
            .call("guest-fsfreeze-freeze", Value::Null, within)
            .await
        {
            Ok(count) => Ok(count.as_u64().unwrap_or(0)),
            Err(error) => {
                // A late freeze would leave the guest frozen for good.
                if let Err(thaw) = self.thaw(within).await {
                    tracing::warn!(error = %thaw, "thaw after a failed freeze");
                }
                Err(error)
            }
        }
    }

    /// Thaws file systems; answers how many.
    ///
    /// # Errors
    /// [`Error::AgentAbsent`], [`Error::Agent`].
    pub async fn thaw(&self, within: Duration) -> Result<u64> {
        let count = self
            .call("guest-fsfreeze-thaw", Value::Null, within)
            .await?;
        Ok(count.as_u64().unwrap_or(0))
    }

    /// Whether file systems are frozen.
    ///
    /// # Errors
    /// [`Error::AgentAbsent`], [`Error::Agent`].
    pub async fn frozen(&self, within: Duration) -> Result<bool> {
        let status = self
            .call("guest-fsfreeze-status", Value::Null, within)
            .await?;
        Ok(status.as_str() == Some("frozen"))
    }

    /// Asks the guest to shut down. The agent does not answer when it succeeds.
    ///
    /// # Errors
    /// [`Error::AgentAbsent`], [`Error::Agent`].
    pub async fn shutdown(&self, within: Duration) -> Result<()> {
        let _turn = self.turn.lock().await;
        let deadline = Instant::now() + within;
        let mut talk = Conversation::open(&self.socket, within, deadline).await?;
        talk.send("guest-shutdown", &json!({ "mode": "powerdown" }))
            .await?;
        // Silence or a closed channel means success; only a spoken error is one.
        let patience = deadline.min(Instant::now() + Duration::from_millis(500));
        match tokio::time::timeout_at(patience, talk.receive("guest-shutdown")).await {
            Ok(Err(refused @ Error::Agent { .. })) => Err(refused),
            _ => Ok(()),
        }
    }

    /// What it tells of the operating system.
    ///
    /// # Errors
    /// [`Error::AgentAbsent`], [`Error::Agent`]; facts an old agent cannot tell stay empty instead.
    pub async fn info(&self, within: Duration) -> Result<GuestInfo> {
        let own = |value: &Value, name| text(value, name).map(str::to_owned);
        let agent = self.call("guest-info", Value::Null, within).await?;
        let os = optional(self.call("guest-get-osinfo", Value::Null, within).await)?;
        let host = optional(self.call("guest-get-host-name", Value::Null, within).await)?;
        Ok(GuestInfo {
            os_id: own(&os, "id"),
            pretty_name: own(&os, "pretty-name"),
            version: own(&os, "version-id"),
            kernel: own(&os, "kernel-release"),
            host_name: own(&host, "host-name"),
            agent_version: own(&agent, "version"),
        })
    }

    /// The guest's network interfaces.
    ///
    /// # Errors
    /// [`Error::AgentAbsent`], [`Error::Agent`].
    pub async fn interfaces(&self, within: Duration) -> Result<Vec<GuestInterface>> {
        let list = self
            .call("guest-network-get-interfaces", Value::Null, within)
            .await?;
        let interface = |value: &Value| GuestInterface {
            name: text(value, "name").unwrap_or_default().to_owned(),
            mac: text(value, "hardware-address").map(str::to_owned),
            addresses: value
                .get("ip-addresses")
                .map(items)
                .unwrap_or_default()
                .iter()
                .filter_map(address)
                .collect(),
        };
        Ok(items(&list).iter().map(interface).collect())
    }

    /// One command in a conversation of its own; `within` bounds the whole.
    ///
    /// # Errors
    /// [`Error::AgentAbsent`], [`Error::Agent`], [`Error::Io`], [`Error::Timeout`] where the agent is there but the
    /// command itself takes longer.
    pub async fn call(&self, command: &str, arguments: Value, within: Duration) -> Result<Value> {
        let _turn = self.turn.lock().await;
        let deadline = Instant::now() + within;
        let mut talk = Conversation::open(&self.socket, within, deadline).await?;
        let exchange = async {
            talk.send(command, &arguments).await?;
            talk.receive(command).await
        };
        match tokio::time::timeout_at(deadline, exchange).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout {
                command: command.to_owned(),
                after: within,
            }),
        }
    }
}

fn optional(result: Result<Value>) -> Result<Value> {
    match result {
        Err(Error::Agent { .. }) => Ok(Value::Null),
        other => other,
    }
}

fn address(value: &Value) -> Option<String> {
    let address = text(value, "ip-address")?;
    Some(number(value, "prefix").map_or_else(
        || address.to_owned(),
        |prefix| format!("{address}/{prefix}"),
    ))
}

struct Conversation<'a> {
    socket: &'a Path,
    stream: UnixStream,
    decoder: LineDecoder,
}

impl<'a> Conversation<'a> {
    async fn open(socket: &'a Path, within: Duration, deadline: Instant) -> Result<Self> {
        let opening = async {
            let stream = UnixStream::connect(socket)
                .await
                .map_err(|source| Error::io("connect to", socket, source))?;
            let mut talk = Self {
                socket,
                stream,
                decoder: LineDecoder::with_limit(MAX_ANSWER),
            };
            talk.synchronise().await?;
            Ok(talk)
        };
        match tokio::time::timeout_at(deadline, opening).await {
            Ok(result) => result,
            Err(_) => Err(Error::AgentAbsent { after: within }),
        }
    }

    async fn synchronise(&mut self) -> Result<()> {
        // 52 bits: some agents go through a double.
        let token = (uuid::Uuid::new_v4().as_u128() & 0xf_ffff_ffff_ffff) as u64;
        self.write(&[0xff]).await?;
        self.send("guest-sync-delimited", &json!({ "id": token }))
            .await?;
        loop {
            match self.line(true).await {
                Ok(value) if value.get("return").and_then(Value::as_u64) == Some(token) => {
                    return Ok(());
                }
                // An older conversation's left-over, an error to our 0xFF, or half a line.
                Ok(_) | Err(Error::Protocol { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn send(&mut self, command: &str, arguments: &Value) -> Result<()> {
        let mut request = json!({ "execute": command });
        if let (Some(members), false) = (request.as_object_mut(), arguments.is_null()) {
            members.insert("arguments".to_owned(), arguments.clone());
        }
        let mut line = request.to_string().into_bytes();
        line.push(b'\n');
        self.write(&line).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream
            .write_all(bytes)
            .await
            .map_err(|source| Error::io("write to", self.socket, source))
    }

    async fn receive(&mut self, command: &str) -> Result<Value> {
        let answer = self.line(false).await?;
        if let Some(error) = answer.get("error") {
            return Err(Error::Agent {
                command: command.to_owned(),
                class: text(error, "class").unwrap_or("GenericError").to_owned(),
                desc: text(error, "desc").unwrap_or("no description").to_owned(),
            });
        }
        answer
            .get("return")
            .cloned()
            .ok_or_else(|| protocol("an answer has neither `return` nor `error`"))
    }

    async fn line(&mut self, synchronising: bool) -> Result<Value> {
        let mut chunk = [0_u8; 4096];
        loop {
            if synchronising {
                self.decoder.drop_until_mark();
            }
            // Not a protocol slip that synchronising may skip: the stream is unusable from here on.
            let flood = |error| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
            while let Some(line) = self
                .decoder
                .next_line()
                .map_err(|error| Error::io("read from", self.socket, flood(error)))?
            {
                if !line.iter().all(u8::is_ascii_whitespace) {
                    return serde_json::from_slice(&line)
                        .map_err(|error| protocol(error.to_string()));
                }
            }
            let count = self
                .stream
                .read(&mut chunk)
                .await
                .map_err(|source| Error::io("read from", self.socket, source))?;
            if count == 0 {
                let closed = std::io::ErrorKind::UnexpectedEof.into();
                return Err(Error::io("read from", self.socket, closed));
            }
            self.decoder.feed(chunk.get(..count).unwrap_or_default());
        }
    }
}

fn protocol(detail: impl Into<String>) -> Error {
    Error::Protocol {
        peer: "guest agent",
        detail: detail.into(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    /// Plays an agent: speaks `before` first, then answers what `answer` makes of each command.
    struct Played {
        _dir: tempfile::TempDir,
        agent: Agent,
    }

    fn play<F>(before: &'static [u8], mut answer: F) -> Played
    where
        F: FnMut(&str) -> String + Send + 'static,
    {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (reader, mut writer) = stream.into_split();
                let _ = writer.write_all(before).await;
                let mut lines = BufReader::new(reader).split(b'\n');
                while let Ok(Some(line)) = lines.next_segment().await {
                    let start = line.iter().position(|&byte| byte == b'{').unwrap();
                    let request: Value = serde_json::from_slice(&line[start..]).unwrap();
                    let command = request["execute"].as_str().unwrap();
                    let reply = match command {
                        "guest-sync-delimited" => {
                            assert_eq!(line.first(), Some(&0xff));
                            let mut reply = vec![0xff];
                            let token = &request["arguments"]["id"];
                            reply.extend(format!("{{\"return\": {token}}}\n").bytes());
                            reply
                        }
                        other => answer(other).into_bytes(),
                    };
                    let _ = writer.write_all(&reply).await;
                }
            }
        });
        Played {
            agent: Agent::new(path),
            _dir: dir,
        }
    }

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn an_old_answer_in_the_pipe_is_not_taken_for_ours() {
        let stale = b"{\"return\": 7}\n{\"return\": {\"half\"";
        let played = play(stale, |_| "{\"return\": 3}\n".into());
        assert_eq!(played.agent.freeze(LONG).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_refusal_keeps_its_words() {
        let played = play(b"", |_| {
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"not now\"}}\n".into()
        });
        let error = played.agent.ping(LONG).await.unwrap_err();
        let Error::Agent { command, desc, .. } = error else {
            panic!("{error}")
        };
        assert_eq!((command.as_str(), desc.as_str()), ("guest-ping", "not now"));
    }

    #[tokio::test]
    async fn a_freeze_without_answer_is_followed_by_a_thaw() {
        let thaws = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = std::sync::Arc::clone(&thaws);
        let played = play(b"", move |command| match command {
            "guest-fsfreeze-thaw" => {
                counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                "{\"return\": 2}\n".into()
            }
            _ => String::new(),
        });
        let error = played.agent.freeze(SHORT).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert_eq!(thaws.load(std::sync::atomic::Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn facts_an_old_agent_lacks_stay_empty() {
        let played = play(b"", |command| match command {
            "guest-info" => "{\"return\": {\"version\": \"2.0\"}}\n".into(),
            _ => "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"?\"}}\n".into(),
        });
        let info = played.agent.info(LONG).await.unwrap();
        assert_eq!(
            info,
            GuestInfo {
                agent_version: Some("2.0".into()),
                ..GuestInfo::default()
            }
        );
    }

    #[tokio::test]
    async fn interfaces_come_with_their_addresses() {
        let played = play(b"", |_| {
            "{\"return\": [{\"name\": \"eth0\", \"hardware-address\": \"52:54:00:00:00:01\", \"ip-addresses\": [{\"ip-address\": \"10.0.2.15\", \"prefix\": 24}, {}]}, {}]}\n".into()
        });
        let list = played.agent.interfaces(LONG).await.unwrap();
        assert_eq!(list[0].addresses, ["10.0.2.15/24"]);
        assert_eq!(list[1], GuestInterface::default());
    }

    #[tokio::test]
    async fn a_flood_ends_the_conversation() {
        let played = play(b"", |_| "x".repeat(MAX_ANSWER + 2));
        let error = played.agent.ping(LONG).await.unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
}
