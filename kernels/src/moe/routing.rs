//! Which experts a token goes to, and with which weights.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use crate::operands::Operands;

/// How logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// A softmax over all experts (Shazeer et al. 2017; Mixtral).
    Softmax,
    /// A sigmoid for each expert by itself (DeepSeek-V3, arXiv 2412.19437, eq. 12-16).
    Sigmoid,
}

/// How a router chooses.
#[derive(Clone, Copy, Debug)]
pub struct Router<'a> {
    /// How logits become scores.
    pub scores: Scores,
    /// Experts of each token.
    pub top_k: i64,
    /// Added to the scores for the choice alone, `[n_experts]`; the weights do not see it.
    pub bias: Option<&'a Tensor>,
    /// Whether the weights of a token are divided by their sum.
    pub normalise: bool,
    /// What the weights are multiplied by at last.
    pub scale: f64,
}

/// The choice of every token. All but `choice` is differentiable.
#[derive(Debug)]
pub struct Routing {
    /// Experts, the best first, `[tokens, top_k]` int64.
    pub choice: Tensor,
    /// Their weights, `[tokens, top_k]`.
    pub weights: Tensor,
    /// Scores of all experts as probabilities: a row sums to one. `[tokens, n_experts]`.
    pub probabilities: Tensor,
}

/// Routes tokens by `logits [tokens, n_experts]`, computed in f64 if they are, else in f32.
///
/// # Errors
/// A shape or dtype that does not fit, or more choices than experts.
pub fn route(logits: &Tensor, router: &Router<'_>) -> Result<Routing> {
    let ops = Operands::of("route", logits);
    let [tokens, n_experts] = ops.sizes("logits", logits, "[tokens, n_experts]")?;
    ops.activation("logits", logits, &[tokens, n_experts])?;
    router.bias.map_or(Ok(()), |bias| ops.parameter("bias", bias, &[n_experts]))?;
    if !(1..=n_experts).contains(&router.top_k) {
        return Err(ops.refusal("top_k", &format!("1 to {n_experts}"), &router.top_k.to_string()));
    }
    let kind = crate::operands::compute_kind(logits);
    let logits = logits.f_to_kind(kind)?;
    let scores = match router.scores {
        Scores::Softmax => logits.f_softmax(-1, kind)?,
        Scores::Sigmoid => logits.f_sigmoid()?,
    };
    let ranked = scores.f_detach()?;
    let ranked = match router.bias {
        Some(bias) => ranked + bias.f_detach()?.f_to_kind(kind)?,
        None => ranked,
    };
    let (_, choice) = ranked.f_topk(router.top_k, -1, true, true)?;
    let mut weights = scores.f_gather(-1, &choice, false)?;
    if router.normalise {
        weights = &weights / sum(&weights, kind)?.f_clamp_min(TINY)?;
    }
    let probabilities = match router.scores {
        Scores::Softmax => scores,
        Scores::Sigmoid => &scores / sum(&scores, kind)?.f_clamp_min(TINY)?,
    };
    Ok(Routing { choice, weights: weights * router.scale, probabilities })
}

/// Scores that all underflow are divided by this and not by zero.
const TINY: f64 = 1e-20;

fn sum(x: &Tensor, kind: Kind) -> Result<Tensor> {
    Ok(x.f_sum_dim_intlist([-1i64].as_slice(), true, kind)?)
}
