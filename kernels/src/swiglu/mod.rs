//! The gate of SwiGLU: `silu(gate) * up`, element by element (Shazeer 2020).

mod cuda;
mod reference;

use tch::Tensor;
use torch_bridge::Result;

use crate::operands::Operands;
use crate::policy;

/// `silu(gate) * up`, of their shape and type; in one pass on a GPU, computed in f32. Differentiable in both.
///
/// `gate`, `up` of one shape, type (f16, bf16, f32 or f64) and device.
///
/// # Errors
/// A shape, dtype or device that does not fit.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    check(gate, up)?;
    if policy::fast()
        && gate.device().is_cuda()
        && gate.numel() > 0
        && let Some(y) = cuda::swiglu(gate, up)?
    {
        return Ok(y);
    }
    reference::swiglu(gate, up)
}

/// The definition that [`swiglu`] is tested against: plain tensor operations, on any device.
///
/// # Errors
/// As [`swiglu`].
pub fn reference(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    check(gate, up)?;
    reference::swiglu(gate, up)
}

fn check(gate: &Tensor, up: &Tensor) -> Result<()> {
    let ops = Operands::of("swiglu", gate);
    ops.activation("gate", gate, &gate.size())?;
    ops.activation("up", up, &gate.size())?;
    if up.kind() != gate.kind() {
        return Err(ops.refusal("up", &format!("{:?}", gate.kind()), &format!("{:?}", up.kind())));
    }
    Ok(())
}
