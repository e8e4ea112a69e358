//! The mLSTM's forward: gates, states before the chunks, outputs.

use tch::{Kind, Tensor};
use torch_bridge::{Error, Result};

use super::kernels::{Kernels, floats, halves, rounded_state, tokens};
use crate::cuda::launch::{Shape, blocks};
use crate::mlstm::{M_FLOOR, Mlstm, MlstmState};

/// What the forward finds and the backward reads; the comments in the `.cu` files say what each is.
pub(super) struct Found {
    pub(super) row: Tensor,
    pub(super) column: Tensor,
    pub(super) before: Tensor,
    pub(super) bound: Tensor,
    pub(super) written: Tensor,
    pub(super) first: Tensor,
    pub(super) source: Tensor,
    pub(super) kept: Tensor,
    pub(super) c: Tensor,
    pub(super) n: Tensor,
    pub(super) q_n: Tensor,
    /// The reset state's `C` in bf16.
    pub(super) fresh: Option<Tensor>,
}

impl Found {
    pub(super) fn list(&self) -> Vec<&Tensor> {
        let mut list = vec![
            &self.row,
            &self.column,
            &self.before,
            &self.bound,
            &self.written,
            &self.first,
            &self.source,
            &self.kept,
            &self.c,
            &self.n,
            &self.q_n,
        ];
        list.extend(&self.fresh);
        list
    }

    /// From a list that starts with it, and what follows.
    pub(super) fn of(list: &[Tensor], fresh: bool) -> Result<(Self, &[Tensor])> {
        let [row, column, before, bound, written, first, source, kept, c, n, q_n, rest @ ..] = list else {
            return Err(Error::other("mlstm: nothing was saved"));
        };
        let (fresh, rest) = match rest {
            [state, rest @ ..] if fresh => (Some(state.shallow_clone()), rest),
            rest => (None, rest),
        };
        let [row, column, before, bound, written] =
            [row, column, before, bound, written].map(Tensor::shallow_clone);
        let [first, source, kept, c, n, q_n] = [first, source, kept, c, n, q_n].map(Tensor::shallow_clone);
        Ok((Self { row, column, before, bound, written, first, source, kept, c, n, q_n, fresh }, rest))
    }
}

/// `h`, the state after the last token and what the backward reads.
pub(super) fn forward(args: &Mlstm<'_>, kernels: &Kernels) -> Result<(Tensor, MlstmState, Found)> {
    let sizes = kernels.sizes;
    let device = args.q.device();
    let (rows, padded, chunks) = (sizes.rows(), sizes.padded(), sizes.chunks);
    let pairs = || floats(&[rows, padded, 2], device);
    let scalars = || floats(&[rows, padded], device);
    let found = Found {
        row: pairs()?,
        column: pairs()?,
        before: scalars()?,
        bound: scalars()?,
        written: scalars()?,
        first: Tensor::f_empty([rows, padded], (Kind::Int, device))?,
        source: Tensor::f_empty([rows, padded], (Kind::Uint8, device))?,
        kept: floats(&[rows, chunks, 2], device)?,
        c: halves(&[rows, chunks, sizes.d_qk, sizes.d_v], device)?,
        n: floats(&[rows, chunks, sizes.d_qk], device)?,
        q_n: scalars()?,
        fresh: args.reset_state.map(|state| state.c.f_to_kind(Kind::BFloat16)).transpose()?,
    };
    let last = MlstmState {
        c: floats(&[sizes.batch, sizes.heads, sizes.d_qk, sizes.d_v], device)?,
        n: floats(&[sizes.batch, sizes.heads, sizes.d_qk], device)?,
        m: floats(&[sizes.batch, sizes.heads], device)?,
    };
    let h = halves(&[sizes.batch, sizes.time, sizes.heads, sizes.d_v], device)?;

    let launch = tokens(kernels.gates.kernel("mlstm_gates")?, args.input_gate, Kind::Float);
    let launch = tokens(launch, args.forget_gate, Kind::Float)
        .optional(args.resets, Kind::Bool)
        .optional(args.valid, Kind::Bool)
        .state(Some(&args.initial_state.m))
        .state(args.reset_state.map(|state| &state.m))
        .tensor(&found.row, Kind::Float)
        .tensor(&found.column, Kind::Float)
        .tensor(&found.before, Kind::Float)
        .tensor(&found.bound, Kind::Float)
        .tensor(&found.written, Kind::Float)
        .tensor(&found.first, Kind::Int)
        .tensor(&found.source, Kind::Uint8)
        .tensor(&found.kept, Kind::Float)
        .tensor(&last.m, Kind::Float)
        .i64(sizes.time)
        .i64(sizes.heads)
        .i64(chunks)
        .f32(M_FLOOR as f32);
    let grid = |count: i64| -> Result<[u32; 3]> { Ok([blocks(count, 1)?, 1, 1]) };
    // SAFETY: the kernel's parameters in its order; the operands have the shapes that were checked, the results those made
    // above.
    unsafe { launch.run(Shape { grid: grid(rows)?, block: [1024, 1, 1], shared: 0 }) }?;

    let launch = tokens(kernels.states.kernel("mlstm_states")?, args.k, Kind::BFloat16);
    let launch = tokens(launch, args.v, Kind::BFloat16)
        .optional(args.valid, Kind::Bool)
        .tensor(&found.written, Kind::Float)
        .tensor(&found.written, Kind::Float)
        .tensor(&found.first, Kind::Int)
        .tensor(&found.kept, Kind::Float)
        .state(Some(&args.initial_state.c))
        .state(Some(&args.initial_state.n))
        .state(args.reset_state.map(|state| &state.c))
        .state(args.reset_state.map(|state| &state.n))
        .optional(None, Kind::BFloat16);
    let launch = rounded_state(launch, None)
        .tensor(&found.c, Kind::BFloat16)
        .tensor(&found.n, Kind::Float)
        .optional(None, Kind::Float)
        .tensor(&last.c, Kind::Float)
        .tensor(&last.n, Kind::Float)
        .i64(sizes.time)
        .i64(sizes.heads)
        .i64(chunks)
        .i64(sizes.d_qk)
        .i64(sizes.d_v);
    let shape = Shape {
        grid: grid(rows * sizes.state_tiles())?,
        block: [256, 1, 1],
        shared: sizes.states_bytes() as u32,
    };
    // SAFETY: as above.
    unsafe { launch.run(shape) }?;

    let items = rows * chunks * sizes.output_tiles();
    let launch = tokens(kernels.outputs.kernel("mlstm_forward")?, args.q, Kind::BFloat16);
    let launch = tokens(tokens(launch, args.k, Kind::BFloat16), args.v, Kind::BFloat16)
        .optional(args.valid, Kind::Bool)
        .tensor(&found.row, Kind::Float)
        .tensor(&found.column, Kind::Float)
        .tensor(&found.before, Kind::Float)
        .tensor(&found.bound, Kind::Float)
        .tensor(&found.first, Kind::Int)
        .tensor(&found.c, Kind::BFloat16)
        .tensor(&found.n, Kind::Float);
    let launch = rounded_state(launch, found.fresh.as_ref())
        .state(args.reset_state.map(|state| &state.n))
        .tensor(&h, Kind::BFloat16)
        .tensor(&found.q_n, Kind::Float)
        .i64(sizes.time)
        .i64(sizes.heads)
        .i64(chunks)
        .i64(items)
        .i64(sizes.d_qk)
        .i64(sizes.d_v)
        .f32(sizes.scale())
        .f32(args.eps as f32);
    let shape = Shape {
        grid: grid(items.min(kernels.outputs.multiprocessors()))?,
        block: [2 * sizes.chunk as u32, 1, 1],
        shared: sizes.outputs_bytes() as u32,
    };
    // SAFETY: as above.
    unsafe { launch.run(shape) }?;
    Ok((h, last, found))
}
