//! The `hymba` command with one component more.

use decay_attention as _; // links the crate, and with it its registration

fn main() -> std::process::ExitCode {
    hymba_cli::main()
}
