//! TLS for the listeners: a certificate of one's own, or a self-signed one made at the first start.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ntlm::ChannelBinding;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be written or read.
    #[error("{what} {}", .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds no certificate or key in PEM form.
    #[error("no {what} in {}", .path.display())]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The self-signed certificate could not be made.
    #[error("cannot make a self-signed certificate")]
    Make(#[source] rcgen::Error),
    /// Certificate and key do not fit together or cannot be used.
    #[error("the certificate cannot be used")]
    Unusable(#[source] rustls::Error),
}

/// The names of the two files in a directory that [`load_or_make`] keeps.
pub const CERTIFICATE: &str = "tls-certificate.pem";
/// See [`CERTIFICATE`].
pub const KEY: &str = "tls-key.pem";

/// What a listener needs for TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Certificate, key, versions.
    pub config: Arc<ServerConfig>,
    /// What ties a handshake of Negotiate to connections with this certificate.
    pub binding: ChannelBinding,
}

/// Loads certificate chain and key from PEM files; TLS 1.2 and 1.3.
pub fn load(certificate: &Path, key: &Path) -> Result<Tls, TlsError> {
    let pem = |what, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Pem { what, path, source }
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(pem("certificate", certificate))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(pem("key", key))?;
    let first = chain.first().map_or(&[][..], |own| own.as_ref());
    let binding = ChannelBinding::of_certificate(first);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(TlsError::Unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Tls {
        config: Arc::new(config),
        binding,
    })
}

/// Loads the pair in `dir`, making a self-signed one for `names` (host names and addresses) where there is
/// none, and the directory too. The key has mode 0600, a new directory 0700.
pub fn load_or_make(dir: &Path, names: &[String]) -> Result<Tls, TlsError> {
    let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
    if !certificate.exists() || !key.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| TlsError::Io {
                what: "cannot create",
                path: dir.to_owned(),
                source,
            })?;
        make(&certificate, &key, names)?;
    }
    load(&certificate, &key)
}

fn make(certificate: &Path, key: &Path, names: &[String]) -> Result<(), TlsError> {
    let mut params = CertificateParams::new(names.to_vec()).map_err(TlsError::Make)?;
    params.distinguished_name.push(
        DnType::CommonName,
        names.first().map_or("kvmms", String::as_str),
    );
    let pair = KeyPair::generate().map_err(TlsError::Make)?;
    let made = params.self_signed(&pair).map_err(TlsError::Make)?;
    // The certificate is the last to appear, so that a crash between the two leaves a state that is made anew.
    let _ = fs::remove_file(certificate);
    write(key, pair.serialize_pem().as_bytes(), 0o600)?;
    write(certificate, made.pem().as_bytes(), 0o644)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), TlsError> {
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(mode)
            .open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|source| TlsError::Io {
        what: "cannot write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_certificate_is_made_once_and_its_key_is_private() {
        let parent = tempfile::tempdir().expect("dir");
        // As at the first start, when nothing is there yet.
        let dir = parent.path().join("state/tls");
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        load_or_make(&dir, &names).expect("made");
        let key = dir.join(KEY);
        let first = fs::read(&key).expect("key");
        let mode = fs::metadata(&key).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        load_or_make(&dir, &names).expect("loaded");
        assert_eq!(fs::read(&key).expect("key"), first);
    }

    #[test]
    fn a_file_without_a_certificate_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("x.pem");
        fs::write(&path, "not pem").expect("write");
        assert!(load(&path, &path).is_err());
        assert!(load(&dir.path().join("absent"), &path).is_err());
    }
}
