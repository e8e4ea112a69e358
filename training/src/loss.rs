//! The loss of language models.

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
}
