//! The gradients of what all tokens share, summed over the batch in order.

use crate::simd::{Float, Lanes};

/// Gradients by row, block, and then `[a, initial_state, reset_state: d_state each, d, delta_bias]`.
pub(super) struct ChannelGrads<F, const L: usize> {
    pub(super) lanes: Vec<Lanes<F, L>>,
    pub(super) d_inner: usize,
    pub(super) d_state: usize,
}

pub(super) fn lanes_per_block(d_state: usize) -> usize {
    3 * d_state + 2
}

impl<F: Float, const L: usize> ChannelGrads<F, L> {
    /// `dA [d_inner, d_state]`.
    pub(super) fn a(&self, to: &mut [F]) {
        self.states(0, to);
    }

    /// The gradient of `initial_state`, `[batch or 1, d_inner, d_state]`.
    pub(super) fn initial_state(&self, to: &mut [F]) {
        self.states(1, to);
    }

    /// The gradient of `reset_state`, `[batch or 1, d_inner, d_state]`.
    pub(super) fn reset_state(&self, to: &mut [F]) {
        self.states(2, to);
    }

    /// `dD [d_inner]`.
    pub(super) fn d(&self, to: &mut [F]) {
        self.vector(0, to);
    }

    /// The gradient of `delta_bias`, `[d_inner]`.
    pub(super) fn delta_bias(&self, to: &mut [F]) {
        self.vector(1, to);
    }

    fn rows(&self) -> impl Iterator<Item = &[Lanes<F, L>]> {
        self.lanes.chunks_exact(self.d_inner.div_ceil(L) * lanes_per_block(self.d_state))
    }

    /// Adds to `to`, row by row or, if it has only one, all to that.
    fn states(&self, which: usize, to: &mut [F]) {
        let size = self.d_inner * self.d_state;
        let shared = to.len() == size;
        for (row, lanes) in self.rows().enumerate() {
            let to = &mut to[if shared { 0 } else { row * size }..][..size];
            for (channel, to) in to.chunks_exact_mut(self.d_state).enumerate() {
                let from = &lanes[channel / L * lanes_per_block(self.d_state) + which * self.d_state..];
                for (to, from) in to.iter_mut().zip(from) {
                    *to = *to + from.0[channel % L];
                }
            }
        }
    }

    fn vector(&self, which: usize, to: &mut [F]) {
        for lanes in self.rows() {
            for (channel, to) in to.iter_mut().enumerate() {
                let block = channel / L * lanes_per_block(self.d_state);
                *to = *to + lanes[block + 3 * self.d_state + which].0[channel % L];
            }
        }
    }
}
