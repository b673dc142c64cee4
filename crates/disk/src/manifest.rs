//! M.
/// x
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// x
    #[error("x")]
    X,
}
impl ManifestError {
    pub(crate) fn is_unsupported(&self) -> bool {
        false
    }
}
