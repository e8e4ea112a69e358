//! Models: what a plan is built into, and the one pass that training, prefill and decoding share.

pub(crate) mod build;
mod built;
pub mod config;
mod layer;
mod loss;
mod observe;
mod pattern;
pub mod slot;

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};
use torch_bridge::{Error, Result};

pub use built::{Built, Call, HeadCall, Inputs, MixerOutput, Parts};
pub use config::ModelConfig;
pub use loss::{CrossEntropy, TokenLoss};
pub use observe::{AuxiliaryLoss, Observers, Statistics, Taps};
pub(crate) use pattern::WINDOW;

use self::{
    build::{Builder, build_module},
    layer::{Layer, Views},
    slot::{EmbeddingModule, HeadModule, NormModule},
};
use crate::{
    params::Parameters,
    plan::{MixerPlan, ModelPlan},
    state::{ModelState, Span, SpanInput, State},
};

/// Where and in which type a model is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildOptions {
    /// Device of the parameters.
    pub device: Device,
    /// Type of the parameters; those that the plan keeps in 32 bits stay so.
    pub kind: Kind,
    /// Seed of the initial values.
    pub seed: u64,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self { device: Device::Cpu, kind: Kind::Float, seed: 0 }
    }
}

/// A model: a plan and its tensors.
#[derive(Debug)]
pub struct Model {
    plan: ModelPlan,
    parameters: Parameters,
    options: BuildOptions,
    embedding: Box<dyn EmbeddingModule>,
    layers: Vec<Layer>,
    final_norm: Box<dyn NormModule>,
    head: Box<dyn HeadModule>,
    heads: BTreeMap<String, Box<dyn HeadModule>>,
}

impl Model {
    /// Allocates exactly the plan's parameters and builds the modules around them.
    ///
    /// # Errors
    /// When libtorch refuses (out of memory), or a component is not in this binary.
    pub fn build(plan: &ModelPlan, options: BuildOptions) -> Result<Self> {
        let parameters = Parameters::allocate(&plan.parameters, options.device, options.kind, options.seed)?;
        let builder = Builder { parameters: &parameters };
        let layers = plan.layers.iter().map(|layer| Layer::build(layer, &builder)).collect::<Result<_>>()?;
        Ok(Self {
            embedding: build_module!(plan.embedding.component, &plan.embedding.module, builder)?,
            layers,
            final_norm: build_module!(plan.final_norm.component, &plan.final_norm.module, builder)?,
            head: build_module!(plan.head.component, &plan.head.module, builder)?,
            heads: plan
                .heads
                .iter()
                .map(|(name, head)| Ok((name.clone(), build_module!(head.component, &head.module, builder)?)))
                .collect::<Result<_>>()?,
            plan: plan.clone(),
            parameters,
            options,
        })
    }

    /// The plan that the model was built from.
    pub fn plan(&self) -> &ModelPlan {
        &self.plan
    }

    /// Parameters in the plan's order.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Where and in which type the model was built.
    pub fn options(&self) -> BuildOptions {
        self.options
    }

    /// The state that every document starts from: what the meta tokens leave behind, batch 1.
    ///
    /// Meta tokens come first and everything is causal, so it is the same for all documents; computing it once is
    /// exact, and the gradients of all documents sum into it.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn initial_state(&self, training: bool) -> Result<ModelState> {
        self.initial_state_observed(training, Observers::default())
    }

    /// [`initial_state`](Self::initial_state) for those who watch the meta tokens' pass.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn initial_state_observed(&self, training: bool, observers: Observers<'_>) -> Result<ModelState> {
        let empty = self.empty_state()?;
        let Some(meta) = self.parameters.get("meta_tokens") else { return Ok(empty) };
        let span = Span::prefix(self.plan.meta_tokens, self.options.device, training)?;
        let (_, state) = self.pass(&meta.tensor.f_unsqueeze(0)?, &empty, &empty, &span, observers)?;
        let next = self.plan.meta_tokens;
        let next_position = Tensor::f_full([1], next, (Kind::Int64, self.options.device))?;
        Ok(ModelState { next_position, uniform_position: Some(next), ..state })
    }

    /// Runs `inputs` (token ids `[batch, time]`, or what else the embedding reads) on from `state` and returns the
    /// hidden vectors `[batch, time, d_model]` after the final norm, in the caller's order of tokens, with the state
    /// after the call. `initial` is the state that
    /// documents start from (of [`initial_state`](Self::initial_state)); a state of batch 1 serves every row.
    ///
    /// Training is this call from the initial state; prefill, decoding, the next turn of a conversation and the
    /// checking of speculated tokens are this call on fewer tokens.
    ///
    /// # Errors
    /// When shapes do not fit or an id is outside the vocabulary.
    pub fn forward(
        &self,
        inputs: &Tensor,
        state: &ModelState,
        initial: &ModelState,
        input: SpanInput<'_>,
    ) -> Result<(Tensor, ModelState)> {
        self.forward_observed(inputs, state, initial, input, Observers::default())
    }

    /// [`forward`](Self::forward) for those who watch it.
    ///
    /// # Errors
    /// As `forward`.
    pub fn forward_observed(
        &self,
        inputs: &Tensor,
        state: &ModelState,
        initial: &ModelState,
        input: SpanInput<'_>,
        observers: Observers<'_>,
    ) -> Result<(Tensor, ModelState)> {
        let x = self.embedding.forward(inputs)?;
        let &[batch, time, _] = x.size().as_slice() else {
            let (got, inputs) = (x.size(), inputs.size());
            return Err(Error::other(format!(
                "inputs {inputs:?} were embedded as {got:?}; [batch, time, d_model] was expected"
            )));
        };
        let span = Span::text(batch, time, state, self.plan.meta_tokens, input)?;
        let (hidden, after) = self.pass(&span.compact(&x)?, state, initial, &span, observers)?;
        let (next_position, uniform_position) = span.next_position(state)?;
        Ok((span.restore(&hidden)?, ModelState { next_position, uniform_position, ..after }))
    }

    /// Outputs of the head (logits `[batch, time, vocab_size]` of a language model) for hidden vectors, without dropout.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        self.apply(self.head.as_ref(), hidden, false)
    }

    /// Runs whole inputs (images, windows of a series) from the initial state to the head's outputs, one for each input
    /// and in its units.
    ///
    /// # Errors
    /// When shapes do not fit, or libtorch refuses.
    pub fn outputs(&self, inputs: &Tensor, training: bool) -> Result<Tensor> {
        self.outputs_observed(inputs, training, Observers::default())
    }

    /// [`outputs`](Self::outputs) for those who watch it.
    ///
    /// # Errors
    /// As `outputs`.
    pub fn outputs_observed(
        &self,
        inputs: &Tensor,
        training: bool,
        observers: Observers<'_>,
    ) -> Result<Tensor> {
        let initial = self.initial_state_observed(training, observers)?;
        let input = SpanInput { training, ..SpanInput::default() };
        let (hidden, _) = self.forward_observed(inputs, &initial, &initial, input, observers)?;
        self.embedding.restore(&self.apply(self.head.as_ref(), &hidden, training)?, inputs)
    }

    /// Outputs of one of the further heads.
    ///
    /// # Errors
    /// When the model has no head of that name, or libtorch refuses.
    pub fn head_named(&self, name: &str, hidden: &Tensor) -> Result<Tensor> {
        self.apply(self.further_head(name)?, hidden, false)
    }

    fn further_head(&self, name: &str) -> Result<&dyn HeadModule> {
        self.heads.get(name).map(AsRef::as_ref).ok_or_else(|| {
            let known: Vec<_> = self.heads.keys().map(String::as_str).collect();
            Error::other(format!("the model has no head `{name}`; it has: {}", known.join(", ")))
        })
    }

    /// The loss of the main head, or of a further one by its name, without making more logits than it must.
    ///
    /// # Errors
    /// As `head_named`, and when a target is no index of the head's outputs.
    pub fn cross_entropy(
        &self,
        head: Option<&str>,
        hidden: &Tensor,
        loss: &TokenLoss<'_>,
        training: bool,
    ) -> Result<CrossEntropy> {
        let head = head.map_or(Ok(self.head.as_ref()), |name| self.further_head(name))?;
        let call = self.head_call(head, training);
        match head.cross_entropy(hidden, loss, call)? {
            Some(loss) => Ok(loss),
            None => loss.of_logits(&head.forward(hidden, call)?),
        }
    }

    fn apply(&self, head: &dyn HeadModule, hidden: &Tensor, training: bool) -> Result<Tensor> {
        head.forward(hidden, self.head_call(head, training))
    }

    fn head_call(&self, head: &dyn HeadModule, training: bool) -> HeadCall<'_> {
        let tied = head.parts().plan.tied_rows;
        let tied = tied.and_then(|_| self.embedding.parts().optional_parameter("weight"));
        HeadCall { tied, training }
    }

    /// The losses that modules add to the task's, from the statistics of the passes of one loss.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn auxiliary_losses(&self, statistics: &Statistics) -> Result<Vec<AuxiliaryLoss>> {
        let losses = self.layers.iter().map(|layer| layer.auxiliary_losses(statistics));
        Ok(losses.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Lets modules adjust their buffers, once for each optimizer step, by the statistics of all its passes.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn rebalance(&self, statistics: &Statistics) -> Result<()> {
        self.layers.iter().try_for_each(|layer| layer.rebalance(statistics))
    }

    /// A state without any token in it, not even meta tokens, batch 1.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn empty_state(&self) -> Result<ModelState> {
        let (device, compute) = (self.options.device, self.options.kind);
        let mut layers = Vec::with_capacity(self.plan.layers.len());
        for layer in &self.plan.layers {
            let empty = |mixer: &MixerPlan| State::without_tokens(&mixer.module.states, device, compute);
            let states = layer.mixers.iter().map(empty).collect::<Result<_>>()?;
            layers.push(states);
        }
        let next_position = Tensor::f_zeros([1], (Kind::Int64, device))?;
        Ok(ModelState { layers, next_position, uniform_position: Some(0) })
    }

    fn pass(
        &self,
        x: &Tensor,
        state: &ModelState,
        initial: &ModelState,
        span: &Span,
        observers: Observers<'_>,
    ) -> Result<(Tensor, ModelState)> {
        let (mut x, mut views) = (x.shallow_clone(), Views::new());
        let mut layers = Vec::with_capacity(self.layers.len());
        for (i, layer) in self.layers.iter().enumerate() {
            let (y, after) =
                layer.forward(&x, &state.layers[i], &initial.layers[i], span, &mut views, observers)?;
            x = y;
            layers.push(after);
        }
        let hidden = self.final_norm.forward(&x)?;
        let next_position = state.next_position.shallow_clone();
        Ok((hidden, ModelState { layers, next_position, uniform_position: None }))
    }
}
