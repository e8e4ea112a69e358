//! Reproducible numbers for the laws, and layouts drawn from them.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use crate::params::{ParameterPlan, seed_of};

/// Pseudo-random numbers (SplitMix64).
#[derive(Debug)]
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// A number from 0 to `limit - 1`; 0 when the limit is 0.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.bits() % (limit.max(1) as u64)) as usize
    }

    pub(super) fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    /// `Double` numbers of variance about 1, uniform, that every floating type of 8 significant bits can hold.
    fn tensor(&mut self, shape: &[i64]) -> Result<Tensor> {
        let count = shape.iter().product::<i64>();
        let values: Vec<f64> =
            (0..count).map(|_| ((self.bits() >> 56) as f64 - 127.5).floor() / 72.0).collect();
        let values = Tensor::f_from_slice(&values)?.f_to_kind(Kind::BFloat16)?;
        Ok(values.f_to_kind(Kind::Double)?.f_reshape(shape)?)
    }
}

/// `Double` noise that depends on a seed and a name only, exact in bf16.
pub(super) fn noise(seed: u64, name: &str, shape: &[i64]) -> Result<Tensor> {
    Noise::new(seed_of(seed, name)).tensor(shape)
}

/// How far parameters are moved from where they start: zeros and ones would hide what is multiplied by them.
const MOVED: f64 = 0.25;

/// The `Double` values of a parameter: as it starts and, when it is trained, some way from there; exact in bf16.
pub(super) fn value(plan: &ParameterPlan, seed: u64, key: &str) -> Result<Tensor> {
    let start = plan.init.draw(&plan.shape, seed_of(seed, key))?.f_to_kind(Kind::Double)?;
    if !plan.trained {
        return Ok(start);
    }
    let moved = start + noise(seed, key, &plan.shape)? * MOVED;
    Ok(moved.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Double)?)
}
