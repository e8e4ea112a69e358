//! The sLSTM: a recurrent cell per unit with exponential input gates, whose gates also read the last outputs of their
//! head (Beck et al. 2024, arXiv 2405.04517, eq. 8-18).
//!
//! Cell `c` and normaliser `n` are kept relative to a running maximum `m`, as in [`mlstm`](crate::mlstm). Nothing but
//! the last state sees `m`. A unit with `n = 0` remembers nothing: its maximum starts with the first input gate,
//! however small that is, so that `c / n` of the first token is exact. The empty state is therefore all zeros.

mod cpu;
mod cuda;
mod given;
mod reference;

use tch::{Device, Tensor};
use torch_bridge::Result;

use crate::operands::Operands;
use crate::policy;

/// What an sLSTM carries from token to token, each `[batch or 1, heads, head_dim]`.
#[derive(Debug)]
pub struct SlstmState {
    /// Outputs of the last token.
    pub h: Tensor,
    /// Cells.
    pub c: Tensor,
    /// Normalisers.
    pub n: Tensor,
    /// Maxima that cells and normalisers are relative to.
    pub m: Tensor,
}

impl SlstmState {
    fn parts(&self) -> [&Tensor; 4] {
        [&self.h, &self.c, &self.n, &self.m]
    }
}

/// The operands of [`slstm`].
///
/// `gates`, `bias` and `recurrent` may be f16, bf16, f32 or f64, states f32 or f64; all live on one device and any may be
/// non-contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Slstm<'a> {
    /// What the token gives to the pre-activations of input gate, forget gate, cell input and output gate:
    /// `[batch, time, 4, heads, head_dim]`.
    pub gates: &'a Tensor,
    /// Added to the pre-activations, `[4, heads, head_dim]`. Apart from `gates`, so that it is not rounded to their dtype.
    pub bias: Option<&'a Tensor>,
    /// What the last outputs give: a matrix (rows are outputs) for each gate and head, `[4, heads, head_dim,
    /// head_dim]`.
    pub recurrent: &'a Tensor,
    /// The state this call starts from.
    pub initial_state: &'a SlstmState,
    /// The state a document starts from; needed when `resets` is given.
    pub reset_state: Option<&'a SlstmState>,
    /// True where a token is the first of its document, `[batch, time]`, bool.
    pub resets: Option<&'a Tensor>,
    /// False at padding, `[batch, time]`, bool: the state passes unchanged (no reset happens), the output is 0.
    pub valid: Option<&'a Tensor>,
}

/// `[i, f, z, o]_t = gates_t + b + R h_{t-1}`, `c_t = sigmoid(f) c_{t-1} + e^i tanh(z)`, `n_t = sigmoid(f) n_{t-1} + e^i`,
/// `h_t = sigmoid(o) c_t / n_t`, with `c` and `n` relative to `m_t = max(log sigmoid(f) + m_{t-1}, i)`.
///
/// Returns `h [batch, time, heads, head_dim]` in the dtype of `gates` and the state after the last token, in the
/// initial state's dtypes. Inside, everything is f64 if `gates` is, else f32; on a GPU the matrix unit reads R and h as bf16
/// where `gates` is bf16. `time` may be 0. Differentiable in every
/// floating operand, through all results; the gradient of a broadcast state is summed over the batch.
///
/// # Errors
/// A shape, dtype or device that does not fit, or `resets` without `reset_state`.
pub fn slstm(args: &Slstm<'_>) -> Result<(Tensor, SlstmState)> {
    check(args)?;
    if args.gates.numel() > 0 && policy::fast() {
        match args.gates.device() {
            Device::Cpu => return cpu::slstm(args),
            Device::Cuda(_) => {
                if let Some(outputs) = cuda::slstm(args)? {
                    return Ok(outputs);
                }
            }
            _ => {}
        }
    }
    reference::slstm(args)
}

/// The definition that [`slstm`] is tested against: plain tensor operations, token by token, on any device.
///
/// # Errors
/// As [`slstm`].
pub fn reference(args: &Slstm<'_>) -> Result<(Tensor, SlstmState)> {
    check(args)?;
    reference::slstm(args)
}

fn check(args: &Slstm<'_>) -> Result<()> {
    let ops = Operands::of("slstm", args.gates);
    let [batch, time, _, heads, head_dim] =
        ops.sizes("gates", args.gates, "[batch, time, 4, heads, head_dim]")?;
    ops.activation("gates", args.gates, &[batch, time, 4, heads, head_dim])?;
    args.bias.map_or(Ok(()), |bias| ops.parameter("bias", bias, &[4, heads, head_dim]))?;
    ops.parameter("recurrent", args.recurrent, &[4, heads, head_dim, head_dim])?;
    for (name, state) in [("initial_state", Some(args.initial_state)), ("reset_state", args.reset_state)] {
        let Some(state) = state else { continue };
        for (part, x) in ["h", "c", "n", "m"].into_iter().zip(state.parts()) {
            ops.state(&format!("{name}.{part}"), x, &[batch, heads, head_dim])?;
        }
    }
    for (name, mask) in [("resets", args.resets), ("valid", args.valid)] {
        mask.map_or(Ok(()), |x| ops.mask(name, x, &[batch, time]))?;
    }
    ops.present_with("reset_state", args.reset_state.map(|state| &state.h), "resets", args.resets)
}
