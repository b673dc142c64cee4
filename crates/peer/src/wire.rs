//! An open link.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::error::{Error, Result};
use crate::{Fingerprint, frame};

/// The encrypted connection itself.
pub type Stream = TlsStream<TcpStream>;

/// A link to a host that is who it says.
#[derive(Debug)]
pub struct Wire {
    pub(crate) stream: Stream,
    pub(crate) who: Fingerprint,
}

impl Wire {
    /// Who is at the other end.
    #[must_use]
    pub fn who(&self) -> Fingerprint {
        self.who
    }

    /// Says something.
    ///
    /// # Errors
    /// [`Error::Broken`], [`Error::Garbled`] where it is too long.
    pub async fn say(&mut self, message: &impl Serialize) -> Result<()> {
        self.send(&[&frame::encode(message)?]).await
    }

    /// Hears something; `None` where the other side has ended the link.
    ///
    /// # Errors
    /// [`Error::Silent`], [`Error::Broken`], [`Error::Garbled`].
    pub async fn hear<T: DeserializeOwned>(&mut self, within: Duration) -> Result<Option<T>> {
        match self.receive(frame::MESSAGE, within).await? {
            Some(bytes) => frame::decode(&bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Asks something and hears the answer. After an error the link is good for nothing.
    ///
    /// # Errors
    /// [`Error::Silent`], [`Error::Broken`], [`Error::Garbled`].
    pub async fn ask<T: DeserializeOwned>(
        &mut self,
        question: &impl Serialize,
        within: Duration,
    ) -> Result<T> {
        let asked = async {
            self.say(question).await?;
            self.hear(within).await
        };
        let answer = in_time("an answer", within, asked).await?;
        answer.ok_or_else(|| Error::Broken(std::io::ErrorKind::UnexpectedEof.into()))
    }

    /// Sends bytes as one frame.
    ///
    /// # Errors
    /// [`Error::Broken`], [`Error::Garbled`] where it is too long.
    pub async fn send(&mut self, parts: &[&[u8]]) -> Result<()> {
        frame::write(&mut self.stream, parts).await?;
        self.stream.flush().await.map_err(Error::Broken)
    }

    /// Receives one frame of at most `most` bytes; `None` where the other side has ended the link.
    ///
    /// # Errors
    /// [`Error::Silent`], [`Error::Broken`], [`Error::Garbled`].
    pub async fn receive(&mut self, most: usize, within: Duration) -> Result<Option<Vec<u8>>> {
        in_time("a message", within, frame::read(&mut self.stream, most)).await
    }

    /// Whether the other side has sent something that was not received yet, or has closed.
    pub async fn is_waiting(&self) -> bool {
        let mut byte = [0];
        let peek = self.stream.get_ref().0.peek(&mut byte);
        tokio::time::timeout(Duration::ZERO, peek).await.is_ok()
    }

    /// The connection as it is, for bytes that are nobody's messages.
    #[must_use]
    pub fn into_stream(self) -> Stream {
        self.stream
    }
}

/// A deadline.
pub(crate) async fn in_time<T>(
    what: &'static str,
    within: Duration,
    future: impl Future<Output = Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(within, future).await {
        Ok(done) => done,
        Err(_) => Err(Error::Silent { what, within }),
    }
}
