//! Recipes at work: stages, registered components that run in order over one model.

mod context;
mod generate;
mod language_model;
pub mod model;
mod pretrain;
mod runner;
mod saved_run;
pub mod weights;

pub use context::{RunError, Stage, StageContext, StageError, StagesSection, stage};
pub use generate::{GeneratedText, Prompt, TextEvent, TextOptions, generate_text, prompt_tokens};
pub use language_model::{LanguageModel, validation_loss};
pub use model::{check_language_model, plan_model};
pub use runner::run;
pub use saved_run::{SavedRun, Which};
