//! Export directories with manifests: proven, damaged, proven again, restored.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod images;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use disk::manifest::{
    Consistency, DiskEntry, HexHash, MachineIdentity, Manifest, PlainFile, PointIdentity,
    PointType, RelativePath,
};
use disk::verify::{Problem, Verdict, disk_files, open_exports};
use disk::{
    Backing, CancelFlag, Chain, Error, ExportPlan, LayerFormat, LayerSpec, Progress, Qcow2Layer,
    export_disk, flatten, verify,
};
use images::*;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB + 512;

fn quiet(_: Progress) {}

fn relative(path: &str) -> RelativePath {
    RelativePath::new(path).unwrap()
}

/// A machine with one disk, exported at three points into three directories side by side.
struct Scene {
    dir: tempfile::TempDir,
    exports: Vec<PathBuf>,
    raws: Vec<PathBuf>,
}

fn scene(seed: u64) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice(seed);
    let (mut specs, mut exports, mut raws) = (Vec::<LayerSpec>::new(), Vec::new(), Vec::new());
    let mut lists: Vec<PathBuf> = Vec::new();
    let mut below = None;
    for n in 0..3 {
        let layer = dir.path().join(format!("layer{n}"));
        let backing = specs.last().map(|s| s.path.clone());
        create(
            &layer,
            SIZE,
            "extended_l2=on",
            backing.as_deref().map(|p| (p, "qcow2")),
        );
        qemu_io(&layer, "qcow2", &guest_writes(&mut dice, SIZE, 60));
        specs.push(LayerSpec::qcow2(&layer));
        let raw = dir.path().join(format!("raw{n}"));
        to_raw(&layer, &raw);

        let export = dir.path().join(format!("export{n}"));
        fs::create_dir_all(export.join("Virtual Hard Disks")).unwrap();
        let (file, list) = (
            format!("Virtual Hard Disks/d-{n}.qcow2"),
            format!("Virtual Hard Disks/d-{n}.map"),
        );
        let chain = Chain::open(&specs).unwrap();
        let changes = Qcow2Layer::open(&layer).unwrap().allocation().unwrap();
        let mut plan = ExportPlan::full(&chain, export.join(&file));
        let mut base_file = None;
        if n > 0 {
            let base = format!("d-{}.qcow2", n - 1);
            let file = format!("../../export{}/Virtual Hard Disks/{base}", n - 1);
            let backing = Backing {
                file,
                format: "qcow2".into(),
            };
            plan = ExportPlan::differential(&chain, &changes, backing, export.join(file_of(n)));
            plan.base_lists = lists.clone();
            base_file = Some(relative(&base));
        }
        plan.block_list = Some(export.join(&list).into());
        let report = export_disk(&plan, &quiet, &CancelFlag::new()).unwrap();
        lists.push(export.join(&list));

        let point = PointIdentity {
            id: format!("P{n}"),
            name: None,
            instant: format!("2026-11-20T19:00:0{n}Z"),
            consistency: Consistency::Crash,
            kind: PointType::RctBased,
            base_id: (n > 0).then(|| format!("P{}", n - 1)),
            base_manifest: below.map(HexHash),
        };
        let machine = MachineIdentity {
            id: "M".into(),
            name: "m".into(),
        };
        let mut manifest = Manifest::new("test", machine, point);
        fs::write(export.join("M.json"), "{}").unwrap();
        manifest.files.push(PlainFile {
            role: "configuration".into(),
            path: relative("M.json"),
            bytes: 2,
            blake3: HexHash(blake3::hash(b"{}")),
        });
        let entry =
            DiskEntry::of("disk", relative(&file), relative(&list), base_file, &report).unwrap();
        manifest.disks.push(entry);
        below = Some(manifest.save(&export).unwrap());
        exports.push(export);
        raws.push(raw);
    }
    Scene { dir, exports, raws }
}

fn file_of(n: usize) -> String {
    format!("Virtual Hard Disks/d-{n}.qcow2")
}

fn verdicts(dirs: &[PathBuf]) -> Vec<Verdict> {
    verify(dirs, &quiet, &CancelFlag::new()).unwrap()
}

fn problem(dirs: &[PathBuf], point: &str, what: &str) -> Problem {
    let mut all = verdicts(dirs);
    let at = all
        .iter()
        .position(|v| v.point == point && v.what == what)
        .unwrap();
    all.swap_remove(at).problem.unwrap()
}

#[test]
fn a_sound_chain_is_proven_at_every_point_and_restores_to_each() {
    let scene = scene(5);
    let last = std::sync::Mutex::new(None);
    let note = |p: Progress| *last.lock().unwrap() = Some(p);
    let all = verify(&scene.exports, &note, &CancelFlag::new()).unwrap();
    assert_eq!(all.len(), 6);
    assert!(all.iter().all(|v| v.problem.is_none()), "{all:?}");
    let progress = last.into_inner().unwrap().unwrap();
    assert_eq!(progress.done, progress.total);
    for n in 0..3 {
        let chain = open_exports(&scene.exports[..=n]).unwrap();
        let files = disk_files(&chain, "disk").unwrap();
        assert_eq!((files.layers.len(), files.virtual_size), (n + 1, SIZE));
        let flat = scene.dir.path().join(format!("flat{n}"));
        let source = Chain::open(&files.layers).unwrap();
        flatten(
            &source,
            &flat,
            LayerFormat::Qcow2,
            &quiet,
            &CancelFlag::new(),
        )
        .unwrap();
        check(&flat);
        identical(&flat, "qcow2", &scene.raws[n], "raw");
        // QEMU follows the relative names by itself.
        identical(
            &scene.exports[n].join(file_of(n)),
            "qcow2",
            &scene.raws[n],
            "raw",
        );
    }
}

#[test]
fn one_changed_byte_is_found_with_its_block() {
    let scene = scene(6);
    let image = scene.exports[1].join(file_of(1));
    let layer = Qcow2Layer::open(&image).unwrap();
    let mut at = 0;
    // The third piece of data in the image.
    let mut seen = 0;
    let host = loop {
        let extent = layer.map(at).unwrap();
        if let disk::qcow2::ExtentKind::Data { host_offset } = extent.kind {
            seen += 1;
            if seen == 3 {
                break host_offset;
            }
        }
        at += extent.len;
    };
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&image)
        .unwrap();
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, host + 100).unwrap();
    file.write_all_at(&[byte[0] ^ 1], host + 100).unwrap();
    let found = problem(&scene.exports, "P1", "disk");
    assert!(
        matches!(found, Problem::Block { block, .. } if block == at / 65_536),
        "{found}"
    );
    // Its base is untouched, and says so.
    assert!(
        verdicts(&scene.exports[..1])
            .iter()
            .all(|v| v.problem.is_none())
    );
}

#[test]
fn a_block_smuggled_into_an_image_is_found() {
    let scene = scene(7);
    let (base, top) = (
        scene.exports[0].join(file_of(0)),
        scene.exports[1].join(file_of(1)),
    );
    let before = fs::metadata(&top).unwrap().len();
    let own = Qcow2Layer::open(&top).unwrap().allocation().unwrap();
    let free = (0..SIZE / 65_536)
        .find(|b| !own.contains(b * 65_536))
        .unwrap()
        * 65_536;
    assert!(base.exists());
    qemu_io(&top, "qcow2", &format!("write -P 77 {free} 64k\n"));
    let after = fs::metadata(&top).unwrap().len();
    let found = problem(&scene.exports, "P1", "disk");
    if before == after {
        assert!(
            matches!(found, Problem::Unlisted { offset } if offset == free),
            "{found}"
        );
    } else {
        assert!(matches!(found, Problem::Length { .. }), "{found}");
        // Made fit in the manifest, by somebody who knows of the seal, it is still found.
        let path = scene.exports[1].join("manifest.json");
        let text = fs::read_to_string(&path).unwrap();
        let seal = text.rfind(",\n  \"seal\"").unwrap();
        let text = format!("{}\n}}\n", &text[..seal]);
        let (from, to) = (
            format!("\"file_bytes\": {before}"),
            format!("\"file_bytes\": {after}"),
        );
        fs::write(&path, text.replace(&from, &to)).unwrap();
        let found = problem(&scene.exports[..2], "P1", "disk");
        assert!(
            matches!(found, Problem::Unlisted { offset } if offset == free),
            "{found}"
        );
    }
}

#[test]
fn damaged_lists_missing_files_and_changed_plain_files_are_told() {
    let scene = scene(8);
    let list = scene.exports[2].join("Virtual Hard Disks/d-2.map");
    let mut bytes = fs::read(&list).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&list, bytes).unwrap();
    assert!(matches!(
        problem(&scene.exports, "P2", "disk"),
        Problem::Unreadable(_)
    ));
    fs::write(scene.exports[0].join("M.json"), "[]").unwrap();
    assert!(matches!(
        problem(&scene.exports, "P0", "M.json"),
        Problem::Hash { .. }
    ));
    fs::remove_file(scene.exports[1].join(file_of(1))).unwrap();
    assert!(matches!(
        problem(&scene.exports, "P1", "disk"),
        Problem::Unreadable(_)
    ));
    assert!(
        verdicts(&scene.exports)
            .iter()
            .any(|v| v.point == "P0" && v.problem.is_none())
    );
}

#[test]
fn exports_that_do_not_stand_on_each_other_are_refused() {
    let scene = scene(9);
    let [a, b, c] = [0, 1, 2].map(|n| scene.exports[n].clone());
    for dirs in [
        vec![],
        vec![b.clone()],
        vec![a.clone(), c.clone()],
        vec![b, a.clone()],
    ] {
        let result = verify(&dirs, &quiet, &CancelFlag::new());
        assert!(matches!(result, Err(Error::Invalid { .. })), "{dirs:?}");
    }
    fs::remove_file(c.join("manifest.json")).unwrap();
    let result = verify(&[a, c], &quiet, &CancelFlag::new());
    assert!(matches!(result, Err(Error::Unfinished { .. })));
}

#[test]
fn a_link_out_of_the_export_is_not_followed() {
    let scene = scene(10);
    let image = scene.exports[0].join(file_of(0));
    let outside = scene.dir.path().join("elsewhere");
    fs::rename(&image, &outside).unwrap();
    std::os::unix::fs::symlink(&outside, &image).unwrap();
    assert!(matches!(
        problem(&scene.exports[..1], "P0", "disk"),
        Problem::Unreadable(_)
    ));
}

#[test]
fn a_cancelled_proof_ends() {
    let scene = scene(11);
    let cancel = CancelFlag::new();
    cancel.cancel();
    assert!(matches!(
        verify(&scene.exports, &quiet, &cancel),
        Err(Error::Cancelled)
    ));
}

#[test]
fn a_flattened_target_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let raw = raw_file(&dir.path().join("r"), MIB);
    let chain = Chain::single(&raw, LayerFormat::Raw).unwrap();
    let target: &Path = &dir.path().join("t");
    fs::write(target, "x").unwrap();
    for format in [LayerFormat::Raw, LayerFormat::Qcow2] {
        assert!(flatten(&chain, target, format, &quiet, &CancelFlag::new()).is_err());
    }
    assert_eq!(fs::read(target).unwrap(), b"x");
}
