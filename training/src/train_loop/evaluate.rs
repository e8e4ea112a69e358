//! Evaluations in between, and which of them were best.

use torch_bridge::{guards::NoGrad, rng::Fork};

use super::TrainLoop;
use crate::{checkpoint::Best, data::Loader, error::TrainError, task::Task, telemetry::MetricRecord};

impl<T: Task, L: Loader<Batch = T::Batch>> TrainLoop<'_, T, L> {
    /// Evaluates and writes the result; whether it is among the best, so that its checkpoint is to be kept.
    pub(super) fn evaluate(&mut self) -> Result<bool, TrainError> {
        self.check_pending()?;
        let (torch_error, task_error) = (self.torch_error(), self.task_error());
        self.evaluation = {
            let _no_grad = NoGrad::new();
            let _autocast = self.run.autocast();
            let _cpu = Fork::new(tch::Device::Cpu).map_err(&torch_error)?;
            let _device = Fork::new(self.run.device()).map_err(&torch_error)?;
            self.task.evaluate().map_err(task_error)?
        };
        let mut record = MetricRecord::new("evaluation", self.stage, self.step, self.tokens);
        for (name, value) in &self.evaluation {
            record = record.with(name, *value);
        }
        record = record.with("elapsed_seconds", self.elapsed().as_secs_f64());
        self.write(&record)?;
        if !self.evaluation.is_empty() {
            let values: Vec<String> =
                self.evaluation.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
            self.progress.say(&format!("{} step {}  {}", self.stage, self.step, values.join("  ")));
        }
        Ok(self.rank())
    }

    /// Enters the last evaluation into the list of the best.
    fn rank(&mut self) -> bool {
        if self.step == 0 {
            return false; // there is no checkpoint of nothing
        }
        let keep = self.run.trainer().checkpoint.keep_best;
        let metric = self.evaluation.iter().find(|(name, _)| *name == self.task.best_metric());
        let Some(&(_, value)) = metric.filter(|(_, value)| value.is_finite()) else { return false };
        self.best.retain(|best| best.step != self.step);
        self.best.push(Best { step: self.step, value });
        // Of equal values the earlier step is the better one: it took less.
        self.best.sort_by(|a, b| a.value.total_cmp(&b.value).then(a.step.cmp(&b.step)));
        self.best.truncate(keep);
        self.best.iter().any(|best| best.step == self.step)
    }
}
