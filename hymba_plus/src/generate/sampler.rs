//! Drawing a token.

use super::Scores;

/// Draws the tokens of one sequence with a random stream of its own, the same on every machine.
#[derive(Debug, Clone)]
pub struct Sampler {
    state: u64,
}

impl Sampler {
    /// A sampler with a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A token, each with the probability that its score is the logit of; none when no token can be chosen.
    pub fn draw(&mut self, scores: &Scores) -> Option<i64> {
        scores.at(self.uniform())
    }

    /// Uniform in `[0, 1)`, by splitmix64 (Steele et al. 2014).
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{GenerateOptions, History, Sampling, processors};

    fn counts(sampling: Sampling, logits: &[f32]) -> Vec<usize> {
        let list = processors(&GenerateOptions { sampling, ..GenerateOptions::default() });
        let (mut sampler, mut counts) = (Sampler::new(7), vec![0; logits.len()]);
        for _ in 0..20_000 {
            let mut scores = Scores::new(logits);
            for step in &list {
                step.process(&History::new(&[]), &mut scores);
            }
            counts[sampler.draw(&scores).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [1.0_f32.ln(), 2.0_f32.ln(), 5.0_f32.ln(), f32::NAN];
        // Every token is left, but in the order of the nucleus.
        let nucleus = Sampling { top_p: Some(0.999_999), ..Sampling::default() };
        for sampling in [Sampling::default(), nucleus] {
            let counts = counts(sampling, &logits);
            for (count, share) in counts.iter().zip([0.125, 0.25, 0.625, 0.0]) {
                assert!((*count as f64 / 20_000.0 - share).abs() < 0.01, "{counts:?}");
            }
        }
    }

    #[test]
    fn filters_cut_the_tail() {
        let logits = [0.0, 3.0, 2.0, -1.0];
        let left = |sampling: Sampling| -> Vec<usize> {
            let counts = counts(sampling, &logits);
            (0..counts.len()).filter(|&token| counts[token] > 0).collect()
        };
        assert_eq!(left(Sampling { top_k: Some(2), ..Sampling::default() }), [1, 2]);
        // The likeliest token alone has 0.70 of the probability, the second 0.26, the third 0.035.
        assert_eq!(left(Sampling { top_p: Some(0.6), ..Sampling::default() }), [1]);
        assert_eq!(left(Sampling { top_p: Some(0.9), ..Sampling::default() }), [1, 2]);
        assert_eq!(left(Sampling { min_p: Some(0.04), ..Sampling::default() }), [0, 1, 2]);
        // Half the temperature squares the ratios.
        let cold = Sampling { temperature: 0.5, min_p: Some(0.04), ..Sampling::default() };
        assert_eq!(left(cold), [1, 2]);
    }
}
