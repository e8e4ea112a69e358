//! Rotary position embedding and its ways to reach beyond the trained length.
//!
//! Channel `i` and channel `i + head_dim / 2` of a head turn together by `position * frequency_i` (Su et al. 2021, in
//! the half-split layout of GPT-NeoX and Llama). The variants differ in the frequencies only.

use std::f64::consts::{PI, TAU};

use hymba_plus::prelude::*;
use kernels::rotary::{Rotary, rotary};

/// Plain rotary embedding.
#[component_config]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    #[default(10_000.0)]
    #[schemars(range(min = 2.0))]
    pub theta: f64,
}

/// Positions divided by a factor (Chen et al. 2023, position interpolation).
#[component_config]
pub struct RopeLinear {
    /// Base of the geometric series of wavelengths.
    #[default(10_000.0)]
    #[schemars(range(min = 2.0))]
    pub theta: f64,
    /// By how much the context grows.
    #[schemars(range(min = 1.0))]
    pub factor: f64,
}

/// A larger base for a longer context, fixed in advance: `theta * (factor * max_positions / original_max_positions -
/// (factor - 1))^(d / (d - 2))`, as the released Hymba has it with factor 2.
#[component_config]
pub struct RopeNtk {
    /// Base of the geometric series of wavelengths, before scaling.
    #[default(10_000.0)]
    #[schemars(range(min = 2.0))]
    pub theta: f64,
    /// Factor of the formula.
    #[default(2.0)]
    #[schemars(range(min = 1.0))]
    pub factor: f64,
    /// Length the model was trained at first.
    #[schemars(range(min = 1))]
    pub original_max_positions: i64,
    /// Length it shall reach.
    #[schemars(range(min = 1))]
    pub max_positions: i64,
}

/// The base grows with the sequence once it is longer than the trained length. Keys that are cached already keep
/// their old frequencies, so beyond that length calls of different splits differ.
#[component_config]
pub struct RopeDynamicNtk {
    /// Base of the geometric series of wavelengths, before scaling.
    #[default(10_000.0)]
    #[schemars(range(min = 2.0))]
    pub theta: f64,
    /// Factor of the formula.
    #[default(2.0)]
    #[schemars(range(min = 1.0))]
    pub factor: f64,
    /// Length up to which the base stays.
    #[schemars(range(min = 1))]
    pub original_max_positions: i64,
}

/// Long wavelengths are interpolated, short ones kept, with a ramp between (Peng et al. 2023, YaRN).
#[component_config]
pub struct RopeYarn {
    /// Base of the geometric series of wavelengths.
    #[default(10_000.0)]
    #[schemars(range(min = 2.0))]
    pub theta: f64,
    /// By how much the context grows.
    #[schemars(range(min = 1.0))]
    pub factor: f64,
    /// Length the model was trained at first.
    #[schemars(range(min = 1))]
    pub original_max_positions: i64,
    /// Turns over the original length above which a wavelength is kept.
    #[default(32.0)]
    #[schemars(range(min = 0.001))]
    pub beta_fast: f64,
    /// Turns over the original length below which a wavelength is interpolated.
    #[default(1.0)]
    #[schemars(range(min = 0.001))]
    pub beta_slow: f64,
    /// Scale of queries and keys; left out, `0.1 ln(factor) + 1`.
    #[schemars(range(min = 0.001))]
    pub attention_factor: Option<f64>,
}

/// Llama 3.1's scaling: long wavelengths divided by a factor, short ones kept, a smooth blend between.
#[component_config]
pub struct RopeLlama3 {
    /// Base of the geometric series of wavelengths.
    #[default(500_000.0)]
    #[schemars(range(min = 2.0))]
    pub theta: f64,
    /// By how much the context grows.
    #[default(8.0)]
    #[schemars(range(min = 1.0))]
    pub factor: f64,
    /// Wavelengths longer than `original_max_positions / low_freq_factor` are divided.
    #[default(1.0)]
    #[schemars(range(min = 0.001))]
    pub low_freq_factor: f64,
    /// Wavelengths shorter than `original_max_positions / high_freq_factor` are kept.
    #[default(4.0)]
    #[schemars(range(min = 0.001))]
    pub high_freq_factor: f64,
    /// Length the model was trained at first.
    #[default(8192)]
    #[schemars(range(min = 1))]
    pub original_max_positions: i64,
}

register!(position "rope" => Rope);
register!(position "rope_linear" => RopeLinear);
register!(position "rope_ntk" => RopeNtk);
register!(position "rope_dynamic_ntk" => RopeDynamicNtk);
register!(position "rope_yarn" => RopeYarn);
register!(position "rope_llama3" => RopeLlama3);

/// What the variants differ in.
pub trait Frequencies {
    /// Radians per position of each pair of channels, fastest first, for heads of `dim` channels; `length` is the
    /// number of positions so far.
    fn frequencies(&self, dim: i64, length: i64) -> Vec<f64>;

    /// Scale of the rotated queries and keys.
    fn attention_factor(&self) -> f64 {
        1.0
    }

    /// Longest sequence of the formula, if it has one.
    fn max_positions(&self) -> Option<i64> {
        None
    }

    /// A key whose value contradicts the others, with the message and the rule.
    fn contradiction(&self) -> Option<(&'static str, String, &'static str)> {
        None
    }

    /// Whether `frequencies` reads `length`.
    fn depends_on_length(&self) -> bool {
        false
    }
}

fn geometric(theta: f64, dim: i64) -> Vec<f64> {
    (0..dim / 2).map(|i| theta.powf(-(2.0 * i as f64) / dim as f64)).collect()
}

fn ntk_base(theta: f64, factor: f64, length: i64, original: i64, dim: i64) -> f64 {
    let dim = dim as f64;
    theta * (factor * length as f64 / original as f64 - (factor - 1.0)).powf(dim / (dim - 2.0))
}

impl Frequencies for Rope {
    fn frequencies(&self, dim: i64, _length: i64) -> Vec<f64> {
        geometric(self.theta, dim)
    }
}

impl Frequencies for RopeLinear {
    fn frequencies(&self, dim: i64, _length: i64) -> Vec<f64> {
        geometric(self.theta, dim).into_iter().map(|frequency| frequency / self.factor).collect()
    }
}

impl Frequencies for RopeNtk {
    fn frequencies(&self, dim: i64, _length: i64) -> Vec<f64> {
        geometric(
            ntk_base(self.theta, self.factor, self.max_positions, self.original_max_positions, dim),
            dim,
        )
    }

    fn max_positions(&self) -> Option<i64> {
        Some(self.max_positions)
    }

    fn contradiction(&self) -> Option<(&'static str, String, &'static str)> {
        let (to, from) = (self.max_positions, self.original_max_positions);
        let message = format!("{to} positions are fewer than the {from} trained at first");
        (to < from).then_some((
            "max_positions",
            message,
            "`max_positions` is at least `original_max_positions`",
        ))
    }
}

impl Frequencies for RopeDynamicNtk {
    fn frequencies(&self, dim: i64, length: i64) -> Vec<f64> {
        let length = length.max(self.original_max_positions);
        geometric(ntk_base(self.theta, self.factor, length, self.original_max_positions, dim), dim)
    }

    fn depends_on_length(&self) -> bool {
        true
    }
}

impl Frequencies for RopeYarn {
    fn frequencies(&self, dim: i64, _length: i64) -> Vec<f64> {
        // The channel whose wavelength makes `turns` turns over the original length.
        let channel = |turns: f64| {
            dim as f64 * (self.original_max_positions as f64 / (turns * TAU)).ln() / (2.0 * self.theta.ln())
        };
        let low = channel(self.beta_fast).floor().max(0.0);
        let high = channel(self.beta_slow).ceil().min(dim as f64 - 1.0);
        let width = if (high - low).abs() < f64::EPSILON { 0.001 } else { high - low };
        let blend = |(i, kept): (usize, f64)| {
            let interpolated = ((i as f64 - low) / width).clamp(0.0, 1.0);
            kept / self.factor * interpolated + kept * (1.0 - interpolated)
        };
        geometric(self.theta, dim).into_iter().enumerate().map(blend).collect()
    }

    fn contradiction(&self) -> Option<(&'static str, String, &'static str)> {
        let (fast, slow) = (self.beta_fast, self.beta_slow);
        let message = format!("beta_fast {fast} is not above beta_slow {slow}");
        (fast <= slow).then_some(("beta_fast", message, "`beta_fast` is above `beta_slow`"))
    }

    fn attention_factor(&self) -> f64 {
        self.attention_factor.unwrap_or_else(|| 0.1 * self.factor.ln() + 1.0)
    }
}

impl Frequencies for RopeLlama3 {
    fn frequencies(&self, dim: i64, _length: i64) -> Vec<f64> {
        let original = self.original_max_positions as f64;
        let scale = |frequency: f64| {
            let wavelength = 2.0 * PI / frequency;
            if wavelength > original / self.low_freq_factor {
                return frequency / self.factor;
            }
            if wavelength < original / self.high_freq_factor {
                return frequency;
            }
            let kept = (original / wavelength - self.low_freq_factor)
                / (self.high_freq_factor - self.low_freq_factor);
            (1.0 - kept) * frequency / self.factor + kept * frequency
        };
        geometric(self.theta, dim).into_iter().map(scale).collect()
    }

    fn contradiction(&self) -> Option<(&'static str, String, &'static str)> {
        let (low, high) = (self.low_freq_factor, self.high_freq_factor);
        let message = format!("high_freq_factor {high} is not above low_freq_factor {low}");
        (high <= low).then_some((
            "high_freq_factor",
            message,
            "`high_freq_factor` is above `low_freq_factor`",
        ))
    }
}

/// The variants as components of the slot; they differ in their frequencies only.
macro_rules! rotary {
    ($($config:ty),*) => {$(
        impl Position for $config {
            fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
                plan_rotary(self, plan)
            }

            fn forward(&self, _parts: &Parts, x: &Tensor, positions: &Tensor) -> Result<Tensor> {
                rotate(self, x, positions)
            }
        }
    )*};
}

rotary!(Rope, RopeLinear, RopeNtk, RopeDynamicNtk, RopeYarn, RopeLlama3);

fn plan_rotary(rope: &dyn Frequencies, plan: &mut ModulePlan) -> Result<(), Finding> {
    let dim = plan.input_width;
    if dim % 2 != 0 || dim < 4 {
        let message = format!("heads of {dim} channels cannot be turned in pairs");
        let mut finding =
            plan.finding("", message, "`head_dim` is even and at least 4 under a rotary embedding");
        finding.help = Some(format!("use head_dim {}", (dim + 1).max(4) & !1));
        return Err(finding);
    }
    if let Some((key, message, rule)) = rope.contradiction() {
        return Err(plan.finding(key, message, rule));
    }
    // Meta tokens take the first positions besides; the released Hymba does not count them either.
    plan.longest_document = rope.max_positions();
    plan.attention_factor = rope.attention_factor();
    if let (Some(rope), Some(model)) = (rope.max_positions(), plan.context.max_positions)
        && rope < model
    {
        let message =
            format!("the rotary embedding reaches {rope} positions, the model is meant for {model}");
        let rule = "`max_positions` of the model is at most that of its position encoding";
        plan.refuse(plan.finding("max_positions", message, rule));
    }
    if rope.depends_on_length() {
        let reason = "beyond `original_max_positions` the longest row of a call sets the frequencies of all its rows, \
                      and cached keys keep those of their call";
        for law in [Law::SplitInvariance, Law::Padding, Law::PackedDocuments, Law::MetaPrefix] {
            plan.exempt(law, reason);
        }
    }
    Ok(())
}

/// Turns each pair of channels of `x [batch, heads, time, dim]` by its angle at `positions [batch or 1, time]`.
fn rotate(rope: &dyn Frequencies, x: &Tensor, positions: &Tensor) -> Result<Tensor> {
    let dim = x.size()[3];
    let length = if rope.depends_on_length() && positions.numel() > 0 {
        i64::try_from(positions.f_max()?)? + 1
    } else {
        0
    };
    let frequencies = rope.frequencies(dim, length);
    rotary(&Rotary { x, positions, frequencies: &frequencies, scale: rope.attention_factor() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The released Hymba's base: 10,000 * 7^(64 / 62).
    #[test]
    fn ntk_is_the_released_base() {
        assert!((ntk_base(1e4, 2.0, 8192, 2048, 64) - 74_534.83).abs() < 0.01);
    }

    #[test]
    fn llama3_keeps_short_wavelengths_and_divides_long_ones() {
        let rope = RopeLlama3 {
            theta: 500_000.0,
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        };
        let (plain, scaled) = (geometric(500_000.0, 128), rope.frequencies(128, 0));
        for (plain, scaled) in plain.iter().zip(&scaled) {
            let wavelength = TAU / plain;
            if wavelength < 2048.0 {
                assert!((plain - scaled).abs() < 1e-18);
            } else if wavelength > 8192.0 {
                assert!((plain / 8.0 - scaled).abs() < 1e-18);
            } else {
                assert!(scaled < plain && *scaled > plain / 8.0);
            }
        }
        assert!(scaled.windows(2).all(|pair| pair[1] < pair[0]), "frequencies fall");
    }
}
