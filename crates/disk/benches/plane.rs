//! The inner loops of the data plane: zero test, hash, table walk, change maps.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use disk::writer::{BlockState, Qcow2Writer};
use disk::{BLOCK_SIZE, ChangeMap, Qcow2Layer, is_zero};

fn blocks(c: &mut Criterion) {
    let zeros = vec![0u8; BLOCK_SIZE as usize];
    let mut late = zeros.clone();
    if let Some(last) = late.last_mut() {
        *last = 1;
    }
    let mut group = c.benchmark_group("block");
    group.throughput(Throughput::Bytes(BLOCK_SIZE));
    group.bench_function("zero test, all zero", |b| {
        b.iter(|| is_zero(black_box(&zeros)))
    });
    group.bench_function("zero test, last byte set", |b| {
        b.iter(|| is_zero(black_box(&late)))
    });
    group.bench_function("hash", |b| b.iter(|| blake3::hash(black_box(&late))));
    group.finish();
}

/// An image of 64 GiB with every second block in it; the content is never read, so it need not be there.
fn image(dir: &std::path::Path) -> disk::Result<Qcow2Layer> {
    let path = dir.join("image.qcow2");
    let count = 1 << 20;
    let mut writer = Qcow2Writer::create(&path, count * BLOCK_SIZE, None)?;
    let (area, mut mapping) = writer.split();
    for block in (0..count).step_by(2) {
        mapping.set(block, 1, BlockState::Data(area.reserve(1)))?;
    }
    writer.finish()?;
    Qcow2Layer::open(&path)
}

fn tables(c: &mut Criterion) {
    let layer = tempfile::tempdir().map(|dir| (image(dir.path()), dir));
    let Ok((Ok(layer), _dir)) = layer else {
        println!("no room for the image: the table walk is left out");
        return;
    };
    let mut group = c.benchmark_group("tables");
    group.sample_size(20);
    group.throughput(Throughput::Elements(1 << 20));
    group.bench_function("allocation of a million clusters", |b| {
        b.iter(|| layer.allocation())
    });
    group.finish();
}

fn maps(c: &mut Criterion) {
    let map = |shift: u64| ChangeMap::from_ranges((0..100_000).map(|i| i * 100..i * 100 + shift));
    let (a, b) = (map(30), map(60));
    let mut group = c.benchmark_group("map");
    group.throughput(Throughput::Elements(100_000));
    group.bench_function("union", |bench| {
        bench.iter(|| black_box(&a).union(black_box(&b)))
    });
    group.bench_function("encode", |bench| {
        bench.iter(|| black_box(&a).encode(1 << 40))
    });
    group.finish();
}

criterion_group!(benches, blocks, tables, maps);
criterion_main!(benches);
