//! What a format of foreign weights gives: the slot `weight_format`.

use serde_json::{Map, Value};

use super::{ForeignConfig, Mapping};
use crate::{define_slot, plan::ModelPlan};

define_slot!(/** How other libraries store models: their config.json and the names of their tensors. */ weight_format: dyn WeightFormat);

/// By what a format is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// The key `model_type` of its configurations.
    pub model_type: &'static str,
    /// The classes (key `architectures`) whose weights it reads, the one that it writes first.
    pub architectures: &'static [&'static str],
}

/// A format of foreign weights.
pub trait WeightFormat: std::fmt::Debug {
    /// By what it is recognised.
    fn signature(&self) -> Signature;

    /// The `model` section that computes what the configuration describes. What cannot be reproduced is refused through
    /// `config`; every key that has an effect must be read, every other one named there.
    fn model_section(&self, config: &mut ForeignConfig) -> Value;

    /// The configuration of a model, without `model_type`, `architectures`, the type of the weights and token ids.
    /// Whatever it leaves out must have the foreign default: the result is read back by
    /// [`model_section`](Self::model_section) and must give the same model.
    ///
    /// # Errors
    /// What the format has no words for, one reason each.
    fn config(&self, plan: &ModelPlan) -> Result<Map<String, Value>, Vec<String>>;

    /// Where each parameter of a model lies in the foreign tensors.
    fn mapping(&self, plan: &ModelPlan) -> Mapping;

    /// Keys of components that an export may lose: those that only training sees, and widths that the plan repeats.
    fn silent_keys(&self) -> &'static [&'static str] {
        &[]
    }
}
