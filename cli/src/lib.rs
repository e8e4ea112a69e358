//! The `hymba` command.
//!
//! A crate with components of its own makes a binary that has them, with every command of the stock one:
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     hymba_cli::main()
//! }
//! ```

mod args;
mod commands;
mod output;
mod threads;

use std::process::ExitCode;

use clap::Parser;

// Components and stages register themselves; naming the crates links them.
use components as _;
use evaluation as _;
use recipes as _;

/// Runs the command line of this process and returns its exit code: 0 done, 1 something is wrong with the input or the
/// run, 2 the command line itself, 130 and 143 stopped by Ctrl-C and SIGTERM.
pub fn main() -> ExitCode {
    let arguments = args::Arguments::parse();
    if matches!(arguments.command, args::Command::Run(_)) {
        threads::wait_briefly();
    }
    // libtorch decides once, at its first use, whether there is a GPU: its CUDA part must be open before.
    torch_bridge::cuda::open();
    match commands::dispatch(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            output::error(&error.to_string());
            ExitCode::FAILURE
        }
    }
}
