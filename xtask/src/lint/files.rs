//! The files that the rules read.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Doing, Result};

/// A text file of the project.
#[derive(Debug, Clone)]
pub struct Source {
    /// Relative to the root.
    pub path: PathBuf,
    /// Its content.
    pub text: String,
}

impl Source {
    /// Whether it is Rust.
    pub fn is_rust(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension == "rs")
    }

    /// Whether the whole file is a test: in a `tests/` or `benches/` folder, or named so.
    pub fn is_test(&self) -> bool {
        let folders = self.path.parent().into_iter().flat_map(Path::components);
        let in_folder =
            folders.into_iter().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "benches")));
        let stem = self.path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        in_folder || stem == "tests" || stem.ends_with("_tests")
    }
}

/// Every text file that git tracks or would track; all but build outputs where there is no git.
///
/// # Errors
/// When a folder cannot be read.
pub fn sources(root: &Path) -> Result<Vec<Source>> {
    let paths = match tracked(root) {
        Some(paths) => paths,
        None => walk(root, Path::new(""))?,
    };
    // Not text, or deleted but not yet committed: nothing to read.
    let texts = paths.into_iter().filter_map(|path| Some((fs::read_to_string(root.join(&path)).ok()?, path)));
    Ok(texts.map(|(text, path)| Source { path, text }).collect())
}

fn tracked(root: &Path) -> Option<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let output = git.output().ok().filter(|output| output.status.success())?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(names.split_terminator('\0').map(PathBuf::from).collect())
}

fn walk(root: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let reading = || format!("read {}", root.join(folder).display());
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join(folder)).doing(reading)? {
        let entry = entry.doing(reading)?;
        let path = folder.join(entry.file_name());
        let is_folder = entry.file_type().doing(reading)?.is_dir();
        if is_folder && !matches!(path.to_str(), Some("target" | ".libtorch" | ".git" | "runs")) {
            found.extend(walk(root, &path)?);
        } else if !is_folder {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    #[test]
    fn without_git_build_outputs_are_left_out() {
        let folder = Folder::new("files");
        folder.write("a/src/lib.rs", "");
        folder.write("target/x.rs", "");
        folder.write("image.bin", [0xff, 0xfe]);
        let found = sources(folder.path()).unwrap();
        assert_eq!(
            found.iter().map(|source| source.path.as_path()).collect::<Vec<_>>(),
            [Path::new("a/src/lib.rs")]
        );
    }

    #[test]
    fn test_files_are_known_by_their_place() {
        let source = |path: &str| Source { path: path.into(), text: String::new() };
        assert!(source("training/tests/loop.rs").is_test());
        assert!(source("training/src/loop/tests.rs").is_test());
        assert!(source("training/src/loop_tests.rs").is_test());
        assert!(!source("training/src/contests.rs").is_test());
    }
}
