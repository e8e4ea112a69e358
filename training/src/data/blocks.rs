//! Shuffled windows of a token stream: the batches of pretraining.

use std::sync::Arc;

use serde_json::Value;
use tch::Device;

use super::{Batch, DataError, Fingerprint, Loader, TokenStream, part_size, shuffle::Shuffle, stream::Rows};

/// Windows of `sequence_length` tokens, in a new order every epoch.
///
/// The stream is cut into windows that follow each other; the tokens after the last whole window are not seen. A batch
/// may span the border of two epochs, so within an epoch every window comes exactly once, whatever the batch size.
#[derive(Debug, Clone)]
pub struct Blocks {
    stream: Arc<TokenStream>,
    sequence_length: usize,
    device: Device,
    shuffle: Shuffle,
    fingerprint: Fingerprint,
}

impl Blocks {
    /// Windows over a stream, from the first of epoch 0. `data` is the fingerprint of what the stream was made from.
    ///
    /// # Errors
    /// When the stream is shorter than one window and its next token.
    pub fn new(
        stream: Arc<TokenStream>,
        sequence_length: usize,
        seed: u64,
        device: Device,
        data: Fingerprint,
    ) -> Result<Self, DataError> {
        if sequence_length == 0 {
            return Err(DataError::Zero { name: "sequence_length" });
        }
        if stream.len() <= sequence_length {
            return Err(DataError::TooShort { split: "training", tokens: stream.len(), sequence_length });
        }
        let fingerprint = data
            .with("seed", seed)
            .with("sequence_length", sequence_length)
            .with("training tokens", stream.len());
        let shuffle = Shuffle::new((stream.targets() / sequence_length) as u64, seed);
        Ok(Self { stream, sequence_length, device, shuffle, fingerprint })
    }

    /// Windows in an epoch.
    pub fn windows(&self) -> u64 {
        self.shuffle.len()
    }

    /// Tokens at the end of the stream that fill no window, without the one that is the last target.
    pub fn dropped_tokens(&self) -> u64 {
        self.stream.targets() as u64 % self.sequence_length as u64
    }

    /// The epoch of the next window, from 0.
    pub fn epoch(&self) -> u64 {
        self.shuffle.epoch()
    }
}

impl Loader for Blocks {
    type Batch = Batch;

    fn next_batches(&mut self, batch_size: usize, parts: usize) -> Result<Vec<Batch>, DataError> {
        let size = part_size(batch_size, parts)?;
        (0..parts)
            .map(|_| {
                let mut rows = Rows::default();
                for _ in 0..size {
                    let start = self.shuffle.next() as usize * self.sequence_length;
                    self.stream.window(start, self.sequence_length, 0, &mut rows);
                }
                Batch::new(&rows.tokens, &rows.targets, &rows.resets, self.sequence_length, self.device)
            })
            .collect()
    }

    fn state(&self) -> Value {
        self.shuffle.state()
    }

    fn restore(&mut self, state: &Value) -> Result<(), DataError> {
        self.shuffle.restore(state, "window")
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(tokens: u32) -> Arc<TokenStream> {
        let ids: Vec<u32> = (1..tokens - 1).collect();
        Arc::new(TokenStream::from_documents([ids.as_slice()], 0))
    }

    fn blocks(tokens: u32, sequence_length: usize) -> Blocks {
        Blocks::new(stream(tokens), sequence_length, 7, Device::Cpu, Fingerprint::default()).unwrap()
    }

    fn starts(batches: &[Batch]) -> Vec<i64> {
        batches.iter().flat_map(|batch| Vec::<i64>::try_from(batch.tokens.select(1, 0)).unwrap()).collect()
    }

    #[test]
    fn windows_targets_and_resets() {
        let documents: [&[u32]; 3] = [&[5, 6], &[7], &[8, 9]];
        let stream = Arc::new(TokenStream::from_documents(documents, 0)); // 0 5 6 0 7 0 8 9 0
        let mut blocks = Blocks::new(stream, 4, 1, Device::Cpu, Fingerprint::default()).unwrap();
        assert_eq!((blocks.windows(), blocks.dropped_tokens()), (2, 0));
        let batch = blocks.next_batches(2, 1).unwrap().remove(0);
        let rows =
            |tensor: &tch::Tensor| Vec::<Vec<i64>>::try_from(tensor.to_kind(tch::Kind::Int64)).unwrap();
        let first = usize::from(rows(&batch.tokens)[0][1] != 5);
        assert_eq!(rows(&batch.tokens)[first], [0, 5, 6, 0]);
        assert_eq!(rows(&batch.targets)[first], [5, 6, 0, 7]);
        assert_eq!(rows(&batch.resets)[first], [1, 0, 0, 1]);
        assert_eq!(rows(&batch.tokens)[1 - first], [7, 0, 8, 9]);
        assert_eq!(rows(&batch.targets)[1 - first], [0, 8, 9, 0]);
        assert_eq!(rows(&batch.resets)[1 - first], [0, 1, 0, 0]);
        assert_eq!(crate::data::Weighted::target_tokens(&batch), 8);
    }

    #[test]
    fn an_epoch_sees_every_window_once_whatever_the_batch_size() {
        let mut blocks = blocks(50, 4); // 12 windows, 1 token dropped
        assert_eq!((blocks.windows(), blocks.dropped_tokens()), (12, 1));
        let mut seen = Vec::new();
        for _ in 0..12 {
            seen.extend(starts(&blocks.next_batches(5, 1).unwrap()));
        }
        for epoch in seen.chunks(12) {
            let mut epoch = epoch.to_vec();
            epoch.sort_unstable();
            assert_eq!(epoch, (0..12).map(|window| window * 4).collect::<Vec<_>>());
        }
        assert_ne!(seen[..12], seen[12..24]);
        assert_eq!(blocks.epoch(), 5);
    }

    #[test]
    fn parts_are_the_batch_in_order() {
        let (mut whole, mut parts) = (blocks(100, 3), blocks(100, 3));
        assert_eq!(starts(&whole.next_batches(8, 1).unwrap()), starts(&parts.next_batches(8, 4).unwrap()));
        let error = whole.next_batches(8, 3).unwrap_err().to_string();
        assert!(error.contains("are 6 and 9"), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error =
            Blocks::new(stream(4), 4, 0, Device::Cpu, Fingerprint::default()).unwrap_err().to_string();
        assert!(error.contains("4 tokens") && error.contains("sequence_length 3 or less"), "{error}");
        let error =
            blocks(50, 4).restore(&serde_json::json!({ "epoch": 0, "index": 12 })).unwrap_err().to_string();
        assert!(error.contains("window 12 of an epoch of 12"), "{error}");
        assert!(blocks(50, 4).restore(&serde_json::json!({ "place": 1 })).is_err());
    }

    proptest! {
        #[test]
        fn a_restored_loader_goes_on_as_if_nothing_had_happened(before in 0_usize..30, size in 1_usize..7) {
            let mut one = blocks(60, 4);
            for _ in 0..before {
                one.next_batches(size, 1).unwrap();
            }
            let mut two = blocks(60, 4);
            two.restore(&one.state()).unwrap();
            for _ in 0..5 {
                prop_assert_eq!(starts(&one.next_batches(size, 1).unwrap()), starts(&two.next_batches(size, 1).unwrap()));
            }
        }
    }
}
