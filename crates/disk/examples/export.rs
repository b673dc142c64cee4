//! Exports a chain of layers from the command line, for the speed scripts.
//!
//! `export [--threads N] [--no-list] [--over BASE.qcow2 --top K] TARGET LAYER...`: layers topmost last, `raw:PATH` for a raw one. With
//! `--over`, only what the K topmost layers define is exported, as a differential over that image. One line of figures is printed.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use disk::{
    Backing, CancelFlag, Chain, ChangeMap, ExportPlan, LayerSpec, Qcow2Layer, Source, export_disk,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (mut threads, mut list, mut over, mut top) = (None, true, None, 1usize);
    let mut names = Vec::new();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--threads" => threads = Some(value()?.parse()?),
            "--no-list" => list = false,
            "--over" => over = Some(value()?),
            "--top" => top = value()?.parse()?,
            _ => names.push(arg),
        }
    }
    let mut names = names.into_iter();
    let target = PathBuf::from(
        names
            .next()
            .ok_or("a target and at least one layer are needed")?,
    );
    let specs: Vec<LayerSpec> = names
        .map(|name| match name.strip_prefix("raw:") {
            Some(path) => LayerSpec::raw(path),
            None => LayerSpec::qcow2(name),
        })
        .collect();

    let start = Instant::now();
    let chain = Chain::open(&specs)?;
    let mut changes = ChangeMap::new();
    if over.is_some() {
        for spec in specs.iter().rev().take(top) {
            changes = changes.union(&Qcow2Layer::open(&spec.path)?.allocation()?);
        }
        changes = changes.clip(chain.size());
    }
    let mut plan = match over {
        Some(file) => {
            let backing = Backing {
                file,
                format: "qcow2".into(),
            };
            ExportPlan::differential(&chain, &changes, backing, &target)
        }
        None => ExportPlan::full(&chain, &target),
    };
    plan.threads = threads.unwrap_or(plan.threads);
    plan.block_list = list.then(|| target.with_extension("map").into());
    let report = export_disk(&plan, &|_| {}, &CancelFlag::new())?;
    let seconds = start.elapsed().as_secs_f64();
    let peak = std::fs::read_to_string("/proc/self/status")?
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:").map(|v| v.trim().to_owned()))
        .unwrap_or_default();
    println!(
        "seconds={seconds:.3} read={} written={} data_blocks={} zero_blocks={} extents={} peak=\"{peak}\" digest={}",
        report.bytes_read,
        report.bytes_written,
        report.data_blocks,
        report.zero_blocks,
        report.extents,
        report
            .digest
            .map_or_else(|| "-".into(), |d| d.to_hex().to_string()),
    );
    Ok(())
}
