//! `progress.json`: which stages were started and finished.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// All stages that were started, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct StageProgress(BTreeMap<String, Stage>);

/// Where one stage stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stage {
    /// Length of `metrics.jsonl` when it began.
    metrics_start: u64,
    /// Whether it is done.
    finished: bool,
}

impl StageProgress {
    /// A stage begins, or begins again; gives the length of the metrics at its first beginning.
    pub(crate) fn start(&mut self, stage: &str, metrics_length: u64) -> u64 {
        let begun = Stage { metrics_start: metrics_length, finished: false };
        self.0.entry(stage.to_owned()).or_insert(begun).metrics_start
    }

    /// A stage is done.
    pub(crate) fn finish(&mut self, stage: &str) {
        self.0.entry(stage.to_owned()).or_insert(Stage { metrics_start: 0, finished: true }).finished = true;
    }

    /// Whether a stage is done.
    pub(crate) fn is_finished(&self, stage: &str) -> bool {
        self.0.get(stage).is_some_and(|stage| stage.finished)
    }
}
