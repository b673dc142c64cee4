//! Decoding and encoding of an answer with 18 instances, and a query over them.

use std::hint::black_box;

use cim::wql::{Environment, Query, parse};
use cim::xml::{Limits, Writer};
use cim::{ClassTable, Instance, Value, cimxml, embedded};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Eighteen machines with the 45 properties of Msvm_ComputerSystem's size.
fn machines() -> Vec<Instance> {
    (0..18u16)
        .map(|n| {
            let mut machine = Instance::new("Msvm_ComputerSystem")
                .with("Name", format!("4764334D-E001-4176-82EE-5594EC9B53{n:02X}"))
                .with("ElementName", format!("machine {n}"))
                .with("EnabledState", if n % 2 == 0 { 2u16 } else { 3 })
                .with("OperationalStatus", vec![2u16])
                .with("OnTimeInMilliseconds", u64::from(n) * 1000);
            for i in 0..40 {
                match i % 3 {
                    0 => machine.set(format!("Text{i}"), "Virtual Machine & more"),
                    1 => machine.set(format!("Number{i}"), n),
                    _ => machine.set(format!("Null{i}"), Value::Null),
                };
            }
            machine
        })
        .collect()
}

fn encode(machines: &[Instance]) -> String {
    let mut w = Writer::with_capacity(64 * 1024);
    w.open("IRETURNVALUE");
    for machine in machines {
        w.open("VALUE.NAMEDINSTANCE");
        cimxml::write_instance_name(
            &mut w,
            &cim::Path::class(machine.class.clone()).key("Name", machine.get("Name").clone()),
        );
        cimxml::write_instance(&mut w, machine, &cimxml::InstanceShape::default());
        w.close();
    }
    w.finish()
}

fn codec(c: &mut Criterion) {
    let machines = machines();
    let text = encode(&machines);
    let mut group = c.benchmark_group("18 instances");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("encode CIM-XML", |b| {
        b.iter(|| encode(black_box(&machines)))
    });
    group.bench_function("read XML", |b| {
        b.iter(|| cim::xml::parse(black_box(text.as_bytes()), &Limits::default()));
    });
    group.bench_function("decode CIM-XML", |b| {
        b.iter(|| {
            let document = cim::xml::parse(black_box(text.as_bytes()), &Limits::default());
            let root = document.map(|d| d.root).ok();
            let items = root
                .iter()
                .flat_map(|r| &r.children)
                .map(cimxml::object_with_path);
            items.filter_map(Result::ok).count()
        });
    });
    group.finish();

    let one = machines.first().map(embedded::write).unwrap_or_default();
    c.bench_function("read one embedded instance", |b| {
        b.iter(|| embedded::read(black_box(&one), &embedded::Context::default()));
    });

    let query = "SELECT * FROM Msvm_ComputerSystem WHERE Name != __SERVER AND (EnabledState != 0 and EnabledState != 3 \
                 and EnabledState != 32769) AND ElementName LIKE 'Machine%'";
    c.bench_function("parse WQL", |b| b.iter(|| parse(black_box(query))));
    let schema = ClassTable::default();
    let env = Environment {
        schema: &schema,
        host: "HOST",
        namespace: "root/virtualization/v2",
    };
    if let Ok(Query::Select(select)) = parse(query) {
        c.bench_function("match WQL, 18 instances", |b| {
            b.iter(|| {
                machines
                    .iter()
                    .filter(|m| select.matches(black_box(m), &env))
                    .count()
            });
        });
    }
}

criterion_group!(benches, codec);
criterion_main!(benches);
