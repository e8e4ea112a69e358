//! Gradient norms and clipping, without waiting for the device.

use tch::{Device, Kind, Tensor};

use super::foreach::{foreach_mul_tensor_, foreach_norm_as};
use crate::error::Result;
use crate::guards::NoGrad;

/// The 2-norm of all elements of all tensors together, a scalar tensor `[]` on the first tensor's device.
///
/// Half and bfloat16 tensors are accumulated in `float32`; the result is of the widest kind in the list. No host
/// sync. The norm of no tensors is a `float32` zero on the CPU.
///
/// # Errors
/// A tensor is not of a floating kind.
pub fn total_norm(tensors: &[Tensor]) -> Result<Tensor> {
    let Some(first) = tensors.first() else {
        return Ok(Tensor::f_zeros([0i64; 0].as_slice(), (Kind::Float, Device::Cpu))?);
    };
    let _no_grad = NoGrad::new();
    let device = first.device();
    let groups = Group::of(tensors)?;
    let widest =
        if groups.iter().any(|group| group.kind == Kind::Double) { Kind::Double } else { Kind::Float };
    let mut norms = Vec::with_capacity(tensors.len());
    for group in groups {
        let wider = matches!(group.kind, Kind::Half | Kind::BFloat16).then_some(Kind::Float);
        for norm in foreach_norm_as(&group.tensors, 2.0, wider)? {
            norms.push(norm.f_to_device(device)?.f_to_kind(widest)?);
        }
    }
    Ok(Tensor::f_stack(&norms, 0)?.f_norm()?)
}

/// Scales the gradients in `grads` so that their [`total_norm`] is at most `max_norm`, and returns the norm that
/// they had before, a scalar tensor `[]`.
///
/// As PyTorch: every gradient is multiplied by `min(max_norm / (norm + 1e-6), 1)`, also when that is one, so that
/// nothing waits for the norm. A norm that is not finite makes the gradients NaN: look at the returned norm.
///
/// # Errors
/// As [`total_norm`].
pub fn clip_grad_norm_(grads: &[Tensor], max_norm: f64) -> Result<Tensor> {
    let norm = total_norm(grads)?;
    let _no_grad = NoGrad::new();
    let factor = (norm.f_add_scalar(1e-6)?).f_reciprocal()?.f_mul_scalar(max_norm)?.f_clamp_max(1.0)?;
    for group in Group::of(grads)? {
        foreach_mul_tensor_(&group.tensors, &factor.f_to_device(group.device)?)?;
    }
    Ok(norm)
}

/// Tensors of one device and kind: libtorch's fast paths want lists without a mixture.
struct Group {
    device: Device,
    kind: Kind,
    tensors: Vec<Tensor>,
}

impl Group {
    /// In the order of first appearance, so that two runs sum in the same order.
    fn of(tensors: &[Tensor]) -> Result<Vec<Self>> {
        let mut groups: Vec<Self> = Vec::with_capacity(1);
        for tensor in tensors {
            let (device, kind) = (tensor.device(), tensor.f_kind()?);
            let tensor = tensor.shallow_clone();
            match groups.iter_mut().find(|group| group.device == device && group.kind == kind) {
                Some(group) => group.tensors.push(tensor),
                None => groups.push(Self { device, kind, tensors: vec![tensor] }),
            }
        }
        Ok(groups)
    }
}
