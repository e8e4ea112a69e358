//! Mixture of experts in place of a feed-forward network.

use hymba_plus::{
    model::{AuxiliaryLoss, Statistics},
    prelude::*,
};
use kernels::moe::{Experts, Router, Scores, balance_loss, counts, experts, route};
use torch_bridge::guards::Autocast;

/// Gated experts of which a router gives each token `top_k` (Shazeer et al. 2017; Mixtral, arXiv 2401.04088), with
/// experts that every token goes to (DeepSeek-MoE, arXiv 2401.06066). No expert has a capacity: no token is dropped.
///
/// `y = sum_k w_k down_k (silu(gate_k x) * up_k x) + shared(x)`.
#[component_config]
pub struct Moe {
    /// Experts that the router chooses from.
    #[schemars(range(min = 1, max = 65_536))]
    pub n_experts: i64,
    /// Experts of each token.
    #[default(2)]
    #[schemars(range(min = 1, max = 65_536))]
    pub top_k: i64,
    /// Width between the matrices of an expert.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub d_hidden: i64,
    /// Experts that every token goes to, as one network of their widths together.
    #[default(0)]
    #[schemars(range(min = 0, max = 65_536))]
    pub n_shared_experts: i64,
    /// Width of a shared expert; left out, `d_hidden`.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub d_shared: Option<i64>,
    /// How the router's logits become scores.
    #[default(RouterScores::Softmax)]
    pub router: RouterScores,
    /// Whether the weights of a token's experts are divided by their sum.
    #[default(true)]
    pub normalise_weights: bool,
    /// What the weights are multiplied by.
    #[default(1.0)]
    #[schemars(range(min = 0.0))]
    pub routed_scale: f64,
    /// Weight of the balance loss `n_experts sum_e f_e P_e` of each layer: `f_e` is how many of a token's choices fall on
    /// expert `e`, `P_e` its probability, both as means over the tokens of a micro-batch (Fedus et al. 2021, eq. 4, as Mixtral has it).
    #[default(0.01)]
    #[schemars(range(min = 0.0))]
    pub aux_loss: f64,
    /// Weight of the mean of `logsumexp(logits)^2` of each layer (ST-MoE, Zoph et al. 2022, eq. 5).
    #[default(0.0)]
    #[schemars(range(min = 0.0))]
    pub z_loss: f64,
    /// Step by which a bias on the scores moves after each optimizer step, up for an expert with less than its share, down
    /// for one with more (DeepSeek-V3, arXiv 2412.19437: 0.001). The bias takes part in the choice only, not in the
    /// weights. Left out, there is no bias; 0 keeps it as it is.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub balance_rate: Option<f64>,
}

/// How logits become scores.
#[component_config]
pub enum RouterScores {
    /// A softmax over all experts.
    Softmax,
    /// A sigmoid for each expert (DeepSeek-V3).
    Sigmoid,
}

register!(channel_mixer "moe" => Moe);

/// Names of the sums that a pass records.
const COUNTS: &str = "counts";
const PROBABILITIES: &str = "probabilities";
const SQUARED_LOGSUMEXP: &str = "squared_logsumexp";
const TOKENS: &str = "tokens";

/// The not trained bias on the scores.
const BIAS: &str = "balance_bias";

impl Moe {
    /// What the pass's tokens, padding left out, add to the sums. `logits, probabilities [tokens, n_experts]`.
    fn record(
        &self,
        parts: &Parts,
        call: &Call<'_>,
        logits: &Tensor,
        routed: (&Tensor, &Tensor),
    ) -> Result<()> {
        let (choice, probabilities) = routed;
        let (kind, name) = (logits.kind(), &parts.plan.name);
        let valid = call.span.valid.as_ref().map(|valid| valid.f_reshape([-1])).transpose()?;
        // What padding holds may be anything: it is cut off, not multiplied by zero.
        let kept = |x: &Tensor| -> Result<Tensor> {
            Ok(match &valid {
                Some(valid) => {
                    let padding = valid.f_logical_not()?;
                    x.f_masked_fill(&if x.dim() > 1 { padding.f_unsqueeze(-1)? } else { padding }, 0.0)?
                }
                None => x.shallow_clone(),
            })
        };
        call.record(name, COUNTS, || counts(choice, self.n_experts, valid.as_ref(), kind))?;
        call.record(name, PROBABILITIES, || {
            Ok(kept(probabilities)?.f_sum_dim_intlist([0i64].as_slice(), false, kind)?)
        })?;
        call.record(name, SQUARED_LOGSUMEXP, || {
            Ok(kept(&logits.f_logsumexp([-1i64].as_slice(), false)?.f_square()?)?.f_sum(kind)?)
        })?;
        call.record(name, TOKENS, || {
            Ok(match &valid {
                Some(valid) => valid.f_sum(kind)?,
                None => Tensor::f_full([], logits.size()[0], (kind, logits.device()))?,
            })
        })
    }
}

impl ChannelMixer for Moe {
    fn plan(&self, plan: &mut ModulePlan) -> Result<(), Finding> {
        let (d_model, std) = (plan.context.d_model, plan.context.initializer_range);
        let Self { n_experts, top_k, d_hidden, .. } = *self;
        if top_k > n_experts {
            let message = format!("{top_k} experts for each token, there are {n_experts}");
            let mut finding = plan.finding("top_k", message, "`top_k` is at most `n_experts`");
            finding.help = Some(format!("use at most {n_experts}, or more experts"));
            return Err(finding);
        }
        if top_k == 1 && n_experts > 1 && self.normalise_weights {
            let message =
                "the one weight of a token divided by itself is always 1: the router learns nothing";
            let mut finding =
                plan.finding("normalise_weights", message, "weights are normalised among several");
            finding.help = Some("use `normalise_weights: false`, or a `top_k` of 2 or more".to_owned());
            return Err(finding);
        }
        // The choice between two experts hangs on differences that 16 bits do not have.
        plan.linear("router", n_experts, d_model).keep_float();
        if self.balance_rate.is_some() {
            plan.parameter(BIAS, &[n_experts], Init::ZEROS).not_trained().keep_float();
        }
        for (name, rows, columns) in
            [("gate", d_hidden, d_model), ("up", d_hidden, d_model), ("down", d_model, d_hidden)]
        {
            plan.parameter(name, &[n_experts, rows, columns], Init::Normal { std });
        }
        let matrices = 3 * d_model * d_hidden;
        plan.flops_per_token(2 * top_k * matrices);
        plan.idle_parameters += ((n_experts - top_k) * matrices) as u64;
        plan.saved_per_token += n_experts + top_k * (2 * d_model + 4 * d_hidden);
        if self.n_shared_experts > 0 {
            let d_shared = self.n_shared_experts * self.d_shared.unwrap_or(d_hidden);
            plan.linear("shared.gate", d_shared, d_model);
            plan.linear("shared.up", d_shared, d_model);
            plan.linear("shared.down", d_model, d_shared);
            plan.saved_per_token += 4 * d_shared;
        }
        plan.output(d_model);
        Ok(())
    }

    fn forward(&self, parts: &Parts, x: &Tensor, call: &Call<'_>) -> Result<Tensor> {
        let size = x.size();
        let tokens = x.f_reshape([size[0] * size[1], size[2]])?;
        let (routing, logits) = {
            let _guard = Autocast::new(x.device(), Kind::BFloat16, false);
            let router = parts.parameter("router")?;
            let logits = tokens.f_to_kind(router.kind())?.f_linear(router, None::<&Tensor>)?;
            let routing = route(
                &logits,
                &Router {
                    scores: match self.router {
                        RouterScores::Softmax => Scores::Softmax,
                        RouterScores::Sigmoid => Scores::Sigmoid,
                    },
                    top_k: self.top_k,
                    bias: parts.optional_parameter(BIAS),
                    normalise: self.normalise_weights,
                    scale: self.routed_scale,
                },
            )?;
            self.record(parts, call, &logits, (&routing.choice, &routing.probabilities))?;
            (routing, logits)
        };
        call.tap(|| format!("{}.router_logits", parts.plan.name), &logits);
        let mut y = experts(&Experts {
            x: &tokens,
            choice: &routing.choice,
            weights: &routing.weights,
            gate: parts.parameter("gate")?,
            up: parts.parameter("up")?,
            down: parts.parameter("down")?,
        })?;
        if self.n_shared_experts > 0 {
            let linear = |name: &str, x: &Tensor| -> Result<Tensor> {
                Ok(x.f_linear(parts.parameter(name)?, None::<&Tensor>)?)
            };
            let hidden = linear("shared.gate", &tokens)?.f_silu()? * linear("shared.up", &tokens)?;
            y += linear("shared.down", &hidden)?;
        }
        Ok(y.f_reshape(&size)?)
    }

    fn auxiliary_losses(&self, parts: &Parts, statistics: &Statistics) -> Result<Vec<AuxiliaryLoss>> {
        let sum = |name: &str| statistics.get(&parts.plan.name, name);
        let (Some(counts), Some(probabilities), Some(squares), Some(tokens)) =
            (sum(COUNTS), sum(PROBABILITIES), sum(SQUARED_LOGSUMEXP), sum(TOKENS))
        else {
            return Ok(Vec::new());
        };
        let mut losses = Vec::new();
        if self.aux_loss > 0.0 {
            let value = balance_loss(&counts, &probabilities, &tokens)?;
            losses.push(AuxiliaryLoss { name: "aux_loss", weight: self.aux_loss, value });
        }
        if self.z_loss > 0.0 {
            let value = squares / tokens.f_clamp_min(1.0)?;
            losses.push(AuxiliaryLoss { name: "z_loss", weight: self.z_loss, value });
        }
        // Not minimised, only shown: the busiest expert's load over the mean load, 1 when all are used alike.
        let value = counts.f_max()? / counts.f_mean(None)?.f_clamp_min(1e-20)?;
        losses.push(AuxiliaryLoss { name: "load_spread", weight: 0.0, value });
        Ok(losses)
    }

    fn rebalance(&self, parts: &Parts, statistics: &Statistics) -> Result<()> {
        let (Some(rate), Some(counts)) = (self.balance_rate, statistics.get(&parts.plan.name, COUNTS)) else {
            return Ok(());
        };
        let bias = parts.parameter(BIAS)?;
        let missing = counts.f_mean(None)? - counts;
        let step = (missing.f_sign()? * rate).f_to_kind(bias.kind())?;
        let _ = bias.shallow_clone().f_add_(&step)?;
        Ok(())
    }
}
