//! The stock `hymba` binary: every component of the `components` crate, no plugin.

fn main() -> std::process::ExitCode {
    hymba_cli::main()
}
