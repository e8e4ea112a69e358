//! Some rows at a time: logits, their gradient in its place, and what the gradient gives to `hidden` and `weight`.

use tch::{Device, Kind, Tensor};
use torch_bridge::{
    Error, Result,
    autograd::{self, Function, Saved},
    guards::Autocast,
    ops::{self, Value},
};

use super::{LinearCrossEntropy, Settings, reference, rows};
use crate::{operands::compute_kind, second};

/// Logits that stand in memory at a time: on a CPU few enough that they stay in the caches, on a GPU many enough that
/// products of matrices are at their best.
const LOGITS_CPU: i64 = 1 << 23;
const LOGITS_GPU: i64 = 1 << 27;

pub(super) fn linear_cross_entropy(args: &LinearCrossEntropy<'_>) -> Result<(Tensor, Tensor)> {
    let device = args.hidden.device();
    let product = Autocast::current(device).filter(|_| args.hidden.kind() != Kind::Double);
    let node =
        Loss { settings: args.settings, product: product.unwrap_or(args.hidden.kind()), made: [false; 2] };
    let d = args.weight.size()[1];
    let hidden = args.hidden.f_reshape([-1, d])?;
    let targets = args.targets.f_reshape([-1])?;
    let inputs = [&hidden, args.weight, &targets];
    let outputs = autograd::apply("linear_cross_entropy", node, &inputs)?;
    let [loss, square]: [Tensor; 2] =
        outputs.try_into().map_err(|_| Error::other("linear_cross_entropy: not two outputs"))?;
    Ok((loss, square))
}

/// The node of the graph. It saves gradients by `hidden` and `weight`, which the forward made, and for a backward that is
/// to be differentiated again its inputs.
struct Loss {
    settings: Settings,
    /// The type of the products.
    product: Kind,
    /// Which gradients the forward made.
    made: [bool; 2],
}

impl Function for Loss {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let [hidden, weight, targets] = inputs else {
            return Err(Error::other("linear_cross_entropy: operands are missing"));
        };
        let device = hidden.device();
        // The types are chosen here; autocast would cast the weight again for every chunk.
        let _plain = Autocast::new(device, Kind::Float, false);
        let compute = compute_kind(hidden);
        let (count, vocab) = (hidden.size()[0], weight.size()[0]);
        let cast = padded(&weight.f_to_kind(self.product)?)?;
        let (of_hidden, of_weight) = (saved.needs_grad(0), saved.needs_grad(1));
        let mut sums = Tensor::f_zeros([2], (Kind::Double, device))?;
        let mut d_hidden = of_hidden.then(|| hidden.f_empty_like()).transpose()?;
        let mut d_weight: Option<Tensor> = None;
        let at_a_time = if device == Device::Cpu { LOGITS_CPU } else { LOGITS_GPU };
        let step = (at_a_time / vocab).clamp(1, count.max(1));
        for first in (0..count).step_by(step as usize) {
            let length = step.min(count - first);
            let part = hidden.f_narrow(0, first, length)?.f_to_kind(self.product)?;
            let logits = part.f_linear(&cast, None::<&Tensor>)?;
            let targets = targets.f_narrow(0, first, length)?;
            let (losses, d_logits) =
                rows::losses(logits, &targets, vocab, self.settings, of_hidden || of_weight)?;
            sums = sums.f_add(&losses.f_sum_dim_intlist([0_i64].as_slice(), false, Kind::Double)?)?;
            if !(of_hidden || of_weight) {
                continue;
            }
            if let Some(d_hidden) = &mut d_hidden {
                d_hidden.f_narrow(0, first, length)?.f_copy_(&d_logits.f_matmul(&cast)?)?;
            }
            if of_weight {
                let product = (d_logits.f_transpose(0, 1)?, &part);
                d_weight = Some(match d_weight.take() {
                    Some(sum) => add_product(sum, &product.0, product.1)?,
                    None if length == count => product.0.f_matmul(product.1)?,
                    // Sums over many chunks are kept in 32 bits.
                    None => product.0.f_matmul(product.1)?.f_to_kind(compute)?,
                });
            }
        }
        let d_weight = d_weight.map(|sum| sum.f_narrow(0, 0, vocab)?.f_to_kind(weight.kind())).transpose()?;
        self.made = [d_hidden.is_some(), d_weight.is_some()];
        for tensor in d_hidden.iter().chain(&d_weight).chain(inputs) {
            saved.save(tensor);
        }
        saved.mark_non_differentiable(1);
        let sums = sums.f_to_kind(compute)?;
        Ok(vec![sums.f_get(0)?.f_detach_copy()?, sums.f_get(1)?.f_detach_copy()?])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let made = self.made.iter().filter(|made| **made).count();
        let (gradients, inputs) = saved.split_at(made);
        if let Some(all) = second::differentiable(inputs, grads, || self.definition(inputs)) {
            return all;
        }
        let Some(grad) = grads.first().and_then(Option::as_ref) else { return Ok(vec![None, None, None]) };
        let mut gradients = gradients.iter();
        let mut next = |made: bool| -> Result<Option<Tensor>> {
            let gradient = if made { gradients.next() } else { None };
            Ok(gradient.map(|g| g.f_mul(grad)).transpose()?)
        };
        Ok(vec![next(self.made[0])?, next(self.made[1])?, None])
    }
}

/// The weight with rows of zeros after its own up to a multiple of 64, on a GPU: with rows of logits at odd places
/// libtorch's products of matrices are four times slower there.
fn padded(weight: &Tensor) -> Result<Tensor> {
    const MULTIPLE: i64 = 64;
    let vocab = weight.size()[0];
    let missing = (MULTIPLE - vocab % MULTIPLE) % MULTIPLE;
    if missing == 0 || !weight.device().is_cuda() {
        return Ok(weight.shallow_clone());
    }
    Ok(weight.f_constant_pad_nd([0, 0, 0, missing])?)
}

/// `sum + a b` in the type of the sum, which the product of 16-bit matrices is added to without being rounded first where
/// libtorch can do that.
fn add_product(mut sum: Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if sum.kind() == a.kind() {
        return Ok(sum.f_addmm_(a, b)?);
    }
    if sum.device().is_cuda() {
        let matrices = [&sum, a, b].map(|matrix| Value::Tensor(matrix.shallow_clone()));
        let kind = Value::ScalarType(sum.kind());
        let arguments: Vec<_> = matrices.into_iter().chain([kind]).collect();
        return ops::call_tensor("aten::addmm", "dtype", &arguments);
    }
    Ok(sum.f_add_(&a.f_matmul(b)?)?)
}

impl Loss {
    fn definition(&self, inputs: &[Tensor]) -> Result<(Tensor, Tensor)> {
        let [hidden, weight, targets] = inputs else {
            return Err(Error::other("linear_cross_entropy: operands are missing"));
        };
        reference::linear_cross_entropy(&LinearCrossEntropy {
            hidden,
            weight,
            targets,
            settings: self.settings,
        })
    }
}
