//! One token without gradients, as in decoding: one kernel and no workspace.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::kernels::{Elements, of_elements};
use super::{Operands, SelectiveScan};
use crate::cuda::launch::{Shape, blocks};
use crate::cuda::{Define, Loaded, Unavailable, Value, program};

program!(STEP = "selective_scan/step.cu", variants: VARIANTS);

const VARIANTS: &[&[Define]] = &[
    &variant(Elements::BFloat16, 16, [true, true]),
    &variant(Elements::Float, 4, [false, true]),
    &variant(Elements::Float, 128, [true, false]),
];

const fn variant(elements: Elements, states: i64, [gated, softplus]: [bool; 2]) -> [Define; 4] {
    [
        elements.define(),
        ("STATES", Value::Int(states)),
        ("GATED", Value::Int(gated as i64)),
        ("SOFTPLUS", Value::Int(softplus as i64)),
    ]
}

/// States of a lane, and what it loads at once, in bytes.
const LANE: i64 = 4;
const VECTOR: usize = 16;
/// Threads of a block.
const THREADS: i64 = 128;
/// The most states it takes.
const STATES: i64 = 128;
/// What a grid may have in y.
const ROWS: i64 = 65_535;

/// The kernel of one token, loaded.
#[derive(Clone, Copy)]
pub(super) struct Step {
    loaded: &'static Loaded,
    elements: Elements,
    states: i64,
}

impl Step {
    /// Nothing if the call is of another kind.
    pub(super) fn find(args: &SelectiveScan<'_>, graph: bool) -> Option<Result<Self, Unavailable>> {
        let (size, n_states) = (args.u.size(), args.a.size()[1]);
        let plain = !graph && args.resets.is_none() && args.valid.is_none();
        let elements = of_elements(args)?;
        if !plain || size[1] != 1 || n_states > STATES || size[0] > ROWS {
            return None;
        }
        let states = (n_states as u64).next_power_of_two().max(LANE as u64) as i64;
        let defines = variant(elements, states, [args.z.is_some(), args.delta_softplus]);
        Some(STEP.on(args.u.device(), &defines).map(|loaded| Self { loaded, elements, states }))
    }

    /// `y` and the new state.
    pub(super) fn run(self, args: &SelectiveScan<'_>) -> Result<(Tensor, Tensor)> {
        let (kind, n_states) = (self.elements.kind(), args.a.size()[1]);
        let operands = Operands::of(args, kind, self.states);
        let (a, before) = (aligned(&operands.a), aligned(&operands.initial_state));
        let (batch, d_inner) = (args.u.size()[0], args.u.size()[2]);
        let y = Tensor::f_empty([batch, 1, d_inner], (kind, args.u.device()))?;
        let after = Tensor::f_empty([batch, d_inner, self.states], (Kind::Float, args.u.device()))?;
        let launch = self.loaded.kernel("selective_scan_step")?;
        let launch = [&operands.u, &operands.delta, &operands.b, &operands.c]
            .into_iter()
            .fold(launch, |launch, x| launch.tensor(x, kind).i64(x.stride()[0]))
            .optional(operands.z.as_ref(), kind)
            .i64(operands.z.as_ref().map_or(0, |z| z.stride()[0]))
            .tensor(&a, Kind::Float)
            .optional(operands.delta_bias.as_ref(), Kind::Float)
            .optional(operands.d.as_ref(), Kind::Float)
            .state(Some(&before))
            .tensor(&y, kind)
            .tensor(&after, Kind::Float)
            .i64(d_inner);
        let grid = [blocks(d_inner * self.states / LANE, THREADS)?, blocks(batch, 1)?, 1];
        // SAFETY: the kernel's parameters in its order; `check` has seen to the operands' shapes, the rest was made to
        // the documented ones here.
        unsafe { launch.run(Shape { grid, block: [THREADS as u32, 1, 1], shared: 0 }) }?;
        Ok((y.to_kind(args.u.kind()), after.narrow(2, 0, n_states).to_kind(args.initial_state.kind())))
    }
}

/// The same numbers where a vector may begin.
fn aligned(x: &Tensor) -> Tensor {
    if x.data_ptr().addr().is_multiple_of(VECTOR) { x.shallow_clone() } else { x.copy() }
}
