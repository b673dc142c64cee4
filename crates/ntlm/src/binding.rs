//! What ties a handshake to one TLS connection (RFC 5929, `tls-server-end-point`): the hash of the certificate the server showed.

use ring::digest;

use crate::der::{OID, Reader, SEQUENCE};
use crate::primitives::{Key, md5};

/// A TLS connection, by its server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelBinding(pub(crate) Key);

/// What OIDs of signatures end in: which hash the certificate was signed with (RFC 5754, RFC 5758).
const SHA384: [&[u8]; 3] = [
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c",
    b"\x2a\x86\x48\xce\x3d\x04\x03\x03",
    b"\x60\x86\x48\x01\x65\x03\x04\x02\x02",
];
const SHA512: [&[u8]; 3] = [
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d",
    b"\x2a\x86\x48\xce\x3d\x04\x03\x04",
    b"\x60\x86\x48\x01\x65\x03\x04\x02\x03",
];
/// RSASSA-PSS tells its hash among its parameters.
const PSS: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a";

impl ChannelBinding {
    /// That of connections whose server shows this certificate (DER).
    pub fn of_certificate(certificate: &[u8]) -> Self {
        let algorithm = match signed_with(certificate) {
            Some(oid) if SHA384.contains(&oid) => &digest::SHA384,
            Some(oid) if SHA512.contains(&oid) => &digest::SHA512,
            // Also for MD5 and SHA-1, as the RFC says, and where there is no hash, as clients do.
            _ => &digest::SHA256,
        };
        let hash = digest::digest(algorithm, certificate);
        let data = [b"tls-server-end-point:".as_slice(), hash.as_ref()].concat();
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes();
        // No addresses of either side.
        ChannelBinding(md5(&[&[0; 16], &length, &data]))
    }
}

/// The OID of a certificate's signature, or of its hash.
fn signed_with(certificate: &[u8]) -> Option<&[u8]> {
    let mut outer = Reader::new(Reader::new(certificate).expect(SEQUENCE).ok()?);
    outer.expect(SEQUENCE).ok()?;
    let mut algorithm = Reader::new(outer.expect(SEQUENCE).ok()?);
    let oid = algorithm.expect(OID).ok()?;
    if oid != PSS {
        return Some(oid);
    }
    let mut parameters = Reader::new(algorithm.expect(SEQUENCE).ok()?);
    let hash = parameters.expect(0xa0).ok()?;
    let mut hash = Reader::new(Reader::new(hash).expect(SEQUENCE).ok()?);
    hash.expect(OID).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::der::element;

    fn certificate(algorithm: &[&[u8]]) -> Vec<u8> {
        let signed = element(SEQUENCE, &[b"what is signed"]);
        let algorithm = element(SEQUENCE, algorithm);
        element(SEQUENCE, &[&signed, &algorithm, b"\x03\x01\0"])
    }

    fn binding(hash: &[u8]) -> ChannelBinding {
        let length = [21 + u8::try_from(hash.len()).expect("short"), 0, 0, 0];
        ChannelBinding(md5(&[&[0; 16], &length, b"tls-server-end-point:", hash]))
    }

    #[test]
    fn the_hash_is_the_one_the_certificate_was_signed_with() {
        let hash = element(SEQUENCE, &[&element(OID, &[SHA384[2]])]);
        let parameters = element(SEQUENCE, &[&element(0xa0, &[&hash])]);
        for (algorithm, expected) in [
            (vec![element(OID, &[SHA384[0]])], &digest::SHA384),
            (vec![element(OID, &[SHA512[1]])], &digest::SHA512),
            // sha256WithRSA, sha1WithRSA
            (
                vec![element(OID, &[b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b"])],
                &digest::SHA256,
            ),
            (
                vec![element(OID, &[b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05"])],
                &digest::SHA256,
            ),
            (vec![element(OID, &[PSS]), parameters], &digest::SHA384),
        ] {
            let parts: Vec<&[u8]> = algorithm.iter().map(Vec::as_slice).collect();
            let certificate = certificate(&parts);
            let hash = digest::digest(expected, &certificate);
            assert_eq!(
                ChannelBinding::of_certificate(&certificate),
                binding(hash.as_ref())
            );
        }
        let rubbish = digest::digest(&digest::SHA256, b"rubbish");
        assert_eq!(
            ChannelBinding::of_certificate(b"rubbish"),
            binding(rubbish.as_ref())
        );
    }
}
