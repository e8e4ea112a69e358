//! One layer at run time.

use std::collections::BTreeMap;

use tch::Tensor;
use torch_bridge::{Error, Result};

use super::{
    AuxiliaryLoss, Call, Inputs, Observers, Statistics,
    build::{Builder, Matrix, build_module},
    config::OutProjection,
    slot::{ChannelMixerModule, FusionModule, MixerModule, NormModule},
};
use crate::{
    plan::{InputSlice, KvRole, LayerPlan},
    state::{Span, State},
};

/// A mixer, the slices it reads, and its name.
#[derive(Debug)]
struct Branch {
    name: String,
    slices: Vec<InputSlice>,
    /// Whether it has keys and values, its own or shared.
    has_kv: bool,
    mixer: Box<dyn MixerModule>,
}

/// The mixers of a layer with everything around them.
#[derive(Debug)]
struct Mixing {
    norm: Box<dyn NormModule>,
    in_projection: Vec<Matrix>,
    branches: Vec<Branch>,
    fusion: Box<dyn FusionModule>,
    out_projection: Vec<Matrix>,
    per_branch: bool,
}

/// A layer: a residual block of mixers, then one of a channel mixer.
#[derive(Debug)]
pub(crate) struct Layer {
    index: usize,
    kv: KvRole,
    mixing: Option<Mixing>,
    channel: Option<(Box<dyn NormModule>, Box<dyn ChannelMixerModule>)>,
    dropout: f64,
}

/// What producers share with later layers of the pass: by layer, a view for each mixer that has keys and values.
pub(crate) type Views = BTreeMap<usize, Vec<Option<State>>>;

impl Layer {
    pub(super) fn build(plan: &LayerPlan, builder: &Builder<'_>) -> Result<Self> {
        let mixing = match (&plan.norm, &plan.fusion) {
            (Some((norm, norm_plan)), Some((fusion, fusion_plan))) => {
                let branch = |mixer: &crate::plan::MixerPlan| -> Result<Branch> {
                    Ok(Branch {
                        name: mixer.name.clone(),
                        slices: mixer.module.inputs.clone(),
                        has_kv: mixer.module.kv_shape.is_some(),
                        mixer: build_module!(mixer.component, &mixer.module, builder)?,
                    })
                };
                Some(Mixing {
                    norm: build_module!(norm, norm_plan, builder)?,
                    in_projection: builder.matrices(&plan.in_projection)?,
                    branches: plan.mixers.iter().map(branch).collect::<Result<_>>()?,
                    fusion: build_module!(fusion, fusion_plan, builder)?,
                    per_branch: plan.config.out_projection == OutProjection::PerBranch,
                    out_projection: builder.matrices(&plan.out_projection)?,
                })
            }
            _ => None,
        };
        let channel = match (&plan.channel_norm, &plan.channel_mixer) {
            (Some((norm, norm_plan)), Some((mixer, mixer_plan))) => {
                Some((build_module!(norm, norm_plan, builder)?, build_module!(mixer, mixer_plan, builder)?))
            }
            _ => None,
        };
        Ok(Self { index: plan.index, kv: plan.kv, mixing, channel, dropout: plan.config.dropout })
    }

    /// `x [batch, time, d_model]` and the states of this layer's mixers, before and initial, to the output and the
    /// states after.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        states: &[State],
        initial: &[State],
        span: &Span,
        views: &mut Views,
        observers: Observers<'_>,
    ) -> Result<(Tensor, Vec<State>)> {
        let plain = State::empty();
        let call = Call { span, initial: &plain, shared: None, observers };
        let (mut x, mut after, mut mixed) = (x.shallow_clone(), Vec::new(), None);
        if let Some(mixing) = &self.mixing {
            let (y, states, published) = self.mix(mixing, &x, states, initial, views, &call)?;
            if self.kv == KvRole::Producer {
                views.insert(self.index, published);
            }
            call.tap(|| format!("layers.{}.mixer", self.index), &y);
            mixed = Some(self.drop(&y, span)?);
            after = states;
        }
        if let Some((norm, mixer)) = &self.channel {
            let normed = match &mixed {
                Some(y) => {
                    if let Some((normed, sum)) = norm.forward_after_addition(y, &x)? {
                        x = sum;
                        normed
                    } else {
                        x = &x + y;
                        norm.forward(&x)?
                    }
                }
                None => norm.forward(&x)?,
            };
            mixed = Some(self.drop(&mixer.forward(&normed, &call)?, span)?);
        }
        if let Some(y) = mixed {
            x = &x + y;
        }
        call.tap(|| format!("layers.{}.out", self.index), &x);
        Ok((x, after))
    }

    /// The losses that the channel mixer adds to the task's.
    pub(super) fn auxiliary_losses(&self, statistics: &Statistics) -> Result<Vec<AuxiliaryLoss>> {
        self.channel.as_ref().map_or(Ok(Vec::new()), |(_, mixer)| mixer.auxiliary_losses(statistics))
    }

    /// Lets the channel mixer adjust its buffers.
    pub(super) fn rebalance(&self, statistics: &Statistics) -> Result<()> {
        self.channel.as_ref().map_or(Ok(()), |(_, mixer)| mixer.rebalance(statistics))
    }

    fn mix(
        &self,
        mixing: &Mixing,
        x: &Tensor,
        states: &[State],
        initial: &[State],
        views: &Views,
        call: &Call<'_>,
    ) -> Result<(Tensor, Vec<State>, Vec<Option<State>>)> {
        if states.len() != mixing.branches.len() || initial.len() != states.len() {
            let (got, want) = (states.len(), mixing.branches.len());
            return Err(Error::other(format!(
                "layer {}: {got} mixer states, the layer has {want} mixers",
                self.index
            )));
        }
        let mut slices = mixing.project(&mixing.norm.forward(x)?, |y| {
            call.tap(|| format!("layers.{}.in_proj", self.index), y);
        })?;
        let (mut outputs, mut after, mut published) = (Vec::new(), Vec::new(), Vec::new());
        for (i, branch) in mixing.branches.iter().enumerate() {
            // The n-th mixer with keys and values reads those of the producer's n-th.
            let nth = mixing.branches[..i].iter().filter(|before| before.has_kv).count();
            let shared = match self.kv {
                KvRole::Consumer { producer } if branch.has_kv => {
                    views.get(&producer).and_then(|views| views.get(nth)?.as_ref())
                }
                _ => None,
            };
            let call = Call { initial: &initial[i], shared, ..*call };
            let inputs = Inputs::new(std::mem::take(&mut slices[i]));
            let output = branch.mixer.forward(&inputs, &states[i], &call)?;
            call.tap(|| format!("layers.{}.branch.{}", self.index, branch.name), &output.y);
            outputs.push(output.y);
            after.push(output.state);
            if branch.has_kv {
                published.push(output.view);
            }
        }
        if mixing.per_branch {
            let projected = outputs.iter().zip(&mixing.out_projection).map(|(y, matrix)| matrix.forward(y));
            outputs = projected.collect::<Result<_>>()?;
        }
        let fused = mixing.fusion.forward(&outputs, call)?;
        let y = match mixing.out_projection.first() {
            Some(matrix) if !mixing.per_branch => matrix.forward(&fused)?,
            _ => fused,
        };
        Ok((y, after, published))
    }

    fn drop(&self, y: &Tensor, span: &Span) -> Result<Tensor> {
        if self.dropout == 0.0 || !span.training {
            return Ok(y.shallow_clone());
        }
        Ok(y.f_dropout(self.dropout, true)?)
    }
}

impl Mixing {
    /// The in-projection of a normed input, cut into the slices of each branch.
    fn project(&self, x: &Tensor, tap: impl Fn(&Tensor)) -> Result<Vec<BTreeMap<String, Tensor>>> {
        let slices = self.branches.iter().flat_map(|branch| &branch.slices);
        let widths = slices.filter(|slice| !slice.raw).map(|slice| slice.rows);
        let projected: Vec<Tensor> = match self.in_projection.as_slice() {
            [fused] => {
                let y = fused.forward(x)?;
                tap(&y);
                y.f_split_with_sizes(widths.collect::<Vec<_>>(), -1)?
            }
            separate => separate.iter().map(|matrix| matrix.forward(x)).collect::<Result<_>>()?,
        };
        let mut projected = projected.into_iter();
        let mut slice = |slice: &InputSlice| {
            let tensor = if slice.raw { Some(x.shallow_clone()) } else { projected.next() };
            let tensor =
                tensor.ok_or_else(|| Error::other("the in-projection has fewer slices than planned"))?;
            Ok((slice.name.clone(), tensor))
        };
        self.branches.iter().map(|branch| branch.slices.iter().map(&mut slice).collect()).collect()
    }
}
