//! Exports that are cut off and go on at their last durable mark.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use disk::atomic::Slot;
use disk::confined::Dir;
use disk::{
    BLOCK_SIZE, Backing, CancelFlag, ChangeMap, DiskReport, Error, ExportPlan, Mark, Marks, Result,
    Source, SourceExtent, export_disk,
};

/// A disk in memory: every third block is zero.
struct Memory(Vec<u8>);

impl Memory {
    fn of(blocks: u64) -> Self {
        let block = |n: u64| {
            let byte = if n.is_multiple_of(3) { 0 } else { n as u8 | 1 };
            vec![byte; BLOCK_SIZE as usize]
        };
        Memory((0..blocks).flat_map(block).collect())
    }
}

impl Source for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, buf: &mut [u8], at: u64) -> Result<()> {
        buf.copy_from_slice(&self.0[at as usize..at as usize + buf.len()]);
        Ok(())
    }
    fn extents(&self, range: Range<u64>) -> Result<Vec<SourceExtent>> {
        Ok(vec![SourceExtent {
            start: range.start,
            len: range.end - range.start,
            zero: false,
        }])
    }
}

const EVERY: u64 = 32 * BLOCK_SIZE;

/// Opens or creates the temporary file of a name.
fn slot(dir: &Dir, name: &str) -> Slot {
    let partial = format!("{name}.partial");
    let file = match dir.look(OsStr::new(&partial)).unwrap() {
        Some(_) => dir.open_file_to_write(Path::new(&partial)).unwrap(),
        None => dir.create_file(OsStr::new(&partial)).unwrap(),
    };
    Slot::kept(dir, OsStr::new(name), OsStr::new(&partial), file)
}

struct Export<'a> {
    source: &'a Memory,
    changes: Option<&'a ChangeMap>,
    threads: usize,
}

impl Export<'_> {
    /// Runs until `stop` marks were set, or to the end.
    fn run(&self, dir: &Path, from: Option<&Mark>, stop: usize) -> (Result<DiskReport>, Vec<Mark>) {
        let open = Dir::open(dir).unwrap();
        let (marks, cancel) = (RefCell::new(Vec::new()), CancelFlag::new());
        let note = |mark| {
            marks.borrow_mut().push(mark);
            if marks.borrow().len() == stop {
                cancel.cancel();
            }
        };
        let mut plan = match self.changes {
            None => ExportPlan::full(self.source, slot(&open, "x.qcow2")),
            Some(changes) => {
                let backing = Backing {
                    file: "base.qcow2".into(),
                    format: "qcow2".into(),
                };
                ExportPlan::differential(self.source, changes, backing, slot(&open, "x.qcow2"))
            }
        };
        plan.block_list = Some(slot(&open, "x.map"));
        plan.threads = self.threads;
        plan.marks = Some(Marks {
            every: EVERY,
            from,
            note: &note,
        });
        let result = export_disk(&plan, &|_| {}, &cancel);
        (result, marks.into_inner())
    }
}

fn assert_image(dir: &Path, expected: &[u8]) {
    let image = dir.join("x.qcow2");
    let run = |args: &[&str]| {
        let done = Command::new("qemu-img").args(args).arg(&image).output();
        let done = done.unwrap();
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{args:?}: {text}");
    };
    run(&["check", "-q", "-f", "qcow2"]);
    let raw = dir.join("raw");
    let done = Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw"])
        .args([&image, &raw])
        .status();
    assert!(done.unwrap().success());
    assert!(fs::read(raw).unwrap() == expected, "the content differs");
}

#[test]
fn an_export_cut_off_after_any_mark_ends_as_if_it_never_was() {
    let source = Memory::of(200);
    for changes in [
        None,
        Some(ChangeMap::of(3 * BLOCK_SIZE..190 * BLOCK_SIZE - 5)),
    ] {
        let export = Export {
            source: &source,
            changes: changes.as_ref(),
            threads: 1,
        };
        let whole = tempfile::tempdir().unwrap();
        let (report, marks) = export.run(whole.path(), None, usize::MAX);
        let report = report.unwrap();
        assert!(marks.len() >= 3, "{}", marks.len());
        for stop in 1..=marks.len() {
            let dir = tempfile::tempdir().unwrap();
            let (cut, seen) = export.run(dir.path(), None, stop);
            assert!(matches!(cut, Err(Error::Cancelled)));
            assert!(!dir.path().join("x.qcow2").exists());
            // What came after the mark may be anything.
            for name in ["x.qcow2.partial", "x.map.partial"] {
                let path = dir.path().join(name);
                let mut bytes = fs::read(&path).unwrap();
                bytes.extend([0xEE; 100_000]);
                fs::write(&path, bytes).unwrap();
            }
            let text = serde_json::to_string(seen.last().unwrap()).unwrap();
            let mark: Mark = serde_json::from_str(&text).unwrap();
            let (again, later) = export.run(dir.path(), Some(&mark), usize::MAX);
            let mut again = again.unwrap();
            assert_eq!(later.len(), marks.len() - stop, "nothing is done twice");
            for name in ["x.qcow2", "x.map"] {
                let (one, two) = (whole.path().join(name), dir.path().join(name));
                assert!(fs::read(one).unwrap() == fs::read(two).unwrap(), "{name}");
            }
            if let (Some(one), Some(two)) = (&report.block_list, &mut again.block_list) {
                two.path.clone_from(&one.path);
            }
            assert_eq!(again, report);
        }
    }
}

#[test]
fn many_threads_go_on_where_they_were_cut_off() {
    let source = Memory::of(300);
    let export = Export {
        source: &source,
        changes: None,
        threads: 4,
    };
    let dir = tempfile::tempdir().unwrap();
    let (_, first) = export.run(dir.path(), None, 2);
    let (_, second) = export.run(dir.path(), first.last(), 1);
    let (report, _) = export.run(dir.path(), second.last(), usize::MAX);
    assert_eq!(report.unwrap().data_blocks, 200);
    assert_image(dir.path(), &source.0);
}

#[test]
fn files_that_are_not_what_they_were_at_the_mark_are_written_anew() {
    let source = Memory::of(200);
    let export = Export {
        source: &source,
        changes: None,
        threads: 2,
    };
    for (name, at) in [("x.qcow2.partial", BLOCK_SIZE), ("x.map.partial", 60)] {
        let dir = tempfile::tempdir().unwrap();
        let (_, marks) = export.run(dir.path(), None, 2);
        let path = dir.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at as usize] ^= 1;
        fs::write(&path, bytes).unwrap();
        let (report, later) = export.run(dir.path(), marks.last(), usize::MAX);
        report.unwrap();
        assert_eq!(later.len(), 6, "{name}: all was done again");
        assert_image(dir.path(), &source.0);
    }
    // Another disk under the same mark, and a file that was cut.
    let dir = tempfile::tempdir().unwrap();
    let (_, marks) = export.run(dir.path(), None, 2);
    let partial = OpenOptions::new()
        .write(true)
        .open(dir.path().join("x.qcow2.partial"));
    partial.unwrap().set_len(BLOCK_SIZE).unwrap();
    let other = Memory::of(201);
    let export = Export {
        source: &other,
        ..export
    };
    export.run(dir.path(), marks.last(), usize::MAX).0.unwrap();
    assert_image(dir.path(), &other.0);
}
