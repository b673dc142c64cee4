//! A query for 18 instances over one kept connection, both protocols, client and server in one process.

#![expect(clippy::expect_used, reason = "its data is its own")]

#[path = "../tests/protocols/scripted.rs"]
mod scripted;
#[path = "../tests/protocols/wire.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod wire;

use criterion::{Criterion, criterion_group, criterion_main};
use wbem::server::Options;

use crate::scripted::Scripted;
use crate::wire::{Connection, basic, start_with};

const WSMAN: &str = "<s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\" \
    xmlns:a=\"http://schemas.xmlsoap.org/ws/2004/08/addressing\" \
    xmlns:n=\"http://schemas.xmlsoap.org/ws/2004/09/enumeration\" \
    xmlns:w=\"http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd\"><s:Header>\
    <a:Action>http://schemas.xmlsoap.org/ws/2004/09/enumeration/Enumerate</a:Action>\
    <w:ResourceURI>http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/*</w:ResourceURI>\
    <a:MessageID>uuid:1</a:MessageID></s:Header><s:Body><n:Enumerate><w:OptimizeEnumeration/>\
    <w:MaxElements>100</w:MaxElements><w:Filter Dialect=\"http://schemas.microsoft.com/wbem/wsman/1/WQL\">\
    SELECT * FROM Msvm_ComputerSystem WHERE Name != __SERVER</w:Filter></n:Enumerate></s:Body></s:Envelope>";

const CIMXML: &str = "<?xml version=\"1.0\" encoding=\"utf-8\" ?><CIM CIMVERSION=\"2.0\" DTDVERSION=\"2.0\">\
    <MESSAGE ID=\"1\" PROTOCOLVERSION=\"1.0\"><SIMPLEREQ><IMETHODCALL NAME=\"ExecQuery\"><LOCALNAMESPACEPATH>\
    <NAMESPACE NAME=\"root\"/><NAMESPACE NAME=\"virtualization\"/><NAMESPACE NAME=\"v2\"/></LOCALNAMESPACEPATH>\
    <IPARAMVALUE NAME=\"QueryLanguage\"><VALUE>WQL</VALUE></IPARAMVALUE><IPARAMVALUE NAME=\"Query\">\
    <VALUE>SELECT * FROM Msvm_ComputerSystem WHERE Name != __SERVER</VALUE></IPARAMVALUE>\
    </IMETHODCALL></SIMPLEREQ></MESSAGE></CIM>";

fn queries(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    // One of the objects is of a subclass.
    let running = runtime.block_on(start_with(Scripted::with_systems(17), Options::default()));
    let mut connection = runtime.block_on(Connection::to(running.addr));
    let plain = basic();
    let cimxml = format!("{plain}CIMOperation: MethodCall\r\n");
    for (name, path, headers, body) in [
        ("wsman/18 instances", "/wsman", &plain, WSMAN),
        ("cimxml/18 instances", "/cimom", &cimxml, CIMXML),
    ] {
        c.bench_function(name, |b| {
            b.iter(|| {
                let got = runtime.block_on(connection.post(path, headers, body.as_bytes()));
                assert!(got.status == 200 && got.body.len() > 10_000, "{got:?}");
            });
        });
    }
}

criterion_group!(benches, queries);
criterion_main!(benches);
