//! Whether a library opens on this machine.

use std::path::Path;
use std::process::Command;

/// Lets the dynamic loader open a library in a child process, which may crash or print as it likes.
///
/// The child is `true` with the library preloaded: the loader then does what dlopen does, lazily, and says what it
/// could not find.
///
/// # Errors
/// The loader's own words.
pub fn opens(library: &Path) -> Result<(), String> {
    let mut child = Command::new("true");
    child.env("LD_PRELOAD", library).env_remove("LD_LIBRARY_PATH").env("LC_ALL", "C");
    let output = child.output().map_err(|error| error.to_string())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    match errors.lines().find(|line| line.to_lowercase().contains("error")) {
        None if output.status.success() => Ok(()),
        None => Err(output.status.to_string()),
        Some(line) => Err(line.trim().trim_start_matches("true: ").to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_says_why_a_library_does_not_open() {
        let reason = opens(Path::new("/nowhere/libtorch_cuda.so")).unwrap_err();
        assert!(reason.contains("/nowhere/libtorch_cuda.so"), "{reason}");
    }
}
