//! Where the workspace is and how its programs are started.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use crate::failure::{Doing, Failure, Result};

/// The workspace's root folder, whatever folder the caller is in.
pub fn root() -> PathBuf {
    // Set by `cargo run`, so that a binary built in one checkout still serves the checkout it is called in.
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent().map_or(here.clone(), Path::to_path_buf)
}

/// The cargo that started us, or the one on the `PATH`.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// `LIBTORCH` as the user set it; not the value that `.cargo/config.toml` gives when there is none.
pub fn users_libtorch(root: &Path) -> Option<PathBuf> {
    let value = PathBuf::from(std::env::var_os("LIBTORCH").filter(|value| !value.is_empty())?);
    (value != root.join(".libtorch/link")).then_some(value)
}

/// Runs a command to its end and passes a failure's exit code on.
///
/// # Errors
/// [`Failure::Exit`] when it failed (it has told why itself), a told failure when it could not be started.
pub fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().doing(|| format!("start {name}"))?;
    if status.success() { Ok(()) } else { Err(Failure::Exit(exit_code(status))) }
}

/// A child's exit code as a shell reports it: 128 + the signal's number when a signal ended it.
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// The first line of a program's output, when it could be run and succeeded.
pub fn first_line(program: impl AsRef<OsStr>, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_holds_the_workspace_manifest() {
        let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[workspace]"));
    }

    #[test]
    fn exit_codes_and_signals_are_passed_on() {
        assert_eq!(run(Command::new("sh").args(["-c", "exit 7"])), Err(Failure::Exit(7)));
        assert_eq!(run(Command::new("sh").args(["-c", "kill -TERM $$"])), Err(Failure::Exit(143)));
        assert_eq!(run(&mut Command::new("true")), Ok(()));
    }
}
