//! Samples that are found by index: images, windows of a series.

use std::sync::Arc;

use serde_json::Value;
use tch::Device;

use super::{DataError, Fingerprint, Loader, Weighted, part_size, shuffle::Shuffle};

/// A finite set of samples, each made or found by its index alone.
pub trait Samples {
    /// What samples are put together into.
    type Batch: Weighted;

    /// How many there are.
    fn len(&self) -> u64;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those samples, in that order, on `device`.
    ///
    /// # Errors
    /// When one cannot be read, or libtorch refuses (out of memory).
    fn batch(&self, indices: &[u64], device: Device) -> Result<Self::Batch, DataError>;

    /// What decides the samples.
    fn fingerprint(&self) -> Fingerprint;
}

/// Samples in a new order every epoch. A batch may span the border of two epochs, so within an epoch every sample comes
/// exactly once, whatever the batch size.
#[derive(Debug, Clone)]
pub struct Shuffled<S> {
    samples: Arc<S>,
    shuffle: Shuffle,
    device: Device,
    fingerprint: Fingerprint,
}

impl<S: Samples> Shuffled<S> {
    /// The order of the samples that belongs to a seed.
    ///
    /// # Errors
    /// When there are no samples.
    pub fn new(samples: Arc<S>, seed: u64, device: Device) -> Result<Self, DataError> {
        if samples.is_empty() {
            return Err(DataError::NoSamples { split: "training" });
        }
        let fingerprint = samples.fingerprint().with("seed", seed).with("training samples", samples.len());
        Ok(Self { shuffle: Shuffle::new(samples.len(), seed), samples, device, fingerprint })
    }

    /// The epoch of the next sample, from 0.
    pub fn epoch(&self) -> u64 {
        self.shuffle.epoch()
    }
}

impl<S: Samples> Loader for Shuffled<S> {
    type Batch = S::Batch;

    fn next_batches(&mut self, batch_size: usize, parts: usize) -> Result<Vec<S::Batch>, DataError> {
        let size = part_size(batch_size, parts)?;
        let part = |_| {
            let indices: Vec<u64> = (0..size).map(|_| self.shuffle.next()).collect();
            self.samples.batch(&indices, self.device)
        };
        (0..parts).map(part).collect()
    }

    fn state(&self) -> Value {
        self.shuffle.state()
    }

    fn restore(&mut self, state: &Value) -> Result<(), DataError> {
        self.shuffle.restore(state, "sample")
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }
}

/// Every sample once, in order, `batch_size` (at least 1) at a time; the last batch may be smaller.
pub fn in_order<S: Samples>(
    samples: &S,
    batch_size: usize,
    device: Device,
) -> impl Iterator<Item = Result<S::Batch, DataError>> + '_ {
    let (len, size) = (samples.len(), batch_size.max(1) as u64);
    (0..len.div_ceil(size)).map(move |part| {
        let indices: Vec<u64> = (part * size..len.min((part + 1) * size)).collect();
        samples.batch(&indices, device)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The indices themselves.
    #[derive(Debug)]
    struct Numbers(u64);

    impl Weighted for Vec<u64> {
        fn target_tokens(&self) -> i64 {
            self.len() as i64
        }
    }

    impl Samples for Numbers {
        type Batch = Vec<u64>;

        fn len(&self) -> u64 {
            self.0
        }

        fn batch(&self, indices: &[u64], _device: Device) -> Result<Vec<u64>, DataError> {
            Ok(indices.to_vec())
        }

        fn fingerprint(&self) -> Fingerprint {
            Fingerprint::default().with("numbers", self.0)
        }
    }

    fn shuffled(len: u64) -> Shuffled<Numbers> {
        Shuffled::new(Arc::new(Numbers(len)), 7, Device::Cpu).unwrap()
    }

    #[test]
    fn an_epoch_has_every_sample_once_and_a_restored_loader_goes_on() {
        let mut loader = shuffled(12);
        let seen: Vec<u64> = (0..12).flat_map(|_| loader.next_batches(5, 5).unwrap().concat()).collect();
        for epoch in seen.chunks(12) {
            let mut epoch = epoch.to_vec();
            epoch.sort_unstable();
            assert_eq!(epoch, (0..12).collect::<Vec<_>>());
        }
        assert_ne!(seen[..12], seen[12..24]);
        assert_eq!(loader.epoch(), 5);
        let mut other = shuffled(12);
        other.restore(&loader.state()).unwrap();
        assert_eq!(other.next_batches(7, 1).unwrap(), loader.next_batches(7, 1).unwrap());
        let error = other.restore(&serde_json::json!({ "epoch": 0, "index": 12 })).unwrap_err().to_string();
        assert!(error.contains("sample 12 of an epoch of 12"), "{error}");
        assert!(loader.next_batches(8, 3).is_err());
        let none = Shuffled::new(Arc::new(Numbers(0)), 7, Device::Cpu).unwrap_err().to_string();
        assert!(none.contains("training split has no samples"), "{none}");
    }

    #[test]
    fn in_order_gives_each_once_and_a_short_last_batch() {
        let all: Vec<Vec<u64>> = in_order(&Numbers(7), 3, Device::Cpu).map(Result::unwrap).collect();
        assert_eq!(all, [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
    }
}
