//! Writing checkpoints.

use tch::Device;
use torch_bridge::rng;

use super::TrainLoop;
use crate::{
    checkpoint::{Contents, FORMAT, NamedTensors, TrainingState},
    data::Loader,
    error::TrainError,
    task::Task,
    trainer::device_name,
};

impl<T: Task, L: Loader<Batch = T::Batch>> TrainLoop<'_, T, L> {
    /// Writes a checkpoint of the step that was made last.
    pub(super) fn save(&mut self) -> Result<(), TrainError> {
        self.check_pending()?; // nothing that is not finite is ever written
        // The metrics first: the checkpoint says how long they are.
        self.run.metrics().sync()?;
        if let Some(board) = &mut self.board {
            board.flush();
        }
        let state = TrainingState {
            format: FORMAT,
            stage: self.stage.to_owned(),
            step: self.step,
            total_steps: self.config.steps,
            tokens: self.tokens,
            elapsed_seconds: self.elapsed().as_secs_f64(),
            data: self.loader.state(),
            fingerprint: self.loader.fingerprint(),
            task: self.task.state(),
            best_metric: self.task.best_metric().to_owned(),
            best: self.best.clone(),
            evaluation: self.evaluation.iter().map(finite).collect(),
            metrics_bytes: self.run.metrics().length(),
            settings: serde_json::to_value(self.config).unwrap_or_default(),
            recipe_hash: self.run.recipe_hash().to_owned(),
            execution: self.run.execution().clone(),
        };
        let contents = Contents {
            model: model(self.task),
            optimizer: self.optimizer.state(),
            rng: rng_states(self.run.device()).map_err(self.torch_error())?,
            state: &state,
        };
        let path = self.store.write(&contents, self.run.trainer().checkpoint.keep_last)?;
        self.last_checkpoint = Some(path);
        Ok(())
    }
}

/// JSON has no other numbers.
fn finite((name, value): &(String, f64)) -> (String, Option<f64>) {
    (name.clone(), value.is_finite().then_some(*value))
}

/// The parameters by name; they share storage with the task's.
pub(super) fn model(task: &impl Task) -> NamedTensors {
    let named = |parameter: &hymba_plus::params::Parameter| {
        (parameter.plan.name.clone(), parameter.tensor.shallow_clone())
    };
    task.parameters().iter().map(named).collect()
}

/// The devices whose random numbers a run on `device` draws.
pub(super) fn rng_devices(device: Device) -> Vec<Device> {
    if device == Device::Cpu { vec![Device::Cpu] } else { vec![Device::Cpu, device] }
}

fn rng_states(device: Device) -> torch_bridge::Result<NamedTensors> {
    rng_devices(device).into_iter().map(|device| Ok((device_name(device), rng::get_state(device)?))).collect()
}
