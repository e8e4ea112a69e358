//! The plan: what stands between a recipe's words and a model's tensors. Pure data, made without allocating.

mod axis;
mod exemption;
mod layer;
mod model;
mod module;
mod picture;
mod render;
mod state;
mod summary;

pub use axis::{Axis, Embedded};
pub use exemption::{Exemption, Law};
pub use layer::{LayerPlan, MatrixPlan, MixerPlan};
pub(crate) use model::ACTIVATIONS;
pub use model::{EndPlan, ModelPlan, Totals};
pub(crate) use module::registry_finding;
pub use module::{ChildPlan, Flops, InputSlice, KvRole, KvShape, ModuleContext, ModulePlan, ParameterHandle};
pub use render::{bytes, grouped};
pub use state::{Groups, Growth, StateKind, StatePlan};
pub use summary::LayerSummary;
