//! The validation split in order, every token once.

use std::sync::Arc;

use tch::Device;

use super::{Batch, DataError, TokenStream, stream::Rows};

/// Windows of the validation stream in order. Every token of every document, and the end of each, is a target exactly
/// once; the last row is filled with pads whose targets are ignored.
#[derive(Debug, Clone)]
pub struct ValidationBlocks {
    stream: Arc<TokenStream>,
    sequence_length: usize,
    batch_size: usize,
    pad: u32,
    device: Device,
}

impl ValidationBlocks {
    /// Windows over a stream, `batch_size` at a time.
    ///
    /// # Errors
    /// When the stream has no target at all, or a size is zero.
    pub fn new(
        stream: Arc<TokenStream>,
        sequence_length: usize,
        batch_size: usize,
        pad: u32,
        device: Device,
    ) -> Result<Self, DataError> {
        for (name, value) in [("sequence_length", sequence_length), ("batch_size", batch_size)] {
            if value == 0 {
                return Err(DataError::Zero { name });
            }
        }
        if stream.len() < 2 {
            return Err(DataError::TooShort { split: "validation", tokens: stream.len(), sequence_length });
        }
        Ok(Self { stream, sequence_length, batch_size, pad, device })
    }

    /// Number of targets over all batches.
    pub fn target_tokens(&self) -> u64 {
        self.stream.targets() as u64
    }

    /// The batches, in order; the last may have fewer rows.
    pub fn batches(&self) -> impl Iterator<Item = Result<Batch, DataError>> + '_ {
        let windows = self.stream.targets().div_ceil(self.sequence_length);
        (0..windows).step_by(self.batch_size).map(move |first| {
            let mut rows = Rows::default();
            for window in first..windows.min(first + self.batch_size) {
                self.stream.window(window * self.sequence_length, self.sequence_length, self.pad, &mut rows);
            }
            Batch::new(&rows.tokens, &rows.targets, &rows.resets, self.sequence_length, self.device)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::{IGNORE_INDEX, Weighted};

    proptest! {
        #[test]
        fn every_token_is_a_target_exactly_once(tokens in 2_u32..60, length in 1_usize..9, batch in 1_usize..5) {
            let ids: Vec<u32> = (1..tokens).collect();
            let stream = Arc::new(TokenStream::from_documents([ids.as_slice()], 0));
            let blocks = ValidationBlocks::new(stream.clone(), length, batch, 99, Device::Cpu).unwrap();
            let batches: Vec<Batch> = blocks.batches().collect::<Result<_, _>>().unwrap();
            let counted: i64 = batches.iter().map(Weighted::target_tokens).sum();
            prop_assert_eq!(counted as u64, blocks.target_tokens());
            let targets: Vec<i64> = batches
                .iter()
                .flat_map(|batch| Vec::<i64>::try_from(batch.targets.reshape([-1])).unwrap())
                .filter(|&target| target != IGNORE_INDEX)
                .collect();
            let expected: Vec<i64> = stream.tokens()[1..].iter().map(|&token| i64::from(token)).collect();
            prop_assert_eq!(targets, expected);
        }
    }

    #[test]
    fn nothing_to_predict_is_refused() {
        let stream = Arc::new(TokenStream::from_documents([], 0));
        assert!(ValidationBlocks::new(stream, 4, 1, 0, Device::Cpu).is_err());
    }
}
