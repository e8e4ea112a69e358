//! Codes of keys and values against their definition, number by number.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

mod common;

use common::Noise;
use kernels::kv_quant::{Bits, Shared, dequantise, quantise};
use tch::{Kind, Tensor};

/// What numbers that share a scale are read back as, and the scale.
fn definition(numbers: &[f64], levels: f64) -> (Vec<f64>, f64) {
    let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
    let most = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let scale = (most - least) / levels;
    if scale == 0.0 {
        return (numbers.to_vec(), scale);
    }
    (numbers.iter().map(|x| least + ((x - least) / scale).round_ties_even() * scale).collect(), scale)
}

fn numbers(x: &Tensor) -> Vec<f64> {
    Vec::try_from(x.contiguous().view([-1])).unwrap()
}

#[test]
fn every_number_is_what_the_definition_says() {
    let mut noise = Noise(3);
    for (bits, levels) in [(Bits::Eight, 255.0), (Bits::Four, 15.0)] {
        // [heads, groups, tokens, channels], with a channel of large numbers and one of equal ones.
        let x = noise.tensor(&[2, 3, 5, 6]);
        let _ = x.select(3, 1).multiply_scalar_(100.0);
        let _ = x.select(3, 4).fill_(-2.5);
        for shared in [Shared::ByChannel, Shared::ByToken] {
            let groups = quantise(&x, bits, shared).unwrap();
            assert_eq!(groups.codes.kind(), Kind::Uint8);
            assert_eq!(groups.codes.size(), [2, 3, 5, 6 / bits.per_byte()]);
            let read = dequantise(&groups, bits, shared).unwrap();
            // The numbers that share a scale as rows.
            let rows = |x: &Tensor| match shared {
                Shared::ByChannel => x.transpose(2, 3).contiguous().view([-1, 5]),
                Shared::ByToken => x.contiguous().view([-1, 6]),
            };
            let scales = numbers(&groups.scale);
            assert_eq!(scales.len() as i64, rows(&x).size()[0]);
            for (i, scale) in scales.into_iter().enumerate() {
                let (x, read) = (numbers(&rows(&x).get(i as i64)), numbers(&rows(&read).get(i as i64)));
                let (expected, expected_scale) = definition(&x, levels);
                assert!((scale - expected_scale).abs() <= 1e-12, "{scale} {expected_scale}");
                for ((x, read), expected) in x.iter().zip(&read).zip(&expected) {
                    assert!((read - expected).abs() < 1e-12, "{bits:?} {shared:?}: {read} is not {expected}");
                    assert!((read - x).abs() <= scale * 0.5 * (1.0 + 1e-9), "{x} became {read}");
                }
            }
        }
    }
}

#[test]
fn in_short_floats_the_error_stays_below_a_scale() {
    let mut noise = Noise(4);
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
        let x = (noise.tensor(&[4, 32, 16]) * 3.0 + 1.0).to_kind(kind);
        for bits in [Bits::Eight, Bits::Four] {
            for shared in [Shared::ByChannel, Shared::ByToken] {
                let groups = quantise(&x, bits, shared).unwrap();
                assert_eq!((groups.scale.kind(), groups.zero.kind()), (kind, kind));
                let read = dequantise(&groups, bits, shared).unwrap();
                assert_eq!(read.kind(), kind);
                let dim = if shared == Shared::ByChannel { -2 } else { -1 };
                let error = (read.to_kind(Kind::Double) - x.to_kind(Kind::Double)).abs();
                // What the type itself rounds off comes on top: numbers are below 8.
                let rounding = match kind {
                    Kind::BFloat16 => 8.0 / 256.0,
                    Kind::Half => 8.0 / 2048.0,
                    _ => 1e-6,
                };
                let bound = groups.scale.to_kind(Kind::Double).unsqueeze(dim) + rounding;
                assert_eq!(
                    i64::try_from(error.gt_tensor(&bound).sum(Kind::Int64)).unwrap(),
                    0,
                    "{kind:?} {bits:?}"
                );
            }
        }
    }
}

#[test]
fn nothing_is_no_group_and_odd_channels_are_refused() {
    let empty = Tensor::zeros([2, 0, 4, 6], (Kind::Float, tch::Device::Cpu));
    let groups = quantise(&empty, Bits::Four, Shared::ByChannel).unwrap();
    assert_eq!(dequantise(&groups, Bits::Four, Shared::ByChannel).unwrap().size(), [2, 0, 4, 6]);
    let odd = Tensor::zeros([1, 4, 5], (Kind::Float, tch::Device::Cpu));
    assert!(quantise(&odd, Bits::Four, Shared::ByToken).unwrap_err().to_string().contains("5 channels"));
    assert!(quantise(&odd, Bits::Eight, Shared::ByToken).is_ok());
}

#[test]
fn no_gradient_flows_into_codes() {
    let x = Noise(5).tensor(&[1, 4, 6]).set_requires_grad(true);
    let groups = quantise(&x, Bits::Eight, Shared::ByChannel).unwrap();
    assert!(!dequantise(&groups, Bits::Eight, Shared::ByChannel).unwrap().requires_grad());
}
