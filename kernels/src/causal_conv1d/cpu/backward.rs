//! The convolution's gradients. With `p_t` the gradient before the activation:
//! `dx_s = sum_k weight_k p_{s + width - 1 - k}` over the tokens of the same document, `dweight_k = sum_t p_t x_{t, k}`.
//!
//! A tile computes `p` for its tokens and for the few after them that see it, so tiles are independent of each
//! other; their parts of what all tokens share are added up in order.

use super::forward::preactivation;
use super::problem::{MAX_WIDTH, Place, Problem, TILE};
use crate::parallel;
use crate::simd::{self, Float, Isa, Kernel, Lanes};

/// Columns of the shared gradients that a thread adds up at a time.
const COLUMNS: usize = 512;

/// The gradients of the outputs.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'a, F> {
    /// `[batch, time, d]`
    pub(super) y: Option<&'a [F]>,
    /// `[batch, width - 1, d]`
    pub(super) new_tail: Option<&'a [F]>,
}

/// The gradients that are not per token.
pub(super) struct Shared<F> {
    /// `[width, d]`
    pub(super) taps: Vec<F>,
    /// `[d]`
    pub(super) bias: Vec<F>,
    /// `[batch, width - 1, d]`
    pub(super) tail: Vec<F>,
    /// `[batch, width - 1, d]`, or empty.
    pub(super) reset_tail: Vec<F>,
}

/// Fills `dx [batch, time, d]` and returns the other gradients.
pub(super) fn gradients<F: Float, const L: usize>(
    problem: &Problem<'_, F>,
    upstream: Upstream<'_, F>,
    dx: &mut [F],
) -> Shared<F> {
    let (d, width, history) = (problem.d, problem.width, problem.history());
    let mut tail = vec![F::ZERO; problem.batch * history * d];
    // Of each tile: width taps, the bias, and the history of its documents if there are resets.
    let rows_per_tile = width + 1 + if problem.reset_tail.is_some() { history } else { 0 };
    let mut parts = vec![F::ZERO; problem.batch * problem.tiles() * rows_per_tile * d];

    let mut tails = tail.chunks_mut((history * d).max(1));
    let mut part_of = parts.chunks_exact_mut(rows_per_tile * d);
    let mut items = Vec::with_capacity(problem.batch * problem.tiles());
    for (row, dx) in dx.chunks_mut(problem.time * d).enumerate() {
        let mut tail = tails.next();
        for (tile, dx) in dx.chunks_mut(TILE * d).enumerate() {
            let parts = part_of.next().unwrap_or_default();
            // Only the first tile sees the tail of the call.
            items.push(Pass::<F, L> {
                problem,
                upstream,
                row,
                tile,
                dx,
                tail: tail.take().unwrap_or_default(),
                parts,
            });
        }
    }
    parallel::each(items, problem.batch * problem.time * d * width, || (), |(), pass| simd::run(pass));

    // Taps and bias are summed over all tiles, the resets' histories over the tiles of a row.
    let mut sums = vec![F::ZERO; (width + 1) * d];
    add_up(&mut sums, &parts.chunks_exact(rows_per_tile * d));
    let bias = sums.split_off(width * d);
    let mut reset_tail = Vec::new();
    if problem.reset_tail.is_some() {
        reset_tail = vec![F::ZERO; problem.batch * history * d];
        let by_row = parts.chunks_exact(problem.tiles() * rows_per_tile * d);
        for (sum, parts) in reset_tail.chunks_exact_mut((history * d).max(1)).zip(by_row) {
            add_up(sum, &parts.chunks_exact(rows_per_tile * d).map(|part| &part[(width + 1) * d..]));
        }
    }
    Shared { taps: sums, bias, tail, reset_tail }
}

/// Adds the first `sum.len()` values of each part to `sum`, part by part.
fn add_up<'a, F: Float>(sum: &mut [F], parts: &(impl Iterator<Item = &'a [F]> + Clone + Sync)) {
    let steps = sum.len() * parts.clone().count();
    let items = sum.chunks_mut(COLUMNS).enumerate().collect();
    parallel::each(
        items,
        steps,
        || (),
        |(), (index, sum): (usize, &mut [F])| {
            for part in parts.clone() {
                for (sum, part) in sum.iter_mut().zip(&part[index * COLUMNS..]) {
                    *sum = *sum + *part;
                }
            }
        },
    );
}

/// One tile of one row.
struct Pass<'a, F, const L: usize> {
    problem: &'a Problem<'a, F>,
    upstream: Upstream<'a, F>,
    row: usize,
    tile: usize,
    dx: &'a mut [F],
    /// The row's gradient of the tail, or empty.
    tail: &'a mut [F],
    /// `[width + 1 or more, d]`
    parts: &'a mut [F],
}

impl<F: Float, const L: usize> Kernel for Pass<'_, F, L> {
    type Output = ();

    #[inline(always)]
    fn call<I: Isa>(mut self) {
        let (problem, row) = (self.problem, self.row);
        let (d, width, history) = (problem.d, problem.width, problem.history());
        let own = problem.tile(self.tile);
        let length = problem.length(row);
        let seen = own.start..length.min(own.end + history).max(own.start);
        let windows: Vec<_> = seen.clone().map(|t| problem.window(row, t)).collect();
        let mut p = [Lanes::<F, L>::ZERO; TILE + MAX_WIDTH];

        if let Some(dy) = self.upstream.y {
            for channel in (0..d).step_by(L) {
                for ((t, window), p) in seen.clone().zip(&windows).zip(&mut p) {
                    let start = (row * problem.time + t) * d;
                    *p = Lanes::load(&dy[start + channel..start + d]);
                    if problem.silu {
                        let value = preactivation::<I, F, L>(problem, window, channel);
                        let (sigmoid, one) = (value.sigmoid::<I>(), Lanes::splat(F::ONE));
                        // silu'(v) = sigmoid(v) (1 + v (1 - sigmoid(v)))
                        *p = *p * sigmoid * value.mul_add::<I>(one - sigmoid, one);
                    }
                }
                let mut sums = [Lanes::<F, L>::ZERO; MAX_WIDTH + 1];
                for (window, &p) in windows.iter().zip(&p).take(own.len()) {
                    for (sum, input) in sums.iter_mut().zip(window).take(width) {
                        *sum = p.mul_add::<I>(Lanes::load(&input[channel..]), *sum);
                    }
                    sums[MAX_WIDTH] = sums[MAX_WIDTH] + p;
                }
                for (k, sum) in sums.iter().take(width).enumerate() {
                    sum.store(&mut self.parts[k * d + channel..(k + 1) * d]);
                }
                sums[MAX_WIDTH].store(&mut self.parts[width * d + channel..(width + 1) * d]);

                for (s, dx) in own.clone().zip(self.dx.chunks_exact_mut(d)) {
                    let mut sum = Lanes::<F, L>::ZERO;
                    for k in 0..width {
                        let t = s + history - k;
                        if t < seen.end && problem.origin(row, t).start <= s {
                            let tap = Lanes::load(&problem.taps[k * d + channel..(k + 1) * d]);
                            sum = p[t - own.start].mul_add::<I>(tap, sum);
                        }
                    }
                    sum.store(&mut dx[channel..]);
                }
                // What the taps read from before the document.
                for (t, &p) in own.clone().take_while(|t| *t < length).zip(&p) {
                    for k in 0..history {
                        let place = problem.place(row, t, k);
                        if matches!(place, Place::Token(_)) {
                            break;
                        }
                        let tap = Lanes::load(&problem.taps[k * d + channel..(k + 1) * d]);
                        let to = &mut self.row_of(place)[channel..];
                        p.mul_add::<I>(tap, Lanes::load(to)).store(to);
                    }
                }
            }
        } else {
            self.dx.fill(F::ZERO);
        }
        self.add_new_tail(own.start, own.end, length);
    }
}

impl<F: Float, const L: usize> Pass<'_, F, L> {
    /// The gradient of the input at a place, `[d]`.
    #[inline(always)]
    fn row_of(&mut self, place: Place) -> &mut [F] {
        let d = self.problem.d;
        let (all, index) = match place {
            Place::Token(t) => (&mut *self.dx, t - self.tile * TILE),
            Place::Tail(index) => (&mut *self.tail, index),
            Place::ResetTail(index) => (&mut *self.parts, self.problem.width + 1 + index),
        };
        &mut all[index * d..(index + 1) * d]
    }

    /// The new tail's gradient goes to the inputs it is made of: tokens of this tile, and, in the tile of the last
    /// token, what came before the document.
    fn add_new_tail(&mut self, start: usize, end: usize, length: usize) {
        let Some(grad) = self.upstream.new_tail else { return };
        let (d, history) = (self.problem.d, self.problem.history());
        let has_last = (start..end).contains(&length.saturating_sub(1));
        for index in 0..history {
            let place = self.problem.place_in_new_tail(self.row, index);
            let mine = match place {
                Place::Token(t) => (start..end).contains(&t),
                Place::Tail(_) | Place::ResetTail(_) => has_last,
            };
            if mine {
                let from = &grad[(self.row * history + index) * d..][..d];
                for (to, from) in self.row_of(place).iter_mut().zip(from) {
                    *to = *to + *from;
                }
            }
        }
    }
}
