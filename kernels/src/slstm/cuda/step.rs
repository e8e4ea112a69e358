//! One token without gradients, as in decoding: one kernel and no workspace.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::{CELL, ROWS, Sizes, Slstm, SlstmState, states, unpacked};
use crate::cuda::launch::{Shape, blocks};
use crate::cuda::{COMMON, Define, Loaded, Unavailable, Value, program};

program!(STEP = "slstm/step.cu", headers: &[&COMMON, &CELL], variants: VARIANTS);

const VARIANTS: &[&[Define]] =
    &[&variant("bf16", "float"), &variant("bf16", "bf16"), &variant("float", "float")];

const fn variant(element: &'static str, recurrent: &'static str) -> [Define; 2] {
    [("ELEMENT", Value::Text(element)), ("RECURRENT", Value::Text(recurrent))]
}

/// Units and sequences of a block.
const UNITS: i64 = 8;
const SEQUENCES: i64 = 4;
const THREADS: u32 = 256;

/// The kernel of one token, loaded.
#[derive(Clone, Copy)]
pub(super) struct Step {
    loaded: &'static Loaded,
    element: Kind,
    recurrent: Kind,
}

impl Step {
    /// Nothing if the call is of another kind.
    pub(super) fn find(args: &Slstm<'_>, graph: bool) -> Option<Result<Self, Unavailable>> {
        let sizes = Sizes::of(args);
        let plain = !graph && args.resets.is_none() && args.valid.is_none();
        let small = sizes.batch <= ROWS * SEQUENCES && sizes.heads <= ROWS;
        if !plain || !small || sizes.time != 1 || args.gates.kind() == Kind::Double {
            return None;
        }
        let narrow = |x: &Tensor| if x.kind() == Kind::BFloat16 { Kind::BFloat16 } else { Kind::Float };
        let name = |kind: Kind| if kind == Kind::BFloat16 { "bf16" } else { "float" };
        let (element, recurrent) = (narrow(args.gates), narrow(args.recurrent));
        let loaded = STEP.on(args.gates.device(), &variant(name(element), name(recurrent)));
        Some(loaded.map(|loaded| Self { loaded, element, recurrent }))
    }

    pub(super) fn run(self, args: &Slstm<'_>) -> Result<(Tensor, SlstmState)> {
        let (sizes, device) = (Sizes::of(args), args.gates.device());
        let float = |x: &Tensor| x.to_kind(Kind::Float).contiguous();
        let gates = args.gates.to_kind(self.element);
        let gates = if gates.stride()[4] == 1 || sizes.head_dim == 1 { gates } else { gates.contiguous() };
        let (recurrent, bias) = (args.recurrent.to_kind(self.recurrent).contiguous(), args.bias.map(float));
        let before = args.initial_state;
        let before =
            SlstmState { h: float(&before.h), c: float(&before.c), n: float(&before.n), m: float(&before.m) };
        let y = Tensor::empty(sizes.outputs(), (self.element, device));
        let last = Tensor::empty(sizes.state(), (Kind::Float, device));
        let strides = gates.stride();
        let launch = self
            .loaded
            .kernel("slstm_step")?
            .tensor(&gates, self.element)
            .i64(strides[0])
            .i64(strides[2])
            .i64(strides[3])
            .optional(bias.as_ref(), Kind::Float)
            .tensor(&recurrent, self.recurrent);
        let launch = states(launch, Some(&before))
            .tensor(&y, self.element)
            .tensor(&last, Kind::Float)
            .i64(sizes.batch)
            .i64(sizes.heads)
            .i64(sizes.head_dim);
        let grid = [blocks(sizes.head_dim, UNITS)?, blocks(sizes.heads, 1)?, blocks(sizes.batch, SEQUENCES)?];
        // SAFETY: the kernel's parameters in its order; `check` has seen to the operands' shapes, the rest was made to
        // the documented ones here.
        unsafe { launch.run(Shape { grid, block: [THREADS, 1, 1], shared: 0 }) }?;
        Ok((y.to_kind(args.gates.kind()), unpacked(&last, args.initial_state)))
    }
}
