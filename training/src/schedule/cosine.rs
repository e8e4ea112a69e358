//! `kind: cosine`: half a cosine down (Loshchilov & Hutter 2017, without restarts).

use hymba_plus::{component_config, register};

use super::{ScheduleError, check_ratio, check_steps, fall, half_cosine, progress, warmup};
use crate::slot::{ScheduleSpec, schedule};

/// After the warm-up, half a cosine from the full learning rate to `min_ratio` of it at the end.
#[component_config]
pub struct Cosine {
    /// Steps over which the rate rises to its full value.
    #[default(0)]
    pub warmup_steps: u64,
    /// Part of the full rate that is left at the end.
    #[schemars(range(min = 0.0, max = 1.0))]
    #[default(0.1)]
    pub min_ratio: f64,
}

register!(schedule "cosine" => Cosine);

impl ScheduleSpec for Cosine {
    fn check(&self, total_steps: u64) -> Result<(), ScheduleError> {
        check_ratio("min_ratio", self.min_ratio)?;
        check_steps(self.warmup_steps, "warmup_steps", total_steps)
    }

    fn factor(&self, step: u64, total_steps: u64) -> f64 {
        warmup(step, self.warmup_steps).unwrap_or_else(|| {
            fall(self.min_ratio, half_cosine(progress(step, self.warmup_steps, total_steps)))
        })
    }
}
