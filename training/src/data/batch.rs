//! What one micro-batch of language-model training is.

use tch::{Device, Tensor};

use super::DataError;

/// Target of a position that is not learnt: the loss ignores it.
pub const IGNORE_INDEX: i64 = -100;

/// Something that a loop can weigh: a micro-batch counts as much as it has targets.
pub trait Weighted {
    /// Number of targets that the loss sums over, known without asking the device.
    fn target_tokens(&self) -> i64;
}

/// Sequences of tokens, what follows each, and where documents start.
#[derive(Debug)]
pub struct Batch {
    /// Inputs, `[batch, time]`, `Int64`.
    pub tokens: Tensor,
    /// The token after each input, [`IGNORE_INDEX`] where there is none, `[batch, time]`, `Int64`.
    pub targets: Tensor,
    /// Whether a document starts at this input, `[batch, time]`, `Bool`. The state before the first column is the
    /// initial one whatever stands there.
    pub resets: Tensor,
    /// Targets that are not ignored.
    target_tokens: i64,
    /// Whether a document starts after the first column.
    has_resets: bool,
}

impl Batch {
    /// A batch on `device` from its rows laid end to end, `sequence_length` long each.
    ///
    /// # Errors
    /// When the three differ in length or libtorch refuses (out of memory).
    pub fn new(
        tokens: &[i64],
        targets: &[i64],
        resets: &[bool],
        sequence_length: usize,
        device: Device,
    ) -> Result<Self, DataError> {
        let shape = [-1, sequence_length as i64];
        let target_tokens = targets.iter().filter(|&&target| target != IGNORE_INDEX).count() as i64;
        let has_resets = resets.chunks(sequence_length.max(1)).any(|row| row[1..].contains(&true));
        let place = |tensor: Tensor| tensor.f_view(shape)?.f_to_device(device);
        Ok(Self {
            tokens: place(Tensor::f_from_slice(tokens)?)?,
            targets: place(Tensor::f_from_slice(targets)?)?,
            resets: place(Tensor::f_from_slice(resets)?)?,
            target_tokens,
            has_resets,
        })
    }

    /// Number of sequences.
    pub fn batch_size(&self) -> i64 {
        self.tokens.size()[0]
    }

    /// Whether a document starts inside a row; without that, `resets` says nothing that the initial state does not.
    pub fn has_resets(&self) -> bool {
        self.has_resets
    }

    /// Tokens per sequence.
    pub fn sequence_length(&self) -> i64 {
        self.tokens.size()[1]
    }
}

impl Weighted for Batch {
    fn target_tokens(&self) -> i64 {
        self.target_tokens
    }
}
