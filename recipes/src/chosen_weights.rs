//! Which weights a training stage hands on.

use hymba_plus::{component_config, config::Recipe, model::Model, registry::Finding};
use training::{
    checkpoint::Checkpoint,
    train_loop::Outcome,
    trainer::{DataSection, TrainerConfig},
};

use crate::context::StageError;

/// Which weights a training stage hands on to the stages after it.
#[component_config]
pub enum Weights {
    /// Those of the last step.
    Last,
    /// Those of the best evaluation: stopping where the held-out data says so.
    Best,
}

impl Weights {
    /// What contradicts the recipe; `path` is the stage's place in it.
    pub(crate) fn check(self, recipe: &Recipe, path: &str) -> Vec<Finding> {
        if self == Self::Last {
            return Vec::new();
        }
        let at = |message: &str, help: &str| Finding {
            path: format!("{path}.weights"),
            message: message.to_owned(),
            rule: "`weights: best` needs held-out data and a kept checkpoint".to_owned(),
            help: Some(help.to_owned()),
        };
        let mut findings = Vec::new();
        let keeps = recipe.section::<TrainerConfig>().ok().flatten();
        if keeps.is_some_and(|trainer| trainer.checkpoint.keep_best == 0) {
            findings.push(at(
                "no checkpoint of a best evaluation is kept",
                "set `trainer.checkpoint.keep_best: 1`, or use `weights: last`",
            ));
        }
        if let Ok(Some(DataSection(data))) = recipe.section()
            && data.make().is_ok_and(|data| !data.holds_out())
        {
            findings.push(at("nothing is held out to choose by", "hold data out, or use `weights: last`"));
        }
        findings
    }

    /// Puts the chosen weights of a stage that has ended into its model; which step they are of.
    pub(crate) fn choose(self, outcome: &Outcome, model: &Model) -> Result<u64, StageError> {
        match (&outcome.best, self) {
            (Some((best, path)), Self::Best) if best.step != outcome.steps => {
                let named = model.parameters().iter();
                let tensors: Vec<_> =
                    named.map(|p| (p.plan.name.clone(), p.tensor.shallow_clone())).collect();
                Checkpoint::open(path)?.model()?.load_into(&tensors)?;
                Ok(best.step)
            }
            _ => Ok(outcome.steps),
        }
    }
}
