//! The command line of Shunt: see [`mgr::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    mgr::cli::main()
}
