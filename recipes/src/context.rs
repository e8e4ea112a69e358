//! The slot `stage`, and what stages hand on to each other.

use hymba_plus::{
    config::{Diagnostics, Recipe},
    define_slot,
    model::{BuildOptions, Model},
    params::seed_of,
    plan::ModelPlan,
    register_section,
    registry::{Component, Finding, RegistryError, Section},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use training::{TaskError, TrainError, data::Modality, run::Run, run_data::RunData, train_loop::Outcome};

define_slot!(/** What a run does, one after the other: pretrain, evaluate, generate. */ stage: dyn Stage);

/// The section `stages`: what a run does, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct StagesSection(#[schemars(length(min = 1))] pub Vec<Component<stage>>);

impl Section for StagesSection {
    const KEY: &'static str = "stages";
}

register_section!(StagesSection);

impl StagesSection {
    /// A name for each stage: its kind, with a number from the second of a kind on.
    pub fn names(&self) -> Vec<String> {
        let name = |(i, component): (usize, &Component<stage>)| {
            let before = self.0[..i].iter().filter(|other| other.kind == component.kind).count();
            if before == 0 { component.kind.clone() } else { format!("{}-{}", component.kind, before + 1) }
        };
        self.0.iter().enumerate().map(name).collect()
    }
}

/// What a stage can do.
pub trait Stage: std::fmt::Debug {
    /// Whether the stage leaves a model for those after it. Such a stage is never passed over: where it is done
    /// already, it brings its model back.
    fn makes_model(&self) -> bool {
        false
    }

    /// Whether the stage works with a model that a stage before it has made.
    fn needs_model(&self) -> bool {
        !self.makes_model()
    }

    /// What the stage reads.
    fn reads(&self) -> Modality {
        Modality::Text
    }

    /// What contradicts the recipe or its model, before anything runs; `path` is the stage's place in the recipe.
    fn check(&self, _recipe: &Recipe, _plan: Option<&ModelPlan>, _path: &str) -> Vec<Finding> {
        Vec::new()
    }

    /// Does the stage's work. A stage that is interrupted and run again goes on, or does its work again, with the same
    /// result.
    ///
    /// # Errors
    /// When it fails or is interrupted.
    fn run(&self, context: &mut StageContext<'_>) -> Result<(), StageError>;
}

/// What a stage has to work with.
#[derive(Debug)]
pub struct StageContext<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// The run: directory, device, console, metrics.
    pub run: Run,
    /// The data.
    pub data: RunData,
    /// The model as planned.
    pub plan: ModelPlan,
    /// The model as the stages so far left it; none before the first that needs it.
    pub model: Option<Model>,
    /// Name of the stage that runs.
    pub stage: String,
}

impl StageContext<'_> {
    /// Where and in which type the run builds its model.
    pub fn build_options(&self) -> BuildOptions {
        let kind = self.run.trainer().precision.parameter_kind();
        BuildOptions { device: self.run.device(), kind, seed: seed_of(self.run.seed(), "model") }
    }

    /// The model so far, or a fresh one.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn take_model(&mut self) -> Result<Model, StageError> {
        match self.model.take() {
            Some(model) => Ok(model),
            None => Ok(Model::build(&self.plan, self.build_options())?),
        }
    }

    /// Says how a training stage ended and which step's weights it hands on; `targets` is what it learnt from.
    pub fn report(&self, outcome: &Outcome, step: u64, targets: &str) {
        let last = outcome.evaluation.iter().map(|(name, value)| format!(", {name} {value:.4}"));
        let best = if step == outcome.steps {
            String::new()
        } else {
            format!("; goes on with step {step}, the best")
        };
        self.run.console().line(&format!(
            "{}: {} steps, {} {targets}{}{best}; checkpoint {}",
            self.stage,
            outcome.steps,
            hymba_plus::plan::grouped(outcome.tokens),
            last.collect::<String>(),
            outcome.last.display()
        ));
    }

    /// The model so far.
    ///
    /// # Errors
    /// When no stage before made one.
    pub fn trained_model(&self) -> Result<&Model, StageError> {
        self.model.as_ref().ok_or_else(|| StageError::NoModel { stage: self.stage.clone() })
    }
}

/// Why a stage ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// Training failed or was interrupted.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A libtorch operation failed.
    #[error(transparent)]
    Torch(#[from] torch_bridge::Error),
    /// A component could not be made.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Data could not be read or tokenized.
    #[error(transparent)]
    Data(#[from] training::data::DataError),
    /// A tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] training::tokenizer::TokenizerError),
    /// The recipe lacks something.
    #[error(transparent)]
    Recipe(#[from] Diagnostics),
    /// A loss or measurement failed.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A stage needs a model and there is none yet.
    #[error(
        "stage `{stage}` needs a model, and no stage before it makes one; put a stage such as `pretrain` before it"
    )]
    NoModel {
        /// The stage.
        stage: String,
    },
    /// The run directory cannot be used.
    #[error(transparent)]
    RunDir(#[from] training::run_dir::RunDirError),
    /// A checkpoint failed.
    #[error(transparent)]
    Checkpoint(#[from] training::checkpoint::CheckpointError),
    /// Foreign weights could not be read or written.
    #[error(transparent)]
    Weights(#[from] hymba_plus::weights::WeightsError),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

/// Why a run ended early: the stage, and what happened there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The recipe is not one that runs.
    #[error(transparent)]
    Recipe(#[from] Diagnostics),
    /// The run could not begin.
    #[error(transparent)]
    Begin(#[from] TrainError),
    /// The run has ended and no step was watched.
    #[error("no stage of the recipe trains, so there is nothing to profile")]
    NothingToProfile,
    /// A stage failed.
    #[error("stage `{name}`: {source}")]
    Stage {
        /// Name of the stage.
        name: String,
        /// What happened.
        source: Box<StageError>,
    },
}

impl RunError {
    /// The exit code of the process: 128 plus the signal's number when a signal stopped the run, else 1.
    pub fn exit_code(&self) -> u8 {
        let error = match self {
            Self::Begin(error) => Some(error),
            Self::Stage { source, .. } => match source.as_ref() {
                StageError::Train(error) => Some(error),
                _ => None,
            },
            Self::Recipe(_) | Self::NothingToProfile => None,
        };
        error.map_or(1, |error| u8::try_from(error.exit_code()).unwrap_or(1))
    }
}
