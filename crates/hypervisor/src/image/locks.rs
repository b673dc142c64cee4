//! Whether a process has an image open, told by the locks that QEMU and its tools hold on the file.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Result};

/// QEMU locks a byte per permission it uses (from 100 on) and per permission it denies others (from 200 on).
const FIRST: libc::off_t = 100;
const COUNT: libc::off_t = 200;

/// Whether QEMU or one of its tools has the image open with locks, for reading or writing. Nothing is locked by asking.
///
/// # Errors
/// [`Error::Io`] where the file cannot be opened.
#[expect(
    unsafe_code,
    reason = "F_OFD_GETLK; rustix has only the locks of processes, and asserts on the answer's pid of -1"
)]
pub fn in_use(path: &Path) -> Result<bool> {
    let mut options = OpenOptions::new();
    // A FIFO must not make the caller wait.
    options
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let file = options
        .open(path)
        .map_err(|source| Error::io("open", path, source))?;
    // SAFETY: zero is a value of each member of this plain C structure.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = FIRST;
    lock.l_len = COUNT;
    // SAFETY: the descriptor is open for the whole call, and the kernel writes one `flock` where we give it one.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if done != 0 {
        let source = std::io::Error::last_os_error();
        return Err(Error::io("look at the locks of", path, source));
    }
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// Waits until nobody has the image open: a tool that was killed may still be in a write. `false`: somebody still has it at the deadline.
///
/// # Errors
/// As [`in_use`].
pub async fn free_within(path: &Path, within: Duration) -> Result<bool> {
    let deadline = Instant::now() + within;
    while in_use(path)? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn an_image_is_in_use_while_a_tool_has_it_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        assert!(!in_use(&path).unwrap());
        for read_only in [false, true] {
            let mut command = Command::new("qemu-io");
            command
                .args(["-f", "raw"])
                .args(read_only.then_some("-r"))
                .arg(&path);
            let mut tool = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (mut say, mut hear) = (
                tool.stdin.take().unwrap(),
                BufReader::new(tool.stdout.take().unwrap()),
            );
            say.write_all(b"length\n").unwrap();
            let mut line = String::new();
            while !line.contains("MiB") {
                assert!(hear.read_line(&mut line).unwrap() > 0);
            }
            assert!(in_use(&path).unwrap(), "read-only: {read_only}");
            assert!(!free_within(&path, Duration::from_millis(20)).await.unwrap());
            tool.kill().unwrap();
            assert!(free_within(&path, Duration::from_secs(60)).await.unwrap());
            tool.wait().unwrap();
        }
    }
}
