//! Entry points for fuzzing: bytes from outside, whatever they are, must neither panic nor hang.

use crate::qmp::LineDecoder;
use crate::qmp::codec::decode;

/// The monitor's bytes, cut at every place the first byte says.
pub fn qmp(bytes: &[u8]) {
    let step = bytes.first().map_or(1, |&byte| usize::from(byte).max(1));
    let mut decoder = LineDecoder::with_limit(4096);
    for part in bytes.chunks(step) {
        decoder.feed(part);
        loop {
            match decoder.next_line() {
                Ok(Some(line)) => drop(decode(&line)),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::qmp::LineDecoder;

    proptest! {
        #[test]
        fn whatever_comes_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            super::qmp(&bytes);
        }

        #[test]
        fn lines_do_not_depend_on_how_they_were_cut(
            lines in proptest::collection::vec("[ -~]{0,40}", 0..20),
            step in 1_usize..50,
        ) {
            let stream: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let mut decoder = LineDecoder::default();
            let mut out = Vec::new();
            for part in stream.as_bytes().chunks(step) {
                decoder.feed(part);
                while let Some(line) = decoder.next_line().unwrap() {
                    out.push(String::from_utf8(line).unwrap());
                }
            }
            prop_assert_eq!(out, lines);
        }
    }

    #[test]
    fn nonsense_does_no_harm() {
        let samples: [&[u8]; 6] = [
            b"",
            b"\x01{}\n[]\n",
            b"\x03{\"QMP\":1}\n{\"event\":2}\n{\"return\":null,\"id\":-1}\n",
            b"\xff\xff\n\n\n",
            b"{\"error\":{}}\n{\"error\":[]}\n{\"timestamp\":{}}\n",
            b"{\"QMP\":{\"version\":{\"qemu\":{\"major\":99999999999}}}}\n",
        ];
        for sample in samples {
            super::qmp(sample);
        }
        super::qmp(&[b'['; 10_000]);
    }
}
