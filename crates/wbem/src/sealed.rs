//! Bodies sealed with the keys of a Negotiate handshake, as WinRM packs them over plain HTTP (MS-WSMV 2.2.9.1): two parts, the first
//! says what the second is once it is opened.

use ntlm::Session;

/// What a body may be sealed as.
const PROTOCOL: &str = "application/HTTP-SPNEGO-session-encrypted";
const BOUNDARY: &str = "Encrypted Boundary";
const SIGNATURE: usize = 16;

/// The content type of what [`seal`] makes.
pub(crate) const CONTENT_TYPE: &str = "multipart/encrypted;protocol=\"application/HTTP-SPNEGO-session-encrypted\";boundary=\"Encrypted Boundary\"";

/// Why a sealed body was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unopened {
    /// It is not packed as it should be.
    #[error("a sealed body is expected to have {0}")]
    Packing(&'static str),
    /// The keys do not fit.
    #[error(transparent)]
    Keys(#[from] ntlm::Refused),
}

/// Whether a content type is one of sealed bodies.
pub(crate) fn is_sealed(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("multipart/encrypted")
}

/// Seals a body of that content type.
pub(crate) fn seal(
    session: &mut Session,
    original: &str,
    body: &[u8],
) -> Result<Vec<u8>, ntlm::Refused> {
    let (signature, sealed) = session.seal(body)?;
    let mut packed = format!(
        "--{BOUNDARY}\r\n\tContent-Type: {PROTOCOL}\r\n\tOriginalContent: type={original};Length={}\r\n\
         --{BOUNDARY}\r\n\tContent-Type: application/octet-stream\r\n\u{10}\0\0\0",
        body.len()
    )
    .into_bytes();
    packed.extend(signature);
    packed.extend(sealed);
    packed.extend(format!("--{BOUNDARY}--\r\n").bytes());
    Ok(packed)
}

/// Opens a body. Large ones may come in several pieces, each sealed for itself.
pub(crate) fn open(
    session: &mut Session,
    content_type: &str,
    body: &[u8],
) -> Result<Vec<u8>, Unopened> {
    let mut opened = Vec::with_capacity(body.len());
    for piece in pieces(&boundary(content_type)?, body)? {
        opened.extend(session.open(piece.signature, piece.sealed)?);
    }
    Ok(opened)
}

/// What a content type names as the boundary, where its protocol is ours.
fn boundary(content_type: &str) -> Result<String, Unopened> {
    let mut boundary = None;
    let mut protocol = None;
    for parameter in content_type.split(';').skip(1) {
        let Some((name, value)) = parameter.split_once('=') else {
            continue;
        };
        let value = value.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "boundary" => boundary = Some(value),
            "protocol" => protocol = Some(value),
            _ => {}
        }
    }
    if !protocol.is_some_and(|p| p.eq_ignore_ascii_case(PROTOCOL)) {
        return Err(Unopened::Packing(
            "the protocol application/HTTP-SPNEGO-session-encrypted",
        ));
    }
    match boundary {
        Some(boundary) if (1..=70).contains(&boundary.len()) => Ok(boundary.to_owned()),
        _ => Err(Unopened::Packing("a boundary")),
    }
}

/// One signature and what it is of.
#[derive(Debug, PartialEq, Eq)]
struct Piece<'a> {
    signature: &'a [u8],
    sealed: &'a [u8],
}

/// What is left to read of a body.
struct Reader<'a> {
    rest: &'a [u8],
    boundary: &'a str,
}

impl<'a> Reader<'a> {
    fn skip(&mut self, bytes: &[u8]) -> bool {
        match self.rest.strip_prefix(bytes) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// `--boundary`; some servers put a blank between.
    fn delimiter(&mut self) -> Result<(), Unopened> {
        let found = self.skip(b"--") && {
            self.skip(b" ");
            self.skip(self.boundary.as_bytes())
        };
        match found {
            true => Ok(()),
            false => Err(Unopened::Packing("its boundary between the parts")),
        }
    }

    fn line_end(&mut self) -> Result<(), Unopened> {
        match self.skip(b"\r\n") {
            true => Ok(()),
            false => Err(Unopened::Packing("lines that end")),
        }
    }

    /// A header's name and value.
    fn header(&mut self) -> Result<(&'a str, &'a str), Unopened> {
        let bad = Unopened::Packing("headers of text");
        let end = self
            .rest
            .windows(2)
            .take(1024)
            .position(|w| w == b"\r\n")
            .ok_or(bad.clone())?;
        let (line, rest) = self.rest.split_at(end);
        self.rest = rest;
        self.line_end()?;
        let line = std::str::from_utf8(line).map_err(|_| bad.clone())?;
        let (name, value) = line.split_once(':').ok_or(bad)?;
        Ok((name.trim(), value.trim()))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Unopened> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(Unopened::Packing("as many bytes as it says"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn piece(&mut self) -> Result<Piece<'a>, Unopened> {
        let mut length = None;
        while !self.rest.starts_with(b"--") {
            let (name, value) = self.header()?;
            if name.eq_ignore_ascii_case("OriginalContent") {
                length = value
                    .rsplit_once("Length=")
                    .and_then(|(_, digits)| digits.parse::<usize>().ok());
            }
        }
        let length = length.ok_or(Unopened::Packing("the length of its content"))?;
        self.delimiter()?;
        self.line_end()?;
        self.header()?;
        if self.take(4)? != [16, 0, 0, 0] {
            return Err(Unopened::Packing("a signature of 16 bytes"));
        }
        Ok(Piece {
            signature: self.take(SIGNATURE)?,
            sealed: self.take(length)?,
        })
    }
}

fn pieces<'a>(boundary: &'a str, body: &'a [u8]) -> Result<Vec<Piece<'a>>, Unopened> {
    let mut reader = Reader {
        rest: body,
        boundary,
    };
    let mut found = Vec::new();
    reader.delimiter()?;
    loop {
        reader.line_end()?;
        found.push(reader.piece()?);
        // Not told from the data by its look, but by the length told.
        reader.skip(b"\r\n");
        reader.delimiter()?;
        reader.skip(b"--");
        if matches!(reader.rest, b"" | b"\r\n") {
            return Ok(found);
        }
    }
}

/// Reads bytes as a sealed body.
pub(crate) fn probe(bytes: &[u8]) {
    let _ = pieces(BOUNDARY, bytes);
    if let Ok(text) = std::str::from_utf8(bytes)
        && is_sealed(text)
    {
        let _ = boundary(text);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Both sides of a handshake.
    pub(crate) fn sessions() -> (Session, Session) {
        let fresh = ntlm::Fresh {
            challenge: [1; 8],
            time: 1,
        };
        let random = ntlm::Random {
            challenge: [2; 8],
            session_key: [3; 16],
            time: 1,
        };
        let names = ntlm::Names { computer: "host" };
        let login = ntlm::Login::new("u", "p");
        let (initiator, first) = ntlm::Initiator::begin().expect("begun");
        let mut acceptor = ntlm::Acceptor::default();
        let ntlm::Step::Answer(challenge) = acceptor.step(&first, names, fresh).expect("step")
        else {
            panic!("too soon");
        };
        let answered = initiator.answer(&challenge, &login, "", None, random);
        let (token, finish) = answered.expect("answered");
        let ntlm::Step::Claim(claim) = acceptor.step(&token, names, fresh).expect("step") else {
            panic!("a claim was expected");
        };
        let proved = claim.prove(&login.hash, None).expect("proved");
        let ours = finish.end(proved.answer.as_deref()).expect("ended");
        (ours, proved.session)
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened(bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..4)) {
            let (mut ours, mut theirs) = sessions();
            for body in bodies {
                let packed = seal(&mut ours, "application/soap+xml;charset=UTF-8", &body).expect("sealed");
                prop_assert_eq!(open(&mut theirs, CONTENT_TYPE, &packed), Ok(body));
            }
        }

        #[test]
        fn a_body_that_was_cut_is_refused(cut in 0usize..280) {
            let (mut ours, mut theirs) = sessions();
            let packed = seal(&mut ours, "text/plain", &[b'x'; 40]).expect("sealed");
            prop_assume!(cut + 30 < packed.len());
            prop_assert!(open(&mut theirs, CONTENT_TYPE, &packed[..cut]).is_err());
        }
    }

    #[test]
    fn other_spellings_and_several_pieces_are_taken() {
        let (mut ours, mut theirs) = sessions();
        let mut packed = Vec::new();
        for text in [b"one ".as_slice(), b"and two"] {
            let piece = seal(&mut ours, "a/b", text).expect("sealed");
            let end = piece.len() - b"--Encrypted Boundary--\r\n".len();
            packed.extend(&piece[..end]);
            packed.extend(b"\r\n");
        }
        packed.extend(b"-- Encrypted Boundary\r\n");
        let kind = "Multipart/Encrypted; Boundary=Encrypted Boundary; protocol=APPLICATION/HTTP-SPNEGO-SESSION-ENCRYPTED";
        assert!(is_sealed(kind));
        assert_eq!(
            open(&mut theirs, kind, &packed).as_deref(),
            Ok(b"one and two".as_slice())
        );
    }

    #[test]
    fn other_protocols_and_packings_are_refused() {
        let (mut ours, mut theirs) = sessions();
        let packed = seal(&mut ours, "a/b", b"text").expect("sealed");
        for kind in [
            "multipart/encrypted",
            "multipart/encrypted;protocol=\"application/HTTP-Kerberos-session-encrypted\";boundary=\"Encrypted Boundary\"",
            "multipart/encrypted;protocol=\"application/HTTP-SPNEGO-session-encrypted\"",
            "multipart/encrypted;protocol=\"application/HTTP-SPNEGO-session-encrypted\";boundary=\"other\"",
        ] {
            let opened = open(&mut theirs, kind, &packed);
            assert!(matches!(opened, Err(Unopened::Packing(_))), "{kind}");
        }
        let text = String::from_utf8_lossy(&packed).replace("Length=4", "Length=4000");
        let opened = open(&mut theirs, CONTENT_TYPE, text.as_bytes());
        assert!(matches!(opened, Err(Unopened::Packing(_))));
        assert!(!is_sealed("application/soap+xml"));
    }
}
