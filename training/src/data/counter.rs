//! Random numbers that are a function of (key, index): any sample can be made at any time, in any order.

/// The finaliser of SplitMix64 (Steele et al. 2014).
pub(super) fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The step of SplitMix64: 2^64 over the golden ratio.
pub(super) const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The stream of numbers that belongs to one sample of a seed (SplitMix64 from a key of both).
#[derive(Debug, Clone)]
pub struct Counter {
    state: u64,
}

impl Counter {
    /// The stream of sample `index` of `seed`, from its first number.
    pub fn new(seed: u64, index: u64) -> Self {
        Self { state: mix(mix(seed.wrapping_add(STEP)) ^ index.wrapping_mul(STEP).wrapping_add(1)) }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `[low, high)`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in `0..n`; 0 when `n` is 0. The bias is below `n / 2^53`.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f64) as usize).min(n.saturating_sub(1))
    }

    /// Two independent standard normal numbers (Box & Muller 1958).
    pub fn normal_pair(&mut self) -> (f64, f64) {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt(); // 1 - unit is never 0
        let (sin, cos) = (std::f64::consts::TAU * self.unit()).sin_cos();
        (radius * cos, radius * sin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_part_of_the_format() {
        // A change here would change every generated data set.
        let mut counter = Counter::new(7, 3);
        let first: Vec<u64> = (0..3).map(|_| counter.bits()).collect();
        assert_eq!(first, FIRST);
    }

    const FIRST: [u64; 3] =
        [11_469_559_596_805_108_599, 14_132_616_206_114_372_202, 15_037_379_850_668_259_825];

    #[test]
    fn neighbours_are_independent_and_moments_are_right() {
        let n = 20_000;
        let moments = |values: &mut dyn Iterator<Item = f64>| {
            let values: Vec<f64> = values.collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
            (mean, variance)
        };
        // The first number of successive indices: what a data set draws its classes from.
        let (mean, variance) = moments(&mut (0..n).map(|index| Counter::new(1, index).unit()));
        assert!((mean - 0.5).abs() < 0.01 && (variance - 1.0 / 12.0).abs() < 0.002, "{mean} {variance}");
        let pairs: Vec<f64> =
            (0..n).map(|i| Counter::new(1, i).unit() * Counter::new(1, i + 1).unit()).collect();
        let mean = pairs.iter().sum::<f64>() / n as f64;
        assert!((mean - 0.25).abs() < 0.01, "{mean}");
        let mut counter = Counter::new(2, 0);
        let (mean, variance) = moments(&mut (0..n).map(|_| counter.normal_pair().0));
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
        let mut counts = [0; 6];
        (0..6000).for_each(|index| counts[Counter::new(3, index).below(6)] += 1);
        assert!(counts.iter().all(|count| (880..1120).contains(count)), "{counts:?}");
        assert_eq!(Counter::new(0, 0).below(0), 0);
    }
}
