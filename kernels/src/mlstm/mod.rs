//! The mLSTM: a matrix memory with exponential input gates and sigmoid forget gates (Beck et al. 2024,
//! arXiv 2405.04517, eq. 19-27), in the form of xLSTM-7B (Beck et al. 2025, arXiv 2503.13427).
//!
//! The memory of a head is `C`, its normaliser `n`. Gates reach far outside a float's range, so both are kept
//! relative to a running maximum `m`: `C e^m` is what the equations mean. Nothing but `eps` sees `m`.
//!
//! The empty state is `C = 0, n = 0, m = 0`. It is exact: what `m` scales is zero, and the lower bound of the
//! denominator, `e^-m` in units of `e^m`, is 1 whatever `m` is. (`m = -inf` would mean the same, but `e^-m` then
//! overflows after a small input gate.) For that reason `m` also never falls below [`M_FLOOR`].

mod chunkwise;
mod cuda;
mod given;
mod reference;

use tch::Tensor;
use torch_bridge::Result;

use crate::operands::Operands;
use crate::policy;

/// Tokens that are computed at once, unless told otherwise.
pub const DEFAULT_CHUNK_SIZE: i64 = 64;

/// `m` stops here: `e^-m` still is a 32-bit float, and a memory of this scale is nothing beside the 1 that bounds
/// the denominator.
pub const M_FLOOR: f64 = -80.0;

/// What an mLSTM carries from token to token.
#[derive(Debug)]
pub struct MlstmState {
    /// Memory, `[batch or 1, heads, d_qk, d_v]`.
    pub c: Tensor,
    /// Normaliser, `[batch or 1, heads, d_qk]`.
    pub n: Tensor,
    /// Maximum that both are relative to, `[batch or 1, heads]`.
    pub m: Tensor,
}

impl MlstmState {
    /// A second handle on the same values.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { c: self.c.shallow_clone(), n: self.n.shallow_clone(), m: self.m.shallow_clone() }
    }

    /// A state whose tensors are `f` of this one's.
    fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { c: f(&self.c)?, n: f(&self.n)?, m: f(&self.m)? })
    }
}

/// The operands of [`mlstm`].
///
/// `q, k, v` and the gates may be f16, bf16, f32 or f64, states f32 or f64; all live on one device and any may be
/// non-contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Mlstm<'a> {
    /// Queries, `[batch, time, heads, d_qk]`; they are scaled by `d_qk^-1/2` inside.
    pub q: &'a Tensor,
    /// Keys, `[batch, time, heads, d_qk]`.
    pub k: &'a Tensor,
    /// Values, `[batch, time, heads, d_v]`.
    pub v: &'a Tensor,
    /// Logarithm of the input gate, `[batch, time, heads]`.
    pub input_gate: &'a Tensor,
    /// The forget gate before its sigmoid, `[batch, time, heads]`.
    pub forget_gate: &'a Tensor,
    /// Added to the denominator.
    pub eps: f64,
    /// The state this call starts from.
    pub initial_state: &'a MlstmState,
    /// The state a document starts from; needed when `resets` is given.
    pub reset_state: Option<&'a MlstmState>,
    /// True where a token is the first of its document, `[batch, time]`, bool.
    pub resets: Option<&'a Tensor>,
    /// False at padding, `[batch, time]`, bool: the state passes unchanged (no reset happens), `h` is 0.
    pub valid: Option<&'a Tensor>,
    /// Tokens that tensor operations compute at once, at least 1: memory grows with it as `time * chunk_size`, and
    /// without it as `time / chunk_size * d_qk * d_v`. CUDA kernels have chunks of their own.
    pub chunk_size: i64,
}

/// `C_t = f_t C_{t-1} + i_t k_t v_t^T`, `n_t = f_t n_{t-1} + i_t k_t`,
/// `h_t = q_t C_t / (max(|q_t n_t|, 1) + eps e^m_t)` with `i = e^input_gate`, `f = sigmoid(forget_gate)`.
///
/// Relative to `m_t = max(log f_t + m_{t-1}, input_gate_t)` the denominator is `max(|q_t n_t|, e^-m_t) + eps`, as the
/// released xLSTM-7B has it.
///
/// Returns `h [batch, time, heads, d_v]` in `v`'s dtype and the state after the last token, in the initial state's
/// dtypes. Inside, everything is f64 if `q` is, else f32; CUDA kernels, which bf16 has, multiply matrices of bf16 and sum
/// in f32. `time` may be 0. Differentiable in every floating operand,
/// through all results; the gradient of a broadcast state is summed over the batch.
///
/// # Errors
/// A shape, dtype or device that does not fit, `resets` without `reset_state`, or a chunk size below 1.
pub fn mlstm(args: &Mlstm<'_>) -> Result<(Tensor, MlstmState)> {
    check(args)?;
    if policy::fast()
        && args.q.device().is_cuda()
        && args.q.numel() > 0
        && args.v.numel() > 0
        && let Some(outputs) = cuda::mlstm(args)?
    {
        return Ok(outputs);
    }
    // One token is one step; chunks would be more work.
    if policy::fast() && args.q.size()[1] > 1 && args.q.numel() > 0 && args.v.numel() > 0 {
        return chunkwise::mlstm(args);
    }
    reference::mlstm(args)
}

/// The definition that [`mlstm`] is tested against: plain tensor operations, token by token, on any device.
///
/// # Errors
/// As [`mlstm`].
pub fn reference(args: &Mlstm<'_>) -> Result<(Tensor, MlstmState)> {
    check(args)?;
    reference::mlstm(args)
}

fn check(args: &Mlstm<'_>) -> Result<()> {
    let ops = Operands::of("mlstm", args.q);
    let [batch, time, heads, d_qk] = ops.sizes("q", args.q, "[batch, time, heads, d_qk]")?;
    let [_, _, _, d_v] = ops.sizes("v", args.v, "[batch, time, heads, d_v]")?;
    ops.activation("q", args.q, &[batch, time, heads, d_qk])?;
    ops.activation("k", args.k, &[batch, time, heads, d_qk])?;
    ops.activation("v", args.v, &[batch, time, heads, d_v])?;
    ops.activation("input_gate", args.input_gate, &[batch, time, heads])?;
    ops.activation("forget_gate", args.forget_gate, &[batch, time, heads])?;
    for (name, state) in [("initial_state", Some(args.initial_state)), ("reset_state", args.reset_state)] {
        let Some(state) = state else { continue };
        ops.state(&format!("{name}.c"), &state.c, &[batch, heads, d_qk, d_v])?;
        ops.state(&format!("{name}.n"), &state.n, &[batch, heads, d_qk])?;
        ops.state(&format!("{name}.m"), &state.m, &[batch, heads])?;
    }
    for (name, mask) in [("resets", args.resets), ("valid", args.valid)] {
        mask.map_or(Ok(()), |x| ops.mask(name, x, &[batch, time]))?;
    }
    if args.chunk_size < 1 {
        return Err(ops.refusal("chunk_size", "at least 1", &args.chunk_size.to_string()));
    }
    ops.present_with("reset_state", args.reset_state.map(|state| &state.c), "resets", args.resets)
}
