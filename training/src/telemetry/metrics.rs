//! `metrics.jsonl`: one JSON object per line, written once and never changed.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::TelemetryError;

/// A line of `metrics.jsonl`.
///
/// Everything but `tokens_per_second` and `elapsed_seconds` is equal in two runs of a recipe, and in a run that was
/// killed and resumed. A value that is not a finite number is `null`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricRecord {
    /// `train` for a step, `evaluation` for an evaluation.
    pub kind: String,
    /// The stage.
    pub stage: String,
    /// Steps that were done.
    pub step: u64,
    /// Targets that were learnt from up to this step.
    pub tokens: u64,
    /// What was measured, by name: `loss` (what is minimised, per target of this step), `lr`, `grad_norm` (before
    /// clipping) and the task's own for a step; `validation_loss` and the task's own for an evaluation.
    #[serde(flatten)]
    pub values: BTreeMap<String, Option<f64>>,
}

/// Names of values that depend on the clock.
pub(crate) const CLOCKED: [&str; 2] = ["tokens_per_second", "elapsed_seconds"];

impl MetricRecord {
    /// A record without values.
    pub fn new(kind: &str, stage: &str, step: u64, tokens: u64) -> Self {
        Self { kind: kind.to_owned(), stage: stage.to_owned(), step, tokens, values: BTreeMap::new() }
    }

    /// Adds a value.
    #[must_use]
    pub fn with(mut self, name: &str, value: f64) -> Self {
        self.values.insert(name.to_owned(), value.is_finite().then_some(value));
        self
    }

    /// The record without what depends on the clock.
    #[must_use]
    pub fn deterministic(mut self) -> Self {
        self.values.retain(|name, _| !CLOCKED.contains(&name.as_str()));
        self
    }
}

/// The file, open for appending.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl MetricsFile {
    /// Opens the file or makes it. A last line that was cut short by a crash is removed.
    ///
    /// # Errors
    /// When it cannot be opened or read.
    pub fn open(path: &Path) -> Result<Self, TelemetryError> {
        let failed = |source| TelemetryError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        let bytes = std::fs::read(path).map_err(failed)?;
        let length = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1) as u64;
        let mut metrics = Self { path: path.to_owned(), file, length: bytes.len() as u64 };
        metrics.truncate(length)?;
        Ok(metrics)
    }

    /// Adds a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn append(&mut self, record: &MetricRecord) -> Result<(), TelemetryError> {
        let failed = |source: io::Error| TelemetryError::Io { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(failed)?;
        self.length += line.len() as u64;
        Ok(())
    }

    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Makes what was written durable, so that a checkpoint never knows of lines that a crash takes away.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn sync(&self) -> Result<(), TelemetryError> {
        self.file.sync_data().map_err(|source| TelemetryError::Io { path: self.path.clone(), source })
    }

    /// Cuts everything after `length` bytes; a file that is shorter stays as it is.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn truncate(&mut self, length: u64) -> Result<(), TelemetryError> {
        if length < self.length {
            self.file
                .set_len(length)
                .map_err(|source| TelemetryError::Io { path: self.path.clone(), source })?;
            self.length = length;
        }
        Ok(())
    }

    /// All records of a file.
    ///
    /// # Errors
    /// When it cannot be read or a line is not a record.
    pub fn read(path: &Path) -> Result<Vec<MetricRecord>, TelemetryError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TelemetryError::Io { path: path.to_owned(), source })?;
        let parse = |(index, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|error| TelemetryError::Format {
                path: path.to_owned(),
                line: index + 1,
                message: error.to_string(),
            })
        };
        text.lines().enumerate().map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_goes_and_a_cut_leaves_what_was_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let record =
            |step| MetricRecord::new("train", "pretrain", step, step * 8).with("loss", 1.0 / step as f64);
        let mut file = MetricsFile::open(&path).unwrap();
        file.append(&record(1)).unwrap();
        let after_one = file.length();
        file.append(&record(2)).unwrap();
        drop(file);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"{\"kind\":\"tr"].concat()).unwrap();
        let mut file = MetricsFile::open(&path).unwrap();
        assert_eq!(MetricsFile::read(&path).unwrap(), [record(1), record(2)]);
        file.truncate(after_one).unwrap();
        file.append(&record(3)).unwrap();
        file.truncate(1 << 20).unwrap();
        assert_eq!(MetricsFile::read(&path).unwrap(), [record(1), record(3)]);
    }

    #[test]
    fn a_line_reads_as_documented() {
        let record =
            MetricRecord::new("train", "pretrain", 7, 56).with("loss", 0.1).with("grad_norm", f64::NAN);
        let line = serde_json::to_string(&record.clone().with("elapsed_seconds", 2.0)).unwrap();
        assert_eq!(
            line,
            r#"{"kind":"train","stage":"pretrain","step":7,"tokens":56,"elapsed_seconds":2.0,"grad_norm":null,"loss":0.1}"#
        );
        assert_eq!(serde_json::from_str::<MetricRecord>(&line).unwrap().deterministic(), record);
    }
}
