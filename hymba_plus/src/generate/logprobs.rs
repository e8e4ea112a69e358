//! Log-probabilities of tokens.

use super::scores::Scores;

/// What the model itself thought of a new token: natural logarithms of the softmax of its logits, before any penalty,
/// temperature or filter.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token that was chosen.
    pub token: i64,
    /// Its log-probability.
    pub logprob: f32,
    /// The likeliest tokens with theirs, best first; the chosen one is among them only if it is one of them.
    pub top: Vec<(i64, f32)>,
}

/// Log-softmax of one row of logits.
#[derive(Debug)]
pub(super) struct Distribution<'a> {
    logits: &'a [f32],
    normaliser: f64,
}

impl<'a> Distribution<'a> {
    pub(super) fn new(logits: &'a [f32]) -> Self {
        let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let terms = logits.iter().filter(|value| !value.is_nan());
        let sum: f64 = terms.map(|&value| (f64::from(value) - f64::from(peak)).exp()).sum();
        Self { logits, normaliser: f64::from(peak) + sum.ln() }
    }

    /// The log-probability of a token of the vocabulary.
    pub(super) fn of(&self, token: i64) -> f32 {
        (f64::from(self.logits[token as usize]) - self.normaliser) as f32
    }

    /// All of them, by token.
    pub(super) fn all(&self) -> Vec<f32> {
        (0..self.logits.len() as i64).map(|token| self.of(token)).collect()
    }

    /// What is reported of a token, with the `count` likeliest beside it.
    pub(super) fn report(&self, token: i64, count: usize) -> TokenLogprobs {
        let top = if count == 0 { Vec::new() } else { Scores::new(self.logits).top(count) };
        let top = top.into_iter().map(|(token, _)| (token, self.of(token))).collect();
        TokenLogprobs { token, logprob: self.of(token), top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one() {
        let logits = [3.0, -1.0, 0.5, 3.0];
        let distribution = Distribution::new(&logits);
        let sum: f64 = distribution.all().iter().map(|&logprob| f64::from(logprob).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        let report = distribution.report(2, 2);
        assert!((report.logprob - distribution.of(2)).abs() < 1e-9);
        assert_eq!(report.top, [(0, distribution.of(0)), (3, distribution.of(3))]);
    }
}
