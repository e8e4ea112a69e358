//! The convolution: tiles of tokens over the threads, channels in the lanes.

use super::problem::{MAX_WIDTH, Problem, TILE};
use crate::parallel;
use crate::simd::{self, Float, Isa, Kernel, Lanes};

/// Fills `y [batch, time, d]` and `new_tail [batch, width - 1, d]`.
pub(super) fn convolve<F: Float, const L: usize>(problem: &Problem<'_, F>, y: &mut [F], new_tail: &mut [F]) {
    let (time, d) = (problem.time, problem.d);
    let rows = y.chunks_mut(time * d).enumerate();
    let items = rows
        .flat_map(|(row, y)| y.chunks_mut(TILE * d).enumerate().map(move |(tile, y)| (row, tile, y)))
        .collect();
    parallel::each(
        items,
        problem.batch * time * d * problem.width,
        || (),
        |(), (row, tile, y)| simd::run(Pass::<F, L> { problem, row, first: tile * TILE, y }),
    );
    for (index, entry) in new_tail.chunks_exact_mut(d).enumerate() {
        let (row, index) = (index / problem.history(), index % problem.history());
        entry.copy_from_slice(problem.input(row, problem.place_in_new_tail(row, index)));
    }
}

/// One tile of one row.
struct Pass<'a, F, const L: usize> {
    problem: &'a Problem<'a, F>,
    row: usize,
    first: usize,
    y: &'a mut [F],
}

impl<F: Float, const L: usize> Kernel for Pass<'_, F, L> {
    type Output = ();

    #[inline(always)]
    fn call<I: Isa>(self) {
        let (problem, row) = (self.problem, self.row);
        for (offset, y) in self.y.chunks_exact_mut(problem.d).enumerate() {
            let t = self.first + offset;
            if t >= problem.length(row) {
                y.fill(F::ZERO);
                continue;
            }
            let window = problem.window(row, t);
            for channel in (0..problem.d).step_by(L) {
                let mut value = preactivation::<I, F, L>(problem, &window, channel);
                if problem.silu {
                    value = value * value.sigmoid::<I>();
                }
                value.store(&mut y[channel..]);
            }
        }
    }
}

/// `bias + sum_k weight_k x_k` for the channels from `channel` on.
#[inline(always)]
pub(super) fn preactivation<I: Isa, F: Float, const L: usize>(
    problem: &Problem<'_, F>,
    window: &[&[F]; MAX_WIDTH],
    channel: usize,
) -> Lanes<F, L> {
    let mut sum = problem.bias.map_or(Lanes::ZERO, |bias| Lanes::load(&bias[channel..]));
    for (k, input) in window.iter().enumerate().take(problem.width) {
        let tap = Lanes::load(&problem.taps[k * problem.d + channel..(k + 1) * problem.d]);
        sum = Lanes::load(&input[channel..]).mul_add::<I>(tap, sum);
    }
    sum
}
