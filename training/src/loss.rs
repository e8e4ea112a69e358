//! Losses, as sums over targets.

use tch::{Kind, Reduction, Tensor};

use crate::data::IGNORE_INDEX;

/// Sum of the cross-entropy over all targets that are not ignored, in nats, a scalar on the logits' device.
///
/// `logits [batch, time, vocab]` of any floating type (computed in at least `Float`), `targets [batch, time]`. With
/// `label_smoothing` e the target distribution is `1 - e` on the target and `e / vocab` everywhere (Szegedy et al. 2016).
///
/// # Errors
/// When shapes do not fit.
pub fn cross_entropy_sum(
    logits: &Tensor,
    targets: &Tensor,
    label_smoothing: f64,
) -> Result<Tensor, torch_bridge::Error> {
    let vocab = logits.size().last().copied().unwrap_or(0);
    let logits = logits.f_reshape([-1, vocab])?;
    let logits = if logits.kind() == Kind::Double { logits } else { logits.f_to_kind(Kind::Float)? };
    let targets = targets.f_reshape([-1])?;
    Ok(logits.f_cross_entropy_loss(
        &targets,
        None::<Tensor>,
        Reduction::Sum,
        IGNORE_INDEX,
        label_smoothing,
    )?)
}

/// Sum over all targets of twice the pinball loss, the mean over the quantiles (Koenker & Bassett 1978): for an error `e =
/// y - q` at level `a`, `2 max(a e, (a - 1) e)`. Of the median alone that is the absolute error.
///
/// `quantiles [..., levels]`, `targets [...]`, both of one floating type.
///
/// # Errors
/// When shapes do not fit.
pub fn pinball_sum(
    quantiles: &Tensor,
    targets: &Tensor,
    levels: &[f64],
) -> Result<Tensor, torch_bridge::Error> {
    let level = Tensor::f_from_slice(levels)?.f_to_kind(quantiles.kind())?.f_to_device(quantiles.device())?;
    let error = targets.f_unsqueeze(-1)?.f_sub(quantiles)?;
    let above = error.f_mul(&level)?;
    let loss = above.f_maximum(&above.f_sub(&error)?)?;
    Ok(loss.f_sum(None::<Kind>)? * (2.0 / levels.len().max(1) as f64))
}

/// Sum of the squared differences of two tensors of one shape.
///
/// # Errors
/// When shapes do not fit.
pub fn squared_error_sum(forecast: &Tensor, targets: &Tensor) -> Result<Tensor, torch_bridge::Error> {
    Ok(forecast.f_sub(targets)?.f_square()?.f_sum(None::<Kind>)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_targets_count_nothing_and_smoothing_is_the_papers() {
        let logits = Tensor::from_slice(&[1.0, 2.0, 0.5, 9.0, -9.0, 0.0]).view([1, 2, 3]);
        let targets = Tensor::from_slice(&[1_i64, IGNORE_INDEX]).view([1, 2]);
        let log_probs = Tensor::from_slice(&[1.0, 2.0, 0.5]).log_softmax(-1, Kind::Double);
        let plain = -log_probs.double_value(&[1]);
        let mean = -log_probs.mean(Kind::Double).double_value(&[]);
        for smoothing in [0.0, 0.1] {
            let loss = cross_entropy_sum(&logits, &targets, smoothing).unwrap().double_value(&[]);
            assert!((loss - (1.0 - smoothing) * plain - smoothing * mean).abs() < 1e-12);
        }
    }

    #[test]
    fn pinball_is_lowest_at_the_quantile_and_the_medians_is_the_absolute_error() {
        let targets = Tensor::from_slice(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
        let at = |value: f64, level: f64| {
            let guess = Tensor::full([10, 1], value, (Kind::Double, tch::Device::Cpu));
            pinball_sum(&guess, &targets, &[level]).unwrap().double_value(&[])
        };
        for (level, best) in [(0.25, 2.0), (0.75, 7.0)] {
            assert!([-1.0, 1.0].iter().all(|step| at(best + step, level) > at(best, level)), "{level}");
        }
        assert!((at(3.0, 0.5) - (3 + 2 + 1 + 1 + 2 + 3 + 4 + 5 + 6) as f64).abs() < 1e-12);
        let both = Tensor::from_slice(&[1.0, 5.0]).expand([10, 2], false);
        let mean = at(1.0, 0.1).midpoint(at(5.0, 0.9));
        assert!((pinball_sum(&both, &targets, &[0.1, 0.9]).unwrap().double_value(&[]) - mean).abs() < 1e-12);
        let squared = squared_error_sum(&(&targets + 2.0), &targets).unwrap().double_value(&[]);
        assert!((squared - 40.0).abs() < 1e-12);
    }
}
