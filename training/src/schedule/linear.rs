//! `kind: linear`: a straight line down.

use hymba_plus::{component_config, register};

use super::{ScheduleError, check_ratio, check_steps, fall, progress, warmup};
use crate::slot::{ScheduleSpec, schedule};

/// After the warm-up, a straight line from the full learning rate to `min_ratio` of it at the end.
#[component_config]
pub struct Linear {
    /// Steps over which the rate rises to its full value.
    #[default(0)]
    pub warmup_steps: u64,
    /// Part of the full rate that is left at the end.
    #[schemars(range(min = 0.0, max = 1.0))]
    #[default(0.0)]
    pub min_ratio: f64,
}

register!(schedule "linear" => Linear);

impl ScheduleSpec for Linear {
    fn check(&self, total_steps: u64) -> Result<(), ScheduleError> {
        check_ratio("min_ratio", self.min_ratio)?;
        check_steps(self.warmup_steps, "warmup_steps", total_steps)
    }

    fn factor(&self, step: u64, total_steps: u64) -> f64 {
        warmup(step, self.warmup_steps)
            .unwrap_or_else(|| fall(self.min_ratio, 1.0 - progress(step, self.warmup_steps, total_steps)))
    }
}
