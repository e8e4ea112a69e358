//! A window of steps under the profiler.

use std::time::Instant;

use torch_bridge::{device, memory, profiler::Profile};

use super::TrainLoop;
use crate::{data::Loader, error::TrainError, profile::Profiled, task::Task};

impl<T: Task, L: Loader<Batch = T::Batch>> TrainLoop<'_, T, L> {
    /// Makes the steps of the run's window and leaves by [`TrainError::Profiled`]; the stage goes no further.
    pub(super) fn profile(&mut self) -> Result<(), TrainError> {
        let Some(window) = self.run.profile_window().cloned() else { return Ok(()) };
        let (torch_error, on) = (self.torch_error(), self.run.device());
        if window.warm_up + window.steps > self.config.steps {
            return Err(TrainError::ProfileTooLong {
                wanted: window.warm_up + window.steps,
                steps: self.config.steps,
            });
        }
        if on != tch::Device::Cpu {
            // What was allocated before is not the steps'.
            memory::empty_cache(on).and_then(|()| memory::reset_peak(on)).map_err(&torch_error)?;
        }
        let timed = window.warm_up.div_ceil(2);
        for _ in timed..window.warm_up {
            self.make_step()?;
        }
        device::synchronize(on).map_err(&torch_error)?;
        let start = Instant::now();
        for _ in 0..timed {
            self.make_step()?;
        }
        device::synchronize(on).map_err(&torch_error)?;
        let step_seconds = start.elapsed().as_secs_f64() / timed.max(1) as f64;
        let tokens = self.tokens;
        let profile = Profile::start(on).map_err(&torch_error)?;
        for _ in 0..window.steps {
            self.make_step()?;
        }
        profile.finish(&window.trace).map_err(&torch_error)?;
        // What was given to the device may have been no numbers; then the profile is of no training.
        self.check_pending()?;
        let peak = memory::stats(on).map_err(&torch_error)?.allocated_peak;
        Err(TrainError::Profiled(Box::new(Profiled {
            stage: self.stage.to_owned(),
            steps: window.steps,
            tokens: self.tokens - tokens,
            step_seconds,
            peak_bytes: (on != tch::Device::Cpu).then_some(peak),
            trace: window.trace,
        })))
    }
}
