//! Paths and hashes as they stand in a manifest.

use std::path::{Component, Path};
use std::str::FromStr;

use blake3::Hash;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A path inside an export directory: relative, of plain components.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelativePath(String);

impl RelativePath {
    /// Checks a path.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an absolute one, one with `.`, `..` or empty components, a backslash or a zero byte.
    pub fn new(path: impl Into<String>) -> Result<Self> {
        let path = path.into();
        let plain = !path.is_empty()
            && path.len() <= 4096
            && !path.contains(['\\', '\0'])
            && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
            && Path::new(&path)
                .components()
                .all(|c| matches!(c, Component::Normal(_)));
        if plain {
            Ok(Self(path))
        } else {
            Err(Error::invalid(format!(
                "{path:?} is not a plain relative path"
            )))
        }
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RelativePath {
    type Error = Error;
    fn try_from(path: String) -> Result<Self> {
        Self::new(path)
    }
}

impl From<RelativePath> for String {
    fn from(path: RelativePath) -> Self {
        path.0
    }
}

impl AsRef<Path> for RelativePath {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

/// A BLAKE3 hash, in JSON as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HexHash(pub Hash);

impl TryFrom<String> for HexHash {
    type Error = blake3::HexError;
    fn try_from(text: String) -> std::result::Result<Self, Self::Error> {
        Hash::from_str(&text).map(Self)
    }
}

impl From<HexHash> for String {
    fn from(hash: HexHash) -> Self {
        hash.0.to_hex().to_string()
    }
}
