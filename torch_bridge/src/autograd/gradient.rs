//! Gradients of graphs.

use std::borrow::Borrow;

use tch::Tensor;

use crate::error::Result;
use crate::ffi::{self, TensorList};

/// How [`grad`] treats the graph.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GradOptions {
    /// Keep what the graph has saved, so that it can be used again. Implied by `create_graph`.
    pub retain_graph: bool,
    /// Record the gradients' own graph, so that they can be differentiated again.
    pub create_graph: bool,
    /// Return `None` for an input that the outputs do not depend on, instead of an error.
    pub allow_unused: bool,
}

/// The gradients of `outputs` with respect to `inputs`; nothing is accumulated into `.grad` of any leaf.
///
/// `grad_outputs` has one entry per output, of the output's shape; `None` stands for one in a scalar output, and is
/// all that may be left out.
///
/// # Errors
/// An output has no graph or one that was freed, an input is unused (without `allow_unused`), shapes do not match, or
/// a backward in the graph fails.
pub fn grad<O, I>(
    outputs: &[O],
    grad_outputs: Option<&[Option<Tensor>]>,
    inputs: &[I],
    options: GradOptions,
) -> Result<Vec<Option<Tensor>>>
where
    O: Borrow<Tensor>,
    I: Borrow<Tensor>,
{
    let outputs = TensorList::new(outputs.iter().map(|tensor| Some(tensor.borrow())));
    let inputs = TensorList::new(inputs.iter().map(|tensor| Some(tensor.borrow())));
    let grad_outputs = grad_outputs.map(optional_list);
    let grads = TensorList::empty();
    // SAFETY: all lists are alive for the call and the last one is only ours.
    let code = unsafe {
        ffi::hb_grad(
            outputs.as_ptr(),
            inputs.as_ptr(),
            grad_outputs.as_ref().map_or(std::ptr::null(), TensorList::as_ptr),
            (options.retain_graph || options.create_graph).into(),
            options.create_graph.into(),
            options.allow_unused.into(),
            grads.as_mut_ptr(),
        )
    };
    ffi::check(code, || "grad")?;
    Ok(grads.to_vec())
}

/// Runs the graphs of `tensors` backwards and adds the gradients to `.grad` of their leaves.
///
/// `grad_tensors` as `grad_outputs` of [`grad`].
///
/// # Errors
/// As [`grad`].
pub fn backward<T: Borrow<Tensor>>(
    tensors: &[T],
    grad_tensors: Option<&[Option<Tensor>]>,
    retain_graph: bool,
) -> Result<()> {
    let tensors = TensorList::new(tensors.iter().map(|tensor| Some(tensor.borrow())));
    let grad_tensors = grad_tensors.map(optional_list);
    // SAFETY: both lists are alive for the call.
    let code = unsafe {
        ffi::hb_backward(
            tensors.as_ptr(),
            grad_tensors.as_ref().map_or(std::ptr::null(), TensorList::as_ptr),
            retain_graph.into(),
        )
    };
    ffi::check(code, || "backward")
}

fn optional_list(tensors: &[Option<Tensor>]) -> TensorList {
    TensorList::new(tensors.iter().map(Option::as_ref))
}
