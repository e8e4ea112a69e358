//! `kind: wsd`: warm-up, stable, decay (Hu et al. 2024, MiniCPM; the decay of Hägele et al. 2024).

use hymba_plus::{component_config, register};

use super::{ScheduleError, check_ratio, check_steps, fall, half_cosine, progress, warmup};
use crate::slot::{ScheduleSpec, schedule};

/// Warm-up, then the full learning rate, then a decay over the last steps. A run can be prolonged from any checkpoint
/// of the stable part.
#[component_config]
pub struct Wsd {
    /// Steps over which the rate rises to its full value.
    #[default(0)]
    pub warmup_steps: u64,
    /// Part of all steps that the decay takes; `decay_steps` overrides it.
    #[schemars(range(min = 0.0, max = 1.0))]
    #[default(0.2)]
    pub decay_fraction: f64,
    /// Number of steps that the decay takes.
    pub decay_steps: Option<u64>,
    /// How the rate falls.
    #[default(DecayShape::OneMinusSqrt)]
    pub shape: DecayShape,
    /// Part of the full rate that is left at the end.
    #[schemars(range(min = 0.0, max = 1.0))]
    #[default(0.0)]
    pub min_ratio: f64,
}

register!(schedule "wsd" => Wsd);

/// How the rate falls in the decay of `wsd`; `p` goes from 0 to 1.
#[component_config]
pub enum DecayShape {
    /// `1 - sqrt(p)`.
    OneMinusSqrt,
    /// `1 - p`.
    Linear,
    /// `(1 + cos(pi p)) / 2`.
    Cosine,
}

impl Wsd {
    fn decay(&self, total_steps: u64) -> u64 {
        self.decay_steps.unwrap_or_else(|| (total_steps as f64 * self.decay_fraction).round() as u64)
    }
}

impl ScheduleSpec for Wsd {
    fn check(&self, total_steps: u64) -> Result<(), ScheduleError> {
        check_ratio("min_ratio", self.min_ratio)?;
        check_ratio("decay_fraction", self.decay_fraction)?;
        let needed = self.warmup_steps.saturating_add(self.decay(total_steps));
        check_steps(needed, "warmup_steps and decay", total_steps)
    }

    fn factor(&self, step: u64, total_steps: u64) -> f64 {
        let start = total_steps.saturating_sub(self.decay(total_steps));
        if let Some(factor) = warmup(step, self.warmup_steps) {
            return factor;
        }
        if step < start {
            return 1.0;
        }
        let p = progress(step, start, total_steps);
        fall(
            self.min_ratio,
            match self.shape {
                DecayShape::OneMinusSqrt => 1.0 - p.sqrt(),
                DecayShape::Linear => 1.0 - p,
                DecayShape::Cosine => half_cosine(p),
            },
        )
    }
}
