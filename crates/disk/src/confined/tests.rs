use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::*;

fn scratch() -> (tempfile::TempDir, Dir) {
    let dir = tempfile::tempdir().unwrap();
    let open = Dir::open(dir.path()).unwrap();
    (dir, open)
}

fn refused<T: std::fmt::Debug>(result: Result<T>) -> Refused {
    match result {
        Err(Error::Refused { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn give(path: &Path, uid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(uid)).unwrap();
}

#[test]
fn links_are_followed_on_the_way_only_where_nobody_else_could_have_made_them() {
    let (scratch, _) = scratch();
    let real = scratch.path().join("real");
    fs::create_dir_all(real.join("below")).unwrap();
    symlink("real", scratch.path().join("link")).unwrap();
    let by_link = Dir::open(&scratch.path().join("link/below/../below")).unwrap();
    let direct = Dir::open(&real.join("below")).unwrap();
    assert!(by_link.identity().unwrap().is(&direct.identity().unwrap()));
    assert!(by_link.path().ends_with("real/below"));
    // A directory anybody writes to, and a sticky one.
    let open = scratch.path().join("open");
    fs::create_dir(&open).unwrap();
    symlink(&real, open.join("link")).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(refused(Dir::open(&open.join("link"))), Refused::Symlink);
    fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
    assert!(Dir::open(&open.join("link")).is_ok());
    if is_root() {
        symlink(&real, open.join("theirs")).unwrap();
        give(&open.join("theirs"), 4321);
        assert_eq!(refused(Dir::open(&open.join("theirs"))), Refused::Symlink);
        give(&open, 4321);
        assert_eq!(refused(Dir::open(&open.join("link"))), Refused::Symlink);
    }
    symlink("loop", scratch.path().join("loop")).unwrap();
    assert!(Dir::open(&scratch.path().join("loop")).is_err());
}

#[test]
fn what_is_missing_of_a_path_is_told_and_never_goes_up() {
    let (scratch, _) = scratch();
    let (dir, missing) = Dir::open_nearest(&scratch.path().join("a/b")).unwrap();
    assert_eq!(dir.path(), scratch.path().canonicalize().unwrap());
    assert_eq!(missing, ["a", "b"]);
    assert_eq!(
        refused(Dir::open_nearest(&scratch.path().join("a/../b"))),
        Refused::Leaves
    );
    assert!(Dir::open(Path::new("relative")).is_err());
    fs::write(scratch.path().join("file"), "").unwrap();
    assert!(Dir::open_nearest(&scratch.path().join("file/below")).is_err());
}

#[test]
fn below_a_directory_no_link_is_followed_and_only_plain_files_are_opened() {
    let (scratch, dir) = scratch();
    let path = scratch.path();
    fs::create_dir(path.join("d")).unwrap();
    fs::write(path.join("d/f"), "content").unwrap();
    symlink("d", path.join("dlink")).unwrap();
    symlink("f", path.join("d/flink")).unwrap();
    let mut text = String::new();
    let mut file = dir.open_file(Path::new("d/f")).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "content");
    for link in ["dlink/f", "d/flink"] {
        assert_eq!(refused(dir.open_file(Path::new(link))), Refused::Symlink);
        let by_step = dir.step_by_step_for_test(Path::new(link));
        assert!(by_step.is_err(), "{link}");
    }
    assert!(dir.step_by_step_for_test(Path::new("d/f")).is_ok());
    assert_eq!(refused(dir.enter(Path::new("dlink"))), Refused::Symlink);
    for out in ["../x", "/etc/passwd", "d/../../x"] {
        assert_eq!(refused(dir.open_file(Path::new(out))), Refused::Leaves);
    }
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path.join("fifo"),
        FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert_eq!(refused(dir.open_file(Path::new("fifo"))), Refused::NotPlain);
    assert_eq!(
        refused(dir.open_file_to_write(Path::new("fifo"))),
        Refused::NotPlain
    );
    assert_eq!(refused(dir.open_file(Path::new("d"))), Refused::NotPlain);
    assert_eq!(refused(open_file(&path.join("d/flink"))), Refused::Symlink);
}

#[test]
fn only_the_very_file_that_was_created_is_deleted() {
    let (scratch, dir) = scratch();
    let name = OsStr::new("f");
    let file = dir.create_file(name).unwrap();
    let ours = Identity::of(&file, Path::new("f")).unwrap();
    assert!(dir.create_file(name).is_err(), "nothing is taken over");
    assert_eq!(
        fs::metadata(scratch.path().join("f")).unwrap().mode_bits(),
        0o600
    );
    drop(file);
    // Somebody exchanges it; the number of the inode is often the same.
    fs::remove_file(scratch.path().join("f")).unwrap();
    fs::write(scratch.path().join("f"), "theirs").unwrap();
    assert!(!dir.remove(name, &ours).unwrap());
    assert_eq!(fs::read(scratch.path().join("f")).unwrap(), b"theirs");
    let theirs = dir.look(name).unwrap().unwrap();
    assert!(dir.remove(name, &theirs).unwrap());
    assert!(!dir.remove(name, &theirs).unwrap());

    let made = dir.create_dir(OsStr::new("d")).unwrap();
    let which = made.identity().unwrap();
    made.create_file(name).unwrap();
    assert!(
        !dir.remove_dir(OsStr::new("d"), &which).unwrap(),
        "not empty"
    );
    assert!(!dir.remove(OsStr::new("d"), &which).unwrap(), "no file");
    fs::remove_file(scratch.path().join("d/f")).unwrap();
    assert!(dir.remove_dir(OsStr::new("d"), &which).unwrap());
}

#[test]
fn nothing_is_replaced_by_a_rename() {
    let (scratch, dir) = scratch();
    dir.create_file(OsStr::new("a")).unwrap();
    fs::write(scratch.path().join("b"), "theirs").unwrap();
    let kind = dir
        .rename(OsStr::new("a"), OsStr::new("b"))
        .unwrap_err()
        .kind();
    assert_eq!(kind, crate::ErrorKind::Exists);
    assert_eq!(fs::read(scratch.path().join("b")).unwrap(), b"theirs");
    dir.rename(OsStr::new("a"), OsStr::new("c")).unwrap();
    assert_eq!(dir.names().unwrap(), ["b", "c"]);
    assert_eq!(
        refused(dir.rename(OsStr::new("c"), OsStr::new("../c"))),
        Refused::Leaves
    );
}

#[test]
fn directories_of_others_and_such_as_others_write_to_are_told() {
    let (scratch, dir) = scratch();
    assert!(dir.check_owner().is_ok());
    let mode =
        |mode| fs::set_permissions(scratch.path(), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o777);
    assert_eq!(refused(dir.check_owner()), Refused::Writable(0o777));
    mode(0o1777);
    assert!(dir.check_owner().is_ok());
    mode(0o700);
    if is_root() {
        give(scratch.path(), 4321);
        assert_eq!(refused(dir.check_owner()), Refused::Foreign(4321));
        give(scratch.path(), 0);
    }
}

#[test]
fn a_directory_is_taken_by_one_at_a_time() {
    let (scratch, dir) = scratch();
    assert!(dir.take());
    let other = Dir::open(scratch.path()).unwrap();
    assert!(!other.take());
    drop(dir);
    assert!(other.take());
}

trait ModeBits {
    fn mode_bits(&self) -> u32;
}

impl ModeBits for fs::Metadata {
    fn mode_bits(&self) -> u32 {
        self.permissions().mode() & 0o7777
    }
}
