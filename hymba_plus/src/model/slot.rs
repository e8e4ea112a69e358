//! The model's slots: what a component of each must be able to do.
//!
//! A component is its configuration: a struct that plans (shapes, parameters, state; nothing allocated) and, given
//! the parts that its plan asked for, computes. It implements one trait, [`SequenceMixer`], [`Norm`], ..., and is
//! registered once. The `...Object` traits are what the registry holds, the `...Module` traits are configuration
//! and parts together; both come by themselves.

use tch::Tensor;
use torch_bridge::Result;

use super::{
    AuxiliaryLoss, Built, Call, CrossEntropy, HeadCall, Inputs, MixerOutput, Parts, Statistics, TokenLoss,
};
use crate::{define_slot, plan::ModulePlan, registry::Finding, state::State};

/// Declares the trait of a slot's components, the object-safe twin that the registry holds, and the module.
macro_rules! module_slot {
    (
        $(#[$doc:meta])*
        $component:ident, $object:ident, $module:ident:
        $(#[$forward_doc:meta])*
        fn forward($($argument:ident: $type:ty),*) -> $output:ty;
        $(
            $(#[$also_doc:meta])*
            fn $also:ident($($also_argument:ident: $also_type:ty),*) -> $also_output:ty { $default:expr }
        )*
    ) => {
        $(#[$doc])*
        pub trait $component: Clone + std::fmt::Debug + Send + 'static {
            /// Fills in what the module needs.
            ///
            /// # Errors
            /// A finding when the configuration contradicts itself or its surroundings.
            fn plan(&self, plan: &mut ModulePlan) -> std::result::Result<(), Finding>;

            $(#[$forward_doc])*
            ///
            /// # Errors
            /// When libtorch refuses.
            fn forward(&self, parts: &Parts, $($argument: $type),*) -> Result<$output>;

            $(
                $(#[$also_doc])*
                ///
                /// # Errors
                /// When libtorch refuses.
                #[allow(unused_variables)] // a component that has none ignores them
                fn $also(&self, parts: &Parts, $($also_argument: $also_type),*) -> Result<$also_output> {
                    $default
                }
            )*
        }

        /// What the registry holds for this slot.
        pub trait $object: std::fmt::Debug {
            /// Fills in what the module needs.
            ///
            /// # Errors
            /// A finding when the configuration contradicts itself or its surroundings.
            fn plan(&self, plan: &mut ModulePlan) -> std::result::Result<(), Finding>;

            /// The module, from the parts that its plan asked for.
            fn build(&self, parts: Parts) -> Box<dyn $module>;
        }

        impl<C: $component> $object for C {
            fn plan(&self, plan: &mut ModulePlan) -> std::result::Result<(), Finding> {
                $component::plan(self, plan)
            }

            fn build(&self, parts: Parts) -> Box<dyn $module> {
                Box::new(Built { config: self.clone(), parts })
            }
        }

        /// A component and its parts at work.
        pub trait $module: std::fmt::Debug + Send {
            $(#[$forward_doc])*
            ///
            /// # Errors
            /// When libtorch refuses.
            fn forward(&self, $($argument: $type),*) -> Result<$output>;

            $(
                $(#[$also_doc])*
                ///
                /// # Errors
                /// When libtorch refuses.
                fn $also(&self, $($also_argument: $also_type),*) -> Result<$also_output>;
            )*

            /// The parts that its plan asked for.
            fn parts(&self) -> &Parts;
        }

        impl<C: $component> $module for Built<C> {
            fn forward(&self, $($argument: $type),*) -> Result<$output> {
                self.config.forward(&self.parts, $($argument),*)
            }

            $(
                fn $also(&self, $($also_argument: $also_type),*) -> Result<$also_output> {
                    self.config.$also(&self.parts, $($also_argument),*)
                }
            )*

            fn parts(&self) -> &Parts {
                &self.parts
            }
        }
    };
}

module_slot!(
    /// Mixes along the sequence: a function from state to state. Attention, Mamba, xLSTM, none.
    SequenceMixer, MixerObject, MixerModule:
    /// `x`: the planned slices, each `[batch, time, rows]`; the result `y` is `[batch, time, output_width]`.
    ///
    /// `call.initial` is the state that a document starts from: where `call.span.resets` is true, the token before
    /// does not exist and that state stands in its place.
    fn forward(x: &Inputs, state: &State, call: &Call<'_>) -> MixerOutput;
);
module_slot!(
    /// Mixes the channels of one token: SwiGLU, GELU, mixture of experts, none.
    ChannelMixer, ChannelMixerObject, ChannelMixerModule:
    /// `[batch, time, d_model]` to `[batch, time, d_model]`, each token by itself.
    fn forward(x: &Tensor, call: &Call<'_>) -> Tensor;
    /// Losses that it adds to the task's, from what its passes recorded by [`Call::record`] under `parts.plan.name`.
    fn auxiliary_losses(statistics: &Statistics) -> Vec<AuxiliaryLoss> { Ok(Vec::new()) }
    /// Adjusts its buffers after an optimizer step, by what the passes of that step recorded.
    fn rebalance(statistics: &Statistics) -> () { Ok(()) }
);
module_slot!(
    /// Normalises the last dimension: RMSNorm, LayerNorm, none.
    Norm, NormObject, NormModule:
    /// `[..., input_width]` to `[..., input_width]`.
    fn forward(x: &Tensor) -> Tensor;
    /// The norm of `x + residual`, and that sum, in one pass; nothing where there is no such pass, and the caller adds.
    fn forward_after_addition(x: &Tensor, residual: &Tensor) -> Option<(Tensor, Tensor)> { Ok(None) }
    /// The weight `[input_width]` and `eps` of `x / sqrt(mean(x^2) + eps) * weight`, if that is what it computes: a fusion
    /// joins it with what follows.
    fn root_mean_square() -> Option<(Tensor, f64)> { Ok(None) }
);
module_slot!(
    /// Tells queries and keys where they stand: RoPE and its variants, none.
    Position, PositionObject, PositionModule:
    /// Marks queries or keys `[batch, heads, time, head_dim]` with `positions [batch or 1, time]`.
    fn forward(x: &Tensor, positions: &Tensor) -> Tensor;
);
module_slot!(
    /// Joins the branches of a layer: mean, learned beta, concat, none.
    Fusion, FusionObject, FusionModule:
    /// Joins branches `[batch, time, width_i]` into `[batch, time, output_width]`.
    fn forward(branches: &[Tensor], call: &Call<'_>) -> Tensor;
);
module_slot!(
    /// Turns inputs into vectors: token ids, images, series. A parameter `weight [vocab_size, d_model]` is what a tied
    /// head shares.
    Embedding, EmbeddingObject, EmbeddingModule:
    /// Inputs, `[batch, ...]` (token ids: `[batch, time]`), to `[rows, time, d_model]`: a row for each input, or several
    /// (one for each channel of a series).
    fn forward(inputs: &Tensor) -> Tensor;
    /// Brings a head's outputs `[rows, ...]` back to `[batch, ...]` and to the units of `inputs`, where `forward` changed
    /// them: joins the rows of an input, undoes its normalisation. Left as they are unless the component says otherwise.
    fn restore(outputs: &Tensor, inputs: &Tensor) -> Tensor { Ok(outputs.shallow_clone()) }
);
module_slot!(
    /// Turns the last hidden vectors into outputs: logits, classes, forecasts. One that uses the embedding's matrix
    /// asks its plan by [`ModulePlan::tied`].
    Head, HeadObject, HeadModule:
    /// Hidden vectors `[batch, time, d_model]` to outputs.
    fn forward(hidden: &Tensor, call: HeadCall<'_>) -> Tensor;
    /// The cross-entropy of the outputs as logits, for a head that has it without making them all; left out, it is taken
    /// of what `forward` gives.
    fn cross_entropy(hidden: &Tensor, loss: &TokenLoss<'_>, call: HeadCall<'_>) -> Option<CrossEntropy> { Ok(None) }
);

define_slot!(/** Mixes along the sequence: attention, state-space models, recurrent networks. */ sequence_mixer: dyn MixerObject);
define_slot!(/** Mixes the channels of one token: feed-forward networks, experts. */ channel_mixer: dyn ChannelMixerObject);
define_slot!(/** Normalises vectors. */ norm: dyn NormObject);
define_slot!(/** Tells queries and keys where they stand. */ position: dyn PositionObject);
define_slot!(/** Joins the branches of a layer. */ fusion: dyn FusionObject);
define_slot!(/** Turns inputs into vectors. */ embedding: dyn EmbeddingObject);
define_slot!(/** Turns the last hidden vectors into outputs. */ head: dyn HeadObject);
