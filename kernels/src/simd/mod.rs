//! Vectors in portable Rust: an array of lanes, one operation per lane, in loops that LLVM turns into SIMD.
//!
//! A [`Kernel`] is written once; [`run`] compiles it three times and picks at run time: AVX-512, AVX2 with FMA,
//! or what the target has anyway (SSE2 on x86-64, NEON on aarch64). Results differ between the three in the
//! last bits only, because a fused multiply-add rounds once.

#![allow(clippy::inline_always)] // the instructions of a kernel reach only what is inlined into it

mod dispatch;
mod float;
mod functions;

use std::ops::{Add, Div, Mul, Sub};

pub(crate) use dispatch::{Isa, Kernel, run};
pub(crate) use float::Float;

/// `L` values that move together; aligned so that a register-sized piece never crosses a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Lanes<F, const L: usize>(pub(crate) [F; L]);

impl<F: Float, const L: usize> Lanes<F, L> {
    pub(crate) const ZERO: Self = Self([F::ZERO; L]);

    #[inline(always)]
    pub(crate) fn splat(x: F) -> Self {
        Self([x; L])
    }

    /// The first `L` values of `from`; what is missing is zero.
    #[inline(always)]
    pub(crate) fn load(from: &[F]) -> Self {
        if let Some(full) = from.first_chunk::<L>() {
            return Self(*full);
        }
        let mut lanes = Self::ZERO;
        lanes.0[..from.len()].copy_from_slice(from);
        lanes
    }

    /// Writes the first `L` lanes that `to` has room for.
    #[inline(always)]
    pub(crate) fn store(self, to: &mut [F]) {
        if let Some(full) = to.first_chunk_mut::<L>() {
            *full = self.0;
        } else {
            let count = to.len();
            to.copy_from_slice(&self.0[..count]);
        }
    }

    #[inline(always)]
    pub(crate) fn map(self, f: impl Fn(F) -> F) -> Self {
        let mut out = self;
        for l in 0..L {
            out.0[l] = f(self.0[l]);
        }
        out
    }

    #[inline(always)]
    pub(crate) fn zip(self, other: Self, f: impl Fn(F, F) -> F) -> Self {
        let mut out = self;
        for l in 0..L {
            out.0[l] = f(self.0[l], other.0[l]);
        }
        out
    }

    /// `self * factor + term`, rounded once where the instruction set can.
    #[inline(always)]
    pub(crate) fn mul_add<I: Isa>(self, factor: Self, term: Self) -> Self {
        let mut out = self;
        for l in 0..L {
            out.0[l] = I::mul_add(self.0[l], factor.0[l], term.0[l]);
        }
        out
    }

    /// The sum of all lanes, always added in the same tree. `L` must be a power of two.
    #[inline(always)]
    pub(crate) fn sum(self) -> F {
        let mut lanes = self.0;
        let mut half = L / 2;
        while half > 0 {
            for l in 0..half {
                lanes[l] = lanes[l] + lanes[l + half];
            }
            half /= 2;
        }
        lanes[0]
    }
}

macro_rules! lanewise {
    ($($operator:ident $method:ident),*) => {
        $(
            impl<F: Float, const L: usize> $operator for Lanes<F, L> {
                type Output = Self;
                #[inline(always)]
                fn $method(self, other: Self) -> Self {
                    self.zip(other, |x, y| x.$method(y))
                }
            }
        )*
    };
}

lanewise!(Add add, Sub sub, Mul mul, Div div);
