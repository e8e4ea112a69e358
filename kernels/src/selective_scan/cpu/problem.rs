//! The operands as slices, and how they are cut: channels into blocks of lanes, time into tiles, tiles into runs.

use std::ops::Range;

use crate::simd::{Float, Isa, Lanes};

/// Tokens of a tile. The backward starts again from a state that the forward kept at the start of each.
pub(super) const TILE: usize = 32;

/// Channels that one thread takes through a tile before it goes on to the next; the backward adds up their `dB` and
/// `dC` before it writes them.
pub(super) const GROUP: usize = 64;

/// The operands of one scan, all contiguous, as in [`SelectiveScan`](super::super::SelectiveScan).
#[derive(Clone, Copy)]
pub(super) struct Problem<'a, F> {
    pub(super) batch: usize,
    pub(super) time: usize,
    pub(super) d_inner: usize,
    pub(super) d_state: usize,
    pub(super) u: &'a [F],
    pub(super) delta: &'a [F],
    pub(super) delta_bias: Option<&'a [F]>,
    pub(super) delta_softplus: bool,
    pub(super) a: &'a [F],
    pub(super) b: &'a [F],
    pub(super) c: &'a [F],
    pub(super) d: Option<&'a [F]>,
    pub(super) z: Option<&'a [F]>,
    pub(super) initial_state: &'a [F],
    pub(super) reset_state: Option<&'a [F]>,
    pub(super) resets: Option<&'a [bool]>,
    pub(super) valid: Option<&'a [bool]>,
}

/// Valid tokens of a tile that follow one another without a reset, except perhaps before the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Counted from the start of the tile.
    pub(super) tokens: Range<usize>,
    pub(super) reset: bool,
}

impl<'a, F: Float> Problem<'a, F> {
    pub(super) fn blocks<const L: usize>(&self) -> usize {
        self.d_inner.div_ceil(L)
    }

    pub(super) fn tiles(&self) -> usize {
        self.time.div_ceil(TILE)
    }

    /// Every state of every token and channel once.
    pub(super) fn steps(&self) -> usize {
        self.batch * self.time * self.d_inner * self.d_state
    }

    pub(super) fn tile(&self, index: usize) -> Range<usize> {
        index * TILE..self.time.min((index + 1) * TILE)
    }

    /// The channels of a block.
    #[inline(always)]
    pub(super) fn channels<const L: usize>(&self, block: usize) -> Range<usize> {
        block * L..self.d_inner.min((block + 1) * L)
    }

    /// The position of a block's first channel at token `t` in a `[batch, time, d_inner]` operand.
    #[inline(always)]
    pub(super) fn offset<const L: usize>(&self, row: usize, t: usize, block: usize) -> usize {
        (row * self.time + t) * self.d_inner + block * L
    }

    /// A block's channels at token `t` of a `[batch, time, d_inner]` operand.
    #[inline(always)]
    pub(super) fn at<const L: usize>(&self, x: &[F], row: usize, t: usize, block: usize) -> Lanes<F, L> {
        let start = self.offset::<L>(row, t, block);
        Lanes::load(&x[start..start + self.channels::<L>(block).len()])
    }

    /// A block's channels of a `[d_inner]` operand.
    #[inline(always)]
    pub(super) fn vector<const L: usize>(&self, x: &[F], block: usize) -> Lanes<F, L> {
        Lanes::load(&x[self.channels::<L>(block)])
    }

    /// A block's channels of a `[1 or more, d_inner, d_state]` operand, state by state.
    #[inline(always)]
    pub(super) fn states<const L: usize>(&self, x: &[F], row: usize, block: usize, to: &mut [Lanes<F, L>]) {
        let size = self.d_inner * self.d_state;
        let x = if x.len() == size { x } else { &x[row * size..][..size] };
        to.fill(Lanes::ZERO);
        for (lane, channel) in self.channels::<L>(block).enumerate() {
            for (lanes, &value) in to.iter_mut().zip(&x[channel * self.d_state..][..self.d_state]) {
                lanes.0[lane] = value;
            }
        }
    }

    /// Row `t` of `b` or `c`, from state `n` on.
    #[inline(always)]
    pub(super) fn coefficients<const N: usize>(&self, x: &'a [F], row: usize, t: usize, n: usize) -> &'a [F] {
        &x[(row * self.time + t) * self.d_state + n..][..N]
    }

    #[inline(always)]
    pub(super) fn is_valid(&self, row: usize, t: usize) -> bool {
        self.valid.is_none_or(|valid| valid[row * self.time + t])
    }

    /// Cuts a tile of a row into runs.
    pub(super) fn runs(&self, row: usize, tile: Range<usize>, runs: &mut Vec<Run>) {
        runs.clear();
        let start = tile.start;
        let mut go_on = false;
        for t in tile {
            let at = t - start;
            if !self.is_valid(row, t) {
                go_on = false;
                continue;
            }
            let reset = self.resets.is_some_and(|resets| resets[row * self.time + t]);
            match runs.last_mut() {
                Some(run) if go_on && !reset => run.tokens.end = at + 1,
                _ => runs.push(Run { tokens: at..at + 1, reset }),
            }
            go_on = true;
        }
    }

    /// Before the softplus: `delta + bias`.
    #[inline(always)]
    pub(super) fn raw_delta<const L: usize>(&self, row: usize, t: usize, block: usize) -> Lanes<F, L> {
        let delta = self.at(self.delta, row, t, block);
        self.delta_bias.map_or(delta, |bias| delta + self.vector(bias, block))
    }

    /// `delta_t` and `delta_t u_t` of a tile.
    #[inline(always)]
    pub(super) fn prepare<I: Isa, const L: usize>(
        &self,
        row: usize,
        block: usize,
        tile: Range<usize>,
        delta: &mut [Lanes<F, L>],
        delta_u: &mut [Lanes<F, L>],
    ) {
        for ((t, delta), delta_u) in tile.zip(delta).zip(delta_u) {
            let raw = self.raw_delta(row, t, block);
            *delta = if self.delta_softplus { raw.softplus::<I>() } else { raw };
            *delta_u = *delta * self.at(self.u, row, t, block);
        }
    }
}
