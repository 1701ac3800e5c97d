//! The `jepsen-like` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    jepsen_like::cli::main()
}
