//! Beginning a stage, or going on with it from its newest good checkpoint.

use std::time::{Duration, Instant};

use hymba_plus::params::seed_of;
use torch_bridge::rng;

use super::{LoopConfig, TrainLoop, micro_batch::Recordings, save};
use crate::{
    checkpoint::Checkpoint,
    data::{Loader, Weighted},
    error::TrainError,
    run::Run,
    task::Task,
    telemetry::{Board, MetricsFile, Progress},
    trainer::device_name,
};

impl<'a, T: Task, L: Loader<Batch = T::Batch>> TrainLoop<'a, T, L> {
    /// Makes everything that a stage needs and puts it where the run directory has it.
    pub(super) fn begin(
        run: &'a mut Run,
        stage: &'a str,
        config: &'a LoopConfig,
        task: &'a mut T,
        loader: &'a mut L,
    ) -> Result<Self, TrainError> {
        if config.steps == 0 {
            return Err(TrainError::Zero { name: "steps" });
        }
        let schedule = config.schedule.make()?;
        schedule.check(config.steps)?;
        let spec = config.optimizer.make()?;
        let store = run.directory().checkpoint_store(stage)?;
        let now = Instant::now();
        let mut this = Self {
            optimizer: spec.build(task.parameters())?,
            lr: spec.lr(),
            progress: Progress::new(run.console().clone(), stage, config.steps, T::Batch::TARGETS),
            recordings: Recordings::new(run.records_graphs()),
            run,
            stage,
            config,
            task,
            loader,
            schedule,
            store,
            board: None,
            step: 0,
            tokens: 0,
            elapsed_before: Duration::ZERO,
            started: now,
            best: Vec::new(),
            evaluation: Vec::new(),
            last_checkpoint: None,
            pending: Vec::new(),
            last_reading: (now, 0),
        };
        match this.newest_checkpoint()? {
            Some(checkpoint) => this.go_on(&checkpoint)?,
            None => this.start_afresh()?,
        }
        if this.run.trainer().log.tensorboard && this.step < config.steps {
            let records = MetricsFile::read(&this.run.directory().metrics())?;
            this.board = Some(Board::open(&this.run.directory().tensorboard(stage), stage, &records)?);
        }
        Ok(this)
    }

    /// The newest checkpoint that is whole; says what it had to pass over.
    fn newest_checkpoint(&self) -> Result<Option<Checkpoint>, TrainError> {
        let (checkpoint, damaged) = self.store.newest_good()?;
        for damaged in damaged {
            self.progress.say(&format!("{}; it was set aside as {}", damaged.reason, damaged.path.display()));
        }
        Ok(checkpoint)
    }

    fn start_afresh(&mut self) -> Result<(), TrainError> {
        if self.run.is_resumed() {
            let place = self.run.directory().checkpoints(self.stage);
            self.progress.say(&format!(
                "{}: no checkpoint yet in {}, starting afresh",
                self.stage,
                place.display()
            ));
        }
        if self.run.is_stage_finished(self.stage)? {
            self.run.reopen_stage(self.stage)?; // its checkpoints are gone
        }
        self.run.start_stage(self.stage)?;
        let seed = seed_of(self.run.seed(), self.stage);
        for device in save::rng_devices(self.run.device()) {
            rng::manual_seed(device, seed).map_err(self.torch_error())?;
        }
        Ok(())
    }

    fn go_on(&mut self, checkpoint: &Checkpoint) -> Result<(), TrainError> {
        self.check(checkpoint)?;
        let state = checkpoint.state();
        checkpoint.model()?.load_into(&save::model(self.task))?;
        self.optimizer.load_state(&checkpoint.optimizer()?)?;
        self.loader.restore(&state.data)?;
        self.task.restore(&state.task).map_err(self.task_error())?;
        self.step = state.step;
        self.tokens = state.tokens;
        self.elapsed_before = Duration::try_from_secs_f64(state.elapsed_seconds).unwrap_or_default();
        self.best.clone_from(&state.best);
        self.evaluation =
            state.evaluation.iter().map(|(name, value)| (name.clone(), value.unwrap_or(f64::NAN))).collect();
        self.last_checkpoint = Some(checkpoint.path().to_owned());
        self.last_reading = (Instant::now(), state.tokens);
        if self.run.is_stage_finished(self.stage)? && self.step < self.config.steps {
            self.run.reopen_stage(self.stage)?;
        }
        if !self.run.is_stage_finished(self.stage)? {
            self.run.metrics().truncate(state.metrics_bytes)?;
        }
        self.progress.advance(self.step);
        self.progress.say(&format!(
            "{}: going on after step {} of {} from {}",
            self.stage,
            self.step,
            self.config.steps,
            checkpoint.path().display()
        ));
        // Last, so that nothing before can draw from the restored generators.
        let states = checkpoint.rng()?;
        for device in save::rng_devices(self.run.device()) {
            let name = device_name(device);
            if states.names().contains(&name) {
                rng::set_state(device, &states.read(&name)?).map_err(self.torch_error())?;
            }
        }
        Ok(())
    }

    /// Refuses a checkpoint from which this process would not go on bit for bit.
    fn check(&self, checkpoint: &Checkpoint) -> Result<(), TrainError> {
        let (state, path) = (checkpoint.state(), checkpoint.path().to_owned());
        let foreign = |message| TrainError::ForeignCheckpoint { path: path.clone(), message };
        if state.stage != self.stage {
            return Err(foreign(format!("it is of stage `{}`, this is `{}`", state.stage, self.stage)));
        }
        if state.step > self.config.steps {
            return Err(foreign(format!(
                "it is after step {}, the stage has {}",
                state.step, self.config.steps
            )));
        }
        let differences = state.fingerprint.differences(&self.loader.fingerprint());
        if !differences.is_empty() {
            return Err(TrainError::DataChanged { stage: self.stage.to_owned(), path, differences });
        }
        let differences = state.execution.differences(self.run.execution());
        if differences.is_empty() {
            return Ok(());
        }
        if !self.run.is_forced() {
            return Err(TrainError::ExecutionChanged { path, differences });
        }
        let differences = differences.join("; ");
        self.progress.say(&format!("going on with other bits, as --force says: {differences}"));
        Ok(())
    }
}
