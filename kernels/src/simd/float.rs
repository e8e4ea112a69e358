//! The two element types, and the constants of their polynomials.

use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Neg, Sub};

use torch_bridge::tensors::Element;

/// `f32` or `f64`.
pub(crate) trait Float:
    Element
    + Send
    + Sync
    + Debug
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    const ZERO: Self;
    const ONE: Self;
    const INFINITY: Self;

    /// `1 / ln 2`.
    const LOG2_E: Self;
    /// `ln 2` in two parts; the first has so few bits that its product with any exponent is exact.
    const LN_2: [Self; 2];
    /// Below this power of two the result of `exp2` is 0, from [`EXP2_TOP`](Self::EXP2_TOP) on infinity.
    const EXP2_FLOOR: Self;
    /// The first power of two that is out of range.
    const EXP2_TOP: Self;
    /// Added to a number in range, puts its nearest integer plus the exponent's bias into the lowest bits.
    const ROUNDER: Self;
    /// `2^x = sum_i EXP2[i] x^i` for `|x| <= 1/2`.
    const EXP2: &'static [Self];
    /// `ln(1 + x) = s sum_i LOG1P[i] s^2i` with `s = x / (2 + x)`, for `0 <= x <= 1`.
    const LOG1P: &'static [Self];
    /// `tanh(x) = x (sum_i TANH[0][i] x^2i) / (sum_i TANH[1][i] x^2i)` for small `x`: the continued fraction
    /// `x / (1 + x^2 / (3 + x^2 / (5 + ..)))` up to 13, whose error at 0.35 is below 1e-17.
    const TANH: [&'static [Self]; 2];
    /// Up to here [`TANH`](Self::TANH) is used.
    const TANH_TOP: Self;

    /// `2^n`, of a number that [`ROUNDER`](Self::ROUNDER) was added to.
    fn power_of_two(self) -> Self;

    /// `self * y + z`, rounded once.
    fn fused(self, y: Self, z: Self) -> Self;

    /// The nearest value.
    fn of(x: f64) -> Self;

    /// The same value.
    fn widen(self) -> f64;
}

// Both polynomials interpolate at Chebyshev nodes; the error is the largest relative one, before rounding.

impl Float for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const INFINITY: Self = Self::INFINITY;
    const LOG2_E: Self = std::f32::consts::LOG2_E;
    const LN_2: [Self; 2] = [0.693_115_23, 3.194_618_5e-5];
    const EXP2_FLOOR: Self = -127.0;
    const EXP2_TOP: Self = 128.0;
    const ROUNDER: Self = 12_582_912.0 + 127.0; // 1.5 * 2^23
    // error 2.5e-9
    const EXP2: &'static [Self] = &[
        1.0,
        std::f32::consts::LN_2,
        0.240_226_5,
        0.055_503_27,
        0.009_618_057,
        0.001_340_042_8,
        0.000_154_614_45,
    ];
    // error 4.1e-9
    const LOG1P: &'static [Self] = &[2.0, 0.666_663_2, 0.400_245_95, 0.279_651_58, 0.281_577_8];

    const TANH: [&'static [Self]; 2] =
        [&[135_135.0, 17_325.0, 378.0, 1.0], &[135_135.0, 62_370.0, 3150.0, 28.0]];
    const TANH_TOP: Self = 0.35;

    #[inline(always)]
    fn power_of_two(self) -> Self {
        Self::from_bits(self.to_bits() << 23)
    }

    #[inline(always)]
    fn fused(self, y: Self, z: Self) -> Self {
        self.mul_add(y, z)
    }

    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }

    #[inline(always)]
    fn widen(self) -> f64 {
        self.into()
    }
}

impl Float for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const INFINITY: Self = Self::INFINITY;
    const LOG2_E: Self = std::f64::consts::LOG2_E;
    const LN_2: [Self; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_8e-10];
    const EXP2_FLOOR: Self = -1023.0;
    const EXP2_TOP: Self = 1024.0;
    const ROUNDER: Self = 6_755_399_441_055_744.0 + 1023.0; // 1.5 * 2^52
    // error 4.2e-18
    const EXP2: &'static [Self] = &[
        1.0,
        std::f64::consts::LN_2,
        0.240_226_506_959_101_6,
        0.055_504_108_664_821_63,
        0.009_618_129_107_587_256,
        0.001_333_355_814_640_647,
        0.000_154_035_304_637_243_54,
        1.525_273_384_155_677e-5,
        1.321_543_253_591_236_6e-6,
        1.017_805_708_773_394e-7,
        7.074_194_297_288_521e-9,
        4.455_817_908_336_064_5e-10,
    ];
    // error 1.3e-18
    const LOG1P: &'static [Self] = &[
        2.0,
        0.666_666_666_666_661_5,
        0.400_000_000_001_857_5,
        0.285_714_285_454_541_15,
        0.222_222_240_807_476_73,
        0.181_817_408_325_048_04,
        0.153_866_140_423_040_1,
        0.133_003_740_326_746_24,
        0.121_101_687_281_692_18,
        0.083_245_065_118_608_21,
        0.170_441_635_627_813_98,
    ];

    const TANH: [&'static [Self]; 2] =
        [&[135_135.0, 17_325.0, 378.0, 1.0], &[135_135.0, 62_370.0, 3150.0, 28.0]];
    const TANH_TOP: Self = 0.35;

    #[inline(always)]
    fn power_of_two(self) -> Self {
        Self::from_bits(self.to_bits() << 52)
    }

    #[inline(always)]
    fn fused(self, y: Self, z: Self) -> Self {
        self.mul_add(y, z)
    }

    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }

    #[inline(always)]
    fn widen(self) -> f64 {
        self
    }
}
