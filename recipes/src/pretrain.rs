//! The stage `pretrain`: next-token prediction on the recipe's text.

use hymba_plus::{config::Recipe, plan::ModelPlan, prelude::register, registry::Finding};
use training::{
    data::{Batch, Weighted},
    train,
};

use crate::{
    context::{Stage, StageContext, StageError, stage},
    language_model::{LanguageModel, Target},
    model::check_language_model,
};

training::loop_settings! {
    /// Trains the model to predict the next token of the recipe's text.
    pub struct Pretrain {
        /// Tokens per sequence.
        #[schemars(range(min = 1))]
        #[default(Pretrain::DEFAULT_LENGTH as usize)]
        pub sequence_length: usize,
        /// Share of the target distribution that is spread over the whole vocabulary.
        #[default(0.0)]
        #[schemars(range(min = 0.0, max = 0.99))]
        pub label_smoothing: f64,
        /// Weight of `log(sum exp logits)^2`, which keeps logits from drifting (Chowdhery et al. 2022); 1e-4 is usual.
        #[default(0.0)]
        #[schemars(range(min = 0.0))]
        pub z_loss: f64,
        /// What further heads of the model predict beside the main one.
        #[default(Vec::new())]
        pub targets: Vec<Target>,
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
        findings.extend(self.check_targets(plan, path));
        findings.extend(self.loop_config().check(path));
        findings
    }

    fn run(&self, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let micro_batch = (self.batch_size / self.accumulation).max(1);
        let text = context.data.text()?;
        let mut loader = text.training_blocks(self.sequence_length, &context.run)?;
        let validation = text.validation_blocks(self.sequence_length, micro_batch, &context.run)?;
        let validation_bytes = text.validation_bytes;
        let mut task = LanguageModel {
            model: context.take_model()?,
            label_smoothing: self.label_smoothing,
            z_loss: self.z_loss,
            targets: self.targets.clone(),
            validation,
            validation_bytes,
        };
        let stage = context.stage.clone();
        let outcome = train(&mut context.run, &stage, &self.loop_config(), &mut task, &mut loader)?;
        context.model = Some(task.model);
        context.report(&outcome, outcome.steps, Batch::TARGETS);
        Ok(())
    }
}

impl Pretrain {
    /// Tokens per sequence where the recipe does not say.
    pub(crate) const DEFAULT_LENGTH: i64 = 256;

    /// Every target has a head of its own that gives logits, and something to predict.
    fn check_targets(&self, plan: Option<&ModelPlan>, path: &str) -> Vec<Finding> {
        let Some(plan) = plan else { return Vec::new() };
        let mut findings = Vec::new();
        for (i, target) in self.targets.iter().enumerate() {
            let mut refuse = |key: &str, message: String, rule: &str, help: String| {
                let path = format!("{path}.targets[{i}].{key}");
                findings.push(Finding { path, message, rule: rule.to_owned(), help: Some(help) });
            };
            let name = &target.head;
            match plan.heads.get(name) {
                None => {
                    let known: Vec<&str> = plan.heads.keys().map(String::as_str).collect();
                    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                    let message = format!("the model has no further head `{name}`; it has: {known}");
                    let help = format!("add `{name}: language` to `model.heads`, or name one of them");
                    refuse("head", message, "a target names one of `model.heads`", help);
                }
                Some(head) if plan.vocab_size != Some(head.module.output_width) => {
                    let message = format!("`{name}` gives {} numbers, no logits", head.module.output_width);
                    let rule = "a target's head gives a logit for every token";
                    refuse("head", message, rule, "use `language` for that head".to_owned());
                }
                Some(_) if self.targets[..i].iter().any(|before| before.head == *name) => {
                    let message = format!("`{name}` predicts another token already");
                    let help = "give each target a head of its own".to_owned();
                    refuse("head", message, "a head predicts one token", help);
                }
                Some(_) => {}
            }
            if target.offset > self.sequence_length {
                let message = format!(
                    "{} tokens after an input lies beyond every sequence of {}",
                    target.offset, self.sequence_length
                );
                let help = format!("use at most {}", self.sequence_length);
                refuse("offset", message, "`offset` is at most `sequence_length`", help);
            }
        }
        findings
    }
}
