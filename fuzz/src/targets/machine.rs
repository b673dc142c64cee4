//! What QEMU and those who play QEMU say: the monitor, disk images, NBD.

use super::Target;
use hypervisor::qmp::LineDecoder;
use hypervisor::qmp::codec::decode;

pub(super) const QMP: Target = Target {
    name: "qmp",
    run: qmp,
    limit: 4096,
    also: None,
    dictionary: &[
        "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 10}}}}\n",
        "{\"return\": {}, \"id\": 1}\r\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"x\"}, \"id\": 1}\n",
        "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"data\": {}}\n",
        "\n",
        "\r\n",
        "[",
        "{\"",
        "null",
        "\\u0000",
        "\\ud800",
        "1e999",
    ],
};

fn qmp(input: &[u8]) {
    hypervisor::fuzz::qmp(input);
    // The same bytes in other portions are the same lines.
    let whole = lines(&mut input.chunks(input.len().max(1)));
    let portion = usize::from(input.first().copied().unwrap_or(0) % 7) + 1;
    assert_eq!(whole, lines(&mut input.chunks(portion)));
    for line in whole {
        let _ = decode(&line);
    }
}

fn lines(portions: &mut dyn Iterator<Item = &[u8]>) -> Vec<Vec<u8>> {
    let mut decoder = LineDecoder::default();
    let mut lines = Vec::new();
    for portion in portions {
        decoder.feed(portion);
        while let Ok(Some(line)) = decoder.next_line() {
            lines.push(line);
        }
    }
    lines
}

pub(super) const NBD: Target = Target {
    name: "nbd",
    run: disk::fuzz::nbd,
    limit: 4096,
    also: None,
    dictionary: &[
        "NBDMAGIC",
        "IHAVEOPT",
        "base:allocation",
        "qemu:allocation-depth",
        "\u{0}\u{3}",
        "\u{0}\u{0}\u{0}\u{1}",
        "\u{0}\u{0}\u{0}\u{4}",
        "\u{0}\u{0}\u{0}\u{a}",
    ],
};

pub(super) const QCOW2: Target = Target {
    name: "qcow2",
    run: disk::fuzz::qcow2,
    limit: 98_304,
    also: None,
    dictionary: &[
        "QFI\u{7f}",
        "\u{0}\u{0}\u{0}\u{3}",
        "\u{0}\u{0}\u{0}\u{9}",
        "\u{0}\u{0}\u{0}\u{10}",
        "\u{0}\u{0}\u{0}\u{68}",
        "\u{0}\u{0}\u{0}\u{70}",
        "\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{2}\u{0}",
        "raw",
        "qcow2",
    ],
};

pub(super) const LOOK: Target = Target {
    name: "look",
    run: disk::fuzz::look,
    limit: 8192,
    also: None,
    dictionary: &[
        "QFI\u{7f}",
        "KDMV",
        "COWD",
        "vhdxfile",
        "conectix",
        "# Disk DescriptorFile\n",
        "RW 8192 FLAT \"/x\" 0\n",
        "parentFileNameHint=\"/x\"\n",
        "json:{}",
        "nbd:unix:/x",
        "DATA",
        "\u{0}\u{0}\u{0}\u{3}",
        "\u{0}\u{0}\u{0}\u{68}",
    ],
};

pub(super) const MAP: Target = Target {
    name: "map",
    run: map,
    limit: 4096,
    also: None,
    dictionary: &[
        "KVMMSMAP",
        "KVMMSBLK",
        "\u{1}\u{0}\u{0}\u{0}",
        "\u{0}\u{0}\u{1}\u{0}",
    ],
};

fn map(input: &[u8]) {
    disk::fuzz::map(input);
    // Once more with the check sum it would need, to get beyond it.
    let mut sealed = input.to_vec();
    sealed.extend_from_slice(blake3::hash(input).as_bytes());
    disk::fuzz::map(&sealed);
}

pub(super) const MANIFEST: Target = Target {
    name: "manifest",
    run: disk::fuzz::manifest,
    limit: 4096,
    also: None,
    dictionary: &[
        "{\"",
        "\":",
        "null",
        "[]",
        "{}",
        "\"../x\"",
        "\"/etc\"",
        "18446744073709551615",
        "-1",
        "\"version\": 1",
        "\"disks\": []",
        "\"base\"",
    ],
};
