//! Launches of the kernels in f32.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::{CELL, Gradients, ROWS, Sizes, Slstm, Trace, cells, states, strided};
use crate::cuda::launch::{Shape, blocks};
use crate::cuda::{COMMON, Define, Loaded, Unavailable, Value, program};

program!(PLAIN = "slstm/plain.cu", headers: &[&COMMON, &CELL], variants: &[&[masks(false)], &[masks(true)]]);

const fn masks(given: bool) -> Define {
    ("MASKS", Value::Int(given as i64))
}

/// A thread a unit.
const WIDEST: i64 = 1024;
/// Sequences of a block.
const SEQUENCES: i64 = 2;
/// Bytes of shared memory for each unit.
const FORWARD_BYTES: i64 = 16;
const BACKWARD_BYTES: i64 = 64;

/// The kernels of one call, loaded.
#[derive(Clone, Copy)]
pub(super) struct Plain(&'static Loaded);

impl Plain {
    pub(super) fn find(args: &Slstm<'_>) -> Result<Self, Unavailable> {
        let sizes = Sizes::of(args);
        if sizes.head_dim > WIDEST || sizes.batch > SEQUENCES * ROWS {
            return Err(format!("slstm has no CUDA kernel for heads of more than {WIDEST}").into());
        }
        let given = args.resets.is_some() || args.valid.is_some();
        Ok(Self(PLAIN.on(args.gates.device(), &[masks(given)])?))
    }

    fn shape(sizes: &Sizes, bytes: i64) -> Result<Shape> {
        let grid = [blocks(sizes.heads, 1)?, blocks(sizes.batch, SEQUENCES)?, 1];
        let threads = blocks(sizes.head_dim, 32)? * 32;
        Ok(Shape { grid, block: [threads, 1, 1], shared: (bytes * sizes.head_dim) as u32 })
    }

    /// `y`, the last state and, if it is to be kept, the trace.
    pub(super) fn forward(self, args: &Slstm<'_>, keep: bool) -> Result<(Tensor, Tensor, Option<Trace>)> {
        let sizes = Sizes::of(args);
        let float = (Kind::Float, args.gates.device());
        let y = Tensor::empty(sizes.outputs(), float);
        let last = Tensor::empty(sizes.state(), float);
        let recurrent = args.recurrent.f_permute([1, 3, 2, 0])?.f_contiguous()?;
        let trace = keep.then(|| {
            let size = [sizes.batch, sizes.time, sizes.heads, 6, sizes.head_dim];
            Trace { records: Tensor::empty(size, float), before: Tensor::empty(sizes.outputs(), float) }
        });
        let launch = strided(self.0.kernel("slstm_plain_forward")?, args.gates, Kind::Float)
            .optional(args.bias, Kind::Float)
            .tensor(&recurrent, Kind::Float);
        let launch = states(states(launch, Some(args.initial_state)), args.reset_state)
            .optional(args.resets, Kind::Bool)
            .optional(args.valid, Kind::Bool)
            .tensor(&y, Kind::Float)
            .tensor(&last, Kind::Float)
            .optional(trace.as_ref().map(|trace| &trace.records), Kind::Float)
            .optional(trace.as_ref().map(|trace| &trace.before), Kind::Float)
            .i64(sizes.batch)
            .i64(sizes.time)
            .i64(sizes.heads)
            .i64(sizes.head_dim);
        // SAFETY: the kernel's parameters in its order; `check` has seen to the operands' shapes, `Operands` to their
        // dtypes and strides, and the rest was made to the documented ones here.
        unsafe { launch.run(Self::shape(&sizes, FORWARD_BYTES)?) }?;
        Ok((y, last, trace))
    }

    pub(super) fn backward(
        self,
        args: &Slstm<'_>,
        trace: &Trace,
        last: &Tensor,
        dy: &Tensor,
        dlast: Option<&Tensor>,
    ) -> Result<Gradients> {
        let sizes = Sizes::of(args);
        let float = (Kind::Float, args.gates.device());
        let gates = Tensor::empty(sizes.gates(), float);
        let start = Tensor::empty(sizes.state(), float);
        let reset = args.reset_state.map(|_| Tensor::empty(sizes.state(), float));
        let recurrent = args.recurrent.f_permute([1, 2, 3, 0])?.f_contiguous()?;
        let launch = strided(self.0.kernel("slstm_plain_backward")?, dy, Kind::Float)
            .optional(dlast, Kind::Float)
            .tensor(&recurrent, Kind::Float)
            .tensor(last, Kind::Float)
            .tensor(&trace.records, Kind::Float);
        let launch = cells(cells(launch, Some(args.initial_state)), args.reset_state)
            .optional(args.resets, Kind::Bool)
            .optional(args.valid, Kind::Bool)
            .tensor(&gates, Kind::Float)
            .tensor(&start, Kind::Float)
            .optional(reset.as_ref(), Kind::Float)
            .i64(sizes.batch)
            .i64(sizes.time)
            .i64(sizes.heads)
            .i64(sizes.head_dim);
        // SAFETY: as above; the upstream gradients have the shapes of the outputs.
        unsafe { launch.run(Self::shape(&sizes, BACKWARD_BYTES)?) }?;
        // dR = sum over tokens of dgates h_before^T, for each gate and head.
        let (tokens, dim) = (sizes.batch * sizes.time, sizes.head_dim);
        let flat = gates.f_view([tokens, 4, sizes.heads, dim])?.f_permute([1, 2, 3, 0])?;
        let before = trace.before.f_view([tokens, sizes.heads, dim])?.f_transpose(0, 1)?;
        Ok(Gradients {
            recurrent: flat.f_matmul(&before)?,
            bias: gates.f_sum_dim_intlist([0i64, 1].as_slice(), false, Kind::Float)?,
            gates,
            start,
            reset,
        })
    }
}
