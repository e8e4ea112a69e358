//! Losses that modules add to that of the task.

use std::collections::BTreeMap;

use hymba_plus::model::{AuxiliaryLoss, Statistics};
use tch::Tensor;
use training::Loss;

/// The loss of a micro-batch, a sum over its targets, with the losses that modules add to it; `name` is what the task's
/// own is called where both are shown. The modules' are means over the tokens of the micro-batch, meta tokens among them;
/// times its targets (`targets`, a scalar `[]`), they are sums as the task's is. What they recorded goes with it.
pub(crate) fn with_auxiliary(
    task: Tensor,
    name: &str,
    targets: &Tensor,
    auxiliary: &[AuxiliaryLoss],
    statistics: &Statistics,
) -> torch_bridge::Result<Loss> {
    let recorded = Statistics::default();
    statistics.detach_into(&recorded)?;
    if auxiliary.is_empty() {
        return Ok(Loss { statistics: recorded, ..Loss::of_sum(task) });
    }
    let targets = targets.f_to_kind(task.kind())?;
    let mut sum = task.shallow_clone();
    let mut by_name: BTreeMap<&str, Vec<Tensor>> = BTreeMap::new();
    for loss in auxiliary {
        if loss.weight > 0.0 {
            sum = sum.f_add(&loss.value.f_mul(&targets)?.f_mul_scalar(loss.weight)?)?;
        }
        by_name.entry(loss.name).or_default().push(loss.value.f_detach()?);
    }
    let mean = task.f_detach()?.f_div(&targets.f_clamp_min(1)?)?;
    let mut measured = vec![(name.to_owned(), mean)];
    for (name, of_modules) in by_name {
        measured.push((name.to_owned(), Tensor::f_stack(&of_modules, 0)?.f_mean(None)?));
    }
    Ok(Loss { sum, measured, statistics: recorded })
}
