//! Products with weights in few bits, and of few rows with any weight.

#![allow(clippy::unwrap_used)]

mod common;

use common::{CPU, Noise, distance, with_threads};
use kernels::weight_only_linear::{GROUPS, QuantisedWeight, Zero, linear, reference, weight_only_linear};
use tch::{Kind, Tensor};

/// A weight of a usual size, and every form of its codes.
fn weights(noise: &mut Noise, out: i64, width: i64) -> Vec<(String, QuantisedWeight)> {
    let weight = noise.tensor(&[out, width]).to_kind(Kind::Float);
    let mut all = vec![("int8".to_owned(), QuantisedWeight::int8(&weight).unwrap())];
    for group in GROUPS.into_iter().filter(|group| width % group == 0) {
        for zero in [Zero::Free, Zero::Fixed] {
            let weight = QuantisedWeight::int4(&weight, group, zero).unwrap();
            all.push((format!("int4, groups of {group}, zero {zero:?}"), weight));
        }
    }
    all
}

fn wide(x: &Tensor) -> Tensor {
    x.to_kind(Kind::Double)
}

#[test]
fn codes_are_torchaos() {
    let text: serde_json::Value = serde_json::from_str(include_str!("fixtures/torchao.json")).unwrap();
    let tensor = |x: &serde_json::Value| {
        let numbers = |x: &serde_json::Value| -> Vec<f64> {
            x.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let shape: Vec<i64> = numbers(&x["shape"]).into_iter().map(|x| x as i64).collect();
        Tensor::from_slice(&numbers(&x["data"])).reshape(shape).to_kind(Kind::Float)
    };
    let weight = tensor(&text["weight"]);
    let ours = QuantisedWeight::int8(&weight).unwrap();
    let QuantisedWeight::Int8 { codes, scale } = &ours else { unreachable!() };
    assert!(codes.to_kind(Kind::Float).equal(&tensor(&text["int8"]["codes"])));
    assert!(distance(&wide(scale), &wide(&tensor(&text["int8"]["scale"]))) < 1e-7);
    assert!(
        distance(&wide(&ours.dequantise(Kind::Float).unwrap()), &wide(&tensor(&text["int8"]["weight"])))
            < 1e-7
    );
    let ours = QuantisedWeight::int4(&weight, 32, Zero::Free).unwrap().dequantise(Kind::Float).unwrap();
    assert!(distance(&wide(&ours), &wide(&tensor(&text["int4"]["weight"]))) < 1e-7);
}

#[test]
fn no_weight_is_further_off_than_half_a_step() {
    let mut noise = Noise(4);
    let weight = noise.tensor(&[9, 384]).to_kind(Kind::Float);
    let off = |ours: &QuantisedWeight| (ours.dequantise(Kind::Float).unwrap() - &weight).abs();
    let ours = QuantisedWeight::int8(&weight).unwrap();
    let step = weight.abs().amax([1i64].as_slice(), true) / 127.5;
    // The largest is cut off at 127 steps.
    assert!((off(&ours) / &step).max().double_value(&[]) < 0.501);
    for group in GROUPS {
        let groups = weight.reshape([9, -1, group]);
        let range = groups.amax([2i64].as_slice(), true) - groups.amin([2i64].as_slice(), true);
        let ours = QuantisedWeight::int4(&weight, group, Zero::Free).unwrap();
        assert!((off(&ours).reshape([9, -1, group]) / (&range / 15.0)).max().double_value(&[]) < 0.501);
        let ours = QuantisedWeight::int4(&weight, group, Zero::Fixed).unwrap();
        let step = groups.abs().amax([2i64].as_slice(), true) / 7.5;
        assert!((off(&ours).reshape([9, -1, group]) / step).max().double_value(&[]) < 0.501);
    }
    // Rows and groups of zeros stay zeros.
    let zeros = weight.zeros_like();
    for ours in [QuantisedWeight::int8(&zeros), QuantisedWeight::int4(&zeros, 64, Zero::Free)] {
        assert!(ours.unwrap().dequantise(Kind::Float).unwrap().abs().max().double_value(&[]) < 1e-4);
    }
}

#[test]
fn agrees_with_the_definition() {
    let mut noise = Noise(1);
    for (out, width) in [(1, 32), (3, 64), (7, 96), (70, 128), (33, 320), (130, 1152)] {
        for (name, weight) in weights(&mut noise, out, width) {
            assert_eq!((weight.out_features(), weight.in_features()), (out, width));
            for rows in [1, 2, 3, 5, 8, 9, 40] {
                for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 5e-3), (Kind::Half, 1e-3)] {
                    let x = noise.tensor(&[rows, width]).to_kind(kind);
                    let truth = reference(&wide(&x), &weight).unwrap();
                    let ours = weight_only_linear(&x, &weight).unwrap();
                    assert_eq!((ours.kind(), ours.size()), (kind, vec![rows, out]));
                    let off = distance(&wide(&ours), &truth);
                    assert!(off < tolerance, "{name}, {rows} x {out} x {width} {kind:?}: off by {off:e}");
                }
            }
        }
    }
}

#[test]
fn any_width_of_rows_with_eight_bits_or_more() {
    let mut noise = Noise(2);
    for (rows, out, width) in [(1, 1, 1), (2, 5, 7), (4, 33, 50), (7, 4, 129), (1, 300, 15)] {
        let x = noise.tensor(&[rows, width]);
        let weight = noise.tensor(&[out, width]);
        let int8 = QuantisedWeight::int8(&weight).unwrap();
        let off = distance(
            &wide(&weight_only_linear(&x.to_kind(Kind::Float), &int8).unwrap()),
            &reference(&x, &int8).unwrap(),
        );
        assert!(off < 1e-5, "int8: {off:e}");
        for (kind, tolerance) in
            [(Kind::Float, 1e-6), (Kind::BFloat16, 4e-3), (Kind::Half, 1e-3), (Kind::Double, 1e-14)]
        {
            let (x, weight) = (x.to_kind(kind), weight.to_kind(kind));
            let truth = wide(&x).matmul(&wide(&weight).transpose(0, 1));
            let ours = linear(&x, &weight).unwrap();
            assert_eq!(ours.kind(), kind);
            let off = distance(&wide(&ours), &truth);
            assert!(off < tolerance, "{rows} x {out} x {width} {kind:?}: off by {off:e}");
        }
    }
}

#[test]
fn every_half_is_read_right() {
    let bits: Vec<i16> = (0..=u16::MAX).map(|bits| bits as i16).collect();
    let halves = Tensor::from_slice(&bits).view_dtype(Kind::Half).reshape([-1, 1]);
    let finite = halves.isfinite();
    let weight = halves.where_self(&finite, &halves.zeros_like()).contiguous();
    let one = Tensor::ones([1, 1], (Kind::Half, CPU));
    assert!(linear(&one, &weight).unwrap().reshape([-1, 1]).equal(&weight));
}

#[test]
fn shapes_gradients_and_strides() {
    let mut noise = Noise(3);
    for (name, weight) in weights(&mut noise, 12, 128) {
        // Any number of leading dimensions, and strides.
        let x = noise.tensor(&[128, 2, 3]).to_kind(Kind::Float).permute([1, 2, 0]);
        let y = weight_only_linear(&x, &weight).unwrap();
        assert_eq!(y.size(), [2, 3, 12]);
        assert!(distance(&wide(&y), &reference(&wide(&x), &weight).unwrap()) < 1e-5, "{name}");
        assert_eq!(weight_only_linear(&x.narrow(0, 0, 0), &weight).unwrap().size(), [0, 3, 12]);
        // The gradient of the input is the definition's.
        let x = x.copy().set_requires_grad(true);
        weight_only_linear(&x, &weight).unwrap().sum(Kind::Float).backward();
        let expected =
            weight.dequantise(Kind::Float).unwrap().sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
        assert!(distance(&wide(&x.grad()), &wide(&expected.expand_as(&x.grad()))) < 1e-6, "{name}");
    }
    let x = noise.tensor(&[1, 8]).to_kind(Kind::Float).set_requires_grad(true);
    linear(&x, &noise.tensor(&[4, 8]).to_kind(Kind::Float)).unwrap().sum(Kind::Float).backward();
    assert!(x.grad().defined());
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for (name, weight) in weights(&mut Noise(5), 300, 256) {
        let x = Noise(6).tensor(&[3, 256]).to_kind(Kind::Float);
        let [one, two] =
            [1, 2].map(|threads| with_threads(threads, || weight_only_linear(&x, &weight).unwrap()));
        assert!(one.equal(&two), "{name}");
    }
}

#[test]
fn refusals_name_the_operand() {
    let weight = Noise(7).tensor(&[4, 64]).to_kind(Kind::Float);
    let said = |result: torch_bridge::Result<Tensor>| result.unwrap_err().to_string();
    let int4 = QuantisedWeight::int4(&weight, 32, Zero::Free).unwrap();
    let x = |width: i64| Tensor::zeros([1, width], (Kind::Float, CPU));
    assert!(said(weight_only_linear(&x(63), &int4)).contains("`x`"));
    assert!(said(weight_only_linear(&x(64).to_kind(Kind::Int64), &int4)).contains("`x`"));
    let QuantisedWeight::Int4 { codes, scale, zero } = int4 else { unreachable!() };
    let bad = QuantisedWeight::Int4 {
        codes: codes.shallow_clone(),
        scale: scale.narrow(0, 0, 3).copy(),
        zero: None,
    };
    assert!(said(weight_only_linear(&x(64), &bad)).contains("`scale`"));
    let bad = QuantisedWeight::Int4 {
        codes: codes.shallow_clone(),
        scale: scale.narrow(1, 0, 0).copy(),
        zero: None,
    };
    assert!(said(weight_only_linear(&x(64), &bad)).contains("`scale`"));
    let bad = QuantisedWeight::Int4 { codes: codes.to_kind(Kind::Int8), scale: scale.shallow_clone(), zero };
    assert!(said(weight_only_linear(&x(64), &bad)).contains("`codes`"));
    for group in [16, 48, 128] {
        let error = QuantisedWeight::int4(&weight, group, Zero::Free).unwrap_err().to_string();
        assert!(error.contains("weight_only_linear") && error.contains("groups"), "{error}");
    }
    assert!(QuantisedWeight::int8(&weight.get(0)).unwrap_err().to_string().contains("`weight`"));
}
