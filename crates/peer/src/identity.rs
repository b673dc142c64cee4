//! Who a host is: a key, a certificate that it signed itself, and the fingerprint of that.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Error, Result};
use crate::tls;

const CERTIFICATE: &str = "host-certificate.pem";
const KEY: &str = "host-key.pem";

/// SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

/// It is no fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 hexadecimal digits, with or without colons")]
pub struct NotAFingerprint;

impl Fingerprint {
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut out = [0; 32];
        let hash = tls::sha256(certificate.as_ref());
        out.iter_mut()
            .zip(hash.as_ref())
            .for_each(|(to, from)| *to = *from);
        Self(out)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let colon = if i == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> std::result::Result<Self, NotAFingerprint> {
        let digits: Vec<u8> = text
            .chars()
            .filter(|c| *c != ':')
            .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
            .collect::<Option<_>>()
            .ok_or(NotAFingerprint)?;
        if digits.len() != 64 {
            return Err(NotAFingerprint);
        }
        let mut out = [0; 32];
        for (to, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
            *to = pair.iter().fold(0, |sum, digit| sum << 4 | digit);
        }
        Ok(Self(out))
    }
}

/// The key and the certificate of this host.
#[derive(Clone)]
pub struct Identity {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: Arc<PrivateKeyDer<'static>>,
}

impl fmt::Debug for Identity {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity")
            .field(&self.fingerprint())
            .finish()
    }
}

impl Identity {
    /// Loads the pair in `dir`, or makes it, for a host of that name. The key has mode 0600, a new directory 0700. A pair of which one
    /// file is missing is made anew: nobody can have trusted it.
    ///
    /// # Errors
    /// [`Error::Key`].
    pub fn load_or_make(dir: &Path, name: &str) -> Result<Self> {
        let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
        if !certificate.exists() || !key.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(|e| failed("cannot create", dir, e))?;
            make(&certificate, &key, name)?;
        }
        Ok(Self {
            certificate: CertificateDer::from_pem_file(&certificate)
                .map_err(|e| failed("no certificate in", &certificate, e))?,
            key: Arc::new(
                PrivateKeyDer::from_pem_file(&key).map_err(|e| failed("no key in", &key, e))?,
            ),
        })
    }

    /// Its fingerprint.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }
}

fn failed(
    what: &'static str,
    path: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::Key {
        what,
        path: path.to_owned(),
        source: source.into(),
    }
}

fn make(certificate: &Path, key: &Path, name: &str) -> Result<()> {
    let making = |e: rcgen::Error| failed("cannot make", certificate, e);
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let pair = KeyPair::generate().map_err(making)?;
    let made = params.self_signed(&pair).map_err(making)?;
    // The certificate is the last to appear: a crash between the two leaves a pair that is made anew.
    let _ = fs::remove_file(certificate);
    write(key, pair.serialize_pem().as_bytes(), 0o600)?;
    write(certificate, made.pem().as_bytes(), 0o644)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(mode)
            .open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        path.parent()
            .map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
    };
    write().map_err(|e| failed("cannot write", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn an_identity_is_made_once_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state/peer");
        let first = Identity::load_or_make(&dir, "here").unwrap();
        let mode = fs::metadata(dir.join(KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Identity::load_or_make(&dir, "elsewhere").unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        assert!(!format!("{first:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_fingerprint_reads_back_with_and_without_colons_and_nothing_else_is_one() {
        let one = Fingerprint([0xA7; 32]);
        assert_eq!(one.to_string().parse(), Ok(one));
        assert_eq!(
            one.to_string().replace(':', "").to_lowercase().parse(),
            Ok(one)
        );
        for not in ["", "A7", "zz", &"A7:".repeat(33), "é"] {
            assert!(not.parse::<Fingerprint>().is_err(), "{not}");
        }
    }
}
