//! The harness: builds a mixer from its specification alone and drives it as a layer of a model would, with random
//! slices in place of projections.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};
use torch_bridge::{Error, Result};

use super::noise::{noise, value};
use crate::{
    model::{
        Call, Inputs, Observers,
        build::Builder,
        slot::{MixerModule, sequence_mixer},
    },
    params::{Parameter, Parameters},
    plan::{Exemption, KvRole, ModuleContext, ModulePlan},
    registry::{Component, Finding},
    state::{ModelState, Span, SpanInput, State},
};

/// Tensors by name: slices of inputs, or parameters.
pub(super) type Tensors = BTreeMap<String, Tensor>;

/// What the laws are proved of: a component with a configuration, at a width.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) component: Component<sequence_mixer>,
    /// The mixer of a layer that reads this one's keys and values.
    pub(super) consumer: Component<sequence_mixer>,
    pub(super) d_model: i64,
    pub(super) seed: u64,
}

/// A mixer's place in a subject: what it is, what it is called there, and where its parameters and inputs come from.
pub(super) struct Place<'a> {
    pub(super) component: &'a Component<sequence_mixer>,
    pub(super) role: KvRole,
    /// Names by which the laws know a parameter or an input slice, from the names of the plan.
    pub(super) key: &'a dyn Fn(&str) -> String,
}

impl Spec {
    /// The plan of a component in its role.
    pub(super) fn plan(
        &self,
        component: &Component<sequence_mixer>,
        role: KvRole,
        meta_tokens: i64,
    ) -> std::result::Result<ModulePlan, Vec<Finding>> {
        let context = ModuleContext {
            d_model: self.d_model,
            n_layers: 2,
            layer: Some(usize::from(matches!(role, KvRole::Consumer { .. }))),
            meta_tokens,
            initializer_range: 0.02,
            max_positions: None,
            vocab_size: None,
            tie_embeddings: false,
            embedded: None,
            kv: role,
        };
        let mut plan = ModulePlan::new(context, PREFIX, &component.kind, self.d_model);
        match component.make() {
            Ok(object) => plan.run(|plan| object.plan(plan)),
            Err(error) => return Err(vec![crate::plan::registry_finding(&component.kind, &error)]),
        }
        let findings = plan.take_findings();
        if findings.is_empty() { Ok(plan) } else { Err(findings) }
    }

    /// What the component declares it cannot keep.
    pub(super) fn exemptions(&self, meta_tokens: i64) -> Vec<Exemption> {
        let plan = self.plan(&self.component, KvRole::Own, meta_tokens);
        plan.map(|plan| plan.all_exemptions()).unwrap_or_default()
    }

    /// The mixer by itself.
    pub(super) fn subject(&self, meta_tokens: i64, kind: Kind) -> Result<Subject> {
        let place = Place { component: &self.component, role: KvRole::Own, key: &str::to_owned };
        Subject::new(self, &[place], meta_tokens, kind)
    }
}

/// Prefix of parameters in plans.
const PREFIX: &str = "mixer";

/// One mixer of a subject.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) plan: ModulePlan,
    module: Box<dyn MixerModule>,
    /// Name of each slice in the plan, name among the subject's inputs, width.
    slices: Vec<(String, String, i64)>,
}

/// Mixers with their parameters, ready to be called: one by itself, or a producer with a consumer of its keys, whose
/// outputs then stand side by side.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) parts: Vec<Part>,
    /// Parameters that are trained, in `kind`, leaves.
    pub(super) leaves: Tensors,
    /// Parameters that are not.
    pub(super) buffers: Tensors,
    pub(super) kind: Kind,
    pub(super) meta_tokens: i64,
}

/// What a call gives.
#[derive(Debug)]
pub(super) struct Pass {
    /// `[batch, time, width]`, in the caller's order of tokens.
    pub(super) y: Tensor,
    pub(super) state: ModelState,
}

impl Subject {
    /// Plans and builds mixers that stand one after another; parameters and inputs of one key are one tensor.
    pub(super) fn new(spec: &Spec, places: &[Place<'_>], meta_tokens: i64, kind: Kind) -> Result<Self> {
        Self::with((Tensors::new(), Tensors::new()), spec, places, meta_tokens, kind)
    }

    /// Mixers that use the parameters of another subject, by their keys.
    pub(super) fn like(other: &Self, spec: &Spec, places: &[Place<'_>], meta_tokens: i64) -> Result<Self> {
        let handles =
            |tensors: &Tensors| tensors.iter().map(|(key, x)| (key.clone(), x.shallow_clone())).collect();
        let known = (handles(&other.leaves), handles(&other.buffers));
        Self::with(known, spec, places, meta_tokens, other.kind)
    }

    fn with(
        (mut leaves, mut buffers): (Tensors, Tensors),
        spec: &Spec,
        places: &[Place<'_>],
        meta_tokens: i64,
        kind: Kind,
    ) -> Result<Self> {
        let mut parts = Vec::new();
        for place in places {
            let plan = spec.plan(place.component, place.role, meta_tokens).map_err(|findings| {
                let all: Vec<_> = findings.iter().map(ToString::to_string).collect();
                Error::other(format!("the plan is refused: {}", all.join("; ")))
            })?;
            let mut list = Vec::new();
            for parameter in plan.all_parameters() {
                let name = parameter.name.strip_prefix(PREFIX).unwrap_or(&parameter.name);
                let key = (place.key)(name.trim_start_matches('.'));
                let own = if parameter.keep_float && kind != Kind::Double { Kind::Float } else { kind };
                let known = if parameter.trained { &mut leaves } else { &mut buffers };
                if !known.contains_key(&key) {
                    let tensor = value(&parameter, spec.seed, &key)?.f_to_kind(own)?;
                    known.insert(key.clone(), tensor.f_set_requires_grad(parameter.trained)?);
                }
                let tensor = known[&key].shallow_clone();
                list.push(Parameter { plan: parameter, tensor });
            }
            let parameters = Parameters::of(list);
            let module = built(place.component, &plan, &parameters)?;
            let slices = plan.inputs.iter();
            let slices = slices.map(|slice| (slice.name.clone(), (place.key)(&slice.name), slice.rows));
            let slices = slices.collect();
            parts.push(Part { plan, module, slices });
        }
        Ok(Self { parts, leaves, buffers, kind, meta_tokens })
    }

    /// Random inputs, leaves: `[batch, longest, width]` for text and `[1, meta_tokens, width]` for meta tokens.
    pub(super) fn streams(&self, batch: usize, longest: usize, seed: u64) -> Result<Streams> {
        let draw = |what: &str, batch: usize, time: i64| -> Result<Tensors> {
            let slices = self.parts.iter().flat_map(|part| &part.slices);
            let slices = slices.map(|(_, key, width)| {
                let values = noise(seed, &format!("{what}.{key}"), &[batch as i64, time, *width])?;
                Ok((key.clone(), values.f_to_kind(self.kind)?.f_set_requires_grad(true)?))
            });
            slices.collect()
        };
        Ok(Streams {
            text: draw("text", batch, longest as i64)?,
            meta: draw("meta", 1, self.meta_tokens)?,
            seed,
        })
    }

    /// A state without any token in it.
    pub(super) fn empty(&self) -> Result<ModelState> {
        let state = |part: &Part| -> Result<Vec<State>> {
            Ok(vec![State::without_tokens(&part.plan.states, Device::Cpu, self.kind)?])
        };
        Ok(ModelState {
            layers: self.parts.iter().map(state).collect::<Result<_>>()?,
            next_position: Tensor::f_zeros([1], (Kind::Int64, Device::Cpu))?,
            uniform_position: Some(0),
        })
    }

    /// The state that meta tokens `[batch, meta_tokens, width]` leave behind.
    pub(super) fn prefix(&self, meta: &Tensors, batch: i64) -> Result<ModelState> {
        let empty = self.empty()?;
        if self.meta_tokens == 0 {
            return Ok(empty);
        }
        let mut span = Span::prefix(self.meta_tokens, Device::Cpu, false)?;
        span.batch = batch;
        let pass = self.pass(meta, &empty, &empty, &span)?;
        let next_position = Tensor::f_full([1], self.meta_tokens, (Kind::Int64, Device::Cpu))?;
        Ok(ModelState { next_position, uniform_position: Some(self.meta_tokens), ..pass.state })
    }

    /// The state that every document starts from.
    pub(super) fn initial(&self, streams: &Streams) -> Result<ModelState> {
        self.prefix(&streams.meta, 1)
    }

    /// Text `[batch, time, width]` on from a state, with the caller's padding and document starts.
    pub(super) fn call(
        &self,
        x: &Tensors,
        size: [i64; 2],
        state: &ModelState,
        initial: &ModelState,
        input: SpanInput<'_>,
    ) -> Result<Pass> {
        let span = Span::text(size[0], size[1], state, self.meta_tokens, input)?;
        let compact: Result<Tensors> = x.iter().map(|(key, x)| Ok((key.clone(), span.compact(x)?))).collect();
        let pass = self.pass(&compact?, state, initial, &span)?;
        let (next_position, uniform_position) = span.next_position(state)?;
        Ok(Pass {
            y: span.restore(&pass.y)?,
            state: ModelState { next_position, uniform_position, ..pass.state },
        })
    }

    /// A span as it is; positions of the returned state are those of the given one.
    pub(super) fn pass(
        &self,
        x: &Tensors,
        state: &ModelState,
        initial: &ModelState,
        span: &Span,
    ) -> Result<Pass> {
        let (mut outputs, mut layers, mut view) = (Vec::new(), Vec::new(), None);
        for (index, part) in self.parts.iter().enumerate() {
            let slice = |(name, key, _): &(String, String, i64)| (name.clone(), x[key].shallow_clone());
            let inputs = Inputs::new(part.slices.iter().map(slice).collect());
            let shared = match part.plan.context.kv {
                KvRole::Consumer { .. } => view.as_ref(),
                _ => None,
            };
            let initial = &initial.layers[index][0];
            let call = Call { span, initial, shared, observers: Observers::default() };
            let output = part.module.forward(&inputs, &state.layers[index][0], &call)?;
            outputs.push(output.y);
            layers.push(vec![output.state]);
            view = output.view.or(view);
        }
        let y = match outputs.as_slice() {
            [one] => one.shallow_clone(),
            many => Tensor::f_cat(many, -1)?,
        };
        let next_position = state.next_position.shallow_clone();
        Ok(Pass { y, state: ModelState { layers, next_position, uniform_position: None } })
    }

    /// Width of the output.
    pub(super) fn width(&self) -> i64 {
        self.parts.iter().map(|part| part.plan.output_width).sum()
    }

    /// Text tokens that a token sees, itself among them; none when it sees all.
    pub(super) fn window(&self) -> Option<i64> {
        let plan = &self.parts.first()?.plan;
        plan.flops.window.or_else(|| plan.kv_shape.as_ref()?.window)
    }
}

/// The module of a component, with its parameters.
pub(super) fn built(
    component: &Component<sequence_mixer>,
    plan: &ModulePlan,
    parameters: &Parameters,
) -> Result<Box<dyn MixerModule>> {
    let object = component.make().map_err(|error| Error::other(error.to_string()))?;
    Ok(object.build(Builder { parameters }.parts(plan)?))
}

/// The inputs of a run.
#[derive(Debug)]
pub(super) struct Streams {
    /// The tokens of each row, `[batch, longest, width]`.
    pub(super) text: Tensors,
    /// The meta tokens, `[1, meta_tokens, width]`.
    pub(super) meta: Tensors,
    /// What they were drawn from; padding and loss weights come from it too.
    pub(super) seed: u64,
}

impl Streams {
    /// The tokens of chosen rows, repeats allowed.
    pub(super) fn rows(&self, rows: &[usize]) -> Result<Self> {
        let index = Tensor::f_from_slice(&rows.iter().map(|&row| row as i64).collect::<Vec<_>>())?;
        let pick = |(key, x): (&String, &Tensor)| Ok((key.clone(), x.f_index_select(0, &index)?));
        let text = self.text.iter().map(pick).collect::<Result<_>>()?;
        let meta = self.meta.iter().map(|(key, x)| (key.clone(), x.shallow_clone())).collect();
        Ok(Self { text, meta, seed: self.seed })
    }
}
