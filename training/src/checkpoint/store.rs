//! All checkpoints of a stage, for the one process that writes them: finding the newest good one, keeping the newest
//! and the best.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Best, Checkpoint, CheckpointError, CheckpointReader, Contents, write};
use crate::files;

/// The directory with the checkpoints of one stage. Only one process at a time may use it (the run directory is
/// locked), so anything unfinished in it is left over from a process that died.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    root: PathBuf,
    reader: CheckpointReader,
}

/// A checkpoint that could not be used, and was set aside.
#[derive(Debug)]
pub struct Damaged {
    /// Where it lies now.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: CheckpointError,
}

impl CheckpointStore {
    /// Opens or makes the directory, and removes what a process that died left unfinished.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub fn open(root: &Path) -> Result<Self, CheckpointError> {
        let failed = |source| CheckpointError::Write { path: root.to_owned(), source };
        fs::create_dir_all(root).map_err(failed)?;
        for entry in fs::read_dir(root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if files::is_temporary(&entry.path()) {
                fs::remove_dir_all(entry.path()).map_err(failed)?;
            }
        }
        Ok(Self { root: root.to_owned(), reader: Self::read_only(root) })
    }

    /// The same checkpoints for any other process, which changes nothing.
    pub fn read_only(root: &Path) -> CheckpointReader {
        CheckpointReader::new(root)
    }

    /// Where the checkpoint of a step lies, or would lie.
    pub fn path(&self, step: u64) -> PathBuf {
        self.reader.path(step)
    }

    /// Steps that have a checkpoint, rising. Their files are not looked at.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        self.reader.steps()
    }

    /// The newest checkpoint whose checksums hold. Newer ones that are damaged are renamed to `damaged-step-N`, so
    /// that they are neither taken for good ones nor lost, and returned.
    ///
    /// # Errors
    /// When the directory cannot be read, or the newest is of another version of the format.
    pub fn newest_good(&self) -> Result<(Option<Checkpoint>, Vec<Damaged>), CheckpointError> {
        let mut damaged = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            let path = self.path(step);
            match Checkpoint::open(&path) {
                Ok(checkpoint) => return Ok((Some(checkpoint), damaged)),
                Err(reason @ CheckpointError::Damaged { .. }) => {
                    damaged.push(Damaged { path: self.set_aside(step)?, reason });
                }
                Err(other) => return Err(other),
            }
        }
        Ok((None, damaged))
    }

    fn set_aside(&self, step: u64) -> Result<PathBuf, CheckpointError> {
        let to = (1..u64::MAX)
            .map(|n| if n == 1 { String::new() } else { format!("-{n}") })
            .map(|suffix| self.root.join(format!("damaged-step-{step:08}{suffix}")))
            .find(|path| !path.exists())
            .unwrap_or_default(); // no directory has that many
        fs::rename(self.path(step), &to)
            .map_err(|source| CheckpointError::Write { path: to.clone(), source })?;
        Ok(to)
    }

    /// The verified checkpoint of a step.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn get(&self, step: u64) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::open(&self.path(step))
    }

    /// Writes a checkpoint; when it is safe on the disk, removes those that are neither among the `keep_last` newest
    /// (at least one) nor among the best. Returns its directory.
    ///
    /// # Errors
    /// When it cannot be written; everything that was there stays.
    pub fn write(&self, contents: &Contents<'_>, keep_last: usize) -> Result<PathBuf, CheckpointError> {
        let path = self.path(contents.state.step);
        write::write(&path, contents)?;
        self.prune(keep_last.max(1), &contents.state.best)?;
        Ok(path)
    }

    fn prune(&self, keep_last: usize, best: &[Best]) -> Result<(), CheckpointError> {
        let steps = self.steps()?;
        let newest = &steps[steps.len().saturating_sub(keep_last)..];
        for step in &steps {
            if newest.contains(step) || best.iter().any(|best| best.step == *step) {
                continue;
            }
            // Renamed first: a removal that is cut short must not leave half a checkpoint under its name.
            let (path, doomed) = (self.path(*step), files::temporary_sibling(&self.path(*step)));
            fs::rename(&path, &doomed)
                .and_then(|()| fs::remove_dir_all(&doomed))
                .map_err(|source| CheckpointError::Write { path, source })?;
        }
        Ok(())
    }
}
