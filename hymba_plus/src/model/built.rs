//! A module at run time: configuration, tensors, and what one call hands it.

use std::collections::BTreeMap;

use tch::Tensor;
use torch_bridge::{Error, Result};

use super::{
    observe::Observers,
    slot::{NormModule, PositionModule},
};
use crate::{
    plan::ModulePlan,
    state::{Span, State},
};

/// The parts of a module that its plan asked for.
#[derive(Debug)]
pub struct Parts {
    /// The plan.
    pub plan: ModulePlan,
    /// Parameters by the name that the plan used.
    pub parameters: BTreeMap<String, Tensor>,
    /// Norms inside the module.
    pub norms: BTreeMap<String, Box<dyn NormModule>>,
    /// Position encodings inside the module.
    pub positions: BTreeMap<String, Box<dyn PositionModule>>,
}

impl Parts {
    /// The parameter that the plan declared under this name.
    ///
    /// # Errors
    /// When the plan declared none.
    pub fn parameter(&self, name: &str) -> Result<&Tensor> {
        self.parameters.get(name).ok_or_else(|| self.undeclared("parameter", name))
    }

    /// The parameter, or none when the plan left it out.
    pub fn optional_parameter(&self, name: &str) -> Option<&Tensor> {
        self.parameters.get(name)
    }

    /// The norm that the plan declared under this name.
    ///
    /// # Errors
    /// When the plan declared none.
    pub fn norm(&self, name: &str) -> Result<&dyn NormModule> {
        self.norms.get(name).map(AsRef::as_ref).ok_or_else(|| self.undeclared("norm", name))
    }

    /// The position encoding that the plan declared under this name.
    ///
    /// # Errors
    /// When the plan declared none.
    pub fn position(&self, name: &str) -> Result<&dyn PositionModule> {
        self.positions.get(name).map(AsRef::as_ref).ok_or_else(|| self.undeclared("position", name))
    }

    fn undeclared(&self, what: &str, name: &str) -> Error {
        let module = &self.plan.name;
        Error::other(format!("module `{module}` uses the {what} `{name}`, which its plan does not declare"))
    }
}

/// A component's configuration together with its parts: what computes.
#[derive(Debug)]
pub struct Built<C> {
    /// The configuration.
    pub config: C,
    /// Parameters and inner modules.
    pub parts: Parts,
}

/// The slices of the layer's in-projection that a mixer asked for, each `[batch, time, rows]`.
#[derive(Debug)]
pub struct Inputs {
    slices: BTreeMap<String, Tensor>,
}

impl Inputs {
    /// Slices by name.
    pub fn new(slices: BTreeMap<String, Tensor>) -> Self {
        Self { slices }
    }

    /// The slice of that name.
    ///
    /// # Errors
    /// When the plan did not ask for it.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.slices.get(name).ok_or_else(|| {
            let known: Vec<_> = self.slices.keys().map(String::as_str).collect();
            Error::other(format!("no input slice `{name}`; the plan asked for: {}", known.join(", ")))
        })
    }
}

/// What a mixer returns.
#[derive(Debug)]
pub struct MixerOutput {
    /// `[batch, time, output_width]`.
    pub y: Tensor,
    /// The state after the call.
    pub state: State,
    /// What the later layers of its group may read in this pass (keys and values), if it is their producer.
    pub view: Option<State>,
}

impl From<(Tensor, State)> for MixerOutput {
    fn from((y, state): (Tensor, State)) -> Self {
        Self { y, state, view: None }
    }
}

/// What every module of a pass is told: the tokens, the state that documents start from, what a producer shares.
#[derive(Debug)]
pub struct Call<'a> {
    /// The tokens.
    pub span: &'a Span,
    /// The state of this mixer that a document starts from.
    pub initial: &'a State,
    /// What this layer's producer shares, if the layer consumes.
    pub shared: Option<&'a State>,
    /// Who watches the pass.
    pub observers: Observers<'a>,
}

impl Call<'_> {
    /// Hands an intermediate result to whoever asked for taps; free when no one did.
    pub fn tap(&self, name: impl FnOnce() -> String, tensor: &Tensor) {
        if let Some(taps) = self.observers.taps {
            taps.set(name(), tensor);
        }
    }

    /// Adds to the sum `name` of a module for whoever asked for statistics; free when no one did.
    ///
    /// # Errors
    /// When the sum cannot be made, or has another shape than before.
    pub fn record(&self, module: &str, name: &str, value: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        self.observers.statistics.map_or(Ok(()), |statistics| statistics.add(module, name, &value()?))
    }
}

/// What a head is told besides the hidden vectors.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeadCall<'a> {
    /// The embedding's matrix, if the head's plan asked for it and the model ties them.
    pub tied: Option<&'a Tensor>,
    /// Whether dropout is active.
    pub training: bool,
}
