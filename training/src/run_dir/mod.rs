//! The run directory: everything a run leaves behind, owned by one process at a time.
//!
//! ```text
//! RUN_DIR/
//!   recipe.yaml         the resolved recipe, which itself runs
//!   run.json            name, hash of the recipe, times
//!   environment.json    versions, git commit, processor, threads, device
//!   data.json           every data file with its size and SHA-256
//!   tokenizer.json      the tokenizer, and tokenizer_config.json its borders
//!   import.json         where the weights came from, of a run that was imported
//!   metrics.jsonl       one line per logged step or evaluation
//!   progress.json       which stages were started and finished
//!   tensorboard/STAGE/  the same as metrics.jsonl, for TensorBoard
//!   checkpoints/STAGE/  see the module `checkpoint`
//!   stages/STAGE/       what other stages write
//! ```

mod error;
mod lock;
mod progress;

pub use error::RunDirError;
pub(crate) use progress::StageProgress;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    checkpoint::{CheckpointReader, CheckpointStore},
    data::FileRecord,
    environment::{Environment, now_utc},
    files,
};
use lock::Lock;

/// What to do with a directory that a run has used before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Refuse it.
    Refuse,
    /// Go on with the run in it; an empty or missing one starts afresh.
    Resume,
    /// Remove that run first.
    Overwrite,
}

/// What `run.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    /// Name of the recipe.
    pub(crate) name: String,
    /// Hash of the resolved recipe.
    pub(crate) recipe_hash: String,
    /// When the run began, in UTC.
    pub(crate) started: String,
    /// When it was continued, in UTC.
    pub(crate) resumed: Vec<String>,
}

const LOCK: &str = ".lock";
const RECIPE: &str = "recipe.yaml";
const RUN: &str = "run.json";
const ENVIRONMENT: &str = "environment.json";
const DATA: &str = "data.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const IMPORT: &str = "import.json";
const METRICS: &str = "metrics.jsonl";
const PROGRESS: &str = "progress.json";
const TENSORBOARD: &str = "tensorboard";
const CHECKPOINTS: &str = "checkpoints";
const STAGES: &str = "stages";

/// Names that a run makes, and that overwriting removes; nothing else is ever touched.
const OURS: [&str; 12] = [
    RECIPE,
    RUN,
    ENVIRONMENT,
    DATA,
    TOKENIZER,
    TOKENIZER_CONFIG,
    IMPORT,
    METRICS,
    PROGRESS,
    TENSORBOARD,
    CHECKPOINTS,
    STAGES,
];

/// A locked run directory.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    lock: Lock,
}

impl RunDir {
    /// Makes or opens a run directory and locks it.
    ///
    /// # Errors
    /// When another process has it, when it is in use and `existing` refuses that, or when it cannot be written.
    pub fn open(root: &Path, existing: Existing) -> Result<Self, RunDirError> {
        let failed = |source| RunDirError::Io { path: root.to_owned(), source };
        let only_begun = has_only_begun(root);
        if root.is_dir() && existing == Existing::Refuse && !only_begun && !is_empty(root).map_err(failed)? {
            // Before the lock: a run that is refused leaves no file in a directory that is not its own.
            if let Some(holder) = Lock::holder(&root.join(LOCK)) {
                return Err(RunDirError::Locked { path: root.to_owned(), holder });
            }
            return Err(RunDirError::Exists { path: root.to_owned() });
        }
        fs::create_dir_all(root).map_err(failed)?;
        let lock = Lock::take(root, LOCK)?;
        let directory = Self { root: root.to_owned(), lock };
        if root.join(RUN).exists() {
            directory.remove_unfinished().map_err(failed)?;
        }
        if existing == Existing::Overwrite || only_begun {
            directory.clear()?;
        }
        Ok(directory)
    }

    /// Removes files that a process that died was writing.
    fn remove_unfinished(&self) -> std::io::Result<()> {
        let stages = fs::read_dir(self.root.join(STAGES)).into_iter().flatten().flatten();
        for folder in std::iter::once(self.root.clone()).chain(stages.map(|entry| entry.path())) {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry?.path();
                if path.is_file() && files::is_temporary(&path) {
                    fs::remove_file(path)?;
                }
            }
        }
        Ok(())
    }

    /// Removes what an earlier run made; refuses a directory that no run has made.
    fn clear(&self) -> Result<(), RunDirError> {
        let failed = |source| RunDirError::Io { path: self.root.clone(), source };
        if !is_empty(&self.root).map_err(failed)? && !self.root.join(RUN).exists() {
            return Err(RunDirError::NotARun { path: self.root.clone() });
        }
        // `run.json` goes last, so that a removal that is cut short can be repeated.
        for name in OURS.iter().filter(|name| **name != RUN).chain([&RUN]) {
            let path = self.root.join(name);
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The process that had the directory before and did not end by itself, if there was one.
    pub fn recovered_from(&self) -> Option<&str> {
        self.lock.recovered_from()
    }

    /// The resolved recipe.
    pub fn recipe(&self) -> PathBuf {
        self.root.join(RECIPE)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> PathBuf {
        self.root.join(TOKENIZER)
    }

    /// The metrics.
    pub fn metrics(&self) -> PathBuf {
        self.root.join(METRICS)
    }

    /// TensorBoard files of a stage.
    pub fn tensorboard(&self, stage: &str) -> PathBuf {
        self.root.join(TENSORBOARD).join(stage)
    }

    /// Where the checkpoints of a stage lie.
    pub fn checkpoints(&self, stage: &str) -> PathBuf {
        self.root.join(CHECKPOINTS).join(stage)
    }

    /// The checkpoints of a stage.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub fn checkpoint_store(
        &self,
        stage: &str,
    ) -> Result<CheckpointStore, crate::checkpoint::CheckpointError> {
        CheckpointStore::open(&self.checkpoints(stage))
    }

    /// Where a stage puts files of its own; made when it is asked for.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn stage_files(&self, stage: &str) -> Result<PathBuf, RunDirError> {
        let path = self.root.join(STAGES).join(stage);
        fs::create_dir_all(&path).map_err(|source| RunDirError::Io { path: path.clone(), source })?;
        Ok(path)
    }

    /// Writes a file of a stage, whole or not at all; gives its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_stage_file(&self, stage: &str, name: &str, bytes: &[u8]) -> Result<PathBuf, RunDirError> {
        let path = self.stage_files(stage)?.join(name);
        files::write_atomically(&path, bytes)
            .map_err(|source| RunDirError::Io { path: path.clone(), source })?;
        Ok(path)
    }

    /// Renames the checkpoints of a stage, if there are any, to a name that no stage has; gives it.
    pub(crate) fn set_checkpoints_aside(&self, stage: &str) -> Result<Option<PathBuf>, RunDirError> {
        let path = self.checkpoints(stage);
        if !path.exists() {
            return Ok(None);
        }
        let aside = (1..u64::MAX)
            .map(|n| self.checkpoints(&format!("{stage}.before-{n}")))
            .find(|aside| !aside.exists())
            .unwrap_or_default(); // no directory has that many
        fs::rename(&path, &aside).map_err(|source| RunDirError::Io { path, source })?;
        Ok(Some(aside))
    }

    /// Writes the resolved recipe.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_recipe(&self, yaml: &str) -> Result<(), RunDirError> {
        self.write(RECIPE, yaml.as_bytes())
    }

    /// Writes what the run runs on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_environment(&self, environment: &Environment) -> Result<(), RunDirError> {
        self.write_json(ENVIRONMENT, environment)
    }

    /// Writes the manifest of the data files.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_data_manifest(&self, files: &[FileRecord]) -> Result<(), RunDirError> {
        self.write_json(DATA, &files)
    }

    /// Writes `run.json` of a run that begins now.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_beginning(&self, name: &str, recipe_hash: &str) -> Result<(), RunDirError> {
        self.write_record(&RunRecord {
            name: name.to_owned(),
            recipe_hash: recipe_hash.to_owned(),
            started: now_utc(),
            resumed: Vec::new(),
        })
    }

    /// Writes where imported weights came from.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_import(&self, provenance: &Value) -> Result<(), RunDirError> {
        self.write_json(IMPORT, provenance)
    }

    pub(crate) fn record(&self) -> Result<Option<RunRecord>, RunDirError> {
        self.read_json(RUN)
    }

    pub(crate) fn write_record(&self, record: &RunRecord) -> Result<(), RunDirError> {
        self.write_json(RUN, record)
    }

    pub(crate) fn progress(&self) -> Result<StageProgress, RunDirError> {
        Ok(self.read_json(PROGRESS)?.unwrap_or_default())
    }

    pub(crate) fn write_progress(&self, progress: &StageProgress) -> Result<(), RunDirError> {
        self.write_json(PROGRESS, progress)
    }

    fn read_json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<Option<T>, RunDirError> {
        read_json(self.root.join(name))
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), RunDirError> {
        let mut bytes = serde_json::to_vec_pretty(value)
            .map_err(|error| RunDirError::Io { path: self.root.join(name), source: error.into() })?;
        bytes.push(b'\n');
        self.write(name, &bytes)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RunDirError> {
        let path = self.root.join(name);
        files::write_atomically(&path, bytes).map_err(|source| RunDirError::Io { path, source })
    }
}

/// The resolved recipe that a run left in its directory, every default filled in; `None` when there is none.
///
/// It was checked when it was written, so its sections need no more than to be read as their types: nothing besides the
/// directory is needed, not even the files that the recipe names.
///
/// # Errors
/// When the file cannot be read.
pub fn saved_recipe(root: &Path) -> Result<Option<Value>, RunDirError> {
    let path = root.join(RECIPE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RunDirError::Io { path, source }),
    };
    serde_yaml::from_str(&text)
        .map(Some)
        .map_err(|error| RunDirError::Format { path, message: error.to_string() })
}

/// Where the weights of an imported run came from; none of any other run.
///
/// # Errors
/// When the file cannot be read.
pub fn saved_import(root: &Path) -> Result<Option<Value>, RunDirError> {
    read_json(root.join(IMPORT))
}

fn read_json<T: for<'de> Deserialize<'de>>(path: PathBuf) -> Result<Option<T>, RunDirError> {
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| RunDirError::Format { path, message: error.to_string() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RunDirError::Io { path, source }),
    }
}

/// Where a run left its tokenizer.
pub fn saved_tokenizer(root: &Path) -> PathBuf {
    root.join(TOKENIZER)
}

/// Where a run left the checkpoints of a stage, for reading.
pub fn saved_checkpoints(root: &Path, stage: &str) -> CheckpointReader {
    CheckpointStore::read_only(&root.join(CHECKPOINTS).join(stage))
}

/// Whether a run began in a directory and ended before it measured or learnt anything: most often because something was
/// wrong with its recipe, which the user now has put right. There is nothing in it to lose.
fn has_only_begun(root: &Path) -> bool {
    let is_absent_or_empty = |name: &str| fs::metadata(root.join(name)).map_or(true, |file| file.len() == 0);
    root.join(RUN).exists()
        && is_absent_or_empty(METRICS)
        && !root.join(CHECKPOINTS).exists()
        && !root.join(STAGES).exists()
}

/// Whether there is nothing but our lock in a directory.
fn is_empty(path: &Path) -> std::io::Result<bool> {
    for entry in fs::read_dir(path)? {
        if entry?.file_name() != LOCK {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_use_is_refused_with_the_ways_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs/a");
        let run = RunDir::open(&path, Existing::Refuse).unwrap();
        run.write_recipe("seed: 1\n").unwrap();
        let error = RunDir::open(&path, Existing::Resume).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        let error = RunDir::open(&path, Existing::Refuse).unwrap_err().to_string();
        assert!(error.contains("in use by process"), "{error}");
        drop(run);
        let error = RunDir::open(&path, Existing::Refuse).unwrap_err().to_string();
        for way in ["--resume", "--run-dir", "--overwrite"] {
            assert!(error.contains(way), "{error}");
        }
        let run = RunDir::open(&path, Existing::Resume).unwrap();
        assert!(run.recovered_from().is_none());
    }

    #[test]
    fn a_run_that_only_began_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let record =
            RunRecord { name: "a".into(), recipe_hash: "b".into(), started: "c".into(), resumed: vec![] };
        for (name, obstacle) in [("recipe.yaml", false), ("metrics.jsonl", true)] {
            for existing in [Existing::Refuse, Existing::Resume] {
                let path = folder.path().join(format!("{name} {existing:?}"));
                RunDir::open(&path, Existing::Refuse).unwrap().write_record(&record).unwrap();
                fs::write(path.join(name), "{}\n").unwrap();
                match RunDir::open(&path, existing) {
                    Ok(run) => assert_eq!(run.record().unwrap().is_some(), obstacle),
                    Err(error) => assert!(obstacle && existing == Existing::Refuse, "{error}"),
                }
            }
        }
    }

    #[test]
    fn overwriting_removes_a_run_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.tex"), "precious").unwrap();
        let error = RunDir::open(folder.path(), Existing::Overwrite).unwrap_err().to_string();
        assert!(error.contains("no run"), "{error}");
        let path = folder.path().join("run");
        let run = RunDir::open(&path, Existing::Overwrite).unwrap();
        let record =
            RunRecord { name: "a".into(), recipe_hash: "b".into(), started: "c".into(), resumed: vec![] };
        run.write_record(&record).unwrap();
        run.write_recipe("seed: 1\n").unwrap();
        fs::create_dir_all(run.checkpoints("pretrain").join("step-00000001")).unwrap();
        fs::write(path.join("notes.txt"), "mine").unwrap();
        drop(run);
        let run = RunDir::open(&path, Existing::Overwrite).unwrap();
        assert!(!run.recipe().exists() && !run.checkpoints("pretrain").exists());
        assert!(run.record().unwrap().is_none());
        assert!(path.join("notes.txt").exists());
    }

    #[test]
    fn files_that_a_dead_process_was_writing_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let record =
            RunRecord { name: "a".into(), recipe_hash: "b".into(), started: "c".into(), resumed: vec![] };
        let run = RunDir::open(folder.path(), Existing::Refuse).unwrap();
        run.write_record(&record).unwrap();
        let path = run.write_stage_file("generate", "samples.txt", b"text").unwrap();
        drop(run);
        let (torn, other) = (files::temporary_sibling(&path), folder.path().join(".notes.tmp-old"));
        fs::write(&torn, "te").unwrap();
        fs::write(&other, "mine").unwrap();
        RunDir::open(folder.path(), Existing::Resume).unwrap();
        assert!(!torn.exists() && other.exists());
        assert_eq!(fs::read(&path).unwrap(), b"text");
    }

    #[test]
    fn a_lock_of_a_process_that_died_is_recovered() {
        let folder = tempfile::tempdir().unwrap();
        // A process that was killed leaves its name in the file, but the system has released its lock.
        fs::write(folder.path().join(LOCK), "process 4194304 on elsewhere since 2026-01-01T00:00:00Z")
            .unwrap();
        let run = RunDir::open(folder.path(), Existing::Refuse).unwrap();
        assert!(run.recovered_from().unwrap().contains("4194304"));
    }
}
