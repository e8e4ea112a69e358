//! A shuffle that needs no memory: the place of every sample is computed.

use super::counter::{STEP, mix};

/// A permutation of `0..len`, chosen by a key: a Feistel network over the next power of four, walked until it lands
/// inside (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
///
/// Any position can be asked in any order, so a resumed run needs its position and nothing else.
#[derive(Debug, Clone)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

/// Four rounds make a pseudorandom permutation (Luby & Rackoff 1988); a few more cost nothing here.
const ROUNDS: usize = 6;

impl Permutation {
    /// The permutation of `0..len` that belongs to this seed and epoch.
    pub fn new(len: u64, seed: u64, epoch: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let mut state = mix(seed) ^ mix(epoch.wrapping_add(STEP));
        let keys = std::array::from_fn(|_| {
            state = state.wrapping_add(STEP);
            mix(state)
        });
        Self { len, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// Which sample comes at position `index`.
    ///
    /// # Panics
    /// When `index` is not below the length.
    pub fn get(&self, index: u64) -> u64 {
        assert!(index < self.len, "position {index} of a permutation of {}", self.len);
        // At most four values in the domain for each one inside, so the walk is short.
        let mut value = self.round_trip(index);
        while value >= self.len {
            value = self.round_trip(value);
        }
        value
    }

    fn round_trip(&self, value: u64) -> u64 {
        let mask = (1_u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_sample_comes_exactly_once(len in 1_u64..3000, seed: u64, epoch in 0_u64..1000) {
            let permutation = Permutation::new(len, seed, epoch);
            let mut seen: Vec<u64> = (0..len).map(|index| permutation.get(index)).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_the_order_is_mixed() {
        let order = |seed, epoch| -> Vec<u64> {
            let permutation = Permutation::new(1000, seed, epoch);
            (0..1000).map(|index| permutation.get(index)).collect()
        };
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        assert_ne!(order(1, 0), order(0, 1));
        // Neighbours must not stay neighbours: the mean step of a random order of n is n / 3.
        let steps: u64 = order(1, 0).windows(2).map(|pair| pair[0].abs_diff(pair[1])).sum();
        assert!((280..390).contains(&(steps / 999)), "mean step {}", steps / 999);
    }

    #[test]
    fn order_is_part_of_the_format() {
        // A change here would change every run that resumes.
        let permutation = Permutation::new(10, 42, 0);
        let order: Vec<u64> = (0..10).map(|index| permutation.get(index)).collect();
        assert_eq!(order, FIRST_ORDER);
    }

    const FIRST_ORDER: [u64; 10] = [5, 3, 2, 4, 1, 0, 7, 9, 6, 8];
}
