//! `none` adds nothing: no parameters, no state, the input or zero as it is.

use tch::{Device, Kind, Tensor};
use torch_bridge::{Error, Result};

use super::{Case, META};
use crate::{
    conformance::{harness::Spec, judge::Judge, layout::Layout, noise::Noise, noise::noise},
    model::{
        Call, HeadCall, Inputs, Observers,
        build::Builder,
        slot::{
            ChannelMixerObject, HeadObject, MixerObject, NormObject, PositionObject, channel_mixer, fusion,
            head, norm, position, sequence_mixer,
        },
    },
    params::Parameters,
    plan::{KvRole, ModuleContext, ModulePlan},
    registry::{Component, Finding, Slot},
    state::{Span, State},
};

/// Slots of which the law is proved.
pub(super) const SLOTS: [&str; 6] =
    [sequence_mixer::NAME, channel_mixer::NAME, norm::NAME, position::NAME, fusion::NAME, head::NAME];

pub(super) fn examples(_spec: &Spec, _noise: &mut Noise) -> Vec<Layout> {
    vec![Layout::plain(0, 1, &[1]), Layout::plain(META, 2, &[3])]
}

pub(super) fn neutral(case: &Case, layout: &Layout, judge: &mut Judge) -> Result<()> {
    let (batch, time, width) = (layout.batch() as i64, layout.longest() as i64, case.settings.d_model);
    let span = Span::prefix(time, Device::Cpu, false)?;
    let state = State::empty();
    let call = Call { span: &span, initial: &state, shared: None, observers: Observers::default() };
    let x = noise(1, "x", &[batch, time, width])?;
    let y = match case.slot.as_str() {
        sequence_mixer::NAME => {
            let (plan, object) = planned::<sequence_mixer>(case, judge, MixerObject::plan)?;
            let slices = plan.inputs.iter();
            let slices = slices.map(|slice| (slice.name.clone(), x.f_narrow(2, 0, slice.rows)));
            let slices = slices.map(|(name, x)| Ok((name, x?))).collect::<Result<_>>()?;
            let output = object.build(parts(&plan)?).forward(&Inputs::new(slices), &state, &call)?;
            if output.state.iter().next().is_some() || output.view.is_some() {
                judge.refuse("state", "`none` keeps one");
            }
            judge.same(
                "y",
                &output.y,
                &Tensor::f_zeros([batch, time, plan.output_width], (x.kind(), Device::Cpu))?,
            )?;
            return Ok(());
        }
        channel_mixer::NAME => {
            let (plan, object) = planned::<channel_mixer>(case, judge, ChannelMixerObject::plan)?;
            let y = object.build(parts(&plan)?).forward(&x, &call)?;
            return judge.same("y", &y, &x.f_zeros_like()?);
        }
        norm::NAME => {
            let (plan, object) = planned::<norm>(case, judge, NormObject::plan)?;
            object.build(parts(&plan)?).forward(&x)?
        }
        position::NAME => {
            let (plan, object) = planned::<position>(case, judge, PositionObject::plan)?;
            let heads = x.f_unsqueeze(1)?;
            object.build(parts(&plan)?).forward(&heads, &span.positions)?.f_squeeze_dim(1)?
        }
        fusion::NAME => {
            let (plan, object) = planned::<fusion>(case, judge, |object, plan| {
                plan.input("0", width);
                object.plan(plan)
            })?;
            object.build(parts(&plan)?).forward(&[x.shallow_clone()], &call)?
        }
        head::NAME => {
            let (plan, object) = planned::<head>(case, judge, HeadObject::plan)?;
            object.build(parts(&plan)?).forward(&x, HeadCall { tied: None, training: false })?
        }
        other => return Err(Error::other(format!("the law is not proved for the slot {other}"))),
    };
    judge.same("y", &y, &x)
}

/// The object of a case and its plan, which must ask for nothing.
fn planned<S: Slot>(
    case: &Case,
    judge: &mut Judge,
    plan: impl FnOnce(&S::Object, &mut ModulePlan) -> std::result::Result<(), Finding>,
) -> Result<(ModulePlan, Box<S::Object>)> {
    let context = ModuleContext {
        d_model: case.settings.d_model,
        n_layers: 1,
        layer: None,
        meta_tokens: 0,
        initializer_range: 0.02,
        max_positions: None,
        vocab_size: None,
        tie_embeddings: false,
        embedded: None,
        kv: KvRole::Own,
    };
    let object = Component::<S>::new(&case.kind, case.config.clone());
    let object = object.make().map_err(|error| Error::other(error.to_string()))?;
    let mut module = ModulePlan::new(context, "stub", &case.kind, case.settings.d_model);
    module.run(|module| plan(&object, module));
    if let Some(finding) = module.take_findings().first() {
        judge.refuse("plan", finding.to_string());
    }
    if !module.all_parameters().is_empty() || !module.states.is_empty() || module.flops.per_token > 0.0 {
        judge.refuse("plan", "`none` asks for parameters, a state or arithmetic");
    }
    Ok((module, object))
}

fn parts(plan: &ModulePlan) -> Result<crate::model::Parts> {
    Builder { parameters: &Parameters::allocate(&plan.all_parameters(), Device::Cpu, Kind::Double, 0)? }
        .parts(plan)
}
