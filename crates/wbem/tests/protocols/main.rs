//! Both protocols over real sockets, against a handler with a few objects in memory.
#![expect(clippy::expect_used, reason = "the data of these tests is their own")]

mod changes;
mod cimxml;
mod client;
mod negotiate;
mod python;
mod scripted;
mod server;
mod wire;
mod wsman;
