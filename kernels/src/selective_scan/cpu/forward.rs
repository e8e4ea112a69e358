//! The scan itself: a block of channels at a time, the channels in the lanes of vectors.

use super::problem::{Problem, Run, TILE};
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
    let blocks = problem.blocks::<L>();
    let mut kept = checkpoints.chunks_mut((problem.tiles() * problem.d_state * L).max(1));
    let items = (0..problem.batch * blocks)
        .map(|item| Item {
            problem: *problem,
            row: item / blocks,
            block: item % blocks,
            y: &y,
            last: &last,
            checkpoints: kept.next().unwrap_or_default(),
        })
        .collect();
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
    block: usize,
    y: &'a Columns<'a, F>,
    last: &'a Columns<'a, F>,
    checkpoints: &'a mut [F],
}

struct Scratch<F, const L: usize> {
    /// `A / ln 2`, so that `exp(delta A)` is one `exp2`.
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
            rate: lanes(d_state),
            h: lanes(d_state),
            start: lanes(d_state),
            delta: lanes(TILE),
            delta_u: lanes(TILE),
            y: lanes(TILE),
            runs: Vec::with_capacity(TILE),
        }
    }
}

/// One block of channels of one row, from the first token to the last.
struct Pass<'s, 'a, F, const L: usize> {
    item: Item<'a, F>,
    scratch: &'s mut Scratch<F, L>,
}

impl<F: Float, const L: usize> Kernel for Pass<'_, '_, F, L> {
    type Output = ();

    #[inline(always)]
    fn call<I: Isa>(self) {
        let Self { item, scratch } = self;
        let (problem, row, block) = (&item.problem, item.row, item.block);
        let d_state = problem.d_state;
        problem.states(problem.a, 0, block, &mut scratch.rate);
        for rate in &mut scratch.rate {
            *rate = *rate * Lanes::splat(F::LOG2_E);
        }
        problem.states(problem.initial_state, row, block, &mut scratch.h);
        if let Some(start) = problem.reset_state {
            problem.states(start, row, block, &mut scratch.start);
        }
        let mut checkpoints = item.checkpoints.chunks_exact_mut(L);
        for tile in (0..problem.tiles()).map(|index| problem.tile(index)) {
            // `h` first: a zip must not take a checkpoint that it then has no state for.
            for (h, kept) in scratch.h.iter().zip(&mut checkpoints) {
                h.store(kept);
            }
            problem.runs(row, tile.clone(), &mut scratch.runs);
            problem.prepare::<I, L>(row, block, tile.clone(), &mut scratch.delta, &mut scratch.delta_u);
            scratch.y.fill(Lanes::ZERO);
            let whole = d_state - d_state % TOGETHER;
            for n in (0..whole).step_by(TOGETHER) {
                advance::<I, F, L, TOGETHER>(problem, row, tile.start, n, scratch);
            }
            for n in whole..d_state {
                advance::<I, F, L, 1>(problem, row, tile.start, n, scratch);
            }
            for (t, &state_part) in tile.zip(&scratch.y) {
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
                let to = unsafe {
                    item.y.range(problem.offset::<L>(row, t, block), problem.channels::<L>(block).len())
                };
                y.store(to);
            }
        }
        for (lane, channel) in problem.channels::<L>(block).enumerate() {
            // SAFETY: a channel of this row and block, which no other item writes.
            let to = unsafe { item.last.range((row * problem.d_inner + channel) * d_state, d_state) };
            for (to, h) in to.iter_mut().zip(&scratch.h) {
                *to = h.0[lane];
            }
        }
    }
}

/// Takes the states `n..n + N` through the runs of a tile and adds `C h` to `y`.
#[inline(always)]
fn advance<I: Isa, F: Float, const L: usize, const N: usize>(
    problem: &Problem<'_, F>,
    row: usize,
    tile_start: usize,
    n: usize,
    scratch: &mut Scratch<F, L>,
) {
    let rate: [Lanes<F, L>; N] = std::array::from_fn(|k| scratch.rate[n + k]);
    let mut h: [Lanes<F, L>; N] = std::array::from_fn(|k| scratch.h[n + k]);
    for run in &scratch.runs {
        if run.reset {
            h = std::array::from_fn(|k| scratch.start[n + k]);
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
        scratch.h[n + k] = h;
    }
}
