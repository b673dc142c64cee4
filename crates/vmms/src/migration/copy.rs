//! A file on its way, and the hash that proves it.
//!
//! What is zero is not sent: a file goes as pieces of 1 MiB that hold anything, in their order. The hash is of those pieces, of their places,
//! and of the length; so a file with holes and one with zeros have the same.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use disk::is_zero;
use peer::Wire;
use tokio::sync::mpsc;

use super::link::Link;
use super::said::{Answer, Ask};
use crate::blocking;
use crate::job::JobContext;
use crate::{Fault, Result, fault};

/// The bytes that are read and sent at a time.
const PIECE: u64 = 1 << 20;
/// Pieces that are read ahead.
const AHEAD: usize = 4;
/// What a frame is: a piece, or the end.
const DATA: u8 = b'd';
const END: u8 = b'e';
/// How long the next frame may take.
const FRAME: Duration = Duration::from_secs(60);
/// How long what is on its way to a file that cannot be written is read.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a whole file may take to be proven.
const PROOF: Duration = Duration::from_secs(3600);

/// The hash of a file that is being read.
#[derive(Default)]
struct Digest(blake3::Hasher);

impl Digest {
    fn piece(&mut self, offset: u64, bytes: &[u8]) {
        self.0.update(&offset.to_be_bytes());
        self.0.update(bytes);
    }

    fn end(mut self, length: u64) -> String {
        self.0.update(&length.to_be_bytes());
        self.0.finalize().to_hex().to_string()
    }
}

/// Reads the pieces of a file that hold anything; tells its length and its hash.
fn pieces(path: &Path, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<(u64, String)> {
    let failed = |e: std::io::Error| Fault::io("read", path, &e);
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let (mut digest, mut at) = (Digest::default(), 0);
    let mut buffer = Vec::new();
    while at < length {
        // Over holes, where the file system tells them.
        match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => at = data / PIECE * PIECE,
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => {}
        }
        let want = PIECE.min(length - at);
        buffer.clear();
        file.seek(SeekFrom::Start(at)).map_err(failed)?;
        (&mut file)
            .take(want)
            .read_to_end(&mut buffer)
            .map_err(failed)?;
        if buffer.len() as u64 != want {
            return Err(fault!(FileChanged, path.display()));
        }
        if !is_zero(&buffer) {
            digest.piece(at, &buffer);
            each(at, &buffer)?;
        }
        at += want;
    }
    Ok((length, digest.end(length)))
}

/// The hash of a file.
pub(crate) async fn digest(path: &Path) -> Result<String> {
    let path = path.to_owned();
    blocking(move || Ok(pieces(&path, |_, _| Ok(()))?.1)).await
}

/// Sends a file from this byte on, after the question was answered. `sent` hears of bytes as they go.
pub(crate) async fn send(
    link: &mut Link,
    ctx: &JobContext,
    ask: &Ask,
    path: &Path,
    from: u64,
    mut sent: impl FnMut(u64),
) -> Result<()> {
    let answer = link.ask(ask, super::link::ANSWER).await?;
    let Answer::Done = answer else {
        return Err(fault!(Internal, format!("{answer:?} to a file")));
    };
    let (out, mut read) = mpsc::channel::<(u64, Vec<u8>)>(AHEAD);
    let (own, flag) = (path.to_owned(), ctx.cancel_flag());
    let reading = tokio::spawn(blocking(move || {
        pieces(&own, |at, bytes| {
            flag.check().map_err(Fault::from)?;
            if at < from {
                return Ok(());
            }
            // Where nobody listens any more the sending has failed and says why.
            out.blocking_send((at, bytes.to_vec()))
                .map_err(|_| fault!(Internal, "the sending ended"))
        })
    }));
    while let Some((at, bytes)) = read.recv().await {
        ctx.checkpoint().await?;
        if link.is_answered().await {
            // Before the end there is nothing to say but what went wrong.
            let said = link.hear(super::link::ANSWER).await?;
            return Err(fault!(
                Internal,
                format!("{said:?} in the middle of a file")
            ));
        }
        link.send(&[&[DATA], &at.to_be_bytes(), &bytes]).await?;
        sent(bytes.len() as u64);
    }
    let read = reading.await.map_err(|e| fault!(Internal, e))?;
    let (length, digest) = read?;
    link.send(&[&[END], &length.to_be_bytes(), digest.as_bytes()])
        .await?;
    match link.hear(PROOF).await? {
        Answer::Done => Ok(()),
        other => Err(fault!(Internal, format!("{other:?} to the end of a file"))),
    }
}

/// Receives a file into `part` and proves it; tells its hash. What came of a file that breaks off stays.
pub(crate) async fn receive(
    wire: &mut Wire,
    part: &Path,
    from: u64,
    heard: impl Fn(),
) -> Result<String> {
    let failed = |e: std::io::Error| Fault::io("write", part, &e);
    let (own, fresh) = (part.to_owned(), from == 0);
    let (input, mut pieces_in) = mpsc::channel::<(u64, Vec<u8>)>(AHEAD);
    let writing = tokio::spawn(blocking(move || {
        let failed = |e: std::io::Error| Fault::io("write", &own, &e);
        let mut file = File::options()
            .create(true)
            .write(true)
            .truncate(fresh)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&own)
            .map_err(failed)?;
        while let Some((at, bytes)) = pieces_in.blocking_recv() {
            file.seek(SeekFrom::Start(at)).map_err(failed)?;
            file.write_all(&bytes).map_err(failed)?;
        }
        Ok(file)
    }));
    let end = loop {
        let frame = wire.receive(PIECE as usize + 16, FRAME).await;
        let frame = frame.map_err(|e| fault!(Os, "receive", e, "none"))?;
        let parsed = frame.as_deref().and_then(|f| f.split_first());
        let Some((kind, rest)) = parsed else {
            break None;
        };
        let Some((number, rest)) = rest.split_first_chunk::<8>() else {
            break None;
        };
        let number = u64::from_be_bytes(*number);
        heard();
        match *kind {
            DATA if input.send((number, rest.to_vec())).await.is_ok() => {}
            // The writing has failed and says why.
            DATA => break None,
            END => break Some((number, String::from_utf8_lossy(rest).into_owned())),
            _ => break None,
        }
    };
    drop(input);
    let file = match writing.await.map_err(|e| fault!(Internal, e))? {
        Ok(file) => file,
        Err(why) => {
            // The source hears it while it still sends; what is on its way is read, or its answer would be lost with it.
            let _ = wire.say(&Answer::Failed(Box::new(why.clone()))).await;
            while let Ok(Some(frame)) = wire.receive(PIECE as usize + 16, DRAIN).await {
                if frame.first() == Some(&END) {
                    break;
                }
            }
            return Err(why);
        }
    };
    let Some((length, expected)) = end else {
        return Err(fault!(LinkBroke, "the source"));
    };
    let path = part.to_owned();
    let found = blocking(move || {
        file.set_len(length)
            .and_then(|()| file.sync_all())
            .map_err(|e| Fault::io("write", &path, &e))?;
        Ok(pieces(&path, |_, _| Ok(()))?.1)
    });
    if found.await? == expected {
        return Ok(expected);
    }
    // What was there of an earlier attempt was not what it seemed: it is sent anew.
    std::fs::remove_file(part).map_err(failed)?;
    Err(fault!(FileDiffers, part.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_zeros_have_one_hash_and_a_changed_byte_or_length_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut seen = Vec::new();
        let mut look = |bytes: &[u8], length: u64| {
            std::fs::write(&path, bytes).unwrap();
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(length)
                .unwrap();
            let mut sent = 0;
            let (_, digest) = pieces(&path, |_, b| {
                sent += b.len();
                Ok(())
            })
            .unwrap();
            seen.push(digest.clone());
            (digest, sent)
        };
        let (long, ends) = (5 * PIECE, 2 * PIECE as usize + 5);
        let mut bytes = vec![0; ends];
        bytes[ends - 1] = 7;
        let holes = look(&bytes, long);
        assert_eq!(holes.1, PIECE as usize, "only what holds anything");
        bytes.resize(long as usize, 0);
        assert_eq!(look(&bytes, long), holes);
        bytes[0] = 1;
        assert_ne!(look(&bytes, long).0, holes.0);
        assert_ne!(look(&[], long).0, look(&[], long + 1).0);
    }
}
