//! The command against a scripted server: real arguments, a real socket, real exit codes.

#![expect(
    clippy::expect_used,
    reason = "a test may end at what it did not expect"
)]

mod calls;
mod jobs;
mod moves;
mod scripted;
mod tables;
