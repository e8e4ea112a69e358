//! The core of hymba_plus: registry, recipes, plans, parameters, states and models.
//!
//! It names no concrete component: attention, Mamba, norms and the rest live in the `components` crate, or in a
//! user's own, and reach the model through the [`registry`].

#[allow(unused_extern_crates)] // the attribute macro writes `::hymba_plus::...` in this crate too
extern crate self as hymba_plus;

pub mod config;
pub mod conformance;
pub mod generate;
pub mod model;
pub mod params;
pub mod plan;
pub mod reference;
pub mod registry;
pub mod state;
pub mod testing;
pub mod weights;

pub use hymba_plus_macros::component_config;
#[doc(hidden)]
pub use {inventory, schemars, serde, serde_json};

/// What a component's file needs.
pub mod prelude {
    pub use tch::{Kind, Tensor};
    pub use torch_bridge::{Error, Result};

    pub use crate::{
        component_config, conformance,
        model::{
            AuxiliaryLoss, Call, CrossEntropy, HeadCall, Inputs, MixerOutput, Parts, Statistics, TokenLoss,
            slot::*,
        },
        params::Init,
        plan::{Embedded, Groups, Growth, KvRole, KvShape, Law, ModulePlan, StateKind},
        register,
        registry::{Component, Finding},
        state::{Phase, Span, State, expand_batch},
    };
}
