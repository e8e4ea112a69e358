//! The scan's gradients, tile by tile from the end.
//!
//! With `g_t` the gradient of `h_t` and `a_t = exp(delta_t A)`:
//! `g_t = C_t ds_t + a_{t+1} g_{t+1}` (without the last term if a document starts at `t + 1`), `ds = dy silu(z)`;
//! `dC_t = ds_t h_t`, `dB_t = g_t delta_t u_t`, `du = D ds + delta sum_n g B`,
//! `ddelta = u sum_n g B + sum_n A w` and `dA = sum_t delta w` with `w = g a h_{t-1}`;
//! what flows out of a document's first token, `a_t g_t`, is the gradient of the state it started from.
//!
//! `dB` and `dC` are sums over channels: first lane by lane within a group of blocks, then over the lanes, then
//! over the groups, always in this order.

use super::channel_grads::{ChannelGrads, lanes_per_block};
use super::problem::{GROUP, Problem, Run, TILE};
use crate::parallel::{self, Columns};
use crate::simd::{self, Float, Isa, Kernel, Lanes};

/// States that go through a tile together.
const TOGETHER: usize = 4;

/// What the backward is given besides the operands.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'a, F> {
    /// As the forward left them, `[batch, blocks, tiles, d_state, L]`.
    pub(super) checkpoints: &'a [F],
    /// `[batch, time, d_inner]`
    pub(super) y: Option<&'a [F]>,
    /// `[batch, d_inner, d_state]`
    pub(super) last: Option<&'a [F]>,
}

/// Where the gradients of the `[batch, time, ..]` operands go.
pub(super) struct TokenGrads<'a, F> {
    pub(super) u: &'a mut [F],
    pub(super) delta: &'a mut [F],
    pub(super) b: &'a mut [F],
    pub(super) c: &'a mut [F],
    /// As long as `z`, or empty.
    pub(super) z: &'a mut [F],
}

/// Fills `to` and returns the gradients that are not per token.
#[allow(clippy::needless_pass_by_value)] // what is written through is given away
pub(super) fn gradients<F: Float, const L: usize>(
    problem: &Problem<'_, F>,
    upstream: Upstream<'_, F>,
    to: TokenGrads<'_, F>,
) -> ChannelGrads<F, L> {
    let d_state = problem.d_state;
    let (blocks, together) = (problem.blocks::<L>(), GROUP / L);
    let groups = blocks.div_ceil(together);
    let per_block = lanes_per_block(d_state);
    let mut lanes = vec![Lanes::ZERO; problem.batch * blocks * per_block];
    // [batch, groups, time, 2, d_state]
    let mut partial = vec![F::ZERO; problem.batch * groups * problem.time * 2 * d_state];

    let (du, ddelta, dz) = (Columns::new(to.u), Columns::new(to.delta), Columns::new(to.z));
    let mut rest = lanes.as_mut_slice();
    let mut items = Vec::with_capacity(problem.batch * groups);
    for (index, partial) in partial.chunks_mut((problem.time * 2 * d_state).max(1)).enumerate() {
        let first_block = index % groups * together;
        let count = together.min(blocks - first_block);
        let (lanes, after) = rest.split_at_mut(count * per_block);
        rest = after;
        let row = index / groups;
        let group =
            Group { problem: *problem, upstream, row, first_block, du: &du, ddelta: &ddelta, dz: &dz };
        items.push(Item { group, lanes, partial });
    }
    parallel::each(
        items,
        problem.steps(),
        || Scratch::<F, L>::new(d_state),
        |scratch, item| simd::run(Pass { item, scratch }),
    );

    let rows = to.b.chunks_mut(problem.time * d_state).zip(to.c.chunks_mut(problem.time * d_state));
    let rows = rows.zip(partial.chunks(groups * problem.time * 2 * d_state)).collect();
    parallel::each(
        rows,
        partial.len(),
        || (),
        |(), ((b, c), partial)| sum_groups(b, c, partial, groups, d_state),
    );
    ChannelGrads { lanes, d_inner: problem.d_inner, d_state }
}

/// Adds the groups' `[time, 2, d_state]` up, the first group first.
fn sum_groups<F: Float>(b: &mut [F], c: &mut [F], partial: &[F], groups: usize, d_state: usize) {
    for group in partial.chunks_exact(partial.len() / groups) {
        let tokens =
            group.chunks_exact(2 * d_state).zip(b.chunks_exact_mut(d_state)).zip(c.chunks_exact_mut(d_state));
        for ((partial, b), c) in tokens {
            for n in 0..d_state {
                b[n] = b[n] + partial[n];
                c[n] = c[n] + partial[d_state + n];
            }
        }
    }
}

/// A group of blocks of one row: what it reads, and the columns that it and others write.
#[derive(Clone, Copy)]
struct Group<'a, F> {
    problem: Problem<'a, F>,
    upstream: Upstream<'a, F>,
    row: usize,
    first_block: usize,
    du: &'a Columns<'a, F>,
    ddelta: &'a Columns<'a, F>,
    dz: &'a Columns<'a, F>,
}

struct Item<'a, F, const L: usize> {
    group: Group<'a, F>,
    /// `ChannelGrads` of each block of the group.
    lanes: &'a mut [Lanes<F, L>],
    /// `[time, 2, d_state]`: `dB` and `dC` of the group.
    partial: &'a mut [F],
}

struct Scratch<F, const L: usize> {
    /// By block of the group and state.
    a: Vec<Lanes<F, L>>,
    start: Vec<Lanes<F, L>>,
    /// By token of the tile.
    delta: Vec<Lanes<F, L>>,
    delta_u: Vec<Lanes<F, L>>,
    ds: Vec<Lanes<F, L>>,
    /// `sum_n C h`
    s: Vec<Lanes<F, L>>,
    /// `sum_n g B`
    g_b: Vec<Lanes<F, L>>,
    /// `sum_n A w`
    a_w: Vec<Lanes<F, L>>,
    /// `a_t` and `a_t h_{t-1}` by token and state: what the way forward leaves for the way back.
    decay: Vec<[Lanes<F, L>; TOGETHER]>,
    decayed: Vec<[Lanes<F, L>; TOGETHER]>,
    /// `dB` and `dC` by token and state, before the lanes are added up.
    sums: Vec<[Lanes<F, L>; 2]>,
    runs: Vec<Run>,
}

impl<F: Float, const L: usize> Scratch<F, L> {
    fn new(d_state: usize) -> Self {
        let lanes = |count| vec![Lanes::ZERO; count];
        Self {
            a: lanes(GROUP / L * d_state),
            start: lanes(GROUP / L * d_state),
            delta: lanes(TILE),
            delta_u: lanes(TILE),
            ds: lanes(TILE),
            s: lanes(TILE),
            g_b: lanes(TILE),
            a_w: lanes(TILE),
            decay: vec![[Lanes::ZERO; TOGETHER]; TILE],
            decayed: vec![[Lanes::ZERO; TOGETHER]; TILE],
            sums: vec![[Lanes::ZERO; 2]; TILE * d_state],
            runs: Vec::with_capacity(TILE),
        }
    }
}

/// One group of blocks of one row, from the last token to the first.
struct Pass<'s, 'a, F, const L: usize> {
    item: Item<'a, F, L>,
    scratch: &'s mut Scratch<F, L>,
}

impl<F: Float, const L: usize> Kernel for Pass<'_, '_, F, L> {
    type Output = ();

    #[inline(always)]
    fn call<I: Isa>(self) {
        let Self { item, scratch } = self;
        let group = item.group;
        let (problem, row) = (&group.problem, group.row);
        let d_state = problem.d_state;
        let per_block = lanes_per_block(d_state);
        for (offset, lanes) in item.lanes.chunks_exact_mut(per_block).enumerate() {
            let (block, states) = (group.first_block + offset, offset * d_state..(offset + 1) * d_state);
            problem.states(problem.a, 0, block, &mut scratch.a[states.clone()]);
            if let Some(start) = problem.reset_state {
                problem.states(start, row, block, &mut scratch.start[states]);
            }
            if let Some(last) = group.upstream.last {
                problem.states(last, row, block, &mut lanes[d_state..2 * d_state]);
            }
        }
        for (index, tile) in (0..problem.tiles()).map(|index| (index, problem.tile(index))).rev() {
            problem.runs(row, tile.clone(), &mut scratch.runs);
            scratch.sums.fill([Lanes::ZERO; 2]);
            for (offset, lanes) in item.lanes.chunks_exact_mut(per_block).enumerate() {
                let block = group.first_block + offset;
                problem.prepare::<I, L>(row, block, tile.clone(), &mut scratch.delta, &mut scratch.delta_u);
                for (t, ds) in tile.clone().zip(&mut scratch.ds) {
                    *ds = group.upstream.y.map_or(Lanes::ZERO, |dy| problem.at(dy, row, t, block));
                    if let Some(z) = problem.z {
                        let z = problem.at(z, row, t, block);
                        *ds = *ds * z * z.sigmoid::<I>();
                    }
                }
                for sum in [&mut scratch.s, &mut scratch.g_b, &mut scratch.a_w] {
                    sum.fill(Lanes::ZERO);
                }
                let first = ((row * problem.blocks::<L>() + block) * problem.tiles() + index) * d_state * L;
                let kept = &group.upstream.checkpoints[first..first + d_state * L];
                let at = At { problem, row, tile_start: tile.start, offset };
                let whole = d_state - d_state % TOGETHER;
                for n in (0..whole).step_by(TOGETHER) {
                    forth_and_back::<I, F, L, TOGETHER>(&at, n, kept, lanes, scratch);
                }
                for n in whole..d_state {
                    forth_and_back::<I, F, L, 1>(&at, n, kept, lanes, scratch);
                }
                for t in tile.clone() {
                    finish::<I, F, L>(&group, t, t - tile.start, block, &mut lanes[3 * d_state..], scratch);
                }
            }
            let tokens = item.partial.chunks_exact_mut(2 * d_state).skip(tile.start).take(tile.len());
            for (partial, sums) in tokens.zip(scratch.sums.chunks_exact(d_state)) {
                for (n, [b, c]) in sums.iter().enumerate() {
                    partial[n] = b.sum();
                    partial[d_state + n] = c.sum();
                }
            }
        }
    }
}

/// Where [`forth_and_back`] is: a tile of a row, and which block of its group.
struct At<'a, F> {
    problem: &'a Problem<'a, F>,
    row: usize,
    tile_start: usize,
    offset: usize,
}

/// Takes the states `n..n + N` forwards through the runs of a tile from its checkpoint, then their gradients back.
#[inline(always)]
fn forth_and_back<I: Isa, F: Float, const L: usize, const N: usize>(
    at: &At<'_, F>,
    n: usize,
    kept: &[F],
    lanes: &mut [Lanes<F, L>],
    scratch: &mut Scratch<F, L>,
) {
    let &At { problem, row, tile_start, offset } = at;
    let d_state = problem.d_state;
    let of_block = offset * d_state + n;
    let a: [Lanes<F, L>; N] = std::array::from_fn(|k| scratch.a[of_block + k]);
    let rate = a.map(|a| a * Lanes::splat(F::LOG2_E));
    let mut h: [Lanes<F, L>; N] = std::array::from_fn(|k| Lanes::load(&kept[(n + k) * L..][..L]));
    for run in &scratch.runs {
        if run.reset {
            h = std::array::from_fn(|k| scratch.start[of_block + k]);
        }
        for t in run.tokens.clone() {
            let b = problem.coefficients::<N>(problem.b, row, tile_start + t, n);
            let c = problem.coefficients::<N>(problem.c, row, tile_start + t, n);
            let (delta, delta_u, mut s) = (scratch.delta[t], scratch.delta_u[t], scratch.s[t]);
            for k in 0..N {
                let decay = (delta * rate[k]).exp2::<I>();
                let decayed = decay * h[k];
                h[k] = delta_u.mul_add::<I>(Lanes::splat(b[k]), decayed);
                s = h[k].mul_add::<I>(Lanes::splat(c[k]), s);
                scratch.decay[t][k] = decay;
                scratch.decayed[t][k] = decayed;
            }
            scratch.s[t] = s;
        }
    }

    let mut da: [Lanes<F, L>; N] = std::array::from_fn(|k| lanes[n + k]);
    // `a_{t+1} g_{t+1}`; before the first token it is the gradient of the initial state.
    let mut carry: [Lanes<F, L>; N] = std::array::from_fn(|k| lanes[d_state + n + k]);
    for run in scratch.runs.iter().rev() {
        for t in run.tokens.clone().rev() {
            let b = problem.coefficients::<N>(problem.b, row, tile_start + t, n);
            let c = problem.coefficients::<N>(problem.c, row, tile_start + t, n);
            let (delta, delta_u, ds) = (scratch.delta[t], scratch.delta_u[t], scratch.ds[t]);
            let (mut g_b, mut a_w) = (scratch.g_b[t], scratch.a_w[t]);
            let sums = &mut scratch.sums[t * d_state + n..][..N];
            for k in 0..N {
                let (decay, decayed) = (scratch.decay[t][k], scratch.decayed[t][k]);
                let g = ds.mul_add::<I>(Lanes::splat(c[k]), carry[k]);
                let h = delta_u.mul_add::<I>(Lanes::splat(b[k]), decayed);
                let w = g * decayed;
                let [db, dc] = sums[k];
                sums[k] = [g.mul_add::<I>(delta_u, db), ds.mul_add::<I>(h, dc)];
                g_b = g.mul_add::<I>(Lanes::splat(b[k]), g_b);
                a_w = w.mul_add::<I>(a[k], a_w);
                da[k] = w.mul_add::<I>(delta, da[k]);
                carry[k] = decay * g;
            }
            (scratch.g_b[t], scratch.a_w[t]) = (g_b, a_w);
        }
        if run.reset {
            for k in 0..N {
                let start = &mut lanes[2 * d_state + n + k];
                *start = *start + carry[k];
                carry[k] = Lanes::ZERO;
            }
        }
    }
    for k in 0..N {
        lanes[n + k] = da[k];
        lanes[d_state + n + k] = carry[k];
    }
}

/// Writes `du`, `ddelta`, `dz` of a token and adds to `dD` and `dbias`, once all states have passed.
#[inline(always)]
fn finish<I: Isa, F: Float, const L: usize>(
    group: &Group<'_, F>,
    t: usize,
    in_tile: usize,
    block: usize,
    d_and_bias: &mut [Lanes<F, L>],
    scratch: &Scratch<F, L>,
) {
    let (problem, row) = (&group.problem, group.row);
    let (mut du, mut ddelta, mut dz) = (Lanes::ZERO, Lanes::ZERO, Lanes::ZERO);
    if problem.is_valid(row, t) {
        let u: Lanes<F, L> = problem.at(problem.u, row, t, block);
        let (ds, g_b) = (scratch.ds[in_tile], scratch.g_b[in_tile]);
        let mut s = scratch.s[in_tile];
        du = scratch.delta[in_tile] * g_b;
        if let Some(d) = problem.d {
            let d = problem.vector(d, block);
            du = d.mul_add::<I>(ds, du);
            s = d.mul_add::<I>(u, s);
            d_and_bias[0] = ds.mul_add::<I>(u, d_and_bias[0]);
        }
        ddelta = u.mul_add::<I>(g_b, scratch.a_w[in_tile]);
        if problem.delta_softplus {
            ddelta = ddelta * problem.raw_delta(row, t, block).sigmoid::<I>();
        }
        d_and_bias[1] = d_and_bias[1] + ddelta;
        if let (Some(z), Some(dy)) = (problem.z, group.upstream.y) {
            let z = problem.at(z, row, t, block);
            let (sigmoid, one) = (z.sigmoid::<I>(), Lanes::splat(F::ONE));
            // silu'(z) = sigmoid(z) (1 + z (1 - sigmoid(z)))
            let slope = sigmoid * z.mul_add::<I>(one - sigmoid, one);
            dz = problem.at(dy, row, t, block) * s * slope;
        }
    }
    let (first, count) = (problem.offset::<L>(row, t, block), problem.channels::<L>(block).len());
    // SAFETY (all): this row's and block's channels, which no other item writes.
    du.store(unsafe { group.du.range(first, count) });
    // SAFETY: as above.
    ddelta.store(unsafe { group.ddelta.range(first, count) });
    if problem.z.is_some() {
        // SAFETY: as above.
        dz.store(unsafe { group.dz.range(first, count) });
    }
}
