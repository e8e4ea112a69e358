//! Recipes at work: stages, registered components that run in order over one model.

mod auxiliary;
mod chosen_weights;
mod classify;
mod context;
mod fit;
mod forecast;
mod generate;
mod language_model;
mod loss_in_calls;
pub mod model;
mod pretrain;
mod runner;
mod sample_forecast;
mod saved_run;
pub mod weights;

pub use chosen_weights::Weights;
pub use classify::{ClassifierResult, ImageClassifier, check_classifier, classifier_result};
pub use context::{RunError, Stage, StageContext, StageError, StagesSection, stage};
pub use fit::description;
pub use forecast::{
    ForecastLoss, ForecastResult, ForecastShape, SeriesForecaster, check_forecaster, forecast_result,
};
pub use generate::{GeneratedText, Prompt, TextEvent, TextOptions, generate_text, prompt_tokens};
pub use language_model::{LanguageModel, Target, validation_loss};
pub use loss_in_calls::loss_in_calls;
pub use model::{check_language_model, plan_model};
pub use runner::{profile, run, sequence_length};
pub use sample_forecast::sample_forecast;
pub use saved_run::{SavedRun, Which};
