//! Writing a checkpoint so that its name appears only when all of it is on the disk.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{
    CheckpointError, MODEL, NamedTensors, OPTIMIZER, RNG, STATE, TrainingState, manifest, write_tensors,
};
use crate::files;

/// What goes into a checkpoint.
#[derive(Debug)]
pub struct Contents<'a> {
    /// The parameters.
    pub model: NamedTensors,
    /// The optimizer's state.
    pub optimizer: NamedTensors,
    /// States of the random number generators.
    pub rng: NamedTensors,
    /// Everything else.
    pub state: &'a TrainingState,
}

/// Writes a checkpoint at `path`: into a hidden sibling first, every file synced, then renamed.
pub(super) fn write(path: &Path, contents: &Contents<'_>) -> Result<(), CheckpointError> {
    let temporary = files::temporary_sibling(path);
    let written = fill(&temporary, contents).and_then(|()| publish(&temporary, path).map_err(failed(path)));
    written.map_err(|error| {
        let _ = fs::remove_dir_all(&temporary); // the first error is the one to report
        match error {
            CheckpointError::Write { source, .. } => failed(path)(source), // by the name that users know
            other => other,
        }
    })
}

fn fill(folder: &Path, contents: &Contents<'_>) -> Result<(), CheckpointError> {
    let failed = failed(folder);
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(&failed)?;
    }
    fs::create_dir_all(folder).map_err(&failed)?;
    let state = serde_json::to_vec_pretty(contents.state).map_err(|error| failed(error.into()))?;
    write_file(&folder.join(STATE), &state).map_err(&failed)?;
    let permissions = fs::metadata(folder.join(STATE)).map_err(&failed)?.permissions();
    for (name, tensors) in [(MODEL, &contents.model), (OPTIMIZER, &contents.optimizer), (RNG, &contents.rng)]
    {
        write_tensors(&folder.join(name), tensors)?;
        // The library's files are readable by their owner only; a checkpoint is as open as any other file.
        fs::set_permissions(folder.join(name), permissions.clone()).map_err(&failed)?;
    }
    let checksums = manifest::of_directory(folder).map_err(&failed)?;
    write_file(&folder.join(manifest::CHECKSUMS), &checksums).map_err(&failed)?;
    files::sync_directory(folder).map_err(failed)
}

/// Gives the finished directory its name. One that has the name already changes places with it: at no time is the name
/// without a whole checkpoint.
fn publish(temporary: &Path, path: &Path) -> io::Result<()> {
    let parent = files::parent(path);
    if path.exists() {
        renameat_with(CWD, temporary, CWD, path, RenameFlags::EXCHANGE)?;
        files::sync_directory(parent)?;
        return fs::remove_dir_all(temporary);
    }
    fs::rename(temporary, path)?;
    files::sync_directory(parent)
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn failed(path: &Path) -> impl Fn(io::Error) -> CheckpointError + '_ {
    |source| CheckpointError::Write { path: path.to_owned(), source }
}
