//! Learning-rate schedules: pure functions from a step to a factor.
//!
//! Steps count from 0. With a warm-up of `w` steps the factor of step `s < w` is `(s + 1) / w`: the first step already
//! learns and step `w - 1` has the full rate. A decay that ends at `total` reaches its minimum there, one step after
//! the last, so that no step is wasted on a rate of zero.

mod constant;
mod cosine;
mod linear;
mod wsd;

pub use constant::Constant;
pub use cosine::Cosine;
pub use linear::Linear;
pub use wsd::{DecayShape, Wsd};

/// Why a schedule does not fit its stage.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// Warm-up and decay need more steps than there are.
    #[error(
        "the schedule needs {needed} steps ({what}), but the stage has {total}; use steps {needed} or more, or a shorter {what}"
    )]
    TooLong {
        /// Steps that the parts need.
        needed: u64,
        /// Which parts.
        what: &'static str,
        /// Steps of the stage.
        total: u64,
    },
    /// A ratio is not one.
    #[error("{name} is {value}; it must lie in 0 to 1")]
    Ratio {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
    },
}

/// Factor of the warm-up at `step`, or `None` when it is over.
fn warmup(step: u64, warmup_steps: u64) -> Option<f64> {
    (step < warmup_steps).then(|| (step + 1) as f64 / warmup_steps as f64)
}

/// How far `step` is on the way from `start` to `end`, in `[0, 1]`.
fn progress(step: u64, start: u64, end: u64) -> f64 {
    if end <= start {
        return 1.0;
    }
    (step.saturating_sub(start) as f64 / (end - start) as f64).min(1.0)
}

/// From 1 at progress 0 to `min_ratio` at progress 1, by a shape that falls from 1 to 0.
fn fall(min_ratio: f64, shape: f64) -> f64 {
    min_ratio + (1.0 - min_ratio) * shape
}

/// Half a cosine, from 1 at progress 0 to 0 at progress 1.
fn half_cosine(progress: f64) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}

fn check_ratio(name: &'static str, value: f64) -> Result<(), ScheduleError> {
    if (0.0..=1.0).contains(&value) { Ok(()) } else { Err(ScheduleError::Ratio { name, value }) }
}

fn check_steps(needed: u64, what: &'static str, total: u64) -> Result<(), ScheduleError> {
    if needed <= total { Ok(()) } else { Err(ScheduleError::TooLong { needed, what, total }) }
}

#[cfg(test)]
mod tests {
    use hymba_plus::registry::Component;
    use serde_json::json;

    use crate::slot::{ScheduleSpec, schedule};

    fn make(value: serde_json::Value) -> Box<dyn ScheduleSpec> {
        serde_json::from_value::<Component<schedule>>(value).unwrap().make().unwrap()
    }

    /// `(step, factor)` of every schedule at its corners, with 100 steps.
    #[test]
    fn corners() {
        let table: [(serde_json::Value, &[(u64, f64)]); 7] = [
            (json!("constant"), &[(0, 1.0), (99, 1.0)]),
            (json!({ "kind": "constant", "warmup_steps": 4 }), &[(0, 0.25), (3, 1.0), (4, 1.0), (99, 1.0)]),
            (
                json!({ "kind": "linear", "warmup_steps": 10 }),
                &[(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.5), (99, 1.0 / 90.0), (100, 0.0), (200, 0.0)],
            ),
            (
                json!({ "kind": "cosine", "warmup_steps": 20, "min_ratio": 0.1 }),
                &[(0, 0.05), (19, 1.0), (20, 1.0), (60, 0.55), (100, 0.1), (500, 0.1)],
            ),
            (
                json!({ "kind": "wsd", "warmup_steps": 10, "decay_fraction": 0.2, "shape": "linear" }),
                &[(0, 0.1), (9, 1.0), (79, 1.0), (80, 1.0), (90, 0.5), (99, 0.05), (100, 0.0)],
            ),
            (
                json!({ "kind": "wsd", "decay_steps": 16, "min_ratio": 0.5 }),
                &[(0, 1.0), (84, 1.0), (88, 0.75), (93, 0.625), (100, 0.5)],
            ),
            (
                json!({ "kind": "wsd", "decay_steps": 50, "shape": "cosine" }),
                &[(50, 1.0), (75, 0.5), (100, 0.0)],
            ),
        ];
        for (config, corners) in table {
            let schedule = make(config.clone());
            schedule.check(100).unwrap();
            for &(step, expected) in corners {
                let factor = schedule.factor(step, 100);
                assert!(
                    (factor - expected).abs() < 1e-12,
                    "{config} at {step}: {factor}, expected {expected}"
                );
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (config, total, word) in [
            (json!({ "kind": "cosine", "warmup_steps": 11 }), 10, "warmup_steps"),
            (json!({ "kind": "wsd", "warmup_steps": 6, "decay_steps": 5 }), 10, "11 steps"),
            (json!({ "kind": "cosine", "min_ratio": 1.5 }), 10, "min_ratio"),
            (json!({ "kind": "wsd", "decay_fraction": -0.1 }), 10, "decay_fraction"),
        ] {
            let error = make(config.clone()).check(total).unwrap_err().to_string();
            assert!(error.contains(word), "{config}: {error}");
        }
    }

    #[test]
    fn a_stage_of_one_step_learns() {
        for kind in ["constant", "linear", "cosine"] {
            assert!((make(json!(kind)).factor(0, 1) - 1.0).abs() < 1e-12, "{kind}");
        }
    }
}
