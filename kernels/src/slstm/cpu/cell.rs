//! The cell of one unit, in the lanes of vectors.

use crate::simd::{Float, Isa, Lanes};

/// What a token makes of the cells of its units.
pub(super) struct Cell<F, const L: usize> {
    /// `log sigmoid(f)` plus the maximum before; `-inf` where nothing was remembered.
    pub(super) kept: Lanes<F, L>,
    /// Forget and input gate, relative to the new maximum.
    pub(super) forget: Lanes<F, L>,
    pub(super) input: Lanes<F, L>,
    /// `tanh(z)` and `sigmoid(o)`.
    pub(super) value: Lanes<F, L>,
    pub(super) output: Lanes<F, L>,
    pub(super) c: Lanes<F, L>,
    pub(super) n: Lanes<F, L>,
    pub(super) m: Lanes<F, L>,
}

impl<F: Float, const L: usize> Cell<F, L> {
    /// From the pre-activations `[i, f, z, o]` and the state `[c, n, m]` before.
    #[inline(always)]
    pub(super) fn new<I: Isa>([i, f, z, o]: [Lanes<F, L>; 4], [c, n, m]: [Lanes<F, L>; 3]) -> Self {
        let kept = m - f.map(|x| -x).softplus::<I>();
        let kept = kept.zip(n, |kept, n| if n == F::ZERO { -F::INFINITY } else { kept });
        let m = kept.zip(i, |x, y| if x > y { x } else { y });
        let (forget, input) = ((kept - m).exp::<I>(), (i - m).exp::<I>());
        let (value, output) = (z.tanh::<I>(), o.sigmoid::<I>());
        let c = forget.mul_add::<I>(c, input * value);
        let n = forget.mul_add::<I>(n, input);
        Self { kept, forget, input, value, output, c, n, m }
    }

    #[inline(always)]
    pub(super) fn h(&self) -> Lanes<F, L> {
        self.output * self.c / self.n
    }
}

/// Lanes of the parts from `first` on, as [`load`] reads them. (Written out, because a closure for `map` might be
/// compiled without the instructions of its kernel.)
#[inline(always)]
pub(super) fn load3<F: Float, const L: usize>(
    from: &[F],
    head_dim: usize,
    first: usize,
    unit: usize,
) -> [Lanes<F, L>; 3] {
    [
        load(from, head_dim, first, unit),
        load(from, head_dim, first + 1, unit),
        load(from, head_dim, first + 2, unit),
    ]
}

/// As [`load3`] for four parts.
#[inline(always)]
pub(super) fn load4<F: Float, const L: usize>(
    from: &[F],
    head_dim: usize,
    first: usize,
    unit: usize,
) -> [Lanes<F, L>; 4] {
    let [a, b, c] = load3(from, head_dim, first, unit);
    [a, b, c, load(from, head_dim, first + 3, unit)]
}

/// Lanes of part `part` of a `[parts, head_dim]` slice, from unit `unit` on.
#[inline(always)]
pub(super) fn load<F: Float, const L: usize>(
    from: &[F],
    head_dim: usize,
    part: usize,
    unit: usize,
) -> Lanes<F, L> {
    let count = (head_dim - unit).min(L);
    Lanes::load(&from[part * head_dim + unit..][..count])
}

/// Writes what [`load`] reads.
#[inline(always)]
pub(super) fn store<F: Float, const L: usize>(
    lanes: Lanes<F, L>,
    to: &mut [F],
    head_dim: usize,
    part: usize,
    unit: usize,
) {
    let count = (head_dim - unit).min(L);
    lanes.store(&mut to[part * head_dim + unit..][..count]);
}
