//! `kind: constant`: the same rate after the warm-up.

use hymba_plus::{component_config, register};

use super::{ScheduleError, check_steps, warmup};
use crate::slot::{ScheduleSpec, schedule};

/// The same learning rate at every step after the warm-up.
#[component_config]
pub struct Constant {
    /// Steps over which the rate rises to its full value.
    #[default(0)]
    pub warmup_steps: u64,
}

register!(schedule "constant" => Constant);

impl ScheduleSpec for Constant {
    fn check(&self, total_steps: u64) -> Result<(), ScheduleError> {
        check_steps(self.warmup_steps, "warmup_steps", total_steps)
    }

    fn factor(&self, step: u64, _total_steps: u64) -> f64 {
        warmup(step, self.warmup_steps).unwrap_or(1.0)
    }
}
