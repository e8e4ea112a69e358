//! One step, and reading its numbers.

use std::time::{Duration, Instant};

use hymba_plus::model::Statistics;
use tch::{Device, Kind, Tensor};
use torch_bridge::{guards::NoGrad, optim};

use super::{TrainLoop, micro_batch::MicroBatch};
use crate::{
    data::{Loader, NO_SIZE, Weighted},
    error::TrainError,
    optimizer,
    task::Task,
    telemetry::{MetricRecord, Reading},
};

/// The numbers of a step.
#[derive(Debug)]
pub(super) struct Pending {
    step: u64,
    tokens: u64,
    lr: f64,
    /// What else the task measured.
    measured: Vec<String>,
    numbers: Numbers,
}

/// Loss per target, norm of the gradients, and what else the task measured.
#[derive(Debug)]
enum Numbers {
    /// Still on the device, `Double [2 + measured]`.
    OnDevice(Tensor),
    /// Read; loss and norm were found to be finite.
    Read { loss: f64, norm: f64, measured: Vec<f64> },
}

/// Sums over the micro-batches of a step.
#[derive(Debug, Default)]
struct Sums {
    /// Names of what the task measured.
    measured: Vec<String>,
    /// The loss and what was measured, `Double [1 + measured]`; none before the first micro-batch.
    values: Option<Tensor>,
    /// What modules recorded.
    statistics: Statistics,
}

impl Sums {
    /// Adds a micro-batch that has the share `share` of the step's targets.
    fn add(&mut self, micro_batch: &MicroBatch, share: f64) -> torch_bridge::Result<()> {
        let wide = |x: &Tensor| x.f_detach()?.f_to_kind(Kind::Double);
        let loss = &micro_batch.loss;
        let mut values = vec![wide(&micro_batch.mean)?];
        for (_, value) in &loss.measured {
            values.push(wide(value)? * share);
        }
        let values = Tensor::f_stack(&values, 0)?;
        self.values = Some(match &self.values {
            Some(sum) => sum.f_add(&values)?,
            None => values,
        });
        self.measured = loss.measured.iter().map(|(name, _)| name.clone()).collect();
        loss.statistics.detach_into(&self.statistics)
    }
}

impl<T: Task, L: Loader<Batch = T::Batch>> TrainLoop<'_, T, L> {
    /// Makes the next step. On the CPU a loss that is not finite stops before the parameters change; on a GPU, where
    /// looking would make the device wait, it stops at the next reading, which comes before anything is written.
    pub(super) fn make_step(&mut self) -> Result<(), TrainError> {
        let batches = self.loader.next_batches(self.config.batch_size, self.config.accumulation)?;
        let targets: i64 = batches.iter().map(Weighted::target_tokens).sum();
        let sums = self.accumulate(&batches, targets.max(1))?;
        let norm = self.clip().map_err(self.torch_error())?;
        let numbers = || -> Result<Tensor, tch::TchError> {
            // The loader never gives an empty list of micro-batches.
            let values = sums
                .values
                .as_ref()
                .map_or_else(|| Tensor::f_zeros([1], (Kind::Double, norm.device())), Tensor::f_detach)?;
            let measured = values.f_narrow(0, 1, sums.measured.len() as i64)?;
            Tensor::f_cat(&[values.f_narrow(0, 0, 1)?, norm.f_reshape([1])?, measured], 0)
        };
        let numbers = numbers().map_err(|error| self.torch_error()(error.into()))?;

        let factor = self.schedule.factor(self.step, self.config.steps);
        self.tokens += targets as u64;
        self.pending.push(Pending {
            step: self.step + 1,
            tokens: self.tokens,
            lr: self.lr * factor,
            measured: sums.measured.clone(),
            numbers: Numbers::OnDevice(numbers),
        });
        if self.reads_are_free() {
            self.check_pending()?;
        }
        if self.step == 0 {
            self.name_unreached();
        }
        self.optimizer.step(factor)?;
        {
            let _guard = NoGrad::new();
            self.task.after_step(&sums.statistics).map_err(self.task_error())?;
        }
        self.step += 1;
        self.progress.advance(self.step);
        Ok(())
    }

    /// Gradients of the mean loss over all targets of the step; gives that mean, and means of what was measured.
    fn accumulate(&mut self, batches: &[T::Batch], targets: i64) -> Result<Sums, TrainError> {
        let torch_error = self.torch_error();
        optimizer::zero_gradients(self.task.parameters()).map_err(&torch_error)?;
        // Made on the device: a copy from the host would make it wait.
        let divisor = Tensor::f_full(NO_SIZE, targets, (Kind::Double, self.run.device()))
            .map_err(|error| torch_error(error.into()))?;
        let mut sums = Sums::default();
        for batch in batches {
            let micro_batch = self.micro_batch(batch, &divisor)?;
            let share = batch.target_tokens() as f64 / targets as f64;
            sums.add(&micro_batch, share).map_err(&torch_error)?;
        }
        Ok(sums)
    }

    /// Clips the gradients if told to; gives their norm before, `Double []`.
    fn clip(&self) -> torch_bridge::Result<Tensor> {
        let gradients = optimizer::gradients(self.task.parameters())?;
        let largest = self.config.gradient_clip;
        let norm = if largest > 0.0 {
            optim::clip_grad_norm_(&gradients, largest)?
        } else {
            optim::total_norm(&gradients)?
        };
        Ok(norm.f_to_kind(Kind::Double)?)
    }

    /// Says which parameters the first loss did not reach: most often a mistake in a new component.
    fn name_unreached(&self) {
        let names = optimizer::without_gradient(self.task.parameters());
        if !names.is_empty() {
            let (count, names) = (names.len(), names.join(", "));
            self.progress.say(&format!("the loss does not depend on {count} parameters: {names}"));
        }
    }

    /// Reads the numbers of all pending steps at once and refuses the first that is not finite. Only the numbers of the
    /// newest step are kept.
    pub(super) fn check_pending(&mut self) -> Result<(), TrainError> {
        let unread: Vec<&Tensor> = self.pending.iter().filter_map(Pending::unread).collect();
        if unread.is_empty() {
            return Ok(());
        }
        let read = || Vec::<f64>::try_from(Tensor::f_cat(&unread, 0)?.f_to_device(Device::Cpu)?);
        let mut numbers = read().map_err(|error| self.torch_error()(error.into()))?.into_iter();
        for pending in self.pending.iter_mut().filter(|pending| pending.unread().is_some()) {
            let row: Vec<f64> = numbers.by_ref().take(2 + pending.measured.len()).collect();
            for (what, value) in ["loss", "grad_norm"].into_iter().zip(&row) {
                if !value.is_finite() {
                    return Err(TrainError::NotFinite {
                        what,
                        value: *value,
                        step: pending.step,
                        stage: self.stage.to_owned(),
                        lr: pending.lr,
                        last: self.last_checkpoint.clone(),
                    });
                }
            }
            pending.numbers = Numbers::Read { loss: row[0], norm: row[1], measured: row[2..].to_vec() };
        }
        self.pending.drain(..self.pending.len() - 1);
        Ok(())
    }

    /// Writes and shows the numbers of the last step.
    pub(super) fn log(&mut self) -> Result<(), TrainError> {
        self.check_pending()?;
        let Some(pending) = self.pending.pop() else { return Ok(()) };
        let Numbers::Read { loss, norm, measured } = pending.numbers else { return Ok(()) };
        let (now, (then, tokens_then)) = (Instant::now(), self.last_reading);
        self.last_reading = (now, pending.tokens);
        let seconds = (now - then).as_secs_f64().max(1e-9);
        let speed = (pending.tokens - tokens_then) as f64 / seconds;
        let left = (self.config.steps - pending.step) as f64 * pending.tokens as f64 / pending.step as f64;
        let mut record = MetricRecord::new("train", self.stage, pending.step, pending.tokens)
            .with("loss", loss)
            .with("lr", pending.lr)
            .with("grad_norm", norm)
            .with("tokens_per_second", speed)
            .with("elapsed_seconds", self.elapsed().as_secs_f64());
        for (name, value) in pending.measured.iter().zip(measured) {
            record = record.with(name, value);
        }
        self.progress.show(&Reading {
            step: pending.step,
            loss,
            lr: pending.lr,
            tokens_per_second: speed,
            eta: Duration::try_from_secs_f64(left / speed.max(1e-9)).unwrap_or(Duration::MAX),
        });
        self.write(&record)
    }

    /// Adds a line to the metrics, and the same to TensorBoard.
    pub(super) fn write(&mut self, record: &MetricRecord) -> Result<(), TrainError> {
        self.run.log(record)?;
        if let Some(board) = &mut self.board {
            board.add(record);
        }
        Ok(())
    }
}

impl Pending {
    fn unread(&self) -> Option<&Tensor> {
        match &self.numbers {
            Numbers::OnDevice(numbers) => Some(numbers),
            Numbers::Read { .. } => None,
        }
    }
}
