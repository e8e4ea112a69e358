//! The recurrence itself.

use super::cell::{Cell, load3, load4, store};
use super::product::add_product;
use super::{ROWS, Sizes, Tokens};
use crate::parallel;
use crate::simd::{self, Float, Isa, Kernel};

/// Contiguous operands, see [`Packed`](super::Packed).
#[derive(Clone, Copy)]
pub(super) struct Operands<'a, F> {
    pub(super) gates: &'a [F],
    /// `[heads, head_dim, 4 head_dim]`: a row for each input.
    pub(super) recurrent: &'a [F],
    pub(super) initial: &'a [F],
    pub(super) reset: Option<&'a [F]>,
    pub(super) tokens: Tokens<'a>,
}

pub(super) struct Results<'a, F> {
    /// `[heads, batch, time, head_dim]`
    pub(super) h: &'a mut [F],
    /// `[heads, batch, 4, head_dim]`
    pub(super) last: &'a mut [F],
    /// Pre-activations of each token and the state before it, `[heads, batch, time, 8, head_dim]`, or empty.
    pub(super) trace: &'a mut [F],
}

#[allow(clippy::needless_pass_by_value)] // what is written through is given away
pub(super) fn run<F: Float, const L: usize>(sizes: Sizes, from: Operands<'_, F>, to: Results<'_, F>) {
    let Sizes { heads, batch, time, head_dim } = sizes;
    let (mut h, mut last, mut trace) = (to.h, to.last, to.trace);
    let mut items = Vec::with_capacity(heads * batch.div_ceil(ROWS));
    for head in 0..heads {
        for first in (0..batch).step_by(ROWS) {
            let rows = ROWS.min(batch - first);
            let of_trace = if trace.is_empty() { 0 } else { rows * time * 8 * head_dim };
            items.push(Item {
                sizes,
                from,
                head,
                first,
                rows,
                h: h.split_off_mut(..rows * time * head_dim).unwrap_or_default(),
                last: last.split_off_mut(..rows * 4 * head_dim).unwrap_or_default(),
                trace: trace.split_off_mut(..of_trace).unwrap_or_default(),
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
    h: &'a mut [F],
    /// The running state, `[rows, 4, head_dim]`.
    last: &'a mut [F],
    trace: &'a mut [F],
}

struct Pass<'a, 's, F, const L: usize> {
    item: Item<'a, F>,
    scratch: &'s mut Vec<F>,
}

impl<F: Float, const L: usize> Kernel for Pass<'_, '_, F, L> {
    type Output = ();

    #[inline(always)]
    fn call<I: Isa>(self) {
        let Item { sizes, from, head, first, rows, h, last, trace } = self.item;
        let Sizes { batch, time, head_dim, .. } = sizes;
        let recurrent = &from.recurrent[head * 4 * head_dim * head_dim..][..4 * head_dim * head_dim];
        // Pre-activations, and the last outputs of all rows one after another.
        self.scratch.resize(rows * 5 * head_dim, F::ZERO);
        let (raw, before) = self.scratch.split_at_mut(rows * 4 * head_dim);
        let states = |x: &'_ [F], row: usize| -> std::ops::Range<usize> {
            let start = (head * batch + first + row) * 4 * head_dim;
            debug_assert!(start < x.len());
            start..start + 4 * head_dim
        };
        for (row, state) in last.chunks_exact_mut(4 * head_dim).enumerate() {
            state.copy_from_slice(&from.initial[states(from.initial, row)]);
        }
        for t in 0..time {
            for (row, state) in last.chunks_exact_mut(4 * head_dim).enumerate() {
                let at = (first + row) * time + t;
                if let Some(reset) = from.reset
                    && from.tokens.is_reset(at)
                    && from.tokens.is_valid(at)
                {
                    state.copy_from_slice(&reset[states(reset, row)]);
                }
                let token = (head * batch + first + row) * time + t;
                raw[row * 4 * head_dim..][..4 * head_dim]
                    .copy_from_slice(&from.gates[token * 4 * head_dim..][..4 * head_dim]);
                before[row * head_dim..][..head_dim].copy_from_slice(&state[..head_dim]);
            }
            add_product::<I, F, L>(rows, before, recurrent, 4 * head_dim, raw);
            for (row, state) in last.chunks_exact_mut(4 * head_dim).enumerate() {
                let raw = &raw[row * 4 * head_dim..][..4 * head_dim];
                if !trace.is_empty() {
                    let trace = &mut trace[(row * time + t) * 8 * head_dim..][..8 * head_dim];
                    trace[..4 * head_dim].copy_from_slice(raw);
                    trace[4 * head_dim..].copy_from_slice(state);
                }
                let h = &mut h[(row * time + t) * head_dim..][..head_dim];
                if !from.tokens.is_valid((first + row) * time + t) {
                    h.fill(F::ZERO);
                    continue;
                }
                for unit in (0..head_dim).step_by(L) {
                    let gates = load4::<F, L>(raw, head_dim, 0, unit);
                    let cell = Cell::new::<I>(gates, load3(state, head_dim, 1, unit));
                    let output = cell.h();
                    store(output, h, head_dim, 0, unit);
                    store(output, state, head_dim, 0, unit);
                    store(cell.c, state, head_dim, 1, unit);
                    store(cell.n, state, head_dim, 2, unit);
                    store(cell.m, state, head_dim, 3, unit);
                }
            }
        }
    }
}
