//! An endless order over samples, with a position that can be saved.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{DataError, Permutation};

/// Every sample once in each epoch, in a new order every time.
#[derive(Debug, Clone)]
pub(super) struct Shuffle {
    len: u64,
    seed: u64,
    position: Position,
    order: Permutation,
}

/// Where the next sample comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    epoch: u64,
    index: u64,
}

impl Shuffle {
    /// The order of `len` samples (at least one) that belongs to a seed, from the first of epoch 0.
    pub(super) fn new(len: u64, seed: u64) -> Self {
        let position = Position { epoch: 0, index: 0 };
        Self { len, seed, position, order: Permutation::new(len, seed, 0) }
    }

    /// Samples in an epoch.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The epoch of the next sample, from 0.
    pub(super) fn epoch(&self) -> u64 {
        self.position.epoch
    }

    /// The next sample.
    pub(super) fn next(&mut self) -> u64 {
        let sample = self.order.get(self.position.index);
        self.position.index += 1;
        if self.position.index == self.len {
            self.go_to(Position { epoch: self.position.epoch + 1, index: 0 });
        }
        sample
    }

    /// The position as JSON.
    pub(super) fn state(&self) -> Value {
        serde_json::json!(self.position)
    }

    /// Goes to a saved position; `what` a sample is called when it does not fit.
    pub(super) fn restore(&mut self, state: &Value, what: &str) -> Result<(), DataError> {
        let position: Position = serde_json::from_value(state.clone())
            .map_err(|error| DataError::State { message: format!("{state}: {error}") })?;
        if position.index >= self.len {
            let message = format!("{what} {} of an epoch of {}", position.index, self.len);
            return Err(DataError::State { message });
        }
        self.go_to(position);
        Ok(())
    }

    fn go_to(&mut self, position: Position) {
        self.position = position;
        self.order = Permutation::new(self.len, self.seed, position.epoch);
    }
}
