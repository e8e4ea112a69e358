//! States of constant shape: what a CUDA graph of a decoding step reads and writes.
//!
//! A cache that grows gets places for entries that do not exist yet, in front; their position is -1, which makes them
//! invisible. A step appends an entry and drops the oldest place, so that the shape stays.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use crate::{
    plan::{Growth, ModelPlan, StatePlan},
    state::{ModelState, State, expand_batch},
};

/// The growing state by which a mixer knows which entries exist.
const POSITION: &str = "position";

/// Why the states of a model cannot be kept at a constant shape, if so.
pub fn obstacle(plan: &ModelPlan) -> Option<String> {
    for layer in &plan.layers {
        for mixer in &layer.mixers {
            let states = &mixer.module.states;
            let grows = |state: &&StatePlan| !matches!(state.growth, Growth::Fixed | Growth::Prefix);
            let positions = states.iter().any(|state| state.name == POSITION);
            if let Some(state) = states.iter().find(grows) {
                let name = format!("`{}` of layer {}", state.name, layer.index);
                if states.iter().any(|state| matches!(state.growth, Growth::Groups(_) | Growth::Ungrouped(_)))
                {
                    return Some(format!("{name} changes its shape as its entries become codes"));
                }
                if !positions {
                    return Some(format!("{name} grows and does not say which of its entries exist"));
                }
            }
        }
    }
    None
}

/// Whether a cache of the model grows for ever.
pub fn is_unbounded(plan: &ModelPlan) -> bool {
    plan.states().any(|(_, _, state)| state.growth == Growth::Unbounded)
}

/// A copy of a state, of `rows` rows, with places for `capacity` text tokens (for as many as its window, where there is
/// one that is smaller).
///
/// # Errors
/// When the state is not one of the plan's model, or libtorch refuses.
pub fn padded(plan: &ModelPlan, state: &ModelState, rows: i64, capacity: i64) -> Result<ModelState> {
    let own = |tensor: &Tensor| -> Result<Tensor> { Ok(expand_batch(tensor, rows)?.f_detach_copy()?) };
    let layers = each(plan, state, |plan, tensor| match plan.growth {
        Growth::Prefix => Ok(tensor.shallow_clone()),
        Growth::Window(window) => own(&with_places(plan, tensor, window.min(capacity))?),
        Growth::Unbounded => own(&with_places(plan, tensor, capacity)?),
        _ => own(tensor),
    })?;
    Ok(ModelState { layers, next_position: own(&state.next_position)?, uniform_position: None })
}

fn with_places(plan: &StatePlan, tensor: &Tensor, places: i64) -> Result<Tensor> {
    let Some(dim) = plan.growing else { return Ok(tensor.shallow_clone()) };
    let mut size = tensor.size();
    let missing = places - size[dim];
    if missing <= 0 {
        return Ok(tensor.shallow_clone());
    }
    size[dim] = missing;
    let nothing = if tensor.kind() == Kind::Int64 { -1 } else { 0 };
    let front = Tensor::f_full(size, nothing, (tensor.kind(), tensor.device()))?;
    Ok(Tensor::f_cat(&[&front, tensor], dim as i64)?)
}

/// Writes the state after a step into the one before it, of [`padded`], the newest entries of what has grown.
///
/// # Errors
/// When a state is not one of the plan's model, or their shapes do not fit.
pub fn write_back(plan: &ModelPlan, to: &ModelState, from: &ModelState) -> Result<()> {
    let write = |to: &Tensor, from: &Tensor| -> Result<()> {
        if to.data_ptr() != from.data_ptr() {
            to.shallow_clone().f_copy_(from)?;
        }
        Ok(())
    };
    for (plan, (to, from)) in plan.layers.iter().zip(to.layers.iter().zip(&from.layers)) {
        for (mixer, (to, from)) in plan.mixers.iter().zip(to.iter().zip(from)) {
            for state in &mixer.module.states {
                let (to, from) = (to.get(&state.name)?, from.get(&state.name)?);
                match state.growing {
                    Some(dim) if state.growth != Growth::Prefix => {
                        let (kept, now) = (to.size()[dim], from.size()[dim]);
                        write(to, &from.f_narrow(dim as i64, now - kept, kept)?)?;
                    }
                    _ => write(to, from)?,
                }
            }
        }
    }
    write(&to.next_position, &from.next_position)
}

fn each(
    plan: &ModelPlan,
    state: &ModelState,
    f: impl Fn(&StatePlan, &Tensor) -> Result<Tensor>,
) -> Result<Vec<Vec<State>>> {
    let of_mixer = |plans: &[StatePlan], state: &State| {
        plans.iter().try_fold(state.share(), |next, plan| {
            let tensor = f(plan, state.get(&plan.name)?)?;
            Ok(next.with(&plan.name, tensor))
        })
    };
    plan.layers
        .iter()
        .zip(&state.layers)
        .map(|(plan, states)| {
            plan.mixers
                .iter()
                .zip(states)
                .map(|(mixer, state)| of_mixer(&mixer.module.states, state))
                .collect()
        })
        .collect()
}
