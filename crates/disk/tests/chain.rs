//! Reading: every kind of image QEMU makes, alone and in chains, against `qemu-img convert`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod images;

use std::path::{Path, PathBuf};

use disk::qcow2::{ExtentKind, FormatError};
use disk::{Chain, ChangeMap, Error, LayerSpec, Qcow2Layer, Source};
use images::*;

const MIB: u64 = 1 << 20;
/// Not a multiple of a cluster of 64 KiB.
const ODD: u64 = 20 * MIB + 512;

fn one_image_reads_as_qemu_reads_it(options: &str, size: u64, seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let (image, raw) = (dir.path().join("a.qcow2"), dir.path().join("a.raw"));
    let mut dice = Dice(seed);
    create(&image, size, options, None);
    qemu_io(&image, "qcow2", &guest_writes(&mut dice, size, 150));
    to_raw(&image, &raw);
    let chain = Chain::open(&[LayerSpec::qcow2(&image)]).unwrap();
    assert_reads_as(&chain, &raw, &mut dice);
}

#[test]
fn images_of_every_cluster_size_read_as_qemu_reads_them() {
    for (n, cluster) in [512u64, 1024, 4096, 65536, 2 << 20].into_iter().enumerate() {
        one_image_reads_as_qemu_reads_it(&format!("cluster_size={cluster}"), ODD, 11 + n as u64);
    }
}

#[test]
fn images_with_subclusters_read_as_qemu_reads_them() {
    for (n, cluster) in [16384u64, 65536, 2 << 20].into_iter().enumerate() {
        let options = format!("extended_l2=on,cluster_size={cluster}");
        one_image_reads_as_qemu_reads_it(&options, ODD, 21 + n as u64);
    }
}

#[test]
fn version_2_and_preallocated_images_read_as_qemu_reads_them() {
    one_image_reads_as_qemu_reads_it("compat=0.10", ODD, 31);
    one_image_reads_as_qemu_reads_it("preallocation=metadata", ODD, 32);
    one_image_reads_as_qemu_reads_it("preallocation=metadata,extended_l2=on", ODD, 33);
    one_image_reads_as_qemu_reads_it("lazy_refcounts=on,refcount_bits=1", ODD, 34);
}

#[test]
fn compressed_images_read_as_qemu_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let raw = raw_file(&dir.path().join("a.raw"), ODD);
    let mut dice = Dice(41);
    qemu_io(&raw, "raw", &guest_writes(&mut dice, ODD, 200));
    for options in [
        "compression_type=zlib",
        "compression_type=zstd",
        "compression_type=zstd,extended_l2=on",
        "compression_type=zlib,cluster_size=4096",
        "compression_type=zstd,cluster_size=2M",
    ] {
        let image = dir.path().join("packed.qcow2");
        let (from, to) = (text(&raw), text(&image));
        tool(
            "qemu-img",
            &[
                "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, from, to,
            ],
        );
        let layer = Qcow2Layer::open(&image).unwrap();
        let mut at = 0;
        let mut packed = 0;
        while at < ODD {
            let extent = layer.map(at).unwrap();
            packed += u64::from(matches!(extent.kind, ExtentKind::Compressed { .. }));
            at += extent.len;
        }
        assert!(packed > 0, "{options}");
        let chain = Chain::open(&[LayerSpec::qcow2(&image)]).unwrap();
        assert_reads_as(&chain, &raw, &mut dice);
    }
}

/// Random guest writes over a chain of layers; at each point the chain must read as QEMU reads it, and the allocation of the new
/// layer must hold every byte that is different from the point before.
fn chains_read_as_qemu_reads_them(options: &str, base_is_raw: bool, seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice(seed);
    let base = dir.path().join("base.img");
    let mut specs = if base_is_raw {
        vec![LayerSpec::raw(raw_file(&base, ODD))]
    } else {
        create(&base, ODD, "", None);
        vec![LayerSpec::qcow2(&base)]
    };
    let format = if base_is_raw { "raw" } else { "qcow2" };
    qemu_io(&base, format, &guest_writes(&mut dice, ODD, 100));
    let mut before = Vec::new();
    let (mut below, mut below_format): (PathBuf, _) = (base, format);
    // Also layers that are shorter and longer than the one beneath.
    for (n, size) in [ODD, 24 * MIB, 12 * MIB + 1024, 30 * MIB + 512]
        .into_iter()
        .enumerate()
    {
        let layer = dir.path().join(format!("layer{n}.qcow2"));
        create(
            &layer,
            size,
            options,
            Some((Path::new(&below), below_format)),
        );
        qemu_io(&layer, "qcow2", &guest_writes(&mut dice, size, 80));
        specs.push(LayerSpec::qcow2(&layer));
        let raw = dir.path().join("expected.raw");
        to_raw(&layer, &raw);
        let chain = Chain::open(&specs).unwrap();
        assert_eq!(chain.depth(), n + 2);
        assert_reads_as(&chain, &raw, &mut dice);
        let map = Qcow2Layer::open(&layer).unwrap().allocation().unwrap();
        let now = std::fs::read(&raw).unwrap();
        for (sector, (old, new)) in before.chunks(512).zip(now.chunks(512)).enumerate() {
            let at = sector as u64 * 512;
            assert!(
                old == new || map.contains(at),
                "the change at {at} is not in the map"
            );
        }
        before = now;
        (below, below_format) = (layer, "qcow2");
    }
}

#[test]
fn chains_of_plain_layers_read_as_qemu_reads_them() {
    chains_read_as_qemu_reads_them("", false, 51);
    chains_read_as_qemu_reads_them("", true, 52);
}

#[test]
fn chains_of_layers_with_subclusters_read_as_qemu_reads_them() {
    chains_read_as_qemu_reads_them("extended_l2=on", false, 61);
    chains_read_as_qemu_reads_them("extended_l2=on", true, 62);
}

#[test]
fn the_allocation_of_a_layer_with_subclusters_is_precise() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("b.qcow2"), dir.path().join("t.qcow2"));
    create(&base, ODD, "", None);
    create(&top, ODD, "extended_l2=on", Some((&base, "qcow2")));
    qemu_io(
        &top,
        "qcow2",
        "write -P 7 1M 2k\nwrite -z 3M 64k\nwrite -P 1 5M 128k\n",
    );
    let map = Qcow2Layer::open(&top).unwrap().allocation().unwrap();
    let expected = [
        MIB..MIB + 2048,
        3 * MIB..3 * MIB + 65536,
        5 * MIB..5 * MIB + 131_072,
    ];
    assert_eq!(map, ChangeMap::from_ranges(expected));
}

#[test]
fn an_external_data_file_is_read_only_when_the_caller_names_it() {
    for raw_flag in ["data_file_raw=off", "data_file_raw=on"] {
        let dir = tempfile::tempdir().unwrap();
        let (image, data) = (dir.path().join("a.qcow2"), dir.path().join("a.data"));
        let raw = dir.path().join("a.raw");
        create(
            &image,
            ODD,
            &format!("data_file={},{raw_flag}", text(&data)),
            None,
        );
        let mut dice = Dice(71);
        qemu_io(&image, "qcow2", &guest_writes(&mut dice, ODD, 100));
        to_raw(&image, &raw);
        let named = LayerSpec::qcow2(&image).with_data_file(&data);
        assert_reads_as(&Chain::open(&[named]).unwrap(), &raw, &mut dice);

        let unnamed = Chain::open(&[LayerSpec::qcow2(&image)]).unwrap();
        let mut bytes = vec![0u8; ODD as usize];
        assert!(matches!(
            unnamed.read_at(&mut bytes, 0),
            Err(Error::Qcow2 {
                source: FormatError::DataFileMissing(_),
                ..
            })
        ));
    }
}

#[test]
fn backing_names_are_told_and_never_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("b.qcow2"), dir.path().join("t.qcow2"));
    create(&base, ODD, "", None);
    qemu_io(&base, "qcow2", "write -P 9 0 1M\n");
    create(&top, ODD, "", Some((&base, "qcow2")));
    let layer = Qcow2Layer::open(&top).unwrap();
    assert_eq!(layer.backing(), Some(text(&base)));
    assert_eq!(layer.backing_format(), Some("qcow2"));
    let alone = Chain::open(&[LayerSpec::qcow2(&top)]).unwrap();
    let mut bytes = [1u8; 512];
    alone.read_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0u8; 512]);
}

#[test]
fn encrypted_and_cut_images_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("e.qcow2");
    tool(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "--object",
            "secret,id=s,data=x",
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            text(&image),
            "1M",
        ],
    );
    assert!(matches!(
        Qcow2Layer::open(&image),
        Err(Error::Qcow2 {
            source: FormatError::Encrypted(2),
            ..
        })
    ));

    let image = dir.path().join("c.qcow2");
    create(&image, ODD, "", None);
    qemu_io(&image, "qcow2", "write -P 9 0 4M\n");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap();
    file.set_len(2 * MIB).unwrap();
    let chain = Chain::open(&[LayerSpec::qcow2(&image)]).unwrap();
    let mut bytes = vec![0u8; 4 * MIB as usize];
    assert!(matches!(
        chain.read_at(&mut bytes, 0),
        Err(Error::Qcow2 { .. })
    ));
}

#[test]
fn reads_outside_the_disk_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let chain = Chain::open(&[LayerSpec::raw(raw_file(&dir.path().join("r"), 1000))]).unwrap();
    let mut bytes = [0u8; 10];
    chain.read_at(&mut bytes, 990).unwrap();
    for offset in [991, 1000, u64::MAX - 3] {
        assert!(matches!(
            chain.read_at(&mut bytes, offset),
            Err(Error::OutOfRange { .. })
        ));
    }
    assert!(chain.extents(5..1001).is_err());
    assert!(Chain::open(&[]).is_err());
}
