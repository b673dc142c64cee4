//! Compressed clusters.

use flate2::{Decompress, FlushDecompress};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::header::Compression;

/// Largest zstd window accepted (8 MiB): clusters have at most 2 MiB, so a larger window only costs memory.
const ZSTD_WINDOW_LOG: u32 = 23;

/// Unpacks one cluster into `out`, which has the size of a cluster. `None` when `input` does not hold that many bytes.
pub(crate) fn inflate(kind: Compression, input: &[u8], out: &mut [u8]) -> Option<()> {
    match kind {
        Compression::Deflate => inflate_deflate(input, out),
        Compression::Zstd => inflate_zstd(input, out),
    }
}

fn inflate_deflate(input: &[u8], out: &mut [u8]) -> Option<()> {
    let mut state = Decompress::new(false);
    state.decompress(input, out, FlushDecompress::Finish).ok()?;
    // The stored length is rounded up to sectors: input may be left, output may not.
    (state.total_out() == out.len() as u64).then_some(())
}

fn inflate_zstd(input: &[u8], out: &mut [u8]) -> Option<()> {
    let mut decoder = Decoder::new().ok()?;
    decoder
        .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))
        .ok()?;
    let mut source = InBuffer::around(input);
    let mut target = OutBuffer::around(out);
    while target.pos() < target.capacity() {
        let before = (source.pos(), target.pos());
        decoder.run(&mut source, &mut target).ok()?;
        if (source.pos(), target.pos()) == before {
            return None;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_and_short_streams_give_nothing() {
        let mut out = vec![0u8; 4096];
        for kind in [Compression::Deflate, Compression::Zstd] {
            assert!(inflate(kind, b"not a stream at all", &mut out).is_none());
            assert!(inflate(kind, &[], &mut out).is_none());
        }
        let short = zstd::bulk::compress(&[7u8; 100], 3).unwrap();
        assert!(inflate(Compression::Zstd, &short, &mut out).is_none());
    }
}
