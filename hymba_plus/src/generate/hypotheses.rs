//! The complete texts of a beam search, and when no better one can come.

use super::{EarlyStopping, Finish, TokenLogprobs};

/// A complete text.
#[derive(Debug, Clone)]
pub(super) struct Hypothesis {
    pub(super) tokens: Vec<i64>,
    pub(super) logprobs: Vec<TokenLogprobs>,
    pub(super) finish: Finish,
    /// Log-probability over its length to the power of the length penalty.
    pub(super) score: f64,
}

/// The best complete texts of one prompt, best first: transformers' rules, for one prompt at a time.
#[derive(Debug)]
pub(super) struct Hypotheses {
    best: Vec<Hypothesis>,
    room: usize,
    length_penalty: f64,
    early_stopping: EarlyStopping,
    /// Most new tokens of a text.
    most: usize,
    can_improve: bool,
}

impl Hypotheses {
    pub(super) fn new(room: usize, length_penalty: f64, early_stopping: EarlyStopping, most: usize) -> Self {
        Self { best: Vec::new(), room, length_penalty, early_stopping, most, can_improve: true }
    }

    /// The score of a text of so many new tokens (the one that ends it counts) with this log-probability.
    pub(super) fn score(&self, logprob: f64, length: usize) -> f64 {
        logprob / (length.max(1) as f64).powf(self.length_penalty)
    }

    fn is_full(&self) -> bool {
        self.best.len() == self.room
    }

    /// Takes the texts that became complete in one step.
    pub(super) fn add(&mut self, complete: Vec<Hypothesis>) {
        if !self.can_improve || (self.is_full() && self.early_stopping == EarlyStopping::True) {
            return;
        }
        self.best.extend(complete);
        // Stable: of equals, the one that was there first.
        self.best.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.best.truncate(self.room);
    }

    /// Whether the search goes on, when the best beginning has `length` new tokens and this log-probability.
    pub(super) fn goes_on(&mut self, logprob: f64, length: usize) -> bool {
        // A positive penalty makes scores rise with the length: the best that can come has the full length.
        let full_length = self.early_stopping == EarlyStopping::Never && self.length_penalty > 0.0;
        let reachable = self.score(logprob, if full_length { self.most } else { length });
        let worst = self.best.last().map_or(f64::NEG_INFINITY, |worst| worst.score);
        self.can_improve &= !self.is_full() || reachable > worst;
        self.can_improve && !(self.is_full() && self.early_stopping == EarlyStopping::True)
    }

    pub(super) fn into_best(self) -> Vec<Hypothesis> {
        self.best
    }
}
