//! What is laid over a recipe's files: environment, group choices, `--set`.

use std::path::{Path, PathBuf};

/// What the environment and the command line add to the files of a recipe. The default adds nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Group choices as (section, name): `("model", "hymba_125m")` for `--model hymba_125m`.
    pub groups: Vec<(String, String)>,
    /// Assignments as they were written: `trainer.optimizer.lr=3e-4`, `stages[0].steps=10`.
    pub set: Vec<String>,
    /// Variables of the environment as (name, value); those that do not begin with `HYMBA__` are skipped.
    pub environment: Vec<(String, String)>,
    /// The folder of group files that is searched last (`HYMBA_CONFIGS_DIR`).
    pub configs_dir: Option<PathBuf>,
    /// The folder from which paths of the command line and the environment are taken; `None` is the process' own.
    pub cwd: Option<PathBuf>,
}

impl LoadOptions {
    /// The environment of this process: every `HYMBA__...` variable, `HYMBA_CONFIGS_DIR`, and the current folder.
    pub fn from_process() -> Self {
        let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
        Self {
            environment: std::env::vars_os()
                .map(|(name, value)| (text(name), text(value)))
                .filter(|(name, _)| name.starts_with(super::ENVIRONMENT_PREFIX))
                .collect(),
            configs_dir: std::env::var_os("HYMBA_CONFIGS_DIR")
                .filter(|folder| !folder.is_empty())
                .map(PathBuf::from),
            cwd: std::env::current_dir().ok(),
            ..Self::default()
        }
    }

    /// The folder from which paths of the command line are taken, absolute where that can be known.
    pub(super) fn folder(&self) -> PathBuf {
        let here = || std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
        match &self.cwd {
            Some(cwd) if cwd.is_absolute() => cwd.clone(),
            Some(cwd) => here().join(cwd),
            None => here(),
        }
    }

    /// `path` as an absolute one.
    pub(super) fn absolute(&self, path: &Path) -> PathBuf {
        super::path::normal(&self.folder().join(path))
    }
}
