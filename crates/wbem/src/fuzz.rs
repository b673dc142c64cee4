//! Entry points for fuzzing: any bytes in; no panic, no unbounded time or memory. What is read is also
//! written where the protocol would, and must then be well-formed.

use cim::xml::{Limits, Writer};

use crate::wsman::envelope::{self, Message};
use crate::wsman::uri::Family;
use crate::wsman::{epr, instance};

/// A WS-Management request: envelope, headers, body, filters.
pub fn wsman(bytes: &[u8]) {
    let (origin, message) = Message::read(bytes);
    let answer = match message {
        Err(fault) => envelope::write(
            fault.action(),
            origin.message_id.as_deref(),
            |w| fault.write_header(w),
            |w| fault.write(w, "host"),
        ),
        Ok(message) => {
            let id = message.message_id.clone();
            let read = crate::wsman::probe(&message);
            envelope::write("action", id.as_deref(), |_| {}, |w| write(w, &read))
        }
    };
    assert!(
        cim::xml::parse(answer.as_bytes(), &roomy()).is_ok(),
        "not well-formed: {answer}"
    );
}

fn write(w: &mut Writer, read: &[cim::Instance]) {
    let shape = instance::Shape {
        family: Family::Wmi {
            namespace: "root/x".to_owned(),
        },
        precise_arrays: true,
        base: None,
    };
    for found in read {
        instance::write(w, found, &shape);
        if let Some(path) = &found.path {
            epr::write(w, path, &shape.family);
        }
    }
}

/// A CIM-XML request: message, call, every kind of parameter.
pub fn cimxml(bytes: &[u8]) {
    crate::cimxml::probe(bytes);
}

/// An answer as our client reads it.
pub fn answer(bytes: &[u8]) {
    crate::client::probe(bytes);
}

/// A body as it comes sealed.
pub fn sealed(bytes: &[u8]) {
    crate::sealed::probe(bytes);
}

/// What is written may be longer than what was read.
fn roomy() -> Limits {
    Limits {
        bytes: 1 << 30,
        depth: 128,
        attributes: 256,
        elements: 10_000_000,
        text: 1 << 30,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WSMAN: &str = include_str!("../tests/corpus/wsman/invoke");
    const CIMXML: &str = include_str!("../tests/corpus/cimxml/method");
    const ANSWER: &str = include_str!("../tests/corpus/answer/pull");

    #[test]
    fn every_corpus_file_is_taken_without_panic() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
        for (name, target) in [
            ("wsman", wsman as fn(&[u8])),
            ("cimxml", cimxml),
            ("answer", answer),
        ] {
            let mut count = 0;
            for entry in std::fs::read_dir(dir.join(name)).expect(name) {
                target(&std::fs::read(entry.expect("entry").path()).expect("file"));
                count += 1;
            }
            assert!(count > 0, "{name} has no corpus");
        }
    }

    /// Bytes of a real message with pieces cut, doubled and changed.
    fn mutated(text: &'static str) -> impl Strategy<Value = Vec<u8>> {
        let len = text.len();
        let edit = (
            0..len,
            0..40usize,
            proptest::collection::vec(any::<u8>(), 0..6),
        );
        proptest::collection::vec(edit, 1..4).prop_map(move |edits| {
            let mut bytes = text.as_bytes().to_vec();
            for (at, cut, insert) in edits {
                let at = at.min(bytes.len());
                let end = (at + cut).min(bytes.len());
                bytes.splice(at..end, insert);
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn damaged_requests_and_answers_never_panic(
            a in mutated(WSMAN), b in mutated(CIMXML), c in mutated(ANSWER)
        ) {
            wsman(&a);
            cimxml(&b);
            answer(&c);
        }

        #[test]
        fn any_text_survives_instance_xml(text in "\\PC{0,40}", name in "[A-Za-z_][A-Za-z0-9_]{0,12}") {
            let given = cim::Instance::new("X").with(name.clone(), text.as_str());
            let mut w = Writer::new();
            w.open("r");
            write(&mut w, std::slice::from_ref(&given));
            let root = cim::xml::parse_str(&w.finish(), &roomy()).expect("well-formed");
            let at = root.children.first().expect("instance");
            let read = instance::read_properties(at, "X").expect("read");
            // White space alone between tags is layout, which no reader keeps.
            if !text.trim().is_empty() {
                prop_assert_eq!(read.get_str(&name), Some(text.as_str()));
            }
        }
    }
}
