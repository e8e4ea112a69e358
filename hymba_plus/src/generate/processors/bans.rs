//! Tokens that must not come next.

use super::{History, LogitsProcessor, Scores};

/// No run of so many tokens comes twice, the prompt included: a token is banned when the last tokens before it and the
/// token itself have come as a run before.
#[derive(Debug, Clone, Copy)]
pub struct NoRepeatNGram(pub usize);

impl LogitsProcessor for NoRepeatNGram {
    fn process(&self, history: &History, scores: &mut Scores) {
        let (tokens, size) = (history.tokens(), self.0);
        if size == 0 || tokens.len() < size {
            return;
        }
        let last = &tokens[tokens.len() + 1 - size..];
        for run in tokens.windows(size) {
            if run[..size - 1] == *last {
                scores.forbid(run[size - 1]);
            }
        }
    }
}

/// No stop token before there are so many new tokens.
#[derive(Debug, Clone)]
pub struct MinNewTokens {
    /// New tokens before which no stop token is chosen.
    pub least: usize,
    /// Tokens that end a sequence.
    pub stop_tokens: Vec<i64>,
}

impl LogitsProcessor for MinNewTokens {
    fn process(&self, history: &History, scores: &mut Scores) {
        if history.new_tokens().len() < self.least {
            for &token in &self.stop_tokens {
                scores.forbid(token);
            }
        }
    }
}
