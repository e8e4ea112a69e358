//! The scan itself: the channels in the lanes of vectors, a few blocks of them through a tile at a time, so that
//! each token's row is read in pieces of several cache lines.

use std::ops::Range;

use super::problem::{GROUP, Problem, Run, TILE};
use crate::parallel::{self, Columns};
use crate::simd::{self, Float, Isa, Kernel, Lanes};

/// States that go through a tile together: enough independent chains to hide the latency of a multiply-add, few
/// enough to stay in registers.
const TOGETHER: usize = 4;

/// Fills `y [batch, time, d_inner]`, `last [batch, d_inner, d_state]` and, if there are any, the states at the
/// start of each tile, `checkpoints [batch, blocks, tiles, d_state, L]`.
pub(super) fn scan<F: Float, const L: usize>(
    problem: &Problem<'_, F>,
    y: &mut [F],
    last: &mut [F],
    checkpoints: &mut [F],
) {
    let (y, last) = (Columns::new(y), Columns::new(last));
    let (blocks, together) = (problem.blocks::<L>(), GROUP / L);
    let per_block = problem.tiles() * problem.d_state * L;
    let mut rest = checkpoints;
    let mut items = Vec::with_capacity(problem.batch * blocks.div_ceil(together));
    for row in 0..problem.batch {
        for first in (0..blocks).step_by(together) {
            let blocks = first..blocks.min(first + together);
            let (checkpoints, after) = rest.split_at_mut(rest.len().min(blocks.len() * per_block));
            rest = after;
            items.push(Item { problem: *problem, row, blocks, y: &y, last: &last, checkpoints });
        }
    }
    parallel::each(
        items,
        problem.steps(),
        || Scratch::<F, L>::new(problem.d_state),
        |scratch, item| {
            simd::run(Pass { item, scratch });
        },
    );
}

struct Item<'a, F> {
    problem: Problem<'a, F>,
    row: usize,
    blocks: Range<usize>,
    y: &'a Columns<'a, F>,
    last: &'a Columns<'a, F>,
    /// Of each block, or empty.
    checkpoints: &'a mut [F],
}

struct Scratch<F, const L: usize> {
    /// By block and state: `A / ln 2`, so that `exp(delta A)` is one `exp2`.
    rate: Vec<Lanes<F, L>>,
    h: Vec<Lanes<F, L>>,
    start: Vec<Lanes<F, L>>,
    delta: Vec<Lanes<F, L>>,
    delta_u: Vec<Lanes<F, L>>,
    y: Vec<Lanes<F, L>>,
    runs: Vec<Run>,
}

impl<F: Float, const L: usize> Scratch<F, L> {
    fn new(d_state: usize) -> Self {
        let lanes = |count| vec![Lanes::ZERO; count];
        Self {
            rate: lanes(GROUP / L * d_state),
            h: lanes(GROUP / L * d_state),
            start: lanes(GROUP / L * d_state),
            delta: lanes(TILE),
            delta_u: lanes(TILE),
            y: lanes(TILE),
            runs: Vec::with_capacity(TILE),
        }
    }
}

/// A group of blocks of one row, from the first token to the last.
struct Pass<'s, 'a, F, const L: usize> {
    item: Item<'a, F>,
    scratch: &'s mut Scratch<F, L>,
}

impl<F: Float, const L: usize> Kernel for Pass<'_, '_, F, L> {
    type Output = ();

    #[inline(always)]
    fn call<I: Isa>(self) {
        let Self { item, scratch } = self;
        let (problem, row) = (&item.problem, item.row);
        let d_state = problem.d_state;
        for (offset, block) in item.blocks.clone().enumerate() {
            let states = offset * d_state..(offset + 1) * d_state;
            problem.states(problem.a, 0, block, &mut scratch.rate[states.clone()]);
            problem.states(problem.initial_state, row, block, &mut scratch.h[states.clone()]);
            if let Some(start) = problem.reset_state {
                problem.states(start, row, block, &mut scratch.start[states]);
            }
        }
        for rate in &mut scratch.rate {
            *rate = *rate * Lanes::splat(F::LOG2_E);
        }
        for (index, tile) in (0..problem.tiles()).map(|index| (index, problem.tile(index))) {
            problem.runs(row, tile.clone(), &mut scratch.runs);
            for (offset, block) in item.blocks.clone().enumerate() {
                let states = offset * d_state..(offset + 1) * d_state;
                if !item.checkpoints.is_empty() {
                    let kept = &mut item.checkpoints[(offset * problem.tiles() + index) * d_state * L..];
                    for (h, kept) in scratch.h[states.clone()].iter().zip(kept.chunks_exact_mut(L)) {
                        h.store(kept);
                    }
                }
                problem.prepare::<I, L>(row, block, tile.clone(), &mut scratch.delta, &mut scratch.delta_u);
                scratch.y.fill(Lanes::ZERO);
                let whole = d_state - d_state % TOGETHER;
                for n in (0..whole).step_by(TOGETHER) {
                    advance::<I, F, L, TOGETHER>(problem, row, tile.start, states.start, n, scratch);
                }
                for n in whole..d_state {
                    advance::<I, F, L, 1>(problem, row, tile.start, states.start, n, scratch);
                }
                finish::<I, F, L>(problem, row, block, tile.clone(), item.y, &scratch.y);
            }
        }
        for (block, h) in item.blocks.zip(scratch.h.chunks_exact(d_state)) {
            for (lane, channel) in problem.channels::<L>(block).enumerate() {
                // SAFETY: a channel of this row and block, which no other item writes.
                let to = unsafe { item.last.range((row * problem.d_inner + channel) * d_state, d_state) };
                for (to, h) in to.iter_mut().zip(h) {
                    *to = h.0[lane];
                }
            }
        }
    }
}

/// Adds `D u`, gates and writes the outputs of a tile.
#[inline(always)]
fn finish<I: Isa, F: Float, const L: usize>(
    problem: &Problem<'_, F>,
    row: usize,
    block: usize,
    tile: Range<usize>,
    to: &Columns<'_, F>,
    state_parts: &[Lanes<F, L>],
) {
    for (t, &state_part) in tile.zip(state_parts) {
        let mut y = state_part;
        if let Some(d) = problem.d {
            y = problem.at(problem.u, row, t, block).mul_add::<I>(problem.vector(d, block), y);
        }
        if let Some(z) = problem.z {
            let z = problem.at(z, row, t, block);
            y = y * z * z.sigmoid::<I>();
        }
        if !problem.is_valid(row, t) {
            y = Lanes::ZERO;
        }
        // SAFETY: this row's and block's channels, which no other item writes.
        y.store(unsafe { to.range(problem.offset::<L>(row, t, block), problem.channels::<L>(block).len()) });
    }
}

/// Takes the states `n..n + N` of the block whose states begin at `first` through the runs of a tile and adds `C h` to `y`.
#[inline(always)]
fn advance<I: Isa, F: Float, const L: usize, const N: usize>(
    problem: &Problem<'_, F>,
    row: usize,
    tile_start: usize,
    first: usize,
    n: usize,
    scratch: &mut Scratch<F, L>,
) {
    let rate: [Lanes<F, L>; N] = std::array::from_fn(|k| scratch.rate[first + n + k]);
    let mut h: [Lanes<F, L>; N] = std::array::from_fn(|k| scratch.h[first + n + k]);
    for run in &scratch.runs {
        if run.reset {
            h = std::array::from_fn(|k| scratch.start[first + n + k]);
        }
        for t in run.tokens.clone() {
            let b = problem.coefficients::<N>(problem.b, row, tile_start + t, n);
            let c = problem.coefficients::<N>(problem.c, row, tile_start + t, n);
            let (delta, delta_u, mut y) = (scratch.delta[t], scratch.delta_u[t], scratch.y[t]);
            for k in 0..N {
                let decay = (delta * rate[k]).exp2::<I>();
                h[k] = decay.mul_add::<I>(h[k], delta_u * Lanes::splat(b[k]));
                y = h[k].mul_add::<I>(Lanes::splat(c[k]), y);
            }
            scratch.y[t] = y;
        }
    }
    for (k, h) in h.into_iter().enumerate() {
        scratch.h[first + n + k] = h;
    }
}
