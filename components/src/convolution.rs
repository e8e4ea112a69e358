//! The short causal convolution in front of a recurrence: parameters `conv.weight` and `conv.bias`, state `conv_tail`.

use hymba_plus::prelude::*;
use kernels::causal_conv1d::{CausalConv1d, causal_conv1d};

/// `silu(conv(x))` of `x [batch, time, channels]` on from the state's `conv_tail`, and the tail after the call. A
/// document that starts inside the call starts from the initial state's tail.
///
/// # Errors
/// When the module did not plan them, or libtorch refuses.
pub(crate) fn convolved(
    parts: &Parts,
    x: &Tensor,
    state: &State,
    call: &Call<'_>,
) -> Result<(Tensor, Tensor)> {
    let span = call.span;
    causal_conv1d(&CausalConv1d {
        x,
        weight: parts.parameter("conv.weight")?,
        bias: parts.optional_parameter("conv.bias"),
        tail: state.get("conv_tail")?,
        reset_tail: span.resets.is_some().then(|| call.initial.get("conv_tail")).transpose()?,
        resets: span.resets.as_ref(),
        lengths: span.lengths.as_ref(),
        silu: true,
    })
}
