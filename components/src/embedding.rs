//! Token embedding.

use hymba_plus::prelude::*;

/// One learned vector for each token of the vocabulary.
#[component_config]
pub struct TokenEmbedding {}

register!(embedding "token" => TokenEmbedding);

impl Embedding for TokenEmbedding {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        let vocabulary = plan.vocabulary()?;
        let std = plan.context.initializer_range;
        plan.parameter("weight", &[vocabulary, plan.context.d_model], Init::Normal { std });
        plan.output(plan.context.d_model);
        Ok(())
    }

    fn forward(&self, parts: &Parts, ids: &Tensor) -> Result<Tensor> {
        Ok(Tensor::f_embedding(parts.parameter("weight")?, ids, -1, false, false)?)
    }
}
