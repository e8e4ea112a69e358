//! A classifier head: pooling over the tokens, then a linear map.

use hymba_plus::prelude::*;

/// Hidden vectors `[batch, time, d_model]` to logits `[batch, classes]`: `weight dropout(pool(h)) + bias`.
#[component_config]
pub struct Classifier {
    /// Number of classes.
    #[schemars(range(min = 2, max = 16_777_216))]
    pub classes: i64,
    /// How the vectors of all tokens become one.
    #[default(Pooling::Mean)]
    pub pooling: Pooling,
    /// Dropout on the pooled vector.
    #[default(0.0)]
    #[schemars(range(min = 0.0, max = 0.99))]
    pub dropout: f64,
}

/// How the vectors of all tokens become one.
#[component_config]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The last one, which has seen all others.
    Last,
    /// A mean weighted by `softmax(h query / sqrt(d_model))` with a learned query (Lee et al. 2019, Set Transformer, with
    /// one seed and one head).
    Attention,
}

register!(head "classifier" => Classifier);

impl Head for Classifier {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        let (d_model, std) = (plan.context.d_model, plan.context.initializer_range);
        if self.pooling == Pooling::Attention {
            plan.parameter("query", &[d_model], Init::Normal { std });
            plan.flops_per_token(4 * d_model);
        }
        // Once for each sequence: no arithmetic per token to speak of.
        plan.parameter("weight", &[self.classes, d_model], Init::Normal { std });
        plan.parameter("bias", &[self.classes], Init::ZEROS).without_weight_decay();
        plan.gives("class", self.classes);
        plan.output(self.classes);
        Ok(())
    }

    fn forward(&self, parts: &Parts, hidden: &Tensor, call: HeadCall<'_>) -> Result<Tensor> {
        let time = hidden.size().get(1).copied().unwrap_or_default();
        if time == 0 {
            return Err(Error::other("there is no token to classify by"));
        }
        let pooled = match self.pooling {
            Pooling::Mean => hidden.f_mean_dim([1].as_slice(), false, None)?,
            Pooling::Last => hidden.f_select(1, -1)?,
            Pooling::Attention => {
                let query = parts.parameter("query")?;
                let scores = hidden.f_matmul(query)? / (query.size()[0] as f64).sqrt();
                let weights = scores.f_softmax(-1, None::<Kind>)?.f_unsqueeze(1)?;
                weights.f_matmul(hidden)?.f_squeeze_dim(1)?
            }
        };
        let pooled =
            if self.dropout > 0.0 && call.training { pooled.f_dropout(self.dropout, true)? } else { pooled };
        Ok(pooled.f_linear(parts.parameter("weight")?, Some(parts.parameter("bias")?))?)
    }
}
