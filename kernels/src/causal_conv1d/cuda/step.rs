//! One token without gradients, as in decoding: one kernel and no workspace.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::{CausalConv1d, ROWS, THREADS, ceil, name_of, shape, sizes};
use crate::cuda::{Define, Loaded, Unavailable, Value, program};

program!(STEP = "causal_conv1d/step.cu", variants: VARIANTS);

const VARIANTS: &[&[Define]] =
    &[&variant("bf16", 4, true), &variant("float", 2, false), &variant("float", 8, true)];

const fn variant(element: &'static str, width: i64, silu: bool) -> [Define; 3] {
    [("ELEMENT", Value::Text(element)), ("WIDTH", Value::Int(width)), ("SILU", Value::Int(silu as i64))]
}

/// The kernel of one token, loaded.
#[derive(Clone, Copy)]
pub(super) struct Step(&'static Loaded);

impl Step {
    /// Nothing if the call, of operands in the kernels' kinds, is of another kind.
    pub(super) fn find(args: &CausalConv1d<'_>, graph: bool) -> Option<Result<Self, Unavailable>> {
        let [batch, time, _, width] = sizes(args);
        let plain = !graph && args.resets.is_none() && args.lengths.is_none();
        if !plain || time != 1 || width == 1 || batch > ROWS {
            return None;
        }
        let defines = variant(name_of(args.x.kind()), width, args.silu);
        Some(STEP.on(args.x.device(), &defines).map(Self))
    }

    /// `y` and the new tail.
    pub(super) fn run(self, args: &CausalConv1d<'_>) -> Result<(Tensor, Tensor)> {
        let ([batch, _, d, width], element) = (sizes(args), args.x.kind());
        let y = Tensor::f_empty([batch, 1, d], (element, args.x.device()))?;
        let new_tail = Tensor::f_empty([batch, width - 1, d], (Kind::Float, args.x.device()))?;
        let launch = self
            .0
            .kernel("causal_conv1d_step")?
            .tensor(args.x, element)
            .i64(args.x.stride()[0])
            .tensor(args.weight, Kind::Float)
            .optional(args.bias, Kind::Float)
            .state(Some(args.tail))
            .tensor(&y, element)
            .tensor(&new_tail, Kind::Float)
            .i64(d);
        // SAFETY: the kernel's parameters in its order; `check` has seen to the operands' shapes, the outputs have the
        // documented ones.
        unsafe { launch.run(shape([ceil(d, THREADS), batch, 1])?) }?;
        Ok((y, new_tail))
    }
}
