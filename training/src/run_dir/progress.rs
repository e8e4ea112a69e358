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
    /// Stages that began before it.
    order: usize,
    /// Length of `metrics.jsonl` when it began.
    metrics_start: u64,
    /// Whether it is done.
    finished: bool,
}

impl StageProgress {
    /// A stage begins, or begins again; gives the length of the metrics at its first beginning.
    pub(crate) fn start(&mut self, stage: &str, metrics_length: u64) -> u64 {
        let begun = Stage { order: self.0.len(), metrics_start: metrics_length, finished: false };
        self.0.entry(stage.to_owned()).or_insert(begun).metrics_start
    }

    /// A stage is done.
    pub(crate) fn finish(&mut self, stage: &str) {
        let order = self.0.len();
        let begun = Stage { order, metrics_start: 0, finished: true };
        self.0.entry(stage.to_owned()).or_insert(begun).finished = true;
    }

    /// A stage is not done after all; forgets the stages that began after it, and gives their names.
    pub(crate) fn reopen(&mut self, stage: &str) -> Vec<String> {
        let Some(this) = self.0.get_mut(stage) else { return Vec::new() };
        this.finished = false;
        let order = this.order;
        let later: Vec<String> =
            self.0.iter().filter(|(_, other)| other.order > order).map(|(name, _)| name.clone()).collect();
        self.0.retain(|name, _| !later.contains(name));
        later
    }

    /// The stages that `which` chooses are not done after all.
    pub(crate) fn clear(&mut self, which: impl Fn(&str) -> bool) {
        self.0.iter_mut().filter(|(name, _)| which(name)).for_each(|(_, stage)| stage.finished = false);
    }

    /// Whether what a stage wrote must stay: it, or a stage after it, is done.
    pub(crate) fn is_followed(&self, stage: &str) -> bool {
        let order = self.0.get(stage).map_or(usize::MAX, |stage| stage.order);
        self.0.values().any(|other| other.finished && other.order >= order)
    }

    /// Whether a stage is done.
    pub(crate) fn is_finished(&self, stage: &str) -> bool {
        self.0.get(stage).is_some_and(|stage| stage.finished)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_is_reopened_takes_those_after_it_along() {
        let mut progress = StageProgress::default();
        for (stage, length) in [("pretrain", 0), ("generate", 500), ("pretrain-2", 500), ("evaluate", 900)] {
            progress.start(stage, length);
            progress.finish(stage);
        }
        assert_eq!(progress.reopen("pretrain-2"), ["evaluate"]);
        let finished =
            ["pretrain", "generate", "pretrain-2", "evaluate"].map(|name| progress.is_finished(name));
        assert_eq!(finished, [true, true, false, false]);
        assert_eq!((progress.start("pretrain-2", 700), progress.start("evaluate", 800)), (500, 800));
        progress.clear(|name| name == "generate");
        assert!(!progress.is_finished("generate") && !progress.is_followed("generate"));
        progress.finish("evaluate");
        assert!(progress.is_followed("generate"));
    }
}
