//! The definition: the logits of all tokens, and what is to be known of each.

use tch::{Device, Kind, Tensor};
use torch_bridge::{Result, guards::Autocast, tensors};

use super::{IGNORE_INDEX, LinearCrossEntropy, Settings, rows};
use crate::operands::compute_kind;

pub(super) fn linear_cross_entropy(args: &LinearCrossEntropy<'_>) -> Result<(Tensor, Tensor)> {
    // Autocast would cast both.
    let weight = match Autocast::current(args.hidden.device()) {
        Some(_) => args.weight.shallow_clone(),
        None => args.weight.f_to_kind(args.hidden.kind())?,
    };
    cross_entropy(&args.hidden.f_linear(&weight, None::<&Tensor>)?, args.targets, args.settings)
}

pub(super) fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    settings: Settings,
) -> Result<(Tensor, Tensor)> {
    let mut logits = logits.f_to_kind(compute_kind(logits))?;
    if let Some(cap) = settings.soft_cap {
        logits = (logits / cap).f_tanh()? * cap;
    }
    if targets.device() == Device::Cpu {
        let plain = targets.f_contiguous()?;
        rows::check_targets(&tensors::slice::<i64>(&plain)?, logits.size().last().copied().unwrap_or(0))?;
    }
    let counts = targets.f_ne(IGNORE_INDEX)?;
    let targets = targets.f_where_self(&counts, &targets.f_zeros_like()?)?;
    let log_sum = logits.f_logsumexp([-1_i64], false)?;
    let of_target = logits.f_gather(-1, &targets.f_unsqueeze(-1)?, false)?.f_squeeze_dim(-1)?;
    let mean = logits.f_mean_dim([-1_i64].as_slice(), false, None::<Kind>)?;
    let smoothing = settings.label_smoothing;
    let square = log_sum.f_square()?;
    let loss = &log_sum - of_target * (1.0 - smoothing) - mean * smoothing + &square * settings.z_loss;
    let sum = |x: Tensor| -> Result<Tensor> {
        Ok(x.f_where_self(&counts, &x.f_zeros_like()?)?.f_sum(None::<Kind>)?)
    };
    Ok((sum(loss)?, sum(square)?.f_detach()?))
}
