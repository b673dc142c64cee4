//! QEMU's machine protocol: line-delimited JSON, read tolerantly so that any QEMU from 7.2 on is understood.
//!
//! [`codec`] turns bytes into messages without I/O, [`client`] talks to a live monitor.

pub mod client;
pub mod codec;

pub use client::{COMMAND_DEADLINE, Qmp};
pub use codec::{Fault, LineDecoder, Message, QmpEvent, Version};
