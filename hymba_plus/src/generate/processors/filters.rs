//! What is left to draw from, and how sharply.

use super::{History, LogitsProcessor, Scores};

/// Divides the logits: below 1 the likely tokens become likelier.
#[derive(Debug, Clone, Copy)]
pub struct Temperature(pub f64);

impl LogitsProcessor for Temperature {
    fn process(&self, _history: &History, scores: &mut Scores) {
        scores.divide(self.0);
    }
}

/// Leaves the likeliest tokens, this many, and those as likely as the last of them.
#[derive(Debug, Clone, Copy)]
pub struct TopK(pub usize);

impl LogitsProcessor for TopK {
    fn process(&self, _history: &History, scores: &mut Scores) {
        scores.keep_top(self.0);
    }
}

/// Leaves the likeliest tokens that together have this probability (Holtzman et al. 2020, nucleus sampling).
#[derive(Debug, Clone, Copy)]
pub struct TopP(pub f64);

impl LogitsProcessor for TopP {
    fn process(&self, _history: &History, scores: &mut Scores) {
        scores.keep_mass(self.0);
    }
}

/// Leaves tokens with at least this share of the likeliest token's probability (Nguyen et al. 2024).
#[derive(Debug, Clone, Copy)]
pub struct MinP(pub f64);

impl LogitsProcessor for MinP {
    fn process(&self, _history: &History, scores: &mut Scores) {
        if let Some(peak) = scores.peak() {
            scores.keep_from((f64::from(peak) + self.0.ln()) as f32);
        }
    }
}
