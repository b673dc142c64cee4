//! NBD.
/// x
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// x
    #[error("x")]
    X,
}
