//! Where batches come from: a source with a position that can be saved.

use serde_json::Value;

use super::{DataError, Fingerprint, Weighted};

/// An endless source of batches. Two loaders of equal fingerprint and equal state give equal batches for ever.
pub trait Loader {
    /// What a micro-batch is.
    type Batch: Weighted;

    /// The next `batch_size` samples, cut into `parts` micro-batches of equal size, in order.
    ///
    /// # Errors
    /// When `parts` does not divide `batch_size`, or a batch cannot be made.
    fn next_batches(&mut self, batch_size: usize, parts: usize) -> Result<Vec<Self::Batch>, DataError>;

    /// The position after the last batch given, as JSON.
    fn state(&self) -> Value;

    /// Goes to a saved position.
    ///
    /// # Errors
    /// When the state is not one of this loader's.
    fn restore(&mut self, state: &Value) -> Result<(), DataError>;

    /// What decides the batches besides the position.
    fn fingerprint(&self) -> Fingerprint;
}

/// Samples per part, when the parts are equal.
pub(crate) fn part_size(batch_size: usize, parts: usize) -> Result<usize, DataError> {
    for (name, value) in [("batch_size", batch_size), ("accumulation", parts)] {
        if value == 0 {
            return Err(DataError::Zero { name });
        }
    }
    if !batch_size.is_multiple_of(parts) {
        let below = (batch_size / parts).max(1) * parts;
        let above = batch_size.div_ceil(parts).saturating_mul(parts);
        return Err(DataError::Indivisible { batch_size, accumulation: parts, below, above });
    }
    Ok(batch_size / parts)
}
