//! The gradients, token by token from the end.
//!
//! Inside the loop the maximum `m` is a constant: no output depends on it. Only the last state does, as `c e^m` and
//! `n e^m` are what it means, so its gradient follows the one path that made the maximum, back to an input gate or to
//! the state at the start; that state's own `m` gets, besides, what moving its `c` and `n` would do.

use super::cell::{Cell, load, load3, load4, store};
use super::product::add_product;
use super::{ROWS, Sizes, Tokens};
use crate::parallel;
use crate::simd::{self, Float, Isa, Kernel, Lanes};

#[derive(Clone, Copy)]
pub(super) struct Operands<'a, F> {
    /// `[heads, 4 head_dim, head_dim]`: a row for each pre-activation.
    pub(super) recurrent: &'a [F],
    /// As the forward left it, `[heads, batch, time, 8, head_dim]`.
    pub(super) trace: &'a [F],
    /// `[heads, batch, 4, head_dim]`
    pub(super) last: &'a [F],
    pub(super) upstream_h: Option<&'a [F]>,
    pub(super) upstream_last: Option<&'a [F]>,
    pub(super) tokens: Tokens<'a>,
}

pub(super) struct Gradients<'a, F> {
    /// `[heads, batch, time, 4, head_dim]`
    pub(super) gates: &'a mut [F],
    /// `[heads, batch, 4, head_dim]`
    pub(super) initial: &'a mut [F],
    /// The same, or empty; added to.
    pub(super) reset: &'a mut [F],
}

#[allow(clippy::needless_pass_by_value)] // what is written through is given away
pub(super) fn run<F: Float, const L: usize>(sizes: Sizes, from: Operands<'_, F>, to: Gradients<'_, F>) {
    let Sizes { heads, batch, time, head_dim } = sizes;
    let (mut gates, mut initial, mut reset) = (to.gates, to.initial, to.reset);
    let mut items = Vec::with_capacity(heads * batch.div_ceil(ROWS));
    for head in 0..heads {
        for first in (0..batch).step_by(ROWS) {
            let rows = ROWS.min(batch - first);
            let of_state = rows * 4 * head_dim;
            let of_reset = if reset.is_empty() { 0 } else { of_state };
            items.push(Item {
                sizes,
                from,
                head,
                first,
                rows,
                gates: gates.split_off_mut(..rows * time * 4 * head_dim).unwrap_or_default(),
                carried: initial.split_off_mut(..of_state).unwrap_or_default(),
                reset: reset.split_off_mut(..of_reset).unwrap_or_default(),
            });
        }
    }
    parallel::each(items, sizes.steps(), Vec::new, |scratch: &mut Vec<F>, item| {
        simd::run(Pass::<F, L> { item, scratch });
    });
}

/// A few rows of a head.
struct Item<'a, F> {
    sizes: Sizes,
    from: Operands<'a, F>,
    head: usize,
    first: usize,
    rows: usize,
    gates: &'a mut [F],
    /// The gradient of the running state, `[rows, 4, head_dim]`; at the end, that of the initial state.
    carried: &'a mut [F],
    reset: &'a mut [F],
}

struct Pass<'a, 's, F, const L: usize> {
    item: Item<'a, F>,
    scratch: &'s mut Vec<F>,
}

impl<F: Float, const L: usize> Kernel for Pass<'_, '_, F, L> {
    type Output = ();

    #[inline(always)]
    fn call<I: Isa>(self) {
        let Item { sizes, from, head, first, rows, gates, carried, reset } = self.item;
        let Sizes { batch, time, head_dim, .. } = sizes;
        let recurrent = &from.recurrent[head * 4 * head_dim * head_dim..][..4 * head_dim * head_dim];
        // Gradients of the pre-activations and of the outputs before, of all rows one after another.
        self.scratch.resize(rows * 5 * head_dim, F::ZERO);
        let (raw, before) = self.scratch.split_at_mut(rows * 4 * head_dim);
        let row_of = |row: usize| head * batch + first + row;
        for (row, carried) in carried.chunks_exact_mut(4 * head_dim).enumerate() {
            let at = row_of(row) * 4 * head_dim;
            match from.upstream_last {
                Some(upstream) => carried.copy_from_slice(&upstream[at..][..4 * head_dim]),
                None => carried.fill(F::ZERO),
            }
            // The state is relative to `m`: a larger one makes `c` and `n` smaller.
            move_maximum::<F, L>(carried, &from.last[at..][..4 * head_dim], head_dim, |m, rest| m - rest);
        }
        for t in (0..time).rev() {
            for (row, carried) in carried.chunks_exact_mut(4 * head_dim).enumerate() {
                let raw = &mut raw[row * 4 * head_dim..][..4 * head_dim];
                if !from.tokens.is_valid((first + row) * time + t) {
                    raw.fill(F::ZERO);
                    continue;
                }
                let token = row_of(row) * time + t;
                let trace = &from.trace[token * 8 * head_dim..][..8 * head_dim];
                let upstream = from.upstream_h.map(|h| &h[token * head_dim..][..head_dim]);
                cells::<I, F, L>(trace, upstream, carried, raw, head_dim);
            }
            before.fill(F::ZERO);
            add_product::<I, F, L>(rows, raw, recurrent, head_dim, before);
            for (row, carried) in carried.chunks_exact_mut(4 * head_dim).enumerate() {
                gates[(row * time + t) * 4 * head_dim..][..4 * head_dim]
                    .copy_from_slice(&raw[row * 4 * head_dim..][..4 * head_dim]);
                let at = (first + row) * time + t;
                if !from.tokens.is_valid(at) {
                    continue;
                }
                carried[..head_dim].copy_from_slice(&before[row * head_dim..][..head_dim]);
                if !reset.is_empty() && from.tokens.is_reset(at) {
                    let token = row_of(row) * time + t;
                    let state = &from.trace[token * 8 * head_dim..][4 * head_dim..8 * head_dim];
                    move_maximum::<F, L>(carried, state, head_dim, |m, rest| m + rest);
                    for (sum, carried) in reset[row * 4 * head_dim..].iter_mut().zip(carried) {
                        *sum = *sum + *carried;
                        *carried = F::ZERO;
                    }
                }
            }
        }
        for (row, carried) in carried.chunks_exact_mut(4 * head_dim).enumerate() {
            // The state at the start was the one before the first token, unless that began a document.
            let start = &from.trace[row_of(row) * time * 8 * head_dim..][4 * head_dim..8 * head_dim];
            move_maximum::<F, L>(carried, start, head_dim, |m, rest| m + rest);
        }
    }
}

/// Changes the gradient of `m` by `c dc + n dn`.
#[inline(always)]
fn move_maximum<F: Float, const L: usize>(
    gradient: &mut [F],
    state: &[F],
    head_dim: usize,
    change: impl Fn(Lanes<F, L>, Lanes<F, L>) -> Lanes<F, L>,
) {
    for unit in (0..head_dim).step_by(L) {
        let [dc, dn, dm] = load3::<F, L>(gradient, head_dim, 1, unit);
        let [c, n, _] = load3::<F, L>(state, head_dim, 1, unit);
        store(change(dm, c * dc + n * dn), gradient, head_dim, 3, unit);
    }
}

/// Takes the gradient of a state back over one token: `carried` becomes that of the `c`, `n` and `m` before, `raw` that
/// of the pre-activations.
#[inline(always)]
fn cells<I: Isa, F: Float, const L: usize>(
    trace: &[F],
    upstream: Option<&[F]>,
    carried: &mut [F],
    raw: &mut [F],
    head_dim: usize,
) {
    let one = Lanes::<F, L>::splat(F::ONE);
    let half = F::ONE / (F::ONE + F::ONE);
    for unit in (0..head_dim).step_by(L) {
        let pre = load4::<F, L>(trace, head_dim, 0, unit);
        let [c, n, m] = load3::<F, L>(trace, head_dim, 5, unit);
        let cell = Cell::new::<I>(pre, [c, n, m]);
        let [mut dh, dc, dn, dm] = load4::<F, L>(carried, head_dim, 0, unit);
        if let Some(upstream) = upstream {
            dh = dh + load(upstream, head_dim, 0, unit);
        }
        let quotient = cell.c / cell.n;
        let d_output = dh * quotient * cell.output * (one - cell.output);
        let d_quotient = dh * cell.output / cell.n;
        let (dc, dn) = (dc + d_quotient, dn - d_quotient * quotient);
        let d_value = dc * cell.input * (one - cell.value * cell.value);
        // Which of the two made the maximum.
        let share = pre[0].zip(cell.kept, |i, kept| {
            if i > kept {
                F::ONE
            } else if i == kept {
                half
            } else {
                F::ZERO
            }
        });
        let to_input = dm * share;
        let to_kept = dm - to_input;
        let d_input = (dc * cell.value + dn) * cell.input + to_input;
        let (dc, dn) = (dc * cell.forget, dn * cell.forget);
        let d_kept = dc * c + dn * n + to_kept;
        let d_forget = d_kept * pre[1].map(|x| -x).sigmoid::<I>();
        store(d_input, raw, head_dim, 0, unit);
        store(d_forget, raw, head_dim, 1, unit);
        store(d_value, raw, head_dim, 2, unit);
        store(d_output, raw, head_dim, 3, unit);
        store(dc, carried, head_dim, 1, unit);
        store(dn, carried, head_dim, 2, unit);
        store(to_kept, carried, head_dim, 3, unit);
    }
}
