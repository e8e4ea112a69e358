//! Sequence state as a value: what a layer remembers between two calls.
//!
//! `(y, state') = mixer(x, state)`: a call returns a new state and never writes the old one, so a state can be
//! kept, shared by a whole batch, rolled back to, or differentiated through.

mod span;

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};
use torch_bridge::Result;

use crate::plan::StatePlan;

pub use span::{Phase, Span, SpanInput};

/// The named tensors that one mixer carries from call to call; the first dimension of each is the batch, or 1 when
/// every sequence shares it.
#[derive(Debug, Default)]
pub struct State {
    tensors: BTreeMap<String, Tensor>,
}

impl State {
    /// A state without tensors: what a mixer without memory carries.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The planned tensors before any token, not even meta tokens: batch 1, zeros, growing dimensions empty.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn without_tokens(plans: &[StatePlan], device: Device, compute: Kind) -> Result<Self> {
        let tensor = |plan: &StatePlan| {
            let options = (plan.kind.under(compute), device);
            Ok((plan.name.clone(), Tensor::f_zeros(plan.size(1, 0), options)?))
        };
        Ok(Self { tensors: plans.iter().map(tensor).collect::<Result<_>>()? })
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// When the state has none: the mixer's plan did not declare it.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| {
            let known: Vec<_> = self.tensors.keys().map(String::as_str).collect();
            torch_bridge::Error::other(format!("state has no tensor `{name}`; it has: {}", known.join(", ")))
        })
    }

    /// The tensor of that name, if there is one.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// A new state in which `name` is `tensor` and the rest is shared with this one.
    #[must_use]
    pub fn with(&self, name: &str, tensor: Tensor) -> Self {
        let mut next = self.share();
        next.tensors.insert(name.to_owned(), tensor);
        next
    }

    /// A second handle on the same values. States are values, so this is a copy that costs nothing.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            tensors: self
                .tensors
                .iter()
                .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
                .collect(),
        }
    }

    /// Names and tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// A state whose tensors are `f` of this one's.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let tensors = self.tensors.iter().map(|(name, tensor)| Ok((name.clone(), f(tensor)?)));
        Ok(Self { tensors: tensors.collect::<Result<_>>()? })
    }
}

/// What a whole model remembers of a batch of sequences.
#[derive(Debug)]
pub struct ModelState {
    /// One state for each mixer of each layer.
    pub layers: Vec<Vec<State>>,
    /// Position of each sequence's next token, `[batch or 1]` int64; meta tokens took the first positions.
    pub next_position: Tensor,
    /// The same on the host, when no row was ever padded or packed; lets calls skip per-row masks.
    pub uniform_position: Option<i64>,
}

impl ModelState {
    /// A second handle on the same values: a snapshot to roll back to.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            layers: self.layers.iter().map(|layer| layer.iter().map(State::share).collect()).collect(),
            next_position: self.next_position.shallow_clone(),
            uniform_position: self.uniform_position,
        }
    }

    /// The state in which row `i` is this one's row `rows[i]`: reorders a batch (beam search), repeats or drops rows.
    /// What the `batch` rows share (first dimension 1), they share after it too.
    ///
    /// # Errors
    /// When a row index is out of range, or a tensor has neither one row nor `batch` rows.
    pub fn select(&self, rows: &Tensor, batch: i64) -> Result<Self> {
        let pick = |tensor: &Tensor| -> Result<Tensor> {
            if tensor.size().first() == Some(&1) {
                return Ok(tensor.shallow_clone());
            }
            Ok(expand_batch(tensor, batch)?.f_index_select(0, rows)?)
        };
        Ok(Self {
            layers: self.map_layers(pick)?,
            next_position: pick(&self.next_position)?,
            uniform_position: self.uniform_position,
        })
    }

    /// The same values without history: gradients do not flow into earlier calls.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn detach(&self) -> Result<Self> {
        Ok(Self {
            layers: self.map_layers(|tensor| Ok(tensor.f_detach()?))?,
            next_position: self.next_position.shallow_clone(),
            uniform_position: self.uniform_position,
        })
    }

    /// Bytes that the tensors of the state take.
    pub fn bytes(&self) -> u64 {
        let size = |tensor: &Tensor| tensor.numel() as u64 * tensor.kind().elt_size_in_bytes() as u64;
        self.layers.iter().flatten().flat_map(State::iter).map(|(_, tensor)| size(tensor)).sum()
    }

    fn map_layers(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Vec<Vec<State>>> {
        self.layers.iter().map(|layer| layer.iter().map(|state| state.map(&f)).collect()).collect()
    }
}

/// A tensor whose first dimension is 1 as a view of `batch` rows; any other tensor as it is.
///
/// # Errors
/// When the first dimension is neither 1 nor `batch`.
pub fn expand_batch(tensor: &Tensor, batch: i64) -> Result<Tensor> {
    let mut size = tensor.size();
    if size.first() == Some(&batch) {
        return Ok(tensor.shallow_clone());
    }
    if let Some(first) = size.first_mut() {
        *first = batch;
    }
    Ok(tensor.f_expand(size, false)?)
}
