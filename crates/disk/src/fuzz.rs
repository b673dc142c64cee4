//! Entry points for fuzzing: any bytes in, no panic, no unbounded memory, out.

use std::io::{self, Cursor, Read, Write};
use std::path::Path;

use crate::blocks::BlockListReader;
use crate::manifest::Manifest;
use crate::map::ChangeMap;
use crate::nbd::{BASE_ALLOCATION, NbdClient, QEMU_ALLOCATION_DEPTH};
use crate::qcow2::{ExtentKind, Qcow2Layer};

/// Extents looked at per image; a table full of nonsense can have millions.
const EXTENTS: usize = 4096;

/// An image: header, tables, plain and packed content.
pub fn qcow2(bytes: &[u8]) {
    let Ok(layer) = Qcow2Layer::from_bytes(bytes.to_vec()) else {
        return;
    };
    let mut at = 0;
    let mut buf = [0u8; 4096];
    for _ in 0..EXTENTS {
        let Ok(extent) = layer.map_limited(at, 1 << 30) else {
            return;
        };
        match extent.kind {
            ExtentKind::Data { host_offset } => {
                let len = extent.len.min(buf.len() as u64) as usize;
                if let Some(part) = buf.get_mut(..len) {
                    let _ = layer.read_data(part, host_offset);
                }
            }
            ExtentKind::Compressed {
                host_offset,
                stored,
            } => {
                let _ = layer.read_compressed(at, host_offset, stored);
            }
            ExtentKind::Zero | ExtentKind::Unallocated => {}
        }
        at += extent.len;
    }
}

/// An image that nobody has used yet: what it is, and what it names beside itself.
pub fn look(bytes: &[u8]) {
    use crate::look::{Format, Look};
    let look = Look::of(Path::new("/fuzz/disk.vhd"), bytes);
    let _ = look.told();
    for format in [Format::Qcow2, Format::Vhd, Format::Vhdx, Format::Vmdk] {
        if let Ok(checked) = look.check(format)
            && let Some(beneath) = checked.backing
        {
            let slash = beneath.name.find('/').unwrap_or(usize::MAX);
            assert!(beneath.name.find(':').is_none_or(|colon| slash < colon));
        }
    }
    assert!(look.check(Format::Raw).is_ok());
}

/// A server that says what it likes, whatever it is asked.
struct Script(Cursor<Vec<u8>>);

impl Read for Script {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Script {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All an NBD server ever says on one connection: handshake, a read, a block status.
pub fn nbd(bytes: &[u8]) {
    let script = Box::new(Script(Cursor::new(bytes.to_vec())));
    let contexts = [BASE_ALLOCATION, QEMU_ALLOCATION_DEPTH];
    let Ok(mut client) = NbdClient::over("fuzz".into(), script, "d", &contexts) else {
        return;
    };
    let mut buf = vec![0u8; client.size().min(600 << 10) as usize];
    let _ = client.read_at(&mut buf, 0);
    let end = client.size().min(4 << 30);
    let _ = client.status(QEMU_ALLOCATION_DEPTH, 0..end);
}

/// A change map file, and a block list.
pub fn map(bytes: &[u8]) {
    if let Ok((map, size)) = ChangeMap::decode(bytes) {
        assert_eq!(map.encode(size), bytes);
    }
    let Ok(mut list) = BlockListReader::from_reader(Path::new("fuzz"), bytes) else {
        return;
    };
    while let Ok(Some(_)) = list.next_run() {}
}

/// A manifest.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::decode(bytes) {
        let again = manifest
            .encode()
            .ok()
            .and_then(|b| Manifest::decode(&b).ok());
        assert_eq!(again, Some(manifest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    /// What a well-behaved server says: greeting, options, a read in two chunks, a status.
    fn transcript() -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(b"NBDMAGICIHAVEOPT\0\x03");
        let mut reply = |option: u32, kind: u32, data: &[u8]| {
            out.extend(0x0003_e889_0455_65a9u64.to_be_bytes());
            out.extend(option.to_be_bytes());
            out.extend(kind.to_be_bytes());
            out.extend((data.len() as u32).to_be_bytes());
            out.extend(data);
        };
        reply(8, 1, &[]);
        reply(10, 4, b"\0\0\0\x01base:allocation");
        reply(10, 4, b"\0\0\0\x02qemu:allocation-depth");
        reply(10, 1, &[]);
        reply(7, 3, &[0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0]);
        reply(7, 3, &[0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0]);
        reply(7, 1, &[]);
        let mut chunk = |flags: u16, kind: u16, cookie: u64, data: &[u8]| {
            out.extend(0x668e_33efu32.to_be_bytes());
            out.extend(flags.to_be_bytes());
            out.extend(kind.to_be_bytes());
            out.extend(cookie.to_be_bytes());
            out.extend((data.len() as u32).to_be_bytes());
            out.extend(data);
        };
        let mut data = 0u64.to_be_bytes().to_vec();
        data.extend([7u8; 512]);
        chunk(0, 1, 1, &data);
        chunk(1, 2, 1, &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0]);
        chunk(
            1,
            5,
            2,
            &[0, 0, 0, 2, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 2],
        );
        out
    }

    #[test]
    fn the_transcript_is_understood() {
        let script = Box::new(Script(Cursor::new(transcript())));
        let contexts = [BASE_ALLOCATION, QEMU_ALLOCATION_DEPTH];
        let mut client = NbdClient::over("t".into(), script, "d", &contexts).unwrap();
        assert_eq!(client.size(), 1024);
        let mut buf = [1u8; 1024];
        client.read_at(&mut buf, 0).unwrap();
        assert!(buf[..512].iter().all(|b| *b == 7) && buf[512..].iter().all(|b| *b == 0));
        assert_eq!(
            client.allocation_map_depth1().unwrap(),
            ChangeMap::of(0..512)
        );
    }

    #[test]
    fn a_chunk_sent_twice_or_left_out_is_noticed() {
        let good = transcript();
        let data_chunk = 20 + 8 + 512;
        let status_chunk = 20 + 20;
        let reads_end = good.len() - status_chunk;
        let reads_start = reads_end - data_chunk - 32;
        let handshake = &good[..reads_start];
        let data = &good[reads_start..reads_start + data_chunk];
        let hole = &good[reads_start + data_chunk..reads_end];
        let contexts = [BASE_ALLOCATION, QEMU_ALLOCATION_DEPTH];
        for parts in [vec![hole], vec![data, data, hole], vec![hole, data]] {
            let mut bytes = handshake.to_vec();
            parts.iter().for_each(|p| bytes.extend(*p));
            let script = Box::new(Script(Cursor::new(bytes)));
            let mut client = NbdClient::over("t".into(), script, "d", &contexts).unwrap();
            assert!(client.read_at(&mut [0u8; 1024], 0).is_err());
            assert!(
                client.read_at(&mut [0u8; 1], 0).is_err(),
                "a broken connection is not used"
            );
        }
    }

    static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(image);

    fn image() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.qcow2");
        let mut writer = crate::writer::Qcow2Writer::create(&path, 4 << 20, None).unwrap();
        let (area, mut mapping) = writer.split();
        let place = area.reserve(2);
        area.write(place, &[5u8; 2 << 16]).unwrap();
        mapping
            .set(3, 2, crate::writer::BlockState::Data(place))
            .unwrap();
        mapping.set(7, 9, crate::writer::BlockState::Zero).unwrap();
        writer.finish().unwrap();
        std::fs::read(path).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn no_server_makes_the_client_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut in any::<prop::sample::Index>()) {
            let mut bytes = transcript();
            for (at, value) in edits {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            nbd(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            nbd(&bytes);
        }

        #[test]
        fn no_image_makes_the_walker_panic(edits in prop::collection::vec((0usize..4, any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>()) {
            let mut bytes = IMAGE.clone();
            // Header, L2 table (cluster 3), L1 table (cluster 4), anywhere.
            for (area, at, value) in edits {
                let at = match area {
                    0 => at.index(128),
                    1 => (3 << 16) + at.index(128),
                    2 => (4 << 16) + at.index(8),
                    _ => at.index(bytes.len()),
                };
                bytes[at] = value;
            }
            qcow2(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            qcow2(&bytes);
        }

        #[test]
        fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            map(&bytes);
            manifest(&bytes);
            nbd(&bytes);
            qcow2(&bytes);
            for magic in ["KVMMSMAP", "KVMMSBLK"] {
                let mut marked = magic.as_bytes().to_vec();
                marked.extend(1u32.to_le_bytes());
                marked.extend(65_536u32.to_le_bytes());
                marked.extend(&bytes);
                map(&marked);
            }
        }
    }
}
