//! What a language model's loss is taken of.

use kernels::linear_cross_entropy::{Settings, cross_entropy};
use tch::Tensor;
use torch_bridge::Result;

/// The tokens that should have been predicted, and how the loss weighs them.
#[derive(Debug, Clone, Copy)]
pub struct TokenLoss<'a> {
    /// `[batch, time]`, int64: indices of logits, or [`IGNORE_INDEX`](kernels::linear_cross_entropy::IGNORE_INDEX).
    pub targets: &'a Tensor,
    /// Share of the target distribution that is spread over the whole vocabulary (Szegedy et al. 2016).
    pub label_smoothing: f64,
    /// Weight of `log(sum exp logits)^2` (Chowdhery et al. 2022, section 5).
    pub z_loss: f64,
}

impl<'a> TokenLoss<'a> {
    /// The plain cross-entropy.
    pub fn plain(targets: &'a Tensor) -> Self {
        Self { targets, label_smoothing: 0.0, z_loss: 0.0 }
    }

    /// For the kernel.
    pub fn settings(&self, soft_cap: Option<f64>) -> Settings {
        Settings { label_smoothing: self.label_smoothing, z_loss: self.z_loss, soft_cap }
    }

    /// The loss of logits `[batch, time, vocab]`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn of_logits(&self, logits: &Tensor) -> Result<CrossEntropy> {
        let (sum, square) = cross_entropy(logits, self.targets, self.settings(None))?;
        Ok(CrossEntropy { sum, square })
    }
}

/// Sums over targets that are not ignored, scalars in at least 32 bits.
#[derive(Debug)]
pub struct CrossEntropy {
    /// The loss in nats, with all its terms; it can be differentiated.
    pub sum: Tensor,
    /// `log(sum exp logits)^2`, what `z_loss` weighs, for the record.
    pub square: Tensor,
}
