//! The `python3` that runs pip and unpacks wheels.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::{Failure, Result};
use crate::workspace::first_line;

/// A Python with a pip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Python {
    /// The interpreter.
    pub program: PathBuf,
    /// Its pip's version, as pip writes it.
    pub pip: String,
}

impl Python {
    /// The first `python3` on the `PATH` that has a pip: a virtual environment without one must not hide the next.
    ///
    /// # Errors
    /// When there is no `python3`, or none of them has pip.
    pub fn find() -> Result<Self> {
        let all = interpreters();
        let Some(first) = all.first().cloned() else {
            return Err(Failure::new(
                "libtorch is fetched with pip, and there is no python3 on the PATH",
                "install it (for example: apt install python3 python3-pip) and run the command again",
            ));
        };
        all.into_iter().find_map(Self::with_pip).ok_or_else(|| {
            Failure::new(
                format!("{} has no pip, and libtorch is fetched with it", first.display()),
                "install it (for example: apt install python3-pip, or python3 -m ensurepip) and run again",
            )
        })
    }

    fn with_pip(program: PathBuf) -> Option<Self> {
        let pip = parse_pip_version(&first_line(&program, &["-m", "pip", "--version"])?)?;
        Some(Self { program, pip })
    }

    /// A command that runs a script of ours; a program inside the script cannot be told from one on disk.
    pub fn script(&self, source: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(source).stdin(Stdio::null());
        command
    }
}

/// Every `python3` on the `PATH`, in its order.
pub fn interpreters() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join("python3")).filter(|file| file.is_file()).collect()
}

/// The folder of installed packages that holds torch, found without importing it (that takes seconds).
pub fn folder_with_torch(interpreter: &Path) -> Option<PathBuf> {
    let look = "import os, sys\n\
                for folder in filter(None, sys.path):\n\
                \x20   if os.path.isfile(os.path.join(folder, 'torch', 'version.py')):\n\
                \x20       print(folder)\n\
                \x20       break";
    first_line(interpreter, &["-c", look]).filter(|line| !line.is_empty()).map(PathBuf::from)
}

/// `23.2.1` of `pip 23.2.1 from ...`.
fn parse_pip_version(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    (words.next() == Some("pip")).then(|| words.next().map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pip_says_its_version() {
        let line = "pip 23.2.1 from /usr/lib/python3/site-packages/pip (python 3.11)";
        assert_eq!(parse_pip_version(line).as_deref(), Some("23.2.1"));
        assert_eq!(parse_pip_version("No module named pip"), None);
    }
}
