//! The language head.

use hymba_plus::prelude::*;
use kernels::{
    linear_cross_entropy::{LinearCrossEntropy, linear_cross_entropy},
    weight_only_linear::linear,
};

/// Logits over the vocabulary, by the embedding's matrix when the model ties them.
#[component_config]
pub struct LanguageHead {
    /// Squashes logits smoothly into `(-soft_cap, soft_cap)`: `soft_cap * tanh(logits / soft_cap)`.
    #[schemars(range(min = 1.0))]
    pub soft_cap: Option<f64>,
}

register!(head "language" => LanguageHead);

impl Head for LanguageHead {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        let (vocabulary, d_model) = (plan.vocabulary()?, plan.context.d_model);
        if plan.tied(vocabulary) {
            plan.flops_per_token(2 * vocabulary * d_model);
        } else {
            plan.linear("weight", vocabulary, d_model);
        }
        plan.output(vocabulary);
        Ok(())
    }

    fn forward(&self, parts: &Parts, hidden: &Tensor, call: HeadCall<'_>) -> Result<Tensor> {
        let weight = weight(parts, call)?;
        let logits = linear(hidden, weight)?;
        Ok(match self.soft_cap {
            // In 32 bits: near the cap, 16 bits have no differences left.
            Some(cap) if logits.kind() != Kind::Double => {
                (logits.f_to_kind(Kind::Float)? / cap).f_tanh()? * cap
            }
            Some(cap) => (logits / cap).f_tanh()? * cap,
            None => logits,
        })
    }
    fn cross_entropy(
        &self,
        parts: &Parts,
        hidden: &Tensor,
        loss: &TokenLoss<'_>,
        call: HeadCall<'_>,
    ) -> Result<Option<CrossEntropy>> {
        let (weight, targets) = (weight(parts, call)?, loss.targets);
        let settings = loss.settings(self.soft_cap);
        let (sum, square) = linear_cross_entropy(&LinearCrossEntropy { hidden, weight, targets, settings })?;
        Ok(Some(CrossEntropy { sum, square }))
    }
}

fn weight<'a>(parts: &'a Parts, call: HeadCall<'a>) -> Result<&'a Tensor> {
    call.tied.map_or_else(|| parts.parameter("weight"), Ok)
}
