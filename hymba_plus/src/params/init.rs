//! Initial values of parameters, as plain data in the plan.

use serde::Serialize;
use tch::{Device, Kind, Tensor};

/// How a parameter starts. Values are drawn on the CPU in `Float` from a generator of their own, seeded by the
/// recipe's seed and the parameter's name, so that neither device, nor order, nor other parameters change them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "init", rename_all = "snake_case")]
pub enum Init {
    /// Every element the same.
    Constant {
        /// The value.
        value: f64,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform in `[-bound, bound]`.
    Uniform {
        /// Largest magnitude.
        bound: f64,
    },
    /// `ln(1), ln(2), ..., ln(n)` along the last dimension: Mamba's `A_log` (S4D-real; Gu & Dao 2023, section 3.6).
    LogArange,
    /// From `start` to `end` along the last dimension of `n` values: value `i` is
    /// `start + (end - start) (i / (n - 1))^exponent`. Forget biases of xLSTM (Beck et al. 2024), whose units or heads
    /// are to forget at different rates.
    Ramp {
        /// First value.
        start: f64,
        /// Last value.
        end: f64,
        /// 1 for equal steps.
        exponent: f64,
    },
    /// The logarithm of a number drawn uniformly from `[min, max]`: Mamba-2's `A_log` (Dao & Gu 2024).
    LogOfUniform {
        /// Smallest number, above 0.
        min: f64,
        /// Largest number.
        max: f64,
    },
    /// Blocks of rows, each with its own start: the slices of an in-projection.
    Rows {
        /// How many rows, and how they start.
        blocks: Vec<(i64, Init)>,
    },
    /// The inverse softplus of a step size drawn log-uniformly from `[min, max]`, never below `floor`: Mamba's
    /// bias of `dt_proj` (Gu & Dao 2023, section 3.6).
    InverseSoftplusLogUniform {
        /// Smallest step.
        min: f64,
        /// Largest step.
        max: f64,
        /// Lower clamp after drawing.
        floor: f64,
    },
}

impl Init {
    /// All ones: norm weights.
    pub const ONES: Self = Self::Constant { value: 1.0 };
    /// All zeros: biases.
    pub const ZEROS: Self = Self::Constant { value: 0.0 };

    /// Draws a tensor of this shape, `Float` on the CPU.
    ///
    /// # Errors
    /// When libtorch refuses (out of memory).
    pub fn draw(&self, shape: &[i64], seed: u64) -> torch_bridge::Result<Tensor> {
        let options = (Kind::Float, Device::Cpu);
        let uniform = |low: f64, high: f64| -> torch_bridge::Result<Tensor> {
            let mut tensor = Tensor::f_empty(shape, options)?;
            torch_bridge::rng::Generator::new(Device::Cpu, seed)?.uniform_(&mut tensor, low, high)?;
            Ok(tensor)
        };
        Ok(match *self {
            Self::Rows { ref blocks } => {
                let block = |(i, (rows, init)): (usize, &(i64, Self))| {
                    let mut shape = shape.to_vec();
                    if let Some(first) = shape.first_mut() {
                        *first = *rows;
                    }
                    init.draw(&shape, super::seed_of(seed, &i.to_string()))
                };
                let blocks =
                    blocks.iter().enumerate().map(block).collect::<torch_bridge::Result<Vec<_>>>()?;
                Tensor::f_cat(&blocks, 0)?
            }
            Self::Constant { value } => Tensor::f_full(shape, value, options)?,
            Self::Normal { std } => {
                let mut tensor = Tensor::f_empty(shape, options)?;
                torch_bridge::rng::Generator::new(Device::Cpu, seed)?.normal_(&mut tensor, 0.0, std)?;
                tensor
            }
            Self::Uniform { bound } => uniform(-bound, bound)?,
            Self::LogArange => {
                let last = shape.last().copied().unwrap_or(1);
                Tensor::f_arange_start(1, last + 1, options)?
                    .f_log()?
                    .f_expand(shape, false)?
                    .f_contiguous()?
            }
            Self::Ramp { start, end, exponent } => {
                let last = shape.last().copied().unwrap_or(1);
                let along = Tensor::f_arange(last, options)? / (last - 1).max(1) as f64;
                let values = along.f_pow_tensor_scalar(exponent)? * (end - start) + start;
                values.f_expand(shape, false)?.f_contiguous()?
            }
            Self::LogOfUniform { min, max } => uniform(min, max)?.f_log()?,
            Self::InverseSoftplusLogUniform { min, max, floor } => {
                let step = uniform(min.ln(), max.ln())?.f_exp()?.f_clamp_min(floor)?;
                // softplus(x) = step  <=>  x = step + ln(1 - exp(-step)) = step + ln(-expm1(-step))
                &step + step.f_neg()?.f_expm1()?.f_neg()?.f_log()?
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    #[test]
    fn a_ramp_runs_from_start_to_end() {
        let ramp = Init::Ramp { start: 3.0, end: 6.0, exponent: 1.0 };
        assert_eq!(values(&ramp.draw(&[4], 0).unwrap()), [3.0, 4.0, 5.0, 6.0]);
        assert_eq!(values(&ramp.draw(&[1], 0).unwrap()), [3.0]);
        let bent = Init::Ramp { start: 5.0, end: -7.0, exponent: 2.0 };
        assert_eq!(values(&bent.draw(&[2, 3], 0).unwrap()), [5.0, 2.0, -7.0, 5.0, 2.0, -7.0]);
    }

    #[test]
    fn blocks_of_rows_start_in_their_own_way() {
        let normal = Init::Normal { std: 1.0 };
        let blocks = vec![(2, normal.clone()), (1, Init::ONES), (2, normal)];
        let drawn = Init::Rows { blocks }.draw(&[5, 3], 7).unwrap();
        assert_eq!(values(&drawn.get(2)), [1.0; 3]);
        let [first, last] = [drawn.narrow(0, 0, 2), drawn.narrow(0, 3, 2)];
        assert!(first.std(false).double_value(&[]) > 0.1 && !first.equal(&last));
    }
}
