//! The stage `pretrain`: next-token prediction on the recipe's text.

use hymba_plus::{
    component_config,
    config::Recipe,
    plan::ModelPlan,
    prelude::register,
    registry::{Component, Finding},
};
use training::{
    slot::{optimizer, schedule},
    train,
    train_loop::LoopConfig,
};

use crate::{
    context::{Stage, StageContext, StageError, stage},
    language_model::LanguageModel,
};

/// Trains the model to predict the next token of the recipe's text.
#[component_config]
pub struct Pretrain {
    /// Steps of the optimizer.
    #[schemars(range(min = 1))]
    pub steps: u64,
    /// Sequences per step, over all micro-batches.
    #[default(8)]
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Tokens per sequence.
    #[default(256)]
    #[schemars(range(min = 1))]
    pub sequence_length: usize,
    /// Micro-batches that a step is cut into to save memory; it must divide `batch_size` and changes nothing else.
    #[default(1)]
    #[schemars(range(min = 1))]
    pub accumulation: usize,
    /// Largest norm of all gradients together; `null` leaves them as they are.
    #[default(Some(1.0))]
    #[schemars(range(min = 0.0))]
    pub gradient_clip: Option<f64>,
    /// Share of the target distribution that is spread over the whole vocabulary.
    #[default(0.0)]
    #[schemars(range(min = 0.0, max = 0.99))]
    pub label_smoothing: f64,
    /// How gradients change parameters.
    #[default(Component::of("adamw"))]
    pub optimizer: Component<optimizer>,
    /// How the learning rate moves.
    #[default(Component::of("cosine"))]
    pub schedule: Component<schedule>,
    /// Steps between two evaluations; there is always one after the last step.
    #[schemars(range(min = 1))]
    pub evaluate_every: Option<u64>,
    /// Evaluate before the first step, too.
    #[default(true)]
    pub evaluate_at_start: bool,
}

register!(stage "pretrain" => Pretrain);

impl Pretrain {
    fn loop_config(&self) -> LoopConfig {
        LoopConfig {
            steps: self.steps,
            batch_size: self.batch_size,
            sequence_length: self.sequence_length,
            accumulation: self.accumulation,
            gradient_clip: self.gradient_clip,
            optimizer: self.optimizer.clone(),
            schedule: self.schedule.clone(),
            evaluate_every: self.evaluate_every,
            evaluate_at_start: self.evaluate_at_start,
            best_metric: "validation_loss".to_owned(),
        }
    }
}

impl Stage for Pretrain {
    fn check(&self, _recipe: &Recipe, plan: Option<&ModelPlan>, path: &str) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut refuse = |key: &str, message: String, rule: &str, help: String| {
            let (path, rule) = (format!("{path}.{key}"), rule.to_owned());
            findings.push(Finding { path, message, rule, help: Some(help) });
        };
        if let Some(most) = plan.and_then(|plan| plan.max_positions)
            && self.sequence_length as i64 > most
        {
            let message =
                format!("sequences of {} tokens, the model is meant for {most}", self.sequence_length);
            let help =
                format!("use at most {most}, or raise `model.max_positions` and its position encoding's");
            refuse("sequence_length", message, "`sequence_length` is at most `model.max_positions`", help);
        }
        if !self.batch_size.is_multiple_of(self.accumulation) {
            let message =
                format!("{} sequences cannot be cut into {} equal parts", self.batch_size, self.accumulation);
            let near = (1..=self.batch_size).filter(|n| self.batch_size.is_multiple_of(*n));
            let near = near.min_by_key(|n| n.abs_diff(self.accumulation)).unwrap_or(1);
            refuse(
                "accumulation",
                message,
                "`accumulation` divides `batch_size`",
                format!("the nearest is {near}"),
            );
        }
        if let Ok(schedule) = self.schedule.make()
            && let Err(error) = schedule.check(self.steps)
        {
            let help = "make the stage longer or the schedule shorter".to_owned();
            refuse("schedule", error.to_string(), "the schedule fits the steps", help);
        }
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
