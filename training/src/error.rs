//! The one error of a run.

use std::path::PathBuf;

use hymba_plus::{config::Diagnostics, registry::RegistryError};
use tch::Device;

use crate::{
    checkpoint::CheckpointError,
    data::DataError,
    optimizer::OptimizerError,
    run_dir::RunDirError,
    schedule::ScheduleError,
    signals::Signal,
    telemetry::TelemetryError,
    tokenizer::TokenizerError,
    trainer::{NoDevice, device_name},
};

/// Whatever a [`Task`](crate::Task) of a stage reports.
pub type TaskError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why a run could not begin or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A section of the recipe does not fit.
    #[error(transparent)]
    Recipe(#[from] Box<Diagnostics>),
    /// A component could not be made.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The device is not there.
    #[error(transparent)]
    Device(#[from] NoDevice),
    /// The run directory cannot be used.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The data failed.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The optimizer failed.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// The schedule does not fit.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A checkpoint failed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Telemetry failed.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The device's memory is too small for a step.
    #[error(
        "step {step} of {stage} does not fit into the memory of {device}: {message}\nA larger `accumulation` (it divides \
         `batch_size`) changes nothing else; a smaller `batch_size` or sequence length, or `precision: bfloat16`, do"
    )]
    OutOfMemory {
        /// The stage.
        stage: String,
        /// The step, from 1.
        step: u64,
        /// The device.
        device: String,
        /// What libtorch says of its memory.
        message: String,
    },
    /// libtorch failed.
    #[error("step {step} of {stage}: {source}")]
    Torch {
        /// The stage.
        stage: String,
        /// The step, from 1.
        step: u64,
        /// What libtorch says.
        source: torch_bridge::Error,
    },
    /// The stage's own code failed.
    #[error("step {step} of {stage}: {source}")]
    Task {
        /// The stage.
        stage: String,
        /// The step, from 1.
        step: u64,
        /// What it says.
        source: TaskError,
    },
    /// libtorch could not be set up.
    #[error("setting up libtorch: {0}")]
    Setup(torch_bridge::Error),
    /// Signals cannot be listened to.
    #[error("listening to Ctrl-C: {0}")]
    Signals(std::io::Error),
    /// A number that must be positive is not.
    #[error("{name} must be at least 1")]
    Zero {
        /// The setting.
        name: &'static str,
    },
    /// A loss or gradient is not a finite number.
    #[error(
        "{what} is {value} at step {step} of {stage} (learning rate {lr:e}); nothing of it was written: the last checkpoint is \
         {}. Try a lower lr, a longer warm-up or a smaller gradient_clip; a step of bfloat16 may pass in float32",
        last.as_ref().map_or("none yet".to_owned(), |path| path.display().to_string())
    )]
    NotFinite {
        /// `loss` or `grad_norm`.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The step, from 1.
        step: u64,
        /// The stage.
        stage: String,
        /// The learning rate of the step.
        lr: f64,
        /// The last checkpoint.
        last: Option<PathBuf>,
    },
    /// The recipe is not the one that the run directory was made with.
    #[error(
        "the run in {path} was made with another recipe:\n  {}\nRun that recipe, use another --run-dir, or add --force to go on \
         with the new one",
        differences.join("\n  ")
    )]
    RecipeChanged {
        /// The run directory.
        path: PathBuf,
        /// What differs, key by key.
        differences: Vec<String>,
    },
    /// The tokenizer is not that of the run.
    #[error(
        "the recipe's tokenizer is not the one in {path}, which the run began with; restore it, or start another run"
    )]
    TokenizerChanged {
        /// The run's tokenizer.
        path: PathBuf,
    },
    /// The data is not that of the checkpoint.
    #[error(
        "the data of {stage} is not what {path} was trained on:\n  {}\nA resumed run must see the same data in the same order; \
         restore it, or start another run",
        differences.join("\n  ")
    )]
    DataChanged {
        /// The stage.
        stage: String,
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        differences: Vec<String>,
    },
    /// The machine would give other bits than that of the checkpoint.
    #[error(
        "this process would not go on bit for bit from {path}:\n  {}\nSet it as it was (trainer.threads, trainer.device), or \
         add --force to go on with other bits",
        differences.join("\n  ")
    )]
    ExecutionChanged {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        differences: Vec<String>,
    },
    /// A checkpoint belongs to another stage or to a longer one.
    #[error("checkpoint {path} does not belong to this stage: {message}")]
    ForeignCheckpoint {
        /// The checkpoint.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// cuBLAS has a workspace with which its sums differ from run to run. Programs of this framework set one that fits
    /// when they open libtorch's CUDA half, unless the user has set another.
    #[error(
        "trainer.deterministic on a GPU needs CUBLAS_WORKSPACE_CONFIG to be `:4096:8` or `:16:8`, and it is `{found}`; \
         unset that environment variable, or set trainer.deterministic to false"
    )]
    CublasWorkspace {
        /// Its value.
        found: String,
    },
    /// A profile of more steps than there are.
    #[error(
        "{wanted} steps are to be made for a profile, and the stage has {steps}; give fewer, or more `steps` to the stage"
    )]
    ProfileTooLong {
        /// Steps before and under the profiler.
        wanted: u64,
        /// Steps of the stage.
        steps: u64,
    },
    /// The steps that were to be profiled are done; the stage goes no further.
    #[error("{} steps of {} were profiled into {}", .0.steps, .0.stage, .0.trace.display())]
    Profiled(Box<crate::profile::Profiled>),
    /// The user stopped the run; a checkpoint was written.
    #[error("stopped by {} at step {step} of {stage}; checkpoint {checkpoint}. Continue with:\n  {command}", signal.name())]
    Interrupted {
        /// What stopped it.
        signal: Signal,
        /// The stage.
        stage: String,
        /// Steps that are done.
        step: u64,
        /// The checkpoint that was written.
        checkpoint: PathBuf,
        /// The command that goes on.
        command: String,
    },
}

impl TrainError {
    /// An error of libtorch in a step.
    pub(crate) fn in_step(stage: &str, step: u64, device: Device, source: torch_bridge::Error) -> Self {
        let (stage, message) = (stage.to_owned(), source.to_string());
        let Some((_, memory)) = message.split_once("out of memory.") else {
            return Self::Torch { stage, step, source };
        };
        // Up to the advice about the allocator, which is not the user's first concern.
        let memory = memory.split("If reserved").next().unwrap_or(memory).trim();
        Self::OutOfMemory { stage, step, device: device_name(device), message: memory.to_owned() }
    }

    /// The exit code of a process that ends with this error: 130 or 143 after a signal, else 1.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Interrupted { signal, .. } => signal.exit_code(),
            _ => 1,
        }
    }
}

impl From<Diagnostics> for TrainError {
    fn from(diagnostics: Diagnostics) -> Self {
        Self::Recipe(Box::new(diagnostics))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_does_not_fit_says_what_to_do() {
        let torch = torch_bridge::Error::other(
            "autograd function: conv: CUDA out of memory. Tried to allocate 100.00 MiB. GPU 0 has a total capacity of \
             79.18 GiB of which 54.19 MiB is free. If reserved but unallocated memory is large try setting X",
        );
        let error = TrainError::in_step("pretrain", 1, Device::Cuda(0), torch).to_string();
        assert!(error.starts_with(
            "step 1 of pretrain does not fit into the memory of cuda:0: Tried to allocate 100.00 MiB. GPU 0 has"
        ));
        assert!(error.contains("accumulation") && !error.contains("try setting"), "{error}");
        let other = TrainError::in_step("pretrain", 1, Device::Cpu, torch_bridge::Error::other("no"));
        assert_eq!(other.to_string(), "step 1 of pretrain: no");
    }
}
