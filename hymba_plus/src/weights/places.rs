//! Where a layer's projections keep the rows of each mixer, fused or separate.

use super::Part;
use crate::{
    model::config::{InProjection, OutProjection},
    plan::LayerPlan,
};

/// The rows of a mixer's slice in the weight of the in-projection: `[rows, d_model]`.
pub fn slice_weight(layer: &LayerPlan, mixer: &str, slice: &str) -> Part {
    slice_of(layer, mixer, slice, "weight")
}

/// The same rows of the in-projection's bias: `[rows]`.
pub fn slice_bias(layer: &LayerPlan, mixer: &str, slice: &str) -> Part {
    slice_of(layer, mixer, slice, "bias")
}

/// The matrix that brings a mixer's branch back to `d_model`: the shared one, or the branch's own.
pub fn out_weight(layer: &LayerPlan, mixer: &str) -> Part {
    out_of(layer, mixer, "weight")
}

/// The bias beside [`out_weight`].
pub fn out_bias(layer: &LayerPlan, mixer: &str) -> Part {
    out_of(layer, mixer, "bias")
}

fn slice_of(layer: &LayerPlan, mixer: &str, slice: &str, suffix: &str) -> Part {
    let prefix = format!("layers.{}.in_proj", layer.index);
    if layer.config.in_projection == InProjection::Separate {
        return Part::whole(format!("{prefix}.{mixer}.{slice}.{suffix}"));
    }
    let mut start = 0;
    for plan in &layer.mixers {
        // A raw slice is no part of the projection.
        for input in plan.module.inputs.iter().filter(|input| !input.raw) {
            if plan.name == mixer && input.name == slice {
                return Part::whole(format!("{prefix}.{suffix}")).rows(start, input.rows);
            }
            start += input.rows;
        }
    }
    // No such slice: a name that no plan has, so that the table is refused with it.
    Part::whole(format!("{prefix}.{mixer}.{slice}.{suffix}"))
}

fn out_of(layer: &LayerPlan, mixer: &str, suffix: &str) -> Part {
    let prefix = format!("layers.{}.out_proj", layer.index);
    Part::whole(match layer.config.out_projection {
        OutProjection::PerBranch => format!("{prefix}.{mixer}.{suffix}"),
        OutProjection::Shared | OutProjection::None => format!("{prefix}.{suffix}"),
    })
}
