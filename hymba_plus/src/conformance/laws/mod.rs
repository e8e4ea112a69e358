//! The laws: for each, which examples are tried and how one is judged.

mod dependence;
mod layouts;
mod neutral;
mod numerics;
mod plans;
mod prefix;
mod sharing;
mod values;

use tch::Kind;
use torch_bridge::Result;

use super::{case::Case, harness::Spec, judge::Judge, layout::Layout, noise::Noise};
use crate::{
    model::slot::sequence_mixer,
    plan::{KvRole, Law},
    registry::Slot,
};

/// Meta tokens of the examples that have some.
pub(super) const META: i64 = 3;

/// How a law is proved.
pub(super) struct Proof {
    /// The examples, small ones first.
    pub(super) examples: fn(&Spec, &mut Noise) -> Vec<Layout>,
    /// Judges one of them.
    pub(super) check: Check,
}

/// Judges an example.
type Check = Box<dyn Fn(&Spec, &Layout, &mut Judge) -> Result<()>>;

/// The proof of a law, or why it says nothing about a component.
pub(super) fn proof(law: Law, case: &Case, spec: &Spec) -> std::result::Result<Proof, &'static str> {
    let proof = |examples, check: fn(&Spec, &Layout, &mut Judge) -> Result<()>| {
        Ok(Proof { examples, check: Box::new(check) })
    };
    if law == Law::NeutralNone {
        let case = case.clone();
        return if !case.is_none() {
            Err("it is not `none`")
        } else if neutral::SLOTS.contains(&case.slot.as_str()) {
            let check: Check = Box::new(move |_, layout, judge| neutral::neutral(&case, layout, judge));
            Ok(Proof { examples: neutral::examples, check })
        } else {
            Err("the slot is not one of a model's")
        };
    }
    if case.slot != sequence_mixer::NAME {
        return Err("it is a law of sequence mixers");
    }
    let plan = spec.plan(&spec.component, KvRole::Own, 0).ok();
    match law {
        Law::OutputAsPlanned => proof(plans::examples, plans::output),
        Law::StateAsPlanned => proof(plans::examples, plans::state),
        Law::ParametersAsPlanned | Law::Causality if case.is_none() => Err("`none` depends on nothing"),
        Law::ParametersAsPlanned => proof(numerics::parts, numerics::parameters),
        Law::Causality => proof(dependence::examples, dependence::causality),
        Law::Window => match plan.and_then(|_| spec.subject(0, Kind::Double).ok()?.window()) {
            Some(_) => proof(dependence::windows, dependence::window),
            None => Err("it has no window"),
        },
        Law::SplitInvariance => proof(layouts::splits, layouts::split),
        Law::BatchInvariance => proof(layouts::batches, layouts::batch),
        Law::Padding => proof(layouts::paddings, layouts::padding),
        Law::PackedDocuments => proof(layouts::packings, layouts::packing),
        Law::MetaPrefix => proof(prefix::examples, prefix::prefix),
        Law::SharedKeys => match plan.and_then(|plan| plan.kv_shape) {
            Some(_) => proof(sharing::examples, sharing::shared_keys),
            None => Err("it has no keys and values to share"),
        },
        Law::StateSelection => proof(values::selections, values::selection),
        Law::StatesAreValues => proof(values::examples, values::values),
        Law::SaveAndLoad => proof(values::examples, values::save_and_load),
        Law::Determinism => proof(values::examples, values::determinism),
        Law::Gradients => proof(numerics::slopes, numerics::gradient),
        Law::Precision => proof(numerics::precisions, numerics::precision),
        Law::NeutralNone => Err("it is not `none`"),
    }
}

/// So many tokens are more than a window, a convolution and a few chunks hold.
fn long(spec: &Spec) -> usize {
    let window = spec.subject(0, Kind::Double).ok().and_then(|subject| subject.window());
    2 * window.unwrap_or(0).clamp(4, 64) as usize + 5
}
