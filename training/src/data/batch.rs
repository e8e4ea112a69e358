//! What one micro-batch of language-model training is.

use tch::{Device, Kind, Tensor};

use super::DataError;

/// Target of a position that is not learnt: the loss ignores it.
pub const IGNORE_INDEX: i64 = -100;

/// The shape of a scalar.
pub(crate) const NO_SIZE: &[i64] = &[];

/// Something that a loop can weigh: a micro-batch counts as much as it has targets.
pub trait Weighted {
    /// What its targets are called where their number is shown.
    const TARGETS: &'static str = "tokens";

    /// Number of targets that the loss sums over, known without asking the device.
    fn target_tokens(&self) -> i64;
}

/// A micro-batch that can take over the values of another: what a loop needs to record a step as a CUDA graph, which
/// reads the same addresses at every replay.
pub trait Recordable: Sized {
    /// All tensors, in a fixed order.
    fn tensors(&self) -> Vec<&Tensor>;

    /// The same batch with other tensors, in that order.
    #[must_use]
    fn with_tensors(&self, tensors: Vec<Tensor>) -> Self;

    /// What besides the tensors' shapes and types decides which operations a loss is made of.
    fn variant(&self) -> i64 {
        0
    }
}

/// A tensor of the host on `device`. To a GPU it goes through pinned memory, so that nobody waits.
///
/// # Errors
/// When libtorch refuses (out of memory).
pub(crate) fn to_device(tensor: &Tensor, device: Device) -> Result<Tensor, DataError> {
    if matches!(device, Device::Cuda(_)) {
        Ok(torch_bridge::tensors::to_device_without_waiting(tensor, device)?)
    } else {
        Ok(tensor.f_to_device(device)?)
    }
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
    /// Number of targets that are not ignored, a scalar `[]`, `Double`, beside the tensors.
    pub target_count: Tensor,
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
        let place = |tensor: Tensor| to_device(&tensor.f_view(shape)?, device);
        Ok(Self {
            tokens: place(Tensor::f_from_slice(tokens)?)?,
            targets: place(Tensor::f_from_slice(targets)?)?,
            resets: place(Tensor::f_from_slice(resets)?)?,
            target_count: Tensor::f_full(NO_SIZE, target_tokens, (Kind::Double, device))?,
            target_tokens,
            has_resets,
        })
    }

    /// What stands `offset` tokens after each input, `[batch, time]`: `targets` for 1. [`IGNORE_INDEX`] where that lies
    /// beyond the row, or beyond the end of the input's document (the end itself counts).
    ///
    /// # Errors
    /// When `offset` is 0, or libtorch refuses.
    pub fn targets_at(&self, offset: usize) -> Result<Tensor, DataError> {
        if offset == 0 {
            return Err(DataError::Zero { name: "offset" });
        }
        let (further, time) = ((offset - 1) as i64, self.sequence_length());
        if further >= time {
            return Ok(self.targets.f_full_like(IGNORE_INDEX)?);
        }
        let mut targets = self.targets.f_narrow(1, further, time - further)?;
        if self.has_resets {
            // No document may start after the input and before what it predicts.
            let started = self.resets.f_cumsum(1, Kind::Int64)?;
            let here = started.f_narrow(1, 0, time - further)?;
            let there = started.f_narrow(1, further, time - further)?;
            targets = targets.f_masked_fill(&here.f_ne_tensor(&there)?, IGNORE_INDEX)?;
        }
        Ok(targets.f_constant_pad_nd([0, further])?.f_index_fill(
            1,
            &Tensor::f_arange_start(time - further, time, (Kind::Int64, self.targets.device()))?,
            IGNORE_INDEX,
        )?)
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

impl Recordable for Batch {
    fn tensors(&self) -> Vec<&Tensor> {
        vec![&self.tokens, &self.targets, &self.resets, &self.target_count]
    }

    fn with_tensors(&self, tensors: Vec<Tensor>) -> Self {
        let mut tensors = tensors.into_iter();
        let mut next = |mine: &Tensor| tensors.next().unwrap_or_else(|| mine.shallow_clone());
        Self {
            tokens: next(&self.tokens),
            targets: next(&self.targets),
            resets: next(&self.resets),
            target_count: next(&self.target_count),
            target_tokens: self.target_tokens,
            has_resets: self.has_resets,
        }
    }

    fn variant(&self) -> i64 {
        self.has_resets.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_further_on_stay_within_the_row_and_the_document() {
        // Two documents in the first row (the second starts at its third input), one in the second.
        let (tokens, targets) = ([0, 5, 0, 6, 7, 1, 2, 3, 4, 5], [5, 0, 6, 7, 8, 2, 3, 4, 5, IGNORE_INDEX]);
        let resets = [true, false, true, false, false, true, false, false, false, false];
        let batch = Batch::new(&tokens, &targets, &resets, 5, Device::Cpu).unwrap();
        let at = |offset| Vec::<Vec<i64>>::try_from(batch.targets_at(offset).unwrap()).unwrap();
        let x = IGNORE_INDEX;
        assert_eq!(at(1), [&targets[..5], &targets[5..]]);
        // Input 5 sees the end of its document (the 0) next, and nothing after it.
        assert_eq!(at(2), [[0, x, 7, 8, x], [3, 4, 5, x, x]]);
        assert_eq!(at(3), [[x, x, 8, x, x], [4, 5, x, x, x]]);
        assert_eq!(at(6), [[x; 5], [x; 5]]);
        assert!(batch.targets_at(0).is_err());
    }

    #[test]
    fn a_batch_takes_over_the_tensors_of_another() {
        let batch = |first: i64, resets: bool| {
            let tokens: Vec<i64> = (first..first + 6).collect();
            Batch::new(&tokens, &tokens, &[false, resets, false, true, false, false], 3, Device::Cpu).unwrap()
        };
        let (a, b) = (batch(0, true), batch(10, true));
        let other = a.with_tensors(b.tensors().into_iter().map(Tensor::shallow_clone).collect());
        for (ours, theirs) in other.tensors().into_iter().zip(b.tensors()) {
            assert!(ours.equal(theirs));
        }
        assert_eq!((other.variant(), other.target_tokens()), (1, 6));
        assert_eq!(batch(0, false).variant(), 0);
    }
}
