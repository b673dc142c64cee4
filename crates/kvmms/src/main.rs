//! The `kvmms` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    kvmms::main_with(std::env::args_os())
}
