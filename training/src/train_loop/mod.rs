//! The loop: steps, evaluations, checkpoints, and going on where an earlier run stopped.
//!
//! A step draws the next samples, sums gradients over its micro-batches, clips them and lets the optimizer move. What
//! comes after a step always comes in this order: log, evaluate, checkpoint, stop if asked to. So a checkpoint holds
//! everything up to its step, and a run that goes on from it repeats nothing and skips nothing.

mod evaluate;
mod micro_batch;
mod profile;
mod resume;
mod save;
mod settings;
mod step;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use hymba_plus::registry::Finding;
use tch::Device;

use crate::{
    checkpoint::{Best, CheckpointStore},
    data::Loader,
    error::TrainError,
    loop_settings,
    optimizer::Optimizer,
    run::Run,
    signals::Interrupt,
    slot::ScheduleSpec,
    task::Task,
    telemetry::{Board, Progress},
};
use micro_batch::Recordings;
use step::Pending;

loop_settings! {
    @keys
    /// How long a stage trains, on how much at a time, and with what.
    pub struct LoopConfig {}
}

impl LoopConfig {
    /// What is wrong with these settings, to be found before anything runs; `path` is where they stand in the recipe,
    /// as `stages[0]`.
    pub fn check(&self, path: &str) -> Vec<Finding> {
        let finding = |key: &str, rule: &str, message: String| Finding {
            path: format!("{path}.{key}"),
            message,
            rule: rule.to_owned(),
            help: None,
        };
        let mut findings = Vec::new();
        if let Err(error) = crate::data::part_size(self.batch_size, self.accumulation) {
            let rule = "accumulation cuts batch_size into equal parts";
            findings.push(finding("accumulation", rule, error.to_string()));
        }
        if let Err(error) = self.schedule.make().map_err(TrainError::from).and_then(|schedule| {
            schedule.check(self.steps)?;
            Ok(())
        }) {
            findings.push(finding(
                "schedule",
                "a schedule fits into the steps of its stage",
                error.to_string(),
            ));
        }
        if let Err(error) = self.optimizer.make() {
            findings.push(finding("optimizer", "an optimizer's settings fit its kind", error.to_string()));
        }
        findings
    }
}

/// How a stage ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Steps that were made, by this and earlier processes.
    pub steps: u64,
    /// Targets that were learnt from.
    pub tokens: u64,
    /// The last evaluation.
    pub evaluation: Vec<(String, f64)>,
    /// The checkpoint of the last step.
    pub last: PathBuf,
    /// The best evaluation whose checkpoint was kept, and that checkpoint.
    pub best: Option<(Best, PathBuf)>,
}

/// Trains a task for the steps of a stage, from where the run directory has it.
///
/// # Errors
/// When anything fails, a loss or gradient is not finite, or the user stops it ([`TrainError::Interrupted`]); the last
/// checkpoint is intact in every case.
pub fn train<T: Task, L: Loader<Batch = T::Batch>>(
    run: &mut Run,
    stage: &str,
    config: &LoopConfig,
    task: &mut T,
    loader: &mut L,
) -> Result<Outcome, TrainError> {
    let interrupt = Interrupt::listen().map_err(TrainError::Signals)?;
    TrainLoop::begin(run, stage, config, task, loader)?.run(&interrupt)
}

/// A stage while it trains.
struct TrainLoop<'a, T: Task, L: Loader<Batch = T::Batch>> {
    run: &'a mut Run,
    stage: &'a str,
    config: &'a LoopConfig,
    task: &'a mut T,
    loader: &'a mut L,
    optimizer: Box<dyn Optimizer>,
    lr: f64,
    schedule: Box<dyn ScheduleSpec>,
    store: CheckpointStore,
    board: Option<Board>,
    progress: Progress,
    /// Micro-batches that are recorded as CUDA graphs.
    recordings: Recordings<T::Batch>,
    /// Steps that are done.
    step: u64,
    /// Targets that were learnt from.
    tokens: u64,
    /// Time spent by earlier processes.
    elapsed_before: Duration,
    started: Instant,
    best: Vec<Best>,
    evaluation: Vec<(String, f64)>,
    last_checkpoint: Option<PathBuf>,
    /// Steps whose numbers were not read from the device yet.
    pending: Vec<Pending>,
    /// When numbers were last read, and after how many targets.
    last_reading: (Instant, u64),
}

impl<T: Task, L: Loader<Batch = T::Batch>> TrainLoop<'_, T, L> {
    fn run(mut self, interrupt: &Interrupt) -> Result<Outcome, TrainError> {
        self.profile()?;
        if self.step == 0 && self.config.evaluate_at_start {
            self.evaluate()?;
        }
        while self.step < self.config.steps {
            self.make_step()?;
            let last = self.step == self.config.steps;
            let due = |every: u64| last || self.step.is_multiple_of(every.max(1));
            let (log, checkpoint) =
                (due(self.run.trainer().log.every_steps), due(self.run.trainer().checkpoint.every_steps));
            let evaluate = last || self.config.evaluate_every.is_some_and(due);
            let signal = interrupt.requested();
            if log {
                self.log()?;
            }
            let new_best = evaluate && self.evaluate()?;
            if checkpoint || new_best || signal.is_some() {
                self.save()?;
            }
            if let Some(signal) = signal.filter(|_| !last) {
                return Err(self.stopped(signal));
            }
        }
        self.run.finish_stage(self.stage)?;
        self.outcome()
    }

    fn stopped(&self, signal: crate::signals::Signal) -> TrainError {
        let error = TrainError::Interrupted {
            signal,
            stage: self.stage.to_owned(),
            step: self.step,
            checkpoint: self.store.path(self.step),
            command: self.run.continue_command(),
        };
        self.progress.say(&error.to_string());
        error
    }

    fn outcome(&self) -> Result<Outcome, TrainError> {
        let kept = self.store.steps()?;
        let best = self.best.iter().find(|best| kept.contains(&best.step));
        Ok(Outcome {
            steps: self.step,
            tokens: self.tokens,
            evaluation: self.evaluation.clone(),
            last: self.store.path(self.step),
            best: best.map(|best| (best.clone(), self.store.path(best.step))),
        })
    }

    fn elapsed(&self) -> Duration {
        self.elapsed_before + self.started.elapsed()
    }

    /// Whether reading a number from the device costs nothing.
    fn reads_are_free(&self) -> bool {
        self.run.device() == Device::Cpu
    }

    /// An error of libtorch in the step that is being made.
    fn torch_error(&self) -> impl Fn(torch_bridge::Error) -> TrainError + use<T, L> {
        let (stage, step, device) = (self.stage.to_owned(), self.step + 1, self.run.device());
        move |source| TrainError::in_step(&stage, step, device, source)
    }

    /// An error of the task in the step that is being made.
    fn task_error(&self) -> impl Fn(crate::error::TaskError) -> TrainError + use<T, L> {
        let (stage, step, device) = (self.stage.to_owned(), self.step + 1, self.run.device());
        move |source| match source.downcast::<torch_bridge::Error>() {
            Ok(source) => TrainError::in_step(&stage, step, device, *source),
            Err(source) => TrainError::Task { stage: stage.clone(), step, source },
        }
    }
}
