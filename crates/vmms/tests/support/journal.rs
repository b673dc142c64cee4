//! What a power cut leaves of files: `journal.c`, between processes and libc, notes writes, names and syncs; this makes of the first
//! `n` notes what a disk would still hold. Of a file survives what a finished sync covers, and of the rest nothing, all, or
//! each 4 KiB at random. Of the names in a directory survives what a finished sync of *that directory* covers, and of the rest
//! a beginning at random. When a file was changed last survives only by `fsync`. That is less than Linux' file systems keep.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The library to preload, built once for a test, and the programs that run with it.
pub struct Shim {
    pub library: PathBuf,
    pub log: PathBuf,
    dir: PathBuf,
}

impl Shim {
    pub fn build(dir: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/journal.c");
        let library = dir.join("journal.so");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(&source)
            .args(["-ldl", "-lpthread"])
            .output()
            .unwrap();
        assert!(
            built.status.success(),
            "{}",
            String::from_utf8_lossy(&built.stderr)
        );
        Shim {
            library,
            log: dir.join("journal.log"),
            dir: dir.to_owned(),
        }
    }

    /// A program that runs `name` with the library, whatever environment it is given.
    pub fn wrap(&self, name: &str, root: &Path, kill: Option<&Path>) -> PathBuf {
        let path = self.dir.join(name);
        let real = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|dir| dir.join(name))
            .find(|program| program.exists())
            .unwrap();
        let kill = kill.map_or(String::new(), |file| {
            format!("export KVMMS_JOURNAL_KILL='{}'\n", file.display())
        });
        let text = format!(
            "#!/bin/sh\nexport LD_PRELOAD='{}' KVMMS_JOURNAL='{}' KVMMS_JOURNAL_ROOT='{}'\n{kill}exec '{}' \"$@\"\n",
            self.library.display(),
            self.log.display(),
            root.display(),
            real.display()
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

/// A note.
#[derive(Clone, Debug)]
pub enum Note {
    Create(u64, PathBuf),
    Write(u64, u64, Vec<u8>),
    Trunc(u64, u64),
    Alloc(u64, i32, u64, u64),
    SyncBegin(u64),
    /// With the time of the last change, where that is durable too.
    SyncEnd(u64, Option<SystemTime>),
    Rename(PathBuf, PathBuf),
    /// A second name of a file.
    Link(PathBuf, PathBuf),
    Unlink(PathBuf),
    Mkdir(u64, PathBuf),
}

/// Reads the notes.
pub fn read(log: &Path) -> Vec<Note> {
    let bytes = std::fs::read(log).unwrap();
    let mut notes = Vec::new();
    let mut at = 0;
    let u32_at = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    // The last note may be torn: its process was killed.
    while at + 40 <= bytes.len() {
        assert_eq!(u32_at(at), 0x4b4a_4e4c, "note at {at}");
        let (op, ino, place, len) = (
            u32_at(at + 4),
            u64_at(at + 8),
            u64_at(at + 16),
            u64_at(at + 24),
        );
        let (one, two) = (u32_at(at + 32) as usize, u32_at(at + 36) as usize);
        at += 40;
        let data = if op == 2 { len as usize } else { 0 };
        if at + one + two + data > bytes.len() {
            break;
        }
        let text =
            |from: usize, len: usize| String::from_utf8(bytes[from..from + len].to_vec()).unwrap();
        let (first, second) = (text(at, one), text(at + one, two));
        at += one + two;
        notes.push(match op {
            1 => Note::Create(ino, first.into()),
            2 => Note::Write(ino, place, bytes[at..at + data].to_vec()),
            3 => Note::Trunc(ino, len),
            4 => Note::Alloc(ino, first.parse().unwrap(), place, len),
            5 => Note::SyncBegin(ino),
            6 => {
                let changed = Duration::new(place, u32::try_from(len).unwrap());
                Note::SyncEnd(ino, (first == "whole").then_some(UNIX_EPOCH + changed))
            }
            7 => Note::Rename(first.into(), second.into()),
            8 => Note::Unlink(first.into()),
            9 => Note::Mkdir(ino, first.into()),
            10 => Note::Link(first.into(), second.into()),
            other => panic!("note {other} is not served"),
        });
        at += data;
    }
    notes
}

/// Numbers that look random and are the same each time.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides.max(1)
    }
}

#[derive(Default)]
struct Object {
    directory: bool,
    /// Places in the log of what was done to it.
    changes: Vec<usize>,
    /// Up to which place in the log it is durable.
    durable: usize,
    begun: Vec<usize>,
    /// The durable time of the last change.
    changed: Option<SystemTime>,
}

/// A change of a name in a directory; what was there before may lie in another one.
enum Change {
    Make(usize),
    Move(Option<Place>),
    Link(Option<Place>),
    Remove,
}

/// A directory and a name in it.
type Place = (usize, OsString);

/// Which directories there are, at any time, by their paths: they are renamed with all that lies in them.
struct Dirs(HashMap<PathBuf, usize>);

impl Dirs {
    fn place(&self, path: &Path) -> Option<Place> {
        let dir = self.0.get(path.parent()?)?;
        Some((*dir, path.file_name()?.to_owned()))
    }

    fn renamed(&mut self, from: &Path, to: &Path) {
        let old: Vec<PathBuf> = self.0.keys().cloned().collect();
        for path in old {
            let Ok(below) = path.strip_prefix(from) else {
                continue;
            };
            let new = match below.as_os_str().is_empty() {
                true => to.to_owned(),
                false => to.join(below),
            };
            if let Some(object) = self.0.remove(&path) {
                self.0.insert(new, object);
            }
        }
    }
}

/// Makes below `root` what a power cut after the first `cut` notes leaves. `root` is emptied first.
pub fn cut(notes: &[Note], cut: usize, root: &Path, root_ino: u64, dice: &mut Dice) {
    let mut objects: Vec<Object> = vec![Object {
        directory: true,
        ..Object::default()
    }];
    let mut by_ino: HashMap<u64, usize> = HashMap::from([(root_ino, 0)]);
    let mut dirs = Dirs(HashMap::from([(root.to_owned(), 0)]));
    // Changes of names: when, in which directory, of which name, and which change.
    let mut names: Vec<(usize, usize, OsString, Change)> = Vec::new();
    for (place, note) in notes.iter().take(cut).enumerate() {
        match note {
            Note::Create(ino, path) | Note::Mkdir(ino, path) => {
                let directory = matches!(note, Note::Mkdir(..));
                objects.push(Object {
                    directory,
                    ..Object::default()
                });
                let new = objects.len() - 1;
                by_ino.insert(*ino, new);
                let Some((dir, name)) = dirs.place(path) else {
                    continue;
                };
                names.push((place, dir, name, Change::Make(new)));
                if directory {
                    dirs.0.insert(path.clone(), new);
                }
            }
            Note::Rename(from, path) | Note::Link(from, path) => {
                let before = dirs.place(from);
                let Some((dir, name)) = dirs.place(path) else {
                    continue;
                };
                let change = match note {
                    Note::Link(..) => Change::Link(before),
                    _ => {
                        dirs.renamed(from, path);
                        Change::Move(before)
                    }
                };
                names.push((place, dir, name, change));
            }
            Note::Unlink(path) => {
                let Some((dir, name)) = dirs.place(path) else {
                    continue;
                };
                names.push((place, dir, name, Change::Remove));
            }
            Note::Write(ino, ..) | Note::Trunc(ino, _) | Note::Alloc(ino, ..) => {
                if let Some(object) = by_ino.get(ino) {
                    objects[*object].changes.push(place);
                }
            }
            Note::SyncBegin(ino) => {
                if let Some(object) = by_ino.get(ino) {
                    objects[*object].begun.push(place);
                }
            }
            Note::SyncEnd(ino, changed) => {
                // Of two at once the earlier one counts, which promises less.
                if let Some(object) = by_ino.get(ino)
                    && !objects[*object].begun.is_empty()
                {
                    let begun = objects[*object].begun.remove(0);
                    objects[*object].durable = objects[*object].durable.max(begun);
                    objects[*object].changed = changed.or(objects[*object].changed);
                }
            }
        }
    }
    // Which names are there.
    let mut lost: HashMap<usize, usize> = HashMap::new();
    for (dir, object) in objects.iter().enumerate().filter(|(_, o)| o.directory) {
        let loose = names
            .iter()
            .filter(|(place, d, ..)| *d == dir && *place >= object.durable);
        lost.insert(dir, dice.roll(loose.count() as u64 + 1) as usize);
    }
    let mut tree: BTreeMap<Place, usize> = BTreeMap::new();
    for (place, dir, name, change) in names {
        if place >= objects[dir].durable {
            let left = lost.get_mut(&dir).unwrap();
            if *left == 0 {
                continue;
            }
            *left -= 1;
        }
        let now = (dir, name);
        let object = match change {
            Change::Make(object) => Some(object),
            Change::Move(before) => before.and_then(|b| tree.remove(&b)),
            Change::Link(before) => before.and_then(|b| tree.get(&b).copied()),
            Change::Remove => {
                tree.remove(&now);
                None
            }
        };
        if let Some(object) = object {
            tree.insert(now, object);
        }
    }
    // Not the directory itself: its inode is on record.
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
    }
    let mut written: HashMap<usize, PathBuf> = HashMap::from([(0, root.to_owned())]);
    let mut todo = vec![0];
    while let Some(dir) = todo.pop() {
        let above = written[&dir].clone();
        let within = tree.range((dir, OsString::new())..(dir + 1, OsString::new()));
        for ((_, name), number) in within {
            let (object, path) = (&objects[*number], above.join(name));
            if object.directory {
                std::fs::create_dir(&path).unwrap();
                todo.push(*number);
            } else if let Some(first) = written.get(number) {
                std::fs::hard_link(first, &path).unwrap();
            } else {
                write_back(notes, object, &path, dice);
                let changed = object.changed.unwrap_or(UNIX_EPOCH);
                let file = std::fs::File::options().write(true).open(&path).unwrap();
                file.set_modified(changed).unwrap();
            }
            written.insert(*number, path);
        }
    }
}

fn write_back(notes: &[Note], object: &Object, path: &Path, dice: &mut Dice) {
    let file = std::fs::File::create(path).unwrap();
    let kept = dice.roll(3);
    for place in &object.changes {
        let durable = *place < object.durable;
        if !durable && kept == 0 {
            continue;
        }
        match &notes[*place] {
            Note::Write(_, at, data) if durable || kept == 1 => {
                file.write_all_at(data, *at).unwrap()
            }
            Note::Write(_, at, data) => {
                let mut from = 0;
                while from < data.len() {
                    let page = 4096 - (*at as usize + from) % 4096;
                    let to = data.len().min(from + page);
                    if dice.roll(2) == 0 {
                        file.write_all_at(&data[from..to], at + from as u64)
                            .unwrap();
                    }
                    from = to;
                }
            }
            _ if !durable && kept == 2 && dice.roll(2) == 0 => {}
            Note::Trunc(_, len) => file.set_len(*len).unwrap(),
            Note::Alloc(_, mode, at, len) => {
                let (keeps_size, punches, zeroes) = (mode & 1 != 0, mode & 2 != 0, mode & 16 != 0);
                let end = at + len;
                let size = file.metadata().unwrap().size();
                if punches || zeroes {
                    let until = end.min(size);
                    if *at < until {
                        let zeros = vec![0; (until - at) as usize];
                        file.write_all_at(&zeros, *at).unwrap();
                    }
                }
                if !keeps_size && end > size {
                    file.set_len(end).unwrap();
                }
            }
            _ => {}
        }
    }
}
