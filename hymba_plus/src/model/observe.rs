//! What a pass tells whoever watches it: intermediate results, and sums over its tokens.

use std::{cell::RefCell, collections::BTreeMap};

use tch::Tensor;
use torch_bridge::Result;

/// Who watches a pass; watching changes nothing of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Observers<'a> {
    /// Where named intermediate results go.
    pub taps: Option<&'a Taps>,
    /// Where sums over tokens go.
    pub statistics: Option<&'a Statistics>,
}

impl<'a> Observers<'a> {
    /// Only taps.
    pub fn taps(taps: &'a Taps) -> Self {
        Self { taps: Some(taps), statistics: None }
    }

    /// Only statistics.
    pub fn statistics(statistics: &'a Statistics) -> Self {
        Self { taps: None, statistics: Some(statistics) }
    }
}

/// Intermediate results by name: `layers.3.in_proj`, `layers.3.branch.attention`, `layers.3.mixer`, `layers.3.out`.
#[derive(Debug, Default)]
pub struct Taps(RefCell<BTreeMap<String, Tensor>>);

impl Taps {
    /// The result of that name, if the pass made it.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.0.borrow().get(name).map(Tensor::shallow_clone)
    }

    /// Names of all results, sorted.
    pub fn names(&self) -> Vec<String> {
        self.0.borrow().keys().cloned().collect()
    }

    pub(super) fn set(&self, name: String, tensor: &Tensor) {
        self.0.borrow_mut().insert(name, tensor.shallow_clone());
    }
}

/// Sums over the tokens of one or several passes, by module and name: what a router counts, for its losses and its
/// balance. The meta tokens, run once, count once; micro-batches add up.
#[derive(Debug, Default)]
pub struct Statistics(RefCell<BTreeMap<(String, String), Tensor>>);

impl Statistics {
    /// Adds to the sum `name` of a module (`layers.3.channel_mixer`).
    ///
    /// # Errors
    /// When the shape differs from what was added before.
    pub fn add(&self, module: &str, name: &str, value: &Tensor) -> Result<()> {
        let key = (module.to_owned(), name.to_owned());
        let mut sums = self.0.borrow_mut();
        let sum = match sums.get(&key) {
            Some(sum) => sum.f_add(value)?,
            None => value.shallow_clone(),
        };
        sums.insert(key, sum);
        Ok(())
    }

    /// The sum `name` of a module, if there is one.
    pub fn get(&self, module: &str, name: &str) -> Option<Tensor> {
        self.0.borrow().get(&(module.to_owned(), name.to_owned())).map(Tensor::shallow_clone)
    }

    /// Copies of the sums.
    ///
    /// # Errors
    /// When libtorch refuses (out of memory).
    pub fn f_copy(&self) -> Result<Self> {
        let mut copies = BTreeMap::new();
        for (key, sum) in self.0.borrow().iter() {
            copies.insert(key.clone(), sum.f_detach_copy()?);
        }
        Ok(Self(RefCell::new(copies)))
    }

    /// The same sums without history, added to those of `other`.
    ///
    /// # Errors
    /// When a shape differs.
    pub fn detach_into(&self, other: &Self) -> Result<()> {
        for ((module, name), sum) in self.0.borrow().iter() {
            other.add(module, name, &sum.f_detach()?)?;
        }
        Ok(())
    }
}

/// A loss that a module adds to that of the task: of balance, of size.
#[derive(Debug)]
pub struct AuxiliaryLoss {
    /// Name of the kind of loss, the same for all modules that have it: `aux_loss`, `z_loss`.
    pub name: &'static str,
    /// What it is multiplied by in the sum.
    pub weight: f64,
    /// Its value, a differentiable scalar `[]`.
    pub value: Tensor,
}
