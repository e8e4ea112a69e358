//! Scores of the next token, as processors change them.

use std::cmp::Ordering;

use torch_bridge::{Error, Result};

/// A score for each token of the vocabulary: logits, or the log-probabilities that a beam search adds up. A score of
/// minus infinity is never chosen.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    values: Vec<f32>,
    /// The tokens that can be chosen, best first, where a filter has found them already.
    ranked: Option<Vec<u32>>,
}

impl Scores {
    /// Scores of their own; a NaN becomes minus infinity.
    pub fn new(values: &[f32]) -> Self {
        let mut scores = Self::default();
        scores.load(values);
        scores
    }

    /// Takes other scores in the place of these.
    pub fn load(&mut self, values: &[f32]) {
        self.ranked = None;
        self.values.clear();
        self.values
            .extend(values.iter().map(|&value| if value.is_nan() { f32::NEG_INFINITY } else { value }));
    }

    /// The scores, by token.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Changes the score of one token; one outside the vocabulary has none.
    pub fn update(&mut self, token: i64, change: impl FnOnce(f32) -> f32) {
        let value = usize::try_from(token).ok().and_then(|token| self.values.get_mut(token));
        // A penalty on minus infinity must not make a number of it.
        if let Some(value) = value.filter(|value| **value > f32::NEG_INFINITY) {
            *value = change(*value);
            self.ranked = None;
        }
    }

    /// A token that must not be chosen.
    pub fn forbid(&mut self, token: i64) {
        self.update(token, |_| f32::NEG_INFINITY);
    }

    /// Divides every score by a number above 0.
    pub fn divide(&mut self, by: f64) {
        for value in &mut self.values {
            *value = (f64::from(*value) / by) as f32;
        }
    }

    /// The token with the best score, the first of equals; none when no token can be chosen.
    pub fn best(&self) -> Option<i64> {
        if let Some(ranked) = &self.ranked {
            return ranked.first().map(|&token| i64::from(token));
        }
        let mut best = (None, f32::NEG_INFINITY);
        for (token, &value) in self.values.iter().enumerate() {
            if value > best.1 {
                best = (Some(token as i64), value);
            }
        }
        best.0
    }

    /// The `count` best tokens with their scores, best first, equals in the vocabulary's order.
    pub fn top(&self, count: usize) -> Vec<(i64, f32)> {
        let top = match &self.ranked {
            Some(ranked) => ranked[..count.min(ranked.len())].to_vec(),
            None => best_first(&self.values, count),
        };
        top.into_iter().map(|token| (i64::from(token), self.values[token as usize])).collect()
    }

    /// Leaves the `count` best tokens, and those that are as good as the last of them.
    pub fn keep_top(&mut self, count: usize) {
        let Some(&last) = best_first(&self.values, count).last() else { return };
        let least = self.values[last as usize];
        self.keep_from(least);
        let mut ranked: Vec<u32> = match self.ranked.take() {
            Some(ranked) => ranked,
            None => (0..self.values.len() as u32).filter(|&i| self.values[i as usize] >= least).collect(),
        };
        ranked.retain(|&token| self.values[token as usize] > f32::NEG_INFINITY);
        ranked.sort_unstable_by(|&a, &b| order(&self.values, a, b));
        self.ranked = Some(ranked);
    }

    /// Leaves tokens with at least this score.
    pub fn keep_from(&mut self, least: f32) {
        for value in &mut self.values {
            if *value < least {
                *value = f32::NEG_INFINITY;
            }
        }
        if let Some(ranked) = &mut self.ranked {
            ranked.retain(|&token| self.values[token as usize] >= least);
        }
    }

    /// Leaves the likeliest tokens that together have the probability `mass`, of the distribution that the scores are
    /// logits of: a token stays when those before it have less than `mass`.
    pub fn keep_mass(&mut self, mass: f64) {
        let Some(peak) = self.peak() else { return };
        let enough = mass * self.values.iter().map(|&value| weight(value, peak)).sum::<f64>();
        // Mostly few tokens have most of the mass: look at few first.
        let mut count = 64;
        let kept = loop {
            let ranked = match &self.ranked {
                Some(ranked) => ranked.clone(),
                None => best_first(&self.values, count),
            };
            let (is_all, mut sum) = (self.ranked.is_some() || ranked.len() < count, 0.0);
            let last = ranked.iter().position(|&token| {
                sum += weight(self.values[token as usize], peak);
                sum >= enough
            });
            match last {
                Some(last) => break ranked[..=last].to_vec(),
                None if is_all => break ranked,
                None => count *= 8,
            }
        };
        let values: Vec<f32> = kept.iter().map(|&token| self.values[token as usize]).collect();
        self.values.fill(f32::NEG_INFINITY);
        for (&token, value) in kept.iter().zip(values) {
            self.values[token as usize] = value;
        }
        self.ranked = Some(kept);
    }

    /// The best score; none when no token can be chosen.
    pub fn peak(&self) -> Option<f32> {
        self.best().map(|token| self.values[token as usize])
    }

    /// The token at which the running sum of probabilities passes `uniform`, a number in `[0, 1)`; none when no token
    /// can be chosen.
    pub fn at(&self, uniform: f64) -> Option<i64> {
        let peak = self.peak()?;
        match &self.ranked {
            Some(ranked) => self.draw(uniform, peak, ranked.iter().copied()),
            None => self.draw(uniform, peak, 0..self.values.len() as u32),
        }
    }

    fn draw(&self, uniform: f64, peak: f32, tokens: impl Iterator<Item = u32> + Clone) -> Option<i64> {
        let weights = tokens.clone().map(|token| weight(self.values[token as usize], peak));
        let mut left = uniform * weights.clone().sum::<f64>();
        let mut last = None;
        for (token, weight) in tokens.zip(weights) {
            if weight > 0.0 {
                last = Some(i64::from(token));
                left -= weight;
                if left < 0.0 {
                    break;
                }
            }
        }
        last
    }
}

/// Refuses logits without a number among them: the model has diverged.
///
/// # Errors
/// When every one is NaN.
pub(super) fn check_logits(logits: &[f32], sequence: usize) -> Result<()> {
    if logits.iter().all(|value| value.is_nan()) {
        return Err(Error::other(format!(
            "sequence {sequence}: the model gives NaN for every token; its weights are not those of a trained model"
        )));
    }
    Ok(())
}

/// `exp(value - peak)`, also where both are infinite.
#[allow(clippy::float_cmp)] // the same infinity
fn weight(value: f32, peak: f32) -> f64 {
    if value == peak { 1.0 } else { (f64::from(value) - f64::from(peak)).exp() }
}

/// Best first, equals by token. Only numbers are compared: what cannot be chosen is left out before.
fn order(values: &[f32], a: u32, b: u32) -> Ordering {
    values[b as usize].partial_cmp(&values[a as usize]).unwrap_or(Ordering::Equal).then(a.cmp(&b))
}

/// The `count` best tokens that can be chosen, best first, equals in the vocabulary's order. One pass over the
/// vocabulary; only candidates are sorted.
fn best_first(values: &[f32], count: usize) -> Vec<u32> {
    if count == 0 {
        return Vec::new();
    }
    let room = count.saturating_mul(2).min(values.len());
    let mut best: Vec<u32> = Vec::with_capacity(room);
    let mut least = f32::NEG_INFINITY; // once `count` are there, only what is above it can come in
    for (token, &value) in values.iter().enumerate() {
        if value > least {
            best.push(token as u32);
            if best.len() == room && best.len() > count {
                best.select_nth_unstable_by(count - 1, |&a, &b| order(values, a, b));
                best.truncate(count);
                least = values[best[count - 1] as usize];
            }
        }
    }
    best.sort_unstable_by(|&a, &b| order(values, a, b));
    best.truncate(count);
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: sort everything.
    fn sorted(values: &[f32]) -> Vec<u32> {
        let mut all: Vec<u32> =
            (0..values.len() as u32).filter(|&i| values[i as usize] > f32::NEG_INFINITY).collect();
        all.sort_by(|&a, &b| order(values, a, b));
        all
    }

    /// Scores with many equals among them.
    fn bumpy(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 37) as f32 / 4.0 - 3.0).collect()
    }

    #[test]
    fn the_best_are_those_of_a_full_sort() {
        for size in [1, 2, 3, 17, 64, 257, 1000] {
            let mut values = bumpy(size, size);
            if size > 4 {
                values[3] = f32::NEG_INFINITY;
            }
            let all = sorted(&values);
            for count in [0, 1, 2, 5, 63, 64, 999, 1000, 5000, usize::MAX] {
                let expected = &all[..count.min(all.len())];
                assert_eq!(best_first(&values, count), expected, "{count} of {size}");
            }
        }
    }

    #[test]
    fn mass_is_that_of_a_full_sort() {
        for (size, scale) in [(5, 1.0), (300, 0.01), (3000, 0.0), (3000, 1.0)] {
            let values: Vec<f32> = bumpy(size, 1).iter().map(|value| value * scale).collect();
            let all = sorted(&values);
            let total: f64 = values.iter().map(|&value| f64::from(value).exp()).sum();
            for mass in [1e-9, 0.3, 0.9, 0.999, 1.0] {
                let (mut before, mut expected) = (0.0, Vec::new());
                for &token in &all {
                    if before < mass * total * (1.0 - 1e-9) {
                        expected.push(token);
                    }
                    before += f64::from(values[token as usize]).exp();
                }
                let mut scores = Scores::new(&values);
                scores.keep_mass(mass);
                let ranked = scores.ranked.clone().unwrap();
                let off = ranked.len().abs_diff(expected.len());
                assert!(off <= usize::from(mass > 0.9999), "{mass} of {size}: {off}");
                assert!(ranked.iter().zip(&expected).all(|(a, b)| a == b), "{mass} of {size}");
            }
        }
    }

    #[test]
    fn what_cannot_be_chosen_is_not() {
        let mut scores = Scores::new(&[f32::NAN, 1.0, f32::NEG_INFINITY]);
        assert_eq!((scores.best(), scores.at(0.999)), (Some(1), Some(1)));
        scores.update(2, |value| -value);
        scores.update(99, |value| value + 1.0);
        scores.update(-1, |value| value + 1.0);
        scores.forbid(1);
        assert_eq!((scores.best(), scores.at(0.0), scores.top(2)), (None, None, Vec::new()));
        scores.keep_top(2);
        scores.keep_mass(0.5);
        assert_eq!(scores.best(), None);
        let infinite = Scores::new(&[0.0, f32::INFINITY]);
        assert_eq!((infinite.at(0.0), infinite.at(0.99)), (Some(1), Some(1)));
        assert!(check_logits(&[f32::NAN; 3], 0).is_err() && check_logits(&[f32::NAN, 0.0], 0).is_ok());
    }
}
