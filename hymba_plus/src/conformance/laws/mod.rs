//! The laws: for each, which examples are tried and how one is judged.

mod layouts;
mod plans;

use torch_bridge::Result;

use super::{case::Case, harness::Spec, judge::Judge, layout::Layout, noise::Noise};
use crate::plan::Law;

/// Meta tokens of the examples that have some.
pub(super) const META: i64 = 3;

/// How a law is proved.
pub(super) struct Proof {
    /// The examples, small ones first.
    pub(super) examples: fn(&Spec, &mut Noise) -> Vec<Layout>,
    /// Judges one of them.
    pub(super) check: fn(&Spec, &Layout, &mut Judge) -> Result<()>,
}

/// The proof of a law, or why it says nothing about a component.
pub(super) fn proof(law: Law, _case: &Case, _spec: &Spec) -> std::result::Result<Proof, &'static str> {
    let proof = |examples, check| Ok(Proof { examples, check });
    match law {
        Law::OutputAsPlanned => proof(plans::examples, plans::output),
        Law::StateAsPlanned => proof(plans::examples, plans::state),
        Law::SplitInvariance => proof(layouts::splits, layouts::split),
        Law::BatchInvariance => proof(layouts::batches, layouts::batch),
        Law::Padding => proof(layouts::paddings, layouts::padding),
        Law::PackedDocuments => proof(layouts::packings, layouts::packing),
        _ => Err("not proved yet"),
    }
}
