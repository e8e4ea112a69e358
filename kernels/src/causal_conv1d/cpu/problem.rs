//! The operands as slices, and where each input that an output sees comes from.

use std::ops::Range;

use crate::simd::Float;

/// Tokens that one thread computes at a time; more than the longest tail, so that only the first tile of a row
/// sees the tail of the call.
pub(super) const TILE: usize = 32;

/// The widest filter.
pub(super) const MAX_WIDTH: usize = super::super::MAX_WIDTH as usize;

/// The document of a token: where it starts in this call, and whether it does (or comes from before).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) start: usize,
    pub(super) reset: bool,
}

/// Where an input lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Token of this call.
    Token(usize),
    /// Entry of `tail`.
    Tail(usize),
    /// Entry of `reset_tail`.
    ResetTail(usize),
}

/// The operands of one convolution, all contiguous, as in [`CausalConv1d`](super::super::CausalConv1d).
pub(super) struct Problem<'a, F> {
    pub(super) batch: usize,
    pub(super) time: usize,
    pub(super) d: usize,
    pub(super) width: usize,
    pub(super) silu: bool,
    pub(super) x: &'a [F],
    /// `[width, d]`: transposed, so that the channels of a tap lie together.
    pub(super) taps: Vec<F>,
    pub(super) bias: Option<&'a [F]>,
    pub(super) tail: &'a [F],
    pub(super) reset_tail: Option<&'a [F]>,
    /// `[batch, time]`
    origins: Vec<Origin>,
    /// `[batch]`
    lengths: Vec<usize>,
}

impl<'a, F: Float> Problem<'a, F> {
    #[allow(clippy::too_many_arguments)] // the operands are that many
    pub(super) fn new(
        [batch, time, d, width]: [usize; 4],
        silu: bool,
        x: &'a [F],
        weight: &'a [F],
        bias: Option<&'a [F]>,
        [tail, reset_tail]: [Option<&'a [F]>; 2],
        resets: Option<&'a [bool]>,
        lengths: Option<&'a [i64]>,
    ) -> Self {
        let taps = (0..width).flat_map(|k| (0..d).map(move |channel| weight[channel * width + k])).collect();
        let mut origins = Vec::with_capacity(batch * time);
        for row in 0..batch {
            let mut origin = Origin { start: 0, reset: false };
            for t in 0..time {
                if resets.is_some_and(|resets| resets[row * time + t]) {
                    origin = Origin { start: t, reset: true };
                }
                origins.push(origin);
            }
        }
        let clamp = |length: &i64| usize::try_from(*length).unwrap_or(0).min(time);
        let lengths =
            lengths.map_or_else(|| vec![time; batch], |lengths| lengths.iter().map(clamp).collect());
        let tail = tail.unwrap_or_default();
        Self { batch, time, d, width, silu, x, taps, bias, tail, reset_tail, origins, lengths }
    }

    /// Entries of a tail.
    pub(super) fn history(&self) -> usize {
        self.width - 1
    }

    pub(super) fn tiles(&self) -> usize {
        self.time.div_ceil(TILE)
    }

    pub(super) fn tile(&self, index: usize) -> Range<usize> {
        index * TILE..self.time.min((index + 1) * TILE)
    }

    /// The tokens of a row that are no padding.
    pub(super) fn length(&self, row: usize) -> usize {
        self.lengths[row]
    }

    pub(super) fn origin(&self, row: usize, t: usize) -> Origin {
        self.origins[row * self.time + t]
    }

    /// Where the input is that tap `k` of token `t` reads.
    pub(super) fn place(&self, row: usize, t: usize, k: usize) -> Place {
        self.before(self.origin(row, t), t + k)
    }

    /// Where the new tail's entry `index` comes from.
    pub(super) fn place_in_new_tail(&self, row: usize, index: usize) -> Place {
        let length = self.length(row);
        let origin =
            if length > 0 { self.origin(row, length - 1) } else { Origin { start: 0, reset: false } };
        self.before(origin, length + index)
    }

    /// The input at position `shifted - (width - 1)` of a row, in the document that starts at `origin`.
    fn before(&self, origin: Origin, shifted: usize) -> Place {
        let Origin { start, reset } = origin;
        match shifted.checked_sub(start + self.history()) {
            Some(past_start) => Place::Token(start + past_start),
            None if reset => Place::ResetTail(shifted - start),
            None => Place::Tail(shifted - start),
        }
    }

    /// The input at a place, `[d]`.
    pub(super) fn input(&self, row: usize, place: Place) -> &[F] {
        let size = self.history() * self.d;
        let (from, first) = match place {
            Place::Token(t) => (self.x, (row * self.time + t) * self.d),
            Place::Tail(index) => (self.tail, shared_or(row, self.tail, size) + index * self.d),
            Place::ResetTail(index) => {
                let tail = self.reset_tail.unwrap_or_default();
                (tail, shared_or(row, tail, size) + index * self.d)
            }
        };
        &from[first..first + self.d]
    }

    /// What the taps of token `t` read, the oldest first; the first `width` are filled.
    pub(super) fn window(&self, row: usize, t: usize) -> [&[F]; MAX_WIDTH] {
        let mut window: [&[F]; MAX_WIDTH] = [&[]; MAX_WIDTH];
        for (k, input) in window.iter_mut().enumerate().take(self.width) {
            *input = self.input(row, self.place(row, t, k));
        }
        window
    }
}

/// Where a row starts in a `[batch or 1, ..]` operand with rows of `size`.
fn shared_or<F>(row: usize, x: &[F], size: usize) -> usize {
    if x.len() == size { 0 } else { row * size }
}
