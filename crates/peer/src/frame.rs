//! What is on the wire: a length in four bytes, the most significant first, and that many bytes.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::{Error, Result};

/// The longest message. The record of a machine with thousands of points is far below.
pub const MESSAGE: usize = 16 << 20;
/// The most that is taken into memory before it has come.
const AT_ONCE: usize = 64 << 10;

/// Reads one frame of at most `most` bytes. `None`: the other side has closed between two frames.
///
/// # Errors
/// [`Error::Garbled`] for a longer one, [`Error::Broken`].
pub async fn read(from: &mut (impl AsyncRead + Unpin), most: usize) -> Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    let Some((first, rest)) = length.split_first_mut() else {
        return Ok(None);
    };
    if from
        .read(std::slice::from_mut(first))
        .await
        .map_err(Error::Broken)?
        == 0
    {
        return Ok(None);
    }
    from.read_exact(rest).await.map_err(Error::Broken)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > most {
        return Err(Error::Garbled(format!(
            "{length} bytes are announced, {most} are allowed"
        )));
    }
    // Memory is taken as the bytes come: a length alone costs nothing.
    let mut out = Vec::with_capacity(length.min(AT_ONCE));
    let mut limited = from.take(length as u64);
    while out.len() < length {
        out.reserve((length - out.len()).min(AT_ONCE));
        if limited.read_buf(&mut out).await.map_err(Error::Broken)? == 0 {
            return Err(Error::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(Some(out))
}

/// Writes one frame made of these parts.
///
/// # Errors
/// [`Error::Broken`]; [`Error::Garbled`] where it is longer than a frame can be.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), parts: &[&[u8]]) -> Result<()> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let length = u32::try_from(length)
        .map_err(|_| Error::Garbled(format!("{length} bytes are too many for one message")))?;
    to.write_all(&length.to_be_bytes())
        .await
        .map_err(Error::Broken)?;
    for part in parts {
        to.write_all(part).await.map_err(Error::Broken)?;
    }
    Ok(())
}

/// Bytes as the message they are.
///
/// # Errors
/// [`Error::Garbled`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::Garbled(e.to_string()))
}

/// A message as bytes.
///
/// # Errors
/// [`Error::Garbled`] where it is longer than the other side would take.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message).map_err(|e| Error::Garbled(e.to_string()))?;
    if bytes.len() > MESSAGE {
        let what = format!("{} bytes are too many for one message", bytes.len());
        return Err(Error::Garbled(what));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn a_length_that_is_not_allowed_takes_no_memory_and_is_refused() {
        let huge = [0xff, 0xff, 0xff, 0xff, 1, 2];
        let read = run(read(&mut &huge[..], MESSAGE));
        assert!(matches!(read, Err(Error::Garbled(_))), "{read:?}");
    }

    #[test]
    fn a_frame_that_ends_early_is_a_broken_link_and_an_end_between_two_is_none() {
        assert!(matches!(
            run(read(&mut &[0, 0, 0, 5, 1][..], 9)),
            Err(Error::Broken(_))
        ));
        assert!(matches!(
            run(read(&mut &[0, 0][..], 9)),
            Err(Error::Broken(_))
        ));
        assert!(matches!(run(read(&mut &[][..], 9)), Ok(None)));
    }

    proptest! {
        #[test]
        fn whatever_was_written_is_read_and_whatever_comes_is_survived(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..70_000), 0..4),
            noise in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            run(async {
                let mut wire = Vec::new();
                let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                write(&mut wire, &parts).await.unwrap();
                let mut left = &wire[..];
                let found = read(&mut left, MESSAGE).await.unwrap().unwrap();
                assert_eq!(found, parts.concat());
                assert!(left.is_empty());
                let mut noise = &noise[..];
                while let Ok(Some(frame)) = read(&mut noise, 64).await {
                    assert!(frame.len() <= 64);
                    let _ = decode::<serde_json::Value>(&frame);
                }
            });
        }
    }
}
