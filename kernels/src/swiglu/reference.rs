//! The definition, in plain tensor operations.

use tch::Tensor;
use torch_bridge::Result;

pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok(gate.f_silu()?.f_mul(up)?)
}
