//! Reading the checkpoints of a stage while another process may write them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Checkpoint, CheckpointError};

/// The checkpoints of one stage, for reading: nothing is removed, renamed or made.
#[derive(Debug, Clone)]
pub struct CheckpointReader {
    root: PathBuf,
}

/// Which checkpoint is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The newest that is whole.
    Last,
    /// The one with the best evaluation of those that are kept.
    Best,
    /// That of a step.
    Step(u64),
}

/// A checkpoint that was read.
#[derive(Debug)]
pub struct Found<T> {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// What was read from it.
    pub value: T,
    /// What is wrong with those that were wanted more.
    pub damaged: Vec<CheckpointError>,
}

const PREFIX: &str = "step-";

impl CheckpointReader {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Whether there is a directory for them.
    pub fn exists(&self) -> bool {
        self.root.is_dir()
    }

    /// Where the checkpoint of a step lies, or would lie.
    pub fn path(&self, step: u64) -> PathBuf {
        self.root.join(format!("{PREFIX}{step:08}"))
    }

    /// Steps that have a checkpoint, rising. Their files are not looked at.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let failed = |source| CheckpointError::Read { path: self.root.clone(), source };
        let mut steps = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            steps.extend(name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u64>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Verifies the wanted checkpoint and reads from it; where it is damaged, the next one that fits (the next older,
    /// the next best). When its owner removes it in the meantime, the choice is made once more. `None` when there is no
    /// checkpoint at all.
    ///
    /// # Errors
    /// When `read` fails, when every checkpoint that fits is damaged, or when none is what is wanted.
    pub fn find<T>(
        &self,
        which: Which,
        mut read: impl FnMut(&Checkpoint) -> Result<T, CheckpointError>,
    ) -> Result<Option<Found<T>>, CheckpointError> {
        match self.try_find(which, &mut read) {
            Err(error) if is_gone(&error) => self.try_find(which, &mut read),
            result => result,
        }
    }

    fn try_find<T>(
        &self,
        which: Which,
        read: &mut impl FnMut(&Checkpoint) -> Result<T, CheckpointError>,
    ) -> Result<Option<Found<T>>, CheckpointError> {
        let steps = self.steps()?;
        let wanted: Vec<u64> = match which {
            Which::Last => steps.iter().rev().copied().collect(),
            Which::Step(step) => steps.iter().filter(|&&known| known == step).copied().collect(),
            Which::Best => {
                // The newest knows all that were measured.
                let Some(newest) = self.first(steps.iter().rev().copied().collect(), &mut |_| Ok(()))? else {
                    return Ok(None);
                };
                let best = newest.checkpoint.state().best.iter().map(|best| best.step);
                best.filter(|step| steps.contains(step)).collect()
            }
        };
        if steps.is_empty() {
            return Ok(None);
        }
        if wanted.is_empty() {
            return Err(CheckpointError::NotThere { path: self.root.clone(), wanted: which, steps });
        }
        self.first(wanted, read)
    }

    /// The first that is whole.
    fn first<T>(
        &self,
        steps: Vec<u64>,
        read: &mut impl FnMut(&Checkpoint) -> Result<T, CheckpointError>,
    ) -> Result<Option<Found<T>>, CheckpointError> {
        let mut damaged = Vec::new();
        for step in steps {
            let path = self.path(step);
            let found = Checkpoint::open(&path).and_then(|checkpoint| Ok((read(&checkpoint)?, checkpoint)));
            match found {
                Ok((value, checkpoint)) => return Ok(Some(Found { checkpoint, value, damaged })),
                Err(_) if !path.exists() => {
                    return Err(CheckpointError::Read { path, source: io::ErrorKind::NotFound.into() });
                }
                Err(error @ CheckpointError::Damaged { .. }) => damaged.push(error),
                Err(other) => return Err(other),
            }
        }
        damaged.into_iter().next().map_or(Ok(None), Err)
    }
}

fn is_gone(error: &CheckpointError) -> bool {
    matches!(error, CheckpointError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
}
