//! The state-space dual of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060): a selective scan whose decay is one number per
//! head, so that a chunk of tokens is a handful of matrix products.
//!
//! As in [`selective_scan`](crate::selective_scan), the scan starts from a given state and gives the last one back,
//! and a packed document starts from a given state too. Both states and the last state carry gradients.

mod chunk;
mod chunked;
mod reference;

use tch::{Kind, Tensor};
use torch_bridge::{Result, guards::Autocast};

use crate::operands::Operands;
use crate::policy;

/// Up to so many tokens, going step by step is faster than a chunk's matrices.
const STEPS: i64 = 2;

/// The operands of [`ssd`].
///
/// All floating tensors may be f32 or f64, and `x, dt, b, c` also f16 or bf16; all live on one device and any may be
/// non-contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Ssd<'a> {
    /// Inputs, `[batch, time, heads, head_dim]`.
    pub x: &'a Tensor,
    /// Step sizes as they are used (after bias, softplus and limits), `[batch, time, heads]`.
    pub dt: &'a Tensor,
    /// Continuous-time decay rates, negative, `[heads]`.
    pub a: &'a Tensor,
    /// What a token writes, `[batch, time, groups, d_state]`; each group serves `heads / groups` heads in a row.
    pub b: &'a Tensor,
    /// What a token reads, `[batch, time, groups, d_state]`.
    pub c: &'a Tensor,
    /// Skip connection from `x` to `y`, `[heads]`.
    pub d: Option<&'a Tensor>,
    /// The state this call starts from, `[batch or 1, heads, head_dim, d_state]`.
    pub initial_state: &'a Tensor,
    /// The state a document starts from, `[batch or 1, heads, head_dim, d_state]`; needed when `resets` is given.
    pub reset_state: Option<&'a Tensor>,
    /// True where a token is the first of its document, `[batch, time]`, bool.
    pub resets: Option<&'a Tensor>,
    /// False at padding, `[batch, time]`, bool: the state passes unchanged (no reset happens), `y` is 0.
    pub valid: Option<&'a Tensor>,
    /// Tokens that the chunked form takes at a time; none lets it choose. It changes speed and rounding only.
    pub chunk_size: Option<i64>,
}

/// `h_t = exp(dt_t a) (reset_t ? h_reset : h_{t-1}) + dt_t x_t B_t^T`, `y_t = h_t C_t + D x_t`, for each head.
///
/// Returns `y [batch, time, heads, head_dim]` in `x`'s dtype and the state after the last token, `[batch, heads,
/// head_dim, d_state]`, in `initial_state`'s dtype. Inside, everything is f64 if `x` is, else f32. `time` may be 0.
/// Differentiable in every floating operand, through both results; the gradient of a broadcast state is summed over
/// the batch. Step by step for a few tokens, in chunks for more.
///
/// # Errors
/// A shape, dtype or device that does not fit, groups that do not divide the heads, or `resets` without `reset_state`.
pub fn ssd(args: &Ssd<'_>) -> Result<(Tensor, Tensor)> {
    let long = args.x.size().get(1).is_some_and(|&time| time > STEPS);
    if long && policy::fast() { chunked(args) } else { reference(args) }
}

/// The definition that [`chunked`] is tested against: plain tensor operations, token by token.
///
/// # Errors
/// As [`ssd`].
pub fn reference(args: &Ssd<'_>) -> Result<(Tensor, Tensor)> {
    check(args)?;
    with_clean_padding(args, reference::ssd)
}

/// The chunked form (section 6 of the paper): products of matrices inside a chunk, a recurrence between chunks.
///
/// # Errors
/// As [`ssd`].
pub fn chunked(args: &Ssd<'_>) -> Result<(Tensor, Tensor)> {
    chunked_within(args, chunked::RUN_ELEMENTS)
}

/// [`chunked`], with the matrices `[batch, chunks, heads, chunk_size, chunk_size]` of so many chunks at a time that
/// they have at most `elements` elements (one chunk at least). Gradients of more chunks than that compute the forward
/// a second time.
///
/// # Errors
/// As [`ssd`].
pub fn chunked_within(args: &Ssd<'_>, elements: i64) -> Result<(Tensor, Tensor)> {
    check(args)?;
    // Nothing to compute: what remains are states handed through.
    let empty = args.x.numel() == 0 || args.b.numel() == 0;
    with_clean_padding(args, |args| if empty { reference::ssd(args) } else { chunked::ssd(args, elements) })
}

/// A token whose step size and vectors are zero writes nothing, decays nothing and reads zero: that is what padding
/// becomes, whatever it held.
fn with_clean_padding(
    args: &Ssd<'_>,
    operation: impl FnOnce(&Ssd<'_>) -> Result<(Tensor, Tensor)>,
) -> Result<(Tensor, Tensor)> {
    // The products keep the precision that the state has.
    let _guard = Autocast::new(args.x.device(), Kind::BFloat16, false);
    let Some(valid) = args.valid else { return operation(args) };
    let padding = valid.f_logical_not()?;
    let clean = |x: &Tensor| -> Result<Tensor> {
        let mut shape = padding.size();
        shape.resize(x.dim(), 1);
        Ok(x.f_masked_fill(&padding.f_reshape(shape)?, 0.0)?)
    };
    let (x, dt, b, c) = (clean(args.x)?, clean(args.dt)?, clean(args.b)?, clean(args.c)?);
    let resets = args.resets.map(|resets| resets.f_logical_and(valid)).transpose()?;
    operation(&Ssd { x: &x, dt: &dt, b: &b, c: &c, resets: resets.as_ref(), valid: None, ..*args })
}

fn check(args: &Ssd<'_>) -> Result<()> {
    let ops = Operands::of("ssd", args.x);
    let [batch, time, heads, head_dim] = ops.sizes("x", args.x, "[batch, time, heads, head_dim]")?;
    let [_, _, groups, d_state] = ops.sizes("b", args.b, "[batch, time, groups, d_state]")?;
    if groups < 1 || heads % groups != 0 {
        let expected = format!("groups that divide {heads} heads");
        return Err(ops.refusal("b", &expected, &format!("{groups} groups")));
    }
    if let Some(chunk_size) = args.chunk_size.filter(|&size| size < 1) {
        return Err(ops.refusal("chunk_size", "at least 1", &chunk_size.to_string()));
    }
    ops.activation("x", args.x, &[batch, time, heads, head_dim])?;
    ops.activation("dt", args.dt, &[batch, time, heads])?;
    ops.parameter("a", args.a, &[heads])?;
    ops.activation("b", args.b, &[batch, time, groups, d_state])?;
    ops.activation("c", args.c, &[batch, time, groups, d_state])?;
    args.d.map_or(Ok(()), |d| ops.parameter("d", d, &[heads]))?;
    let state = [batch, heads, head_dim, d_state];
    ops.state("initial_state", args.initial_state, &state)?;
    args.reset_state.map_or(Ok(()), |x| ops.state("reset_state", x, &state))?;
    for (name, mask) in [("resets", args.resets), ("valid", args.valid)] {
        mask.map_or(Ok(()), |x| ops.mask(name, x, &[batch, time]))?;
    }
    ops.present_with("reset_state", args.reset_state, "resets", args.resets)
}
