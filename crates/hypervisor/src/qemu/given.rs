//! What QEMU gets from the service instead of opening it: listening sockets, logs, the firmware's variables.
//!
//! The files stay the service's, so that a QEMU that a guest has taken over can neither remove nor replace them, and its user needs no
//! way into the run directory or the state directory.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::OFlags;

use crate::argv::Given;
use crate::config::{Generation, MachineConfig, check_path};
use crate::error::{Error, Result};
use crate::names::{RunFiles, check_socket};

/// Opens all of it. The descriptors have to live until QEMU was started.
pub(super) fn open(config: &MachineConfig, files: &RunFiles) -> Result<(Given, Vec<OwnedFd>)> {
    let mut kept = Vec::new();
    let mut keep = |fd: OwnedFd| -> RawFd {
        let number = fd.as_raw_fd();
        kept.push(fd);
        number
    };
    let mut given = Given {
        qmp: keep(listen(&files.qmp())?),
        monitor: keep(listen(&files.monitor())?),
        ..Given::default()
    };
    if config.guest_agent {
        given.agent = Some(keep(listen(&files.agent())?));
    }
    for (port, slot) in config.serial.iter().zip(&mut given.serial) {
        if let Some(port) = port {
            check_path(&port.socket)?;
            let socket = keep(listen(&port.socket)?);
            let log = port.log.as_deref().map(append_to).transpose()?;
            *slot = Some((socket, log.map(|log| keep(log.into()))));
        }
    }
    if let (Generation::Gen2, Some(vars)) = (config.generation, config.firmware_vars.as_deref())
        && vars.exists()
    {
        let file = options().read(true).write(true).open(vars);
        given.firmware_vars = Some(keep(file.map_err(|e| Error::io("open", vars, e))?.into()));
    }
    Ok((given, kept))
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.custom_flags(i32::try_from(flags.bits()).unwrap_or(0));
    options
}

fn append_to(path: &Path) -> Result<File> {
    let io = |source| Error::io("open", path, source);
    let file = options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(Error::config(format!(
            "{} is not a plain file",
            path.display()
        )));
    }
    Ok(file)
}

/// A socket that only the service's user reaches. One that an earlier process left is replaced, anything else is not.
pub(super) fn listen(path: &Path) -> Result<OwnedFd> {
    check_socket(path)?;
    match path.symlink_metadata() {
        Ok(there) if there.file_type().is_socket() => {
            std::fs::remove_file(path).map_err(|source| Error::io("remove", path, source))?;
        }
        Ok(_) => {
            return Err(Error::conflict(format!(
                "{} is there and is not a socket",
                path.display()
            )));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(Error::io("read", path, source)),
    }
    let socket = UnixListener::bind(path).map_err(|source| Error::io("listen on", path, source))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|source| Error::io("protect", path, source))?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_left_behind_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(listen(&path).unwrap());
        let _again = listen(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert_eq!(
            listen(&file).unwrap_err().kind(),
            crate::ErrorKind::Conflict
        );
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }

    #[test]
    fn a_log_is_never_reached_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("log"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(append_to(&link).is_err());
        assert!(!target.exists());
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(append_to(&dir.path().join("fifo")).is_err());
    }
}
