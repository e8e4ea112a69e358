//! How the next token is chosen from logits.

use crate::component_config;

/// How tokens are chosen. The filters apply in this order: temperature, `top_k`, `top_p`.
#[component_config]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token always.
    #[default(1.0)]
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// Only the `top_k` likeliest tokens; left out, all.
    #[schemars(range(min = 1))]
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together have at least this probability; left out, all.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub top_p: Option<f64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None }
    }
}

/// Chooses tokens of one sequence with a random stream of its own, the same on every machine.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    state: u64,
}

impl Sampler {
    /// A sampler with a seed.
    pub fn new(sampling: &Sampling, seed: u64) -> Self {
        Self { sampling: sampling.clone(), state: seed }
    }

    /// The next token for these logits `[vocab_size]`; a NaN is never chosen.
    pub fn choose(&mut self, logits: &[f32]) -> i64 {
        let mut order: Vec<usize> = (0..logits.len()).filter(|&i| !logits[i].is_nan()).collect();
        // Ties by index, so that the choice is the same everywhere.
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let Some(&best) = order.first() else { return 0 };
        if self.sampling.temperature <= 0.0 {
            return best as i64;
        }
        if let Some(k) = self.sampling.top_k {
            order.truncate(k.max(1));
        }
        let peak = f64::from(logits[best]);
        let weight = |&i: &usize| ((f64::from(logits[i]) - peak) / self.sampling.temperature).exp();
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        if let Some(p) = self.sampling.top_p {
            let total: f64 = weights.iter().sum();
            let mut sum = 0.0;
            let enough = weights.iter().position(|weight| {
                sum += weight;
                sum >= p * total
            });
            weights.truncate(enough.map_or(weights.len(), |last| last + 1));
        }
        let mut left = self.uniform() * weights.iter().sum::<f64>();
        for (&token, weight) in order.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return token as i64;
            }
        }
        order[weights.len() - 1] as i64
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

    fn counts(sampling: &Sampling, logits: &[f32]) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling, 7);
        let mut counts = vec![0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.choose(logits) as usize] += 1;
        }
        counts
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let counts = counts(&Sampling::default(), &[1.0_f32.ln(), 2.0_f32.ln(), 5.0_f32.ln()]);
        for (count, share) in counts.iter().zip([0.125, 0.25, 0.625]) {
            assert!((*count as f64 / 20_000.0 - share).abs() < 0.01, "{counts:?}");
        }
    }

    #[test]
    fn filters_cut_the_tail() {
        let logits = [0.0, 3.0, 2.0, -1.0];
        let top_k = Sampling { top_k: Some(2), ..Sampling::default() };
        assert_eq!(counts(&top_k, &logits).iter().filter(|&&count| count > 0).count(), 2);
        // The likeliest token alone has 0.70 of the probability.
        let top_p = Sampling { top_p: Some(0.6), ..Sampling::default() };
        assert_eq!(counts(&top_p, &logits), [0, 20_000, 0, 0]);
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        assert_eq!(counts(&greedy, &logits), [0, 20_000, 0, 0]);
    }

    #[test]
    fn nan_is_never_chosen() {
        assert_eq!(Sampler::new(&Sampling::default(), 0).choose(&[f32::NAN, 1.0]), 1);
    }
}
