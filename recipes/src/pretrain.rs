//! The stage `pretrain`: next-token prediction on the recipe's text.

use hymba_plus::{config::Recipe, model::Statistics, plan::ModelPlan, prelude::register, registry::Finding};
use training::train;

use crate::{
    context::{Stage, StageContext, StageError, stage},
    language_model::LanguageModel,
    model::check_language_model,
};

training::loop_settings! {
    /// Trains the model to predict the next token of the recipe's text.
    pub struct Pretrain {
        /// Share of the target distribution that is spread over the whole vocabulary.
        #[default(0.0)]
        #[schemars(range(min = 0.0, max = 0.99))]
        pub label_smoothing: f64,
    }
}

register!(stage "pretrain" => Pretrain);

impl Stage for Pretrain {
    fn makes_model(&self) -> bool {
        true
    }

    fn check(&self, _recipe: &Recipe, plan: Option<&ModelPlan>, path: &str) -> Vec<Finding> {
        let length = ("sequence_length", self.sequence_length as u64);
        let mut findings = check_language_model("pretrain", plan, path, length);
        findings.extend(self.loop_config().check(path));
        findings
    }

    fn run(&self, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let micro_batch = (self.batch_size / self.accumulation).max(1);
        let mut loader = context.data.training_blocks(self.sequence_length, &context.run)?;
        let validation = context.data.validation_blocks(self.sequence_length, micro_batch, &context.run)?;
        let mut task = LanguageModel {
            model: context.take_model()?,
            label_smoothing: self.label_smoothing,
            validation,
            validation_bytes: context.data.validation_bytes,
            statistics: Statistics::default(),
        };
        let stage = context.stage.clone();
        let outcome = train(&mut context.run, &stage, &self.loop_config(), &mut task, &mut loader)?;
        context.model = Some(task.model);
        let last = outcome.evaluation.iter().map(|(name, value)| format!(", {name} {value:.4}"));
        context.run.console().line(&format!(
            "{stage}: {} steps, {} tokens{}; checkpoint {}",
            outcome.steps,
            hymba_plus::plan::grouped(outcome.tokens),
            last.collect::<String>(),
            outcome.last.display()
        ));
        Ok(())
    }
}
