//! `exp` and what is made of it, without branches, so that all lanes go the same way.
//!
//! `2^x` splits `x` into the nearest integer `n` and a rest in `[-1/2, 1/2]`: a polynomial of the rest times the
//! number whose exponent bits are `n`.

use super::{Float, Isa, Lanes};

impl<F: Float, const L: usize> Lanes<F, L> {
    /// `2^self`. 0 from about `2^-127` (f32) or `2^-1023` (f64) downwards, infinity from `2^127.5` or `2^1023.5`
    /// upwards; NaN stays NaN.
    #[inline(always)]
    pub(crate) fn exp2<I: Isa>(self) -> Self {
        let x = self.clamp(F::EXP2_FLOOR, F::EXP2_TOP);
        let shifted = x + Self::splat(F::ROUNDER);
        let rest = x - (shifted - Self::splat(F::ROUNDER));
        rest.polynomial::<I>(F::EXP2) * shifted.map(F::power_of_two)
    }

    /// `e^self`, within 2 units in the last place where the result is a normal number; limits as in
    /// [`exp2`](Self::exp2).
    #[inline(always)]
    pub(crate) fn exp<I: Isa>(self) -> Self {
        let ln_2 = F::LN_2[0] + F::LN_2[1];
        let x = self.clamp(F::EXP2_FLOOR * ln_2, F::EXP2_TOP * ln_2);
        let shifted = x.mul_add::<I>(Self::splat(F::LOG2_E), Self::splat(F::ROUNDER));
        let n = shifted - Self::splat(F::ROUNDER);
        let rest = n.mul_add::<I>(Self::splat(-F::LN_2[0]), x);
        let rest = n.mul_add::<I>(Self::splat(-F::LN_2[1]), rest);
        let rest = rest * Self::splat(F::LOG2_E);
        rest.polynomial::<I>(F::EXP2) * shifted.map(F::power_of_two)
    }

    /// `1 / (1 + e^-self)`.
    #[inline(always)]
    pub(crate) fn sigmoid<I: Isa>(self) -> Self {
        let one = Self::splat(F::ONE);
        one / (one + self.map(|x| -x).exp::<I>())
    }

    /// `ln(1 + e^self)`, as `max(self, 0) + ln(1 + e^-|self|)`, which neither overflows nor cancels.
    #[inline(always)]
    pub(crate) fn softplus<I: Isa>(self) -> Self {
        let small = self.map(|x| if x > F::ZERO { -x } else { x }).exp::<I>();
        let s = small / (small + Self::splat(F::ONE + F::ONE));
        let log1p = (s * s).polynomial::<I>(F::LOG1P) * s;
        log1p + self.map(|x| if x > F::ZERO { x } else { F::ZERO })
    }

    /// The hyperbolic tangent: `(1 - e^-2|x|) / (1 + e^-2|x|)`, and near 0, where that cancels, a rational function.
    #[inline(always)]
    pub(crate) fn tanh<I: Isa>(self) -> Self {
        let one = Self::splat(F::ONE);
        let size = self.map(|x| if x < F::ZERO { -x } else { x });
        let small = size.map(|x| -(x + x)).exp::<I>();
        let square = self * self;
        let near = size * square.polynomial::<I>(F::TANH[0]) / square.polynomial::<I>(F::TANH[1]);
        let far = (one - small) / (one + small);
        let near = size.zip(near, |size, near| if size < F::TANH_TOP { near } else { F::INFINITY });
        // Where `near` does not hold, it is infinite.
        let value = near.zip(far, |near, far| if near < F::INFINITY { near } else { far });
        self.zip(value, |x, value| if x < F::ZERO { -value } else { value })
    }

    /// `min(max(self, low), high)`, and NaN for NaN.
    #[inline(always)]
    fn clamp(self, low: F, high: F) -> Self {
        self.map(|x| if x < low { low } else { x }).map(|x| if x > high { high } else { x })
    }

    /// `sum_i coefficients[i] self^i`, by Horner's rule.
    #[inline(always)]
    fn polynomial<I: Isa>(self, coefficients: &[F]) -> Self {
        let mut terms = coefficients.iter().rev();
        let mut value = Self::splat(terms.next().copied().unwrap_or(F::ZERO));
        for &coefficient in terms {
            value = value.mul_add::<I>(self, Self::splat(coefficient));
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::run_each;
    use super::super::{Kernel, Lanes};
    use super::{Float, Isa};

    #[derive(Clone)]
    struct Apply<'a, F> {
        function: Function,
        inputs: &'a [F],
    }

    #[derive(Clone, Copy, Debug)]
    enum Function {
        Exp,
        Exp2,
        Sigmoid,
        Softplus,
        Tanh,
    }

    impl<F: Float> Kernel for Apply<'_, F> {
        type Output = Vec<F>;
        #[inline(always)]
        fn call<I: Isa>(self) -> Vec<F> {
            let mut outputs = self.inputs.to_vec();
            for chunk in outputs.chunks_mut(16) {
                let x = Lanes::<F, 16>::load(chunk);
                let y = match self.function {
                    Function::Exp => x.exp::<I>(),
                    Function::Exp2 => x.exp2::<I>(),
                    Function::Sigmoid => x.sigmoid::<I>(),
                    Function::Softplus => x.softplus::<I>(),
                    Function::Tanh => x.tanh::<I>(),
                };
                y.store(chunk);
            }
            outputs
        }
    }

    fn exact(function: Function, x: f64) -> f64 {
        match function {
            Function::Exp => x.exp(),
            Function::Exp2 => x.exp2(),
            Function::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Function::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            Function::Tanh => x.tanh(),
        }
    }

    /// The largest relative error in units of `epsilon`, over `count` points of `low..=high`.
    fn worst<F: Float>(
        function: Function,
        range: [f64; 2],
        epsilon: f64,
        from: fn(f64) -> F,
        to: fn(F) -> f64,
    ) {
        let count = 200_003;
        let inputs: Vec<F> = (0..=count)
            .map(|i| from(range[0] + (range[1] - range[0]) * f64::from(i) / f64::from(count)))
            .collect();
        for (isa, outputs) in run_each(&Apply { function, inputs: &inputs }) {
            let worst = inputs
                .iter()
                .zip(&outputs)
                .map(|(&x, &y)| (to(y) / exact(function, to(x)) - 1.0).abs() / epsilon)
                .fold(0.0, f64::max);
            assert!(worst <= 4.0, "{function:?} on {isa}: {worst} epsilon in {range:?}");
        }
    }

    #[test]
    fn functions_agree_with_std_in_f32() {
        // One unit in the last place is between 1/2 and 1 epsilon: 2 ulp are up to 2 of these.
        let epsilon = f64::from(f32::EPSILON);
        #[expect(clippy::cast_possible_truncation)]
        let from = |x: f64| x as f32;
        for range in [[-87.3, 88.3], [-1.0, 1.0], [-1e-3, 1e-3]] {
            worst::<f32>(Function::Exp, range, epsilon, from, f64::from);
            worst::<f32>(Function::Softplus, range, epsilon, from, f64::from);
            worst::<f32>(Function::Sigmoid, [-range[1], range[1]], epsilon, from, f64::from);
        }
        for range in [[-1e-3, 1.1e-3], [-0.5, 0.51], [-12.0, 13.0]] {
            worst::<f32>(Function::Tanh, range, epsilon, from, f64::from);
        }
        worst::<f32>(Function::Exp2, [-125.9, 127.4], epsilon, from, f64::from);
    }

    #[test]
    fn functions_agree_with_std_in_f64() {
        for range in [[-708.0, 709.0], [-30.0, 30.0], [-1e-3, 1e-3]] {
            for function in [Function::Exp, Function::Softplus] {
                worst::<f64>(function, range, f64::EPSILON, |x| x, |x| x);
            }
        }
        for range in [[-1e-3, 1.1e-3], [-0.5, 0.51], [-25.0, 26.0]] {
            worst::<f64>(Function::Tanh, range, f64::EPSILON, |x| x, |x| x);
        }
        worst::<f64>(Function::Sigmoid, [-700.0, 700.0], f64::EPSILON, |x| x, |x| x);
        worst::<f64>(Function::Exp2, [-1021.0, 1023.0], f64::EPSILON, |x| x, |x| x);
    }

    #[test]
    fn limits_and_nan() {
        let inputs = [f32::NEG_INFINITY, -1e30, -200.0, 200.0, 1e30, f32::INFINITY, f32::NAN];
        for (isa, exp) in run_each(&Apply { function: Function::Exp, inputs: &inputs }) {
            assert_eq!(exp[..3], [0.0; 3], "{isa}");
            assert_eq!(exp[3..6], [f32::INFINITY; 3], "{isa}");
            assert!(exp[6].is_nan(), "{isa}");
        }
        for (isa, softplus) in run_each(&Apply { function: Function::Softplus, inputs: &inputs }) {
            assert_eq!(softplus[..6], [0.0, 0.0, 0.0, 200.0, 1e30, f32::INFINITY], "{isa}");
            assert!(softplus[6].is_nan(), "{isa}");
        }
        for (isa, tanh) in run_each(&Apply { function: Function::Tanh, inputs: &inputs }) {
            assert_eq!(tanh[..6], [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0], "{isa}");
            assert!(tanh[6].is_nan(), "{isa}");
        }
        for (isa, sigmoid) in run_each(&Apply { function: Function::Sigmoid, inputs: &inputs }) {
            assert_eq!(sigmoid[..6], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0], "{isa}");
        }
    }
}
