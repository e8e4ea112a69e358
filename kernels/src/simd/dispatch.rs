//! One body, compiled for several instruction sets, chosen when it runs.

use super::Float;

/// What a body may ask of the instruction set that it is being compiled for.
pub(crate) trait Isa: Copy + Send + Sync {
    /// `x * y + z`. Without the instruction, `f32::mul_add` would call a slow library function, so two roundings
    /// stand in for it.
    fn mul_add<F: Float>(x: F, y: F, z: F) -> F;
}

/// Has a fused multiply-add.
#[derive(Clone, Copy)]
pub(crate) struct Fused;

/// Has none, as far as is known at compile time.
#[derive(Clone, Copy)]
pub(crate) struct Unfused;

impl Isa for Fused {
    #[inline(always)]
    fn mul_add<F: Float>(x: F, y: F, z: F) -> F {
        x.fused(y, z)
    }
}

impl Isa for Unfused {
    #[inline(always)]
    fn mul_add<F: Float>(x: F, y: F, z: F) -> F {
        x * y + z
    }
}

/// What the target has without asking.
#[cfg(any(target_arch = "aarch64", target_feature = "fma"))]
type Baseline = Fused;
#[cfg(not(any(target_arch = "aarch64", target_feature = "fma")))]
type Baseline = Unfused;

/// A body to run under [`run`]. `call` and all that it calls must be `#[inline(always)]`: only then are they
/// compiled with the instructions that were found.
pub(crate) trait Kernel {
    type Output;
    fn call<I: Isa>(self) -> Self::Output;
}

/// Runs `kernel` with the best instructions of this machine.
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if has_avx512() {
            // SAFETY: the features were just found.
            return unsafe { x86::avx512(kernel) };
        }
        if has_avx2() {
            // SAFETY: the features were just found.
            return unsafe { x86::avx2(kernel) };
        }
    }
    kernel.call::<Baseline>()
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && has_avx2()
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Fused, Kernel};

    #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
    pub(super) fn avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.call::<Fused>()
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.call::<Fused>()
    }
}

/// Runs `kernel` once with every set of instructions that this machine has, for tests.
#[cfg(test)]
pub(crate) fn run_each<K: Kernel + Clone>(kernel: &K) -> Vec<(&'static str, K::Output)> {
    let mut results = vec![("baseline", kernel.clone().call::<Baseline>())];
    #[cfg(target_arch = "x86_64")]
    {
        if has_avx2() {
            // SAFETY: the features were just found.
            results.push(("avx2", unsafe { x86::avx2(kernel.clone()) }));
        }
        if has_avx512() {
            // SAFETY: the features were just found.
            results.push(("avx512", unsafe { x86::avx512(kernel.clone()) }));
        }
    }
    results
}
