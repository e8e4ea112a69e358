//! How evenly the experts are used.

use tch::{Kind, Tensor};
use torch_bridge::Result;

/// How many of the choices fell on each expert: `choice [tokens, top_k]` int64 to `[n_experts]` in `kind`. Tokens that
/// are false in `valid [tokens]` do not count.
///
/// # Errors
/// When libtorch refuses.
pub fn counts(choice: &Tensor, n_experts: i64, valid: Option<&Tensor>, kind: Kind) -> Result<Tensor> {
    let experts = Tensor::f_arange(n_experts, (Kind::Int64, choice.device()))?;
    let choice = match valid {
        // An expert that does not exist.
        Some(valid) => choice.f_masked_fill(&valid.f_logical_not()?.f_unsqueeze(-1)?, -1)?,
        None => choice.shallow_clone(),
    };
    let (sorted, _) = choice.f_reshape([-1])?.f_sort(0, false)?;
    let none = None::<&Tensor>;
    let below = experts.f_searchsorted(&sorted, false, false, "left", none)?;
    let up_to = experts.f_searchsorted(&sorted, false, true, "right", none)?;
    Ok((up_to - below).f_to_kind(kind)?)
}

/// `n_experts sum_e f_e P_e` with `f_e` the expert's choices per token and `P_e` its mean probability: the balance loss
/// of Switch Transformers (Fedus et al. 2021, eq. 4-6) in Mixtral's form, whose `f` sum to `top_k`. It is `top_k` when
/// all experts are used alike. `counts, probabilities [n_experts]` are sums over `tokens []` tokens.
///
/// # Errors
/// When libtorch refuses.
pub fn balance_loss(counts: &Tensor, probabilities: &Tensor, tokens: &Tensor) -> Result<Tensor> {
    let tokens = tokens.f_clamp_min(1.0)?;
    let used = (counts / &tokens) * (probabilities / &tokens);
    Ok(used.f_sum(None)? * counts.size()[0] as f64)
}
