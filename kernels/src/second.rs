//! Gradients that can be differentiated again. The fast backwards are not made of tensor operations; when autograd
//! wants a graph of the gradient (`create_graph`), it gets the definition's.

use tch::Tensor;
use torch_bridge::Result;
use torch_bridge::autograd::{GradOptions, grad};
use torch_bridge::guards::is_grad_enabled;

/// Inside a backward: `None` if plain gradients are all that is wanted. Otherwise the gradients of `definition()`,
/// which computes the outputs from `inputs`, with respect to each of `inputs`.
pub(crate) fn differentiable(
    inputs: &[Tensor],
    grads: &[Option<Tensor>],
    definition: impl FnOnce() -> Result<(Tensor, Tensor)>,
) -> Option<Result<Vec<Option<Tensor>>>> {
    differentiable_outputs(inputs, grads, || definition().map(|(first, second)| vec![first, second]))
}

/// As [`differentiable`], for any number of outputs.
pub(crate) fn differentiable_outputs(
    inputs: &[Tensor],
    grads: &[Option<Tensor>],
    definition: impl FnOnce() -> Result<Vec<Tensor>>,
) -> Option<Result<Vec<Option<Tensor>>>> {
    is_grad_enabled().then(|| {
        let outputs = definition()?.into_iter().zip(grads);
        let (outputs, grads): (Vec<_>, Vec<_>) =
            outputs.filter(|(output, grad)| grad.is_some() && output.requires_grad()).unzip();
        let grads: Vec<_> = grads.into_iter().map(|grad| grad.as_ref().map(Tensor::shallow_clone)).collect();
        let wanted: Vec<&Tensor> = inputs.iter().filter(|input| input.requires_grad()).collect();
        let options = GradOptions { create_graph: true, allow_unused: true, ..GradOptions::default() };
        let mut found = grad(&outputs, Some(&grads), &wanted, options)?.into_iter();
        Ok(inputs
            .iter()
            .map(|input| if input.requires_grad() { found.next().flatten() } else { None })
            .collect())
    })
}
