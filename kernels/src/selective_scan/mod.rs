//! The selective scan of Mamba (Gu & Dao 2023, arXiv 2312.00752, eq. 2-3 with the Euler form of B that the
//! paper's code uses).
//!
//! Two things are more than the paper's: the scan starts from a given state and gives the last one back, and
//! a packed document starts from a given state too, not from zero. Both states and the last state carry
//! gradients.

mod cpu;
mod cuda;
mod given;
mod reference;

use tch::{Device, Tensor};
use torch_bridge::Result;

use crate::operands::Operands;
use crate::policy;

/// The operands of [`selective_scan`].
///
/// All floating tensors may be f32 or f64, and `u, delta, b, c, z` also f16 or bf16; all live on one device
/// and any may be non-contiguous.
#[derive(Clone, Copy, Debug)]
pub struct SelectiveScan<'a> {
    /// Inputs, `[batch, time, d_inner]`.
    pub u: &'a Tensor,
    /// Step sizes before the bias and the softplus, `[batch, time, d_inner]`.
    pub delta: &'a Tensor,
    /// Added to `delta`, `[d_inner]`.
    pub delta_bias: Option<&'a Tensor>,
    /// Whether `softplus` is applied to the biased `delta`.
    pub delta_softplus: bool,
    /// Continuous-time decay rates, negative, `[d_inner, d_state]`.
    pub a: &'a Tensor,
    /// What a token writes, `[batch, time, d_state]`.
    pub b: &'a Tensor,
    /// What a token reads, `[batch, time, d_state]`.
    pub c: &'a Tensor,
    /// Skip connection from `u` to `y`, `[d_inner]`.
    pub d: Option<&'a Tensor>,
    /// Gate: `y` is multiplied by `silu(z)`, `[batch, time, d_inner]`.
    pub z: Option<&'a Tensor>,
    /// The state this call starts from, `[batch or 1, d_inner, d_state]`.
    pub initial_state: &'a Tensor,
    /// The state a document starts from, `[batch or 1, d_inner, d_state]`; needed when `resets` is given.
    pub reset_state: Option<&'a Tensor>,
    /// True where a token is the first of its document, `[batch, time]`, bool.
    pub resets: Option<&'a Tensor>,
    /// False at padding, `[batch, time]`, bool: the state passes unchanged (no reset happens), `y` is 0.
    pub valid: Option<&'a Tensor>,
}

/// `h_t = exp(delta_t A) (reset_t ? h_reset : h_{t-1}) + delta_t B_t u_t`, `y_t = (C_t h_t + D u_t)
/// silu(z_t)`.
///
/// Returns `y [batch, time, d_inner]` in `u`'s dtype and the state after the last token, `[batch, d_inner,
/// d_state]`, in `initial_state`'s dtype. Inside, everything is f64 if `u` is, else f32. `time` may be 0.
/// Differentiable in every floating operand, through both results; the gradient of a broadcast state is
/// summed over the batch.
///
/// # Errors
/// A shape, dtype or device that does not fit, or `resets` without `reset_state`.
pub fn selective_scan(args: &SelectiveScan<'_>) -> Result<(Tensor, Tensor)> {
    check(args)?;
    // Nothing to compute: what remains are states handed through, which the definition does well enough.
    let empty = args.u.numel() == 0 || args.a.numel() == 0;
    if !empty && policy::fast() {
        match args.u.device() {
            Device::Cpu => return cpu::selective_scan(args),
            Device::Cuda(_) => {
                if let Some(outputs) = cuda::selective_scan(args)? {
                    return Ok(outputs);
                }
            }
            _ => {}
        }
    }
    Ok(reference::selective_scan(args))
}

/// The definition that [`selective_scan`] is tested against: plain tensor operations, token by token, on any device.
///
/// # Errors
/// As [`selective_scan`].
pub fn reference(args: &SelectiveScan<'_>) -> Result<(Tensor, Tensor)> {
    check(args)?;
    Ok(reference::selective_scan(args))
}

fn check(args: &SelectiveScan<'_>) -> Result<()> {
    let ops = Operands::of("selective_scan", args.u);
    let [batch, time, d_inner] = ops.sizes("u", args.u, "[batch, time, d_inner]")?;
    let [_, d_state] = ops.sizes("a", args.a, "[d_inner, d_state]")?;
    ops.activation("u", args.u, &[batch, time, d_inner])?;
    ops.activation("delta", args.delta, &[batch, time, d_inner])?;
    ops.parameter("a", args.a, &[d_inner, d_state])?;
    ops.activation("b", args.b, &[batch, time, d_state])?;
    ops.activation("c", args.c, &[batch, time, d_state])?;
    for (name, vector) in [("delta_bias", args.delta_bias), ("d", args.d)] {
        vector.map_or(Ok(()), |x| ops.parameter(name, x, &[d_inner]))?;
    }
    args.z.map_or(Ok(()), |z| ops.activation("z", z, &[batch, time, d_inner]))?;
    ops.state("initial_state", args.initial_state, &[batch, d_inner, d_state])?;
    args.reset_state.map_or(Ok(()), |x| ops.state("reset_state", x, &[batch, d_inner, d_state]))?;
    for (name, mask) in [("resets", args.resets), ("valid", args.valid)] {
        mask.map_or(Ok(()), |x| ops.mask(name, x, &[batch, time]))?;
    }
    ops.present_with("reset_state", args.reset_state, "resets", args.resets)
}
