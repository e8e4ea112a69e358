//! The norm's definition, and what it must obey.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

mod common;

use common::{Noise, gradcheck, outcome};
use kernels::rms_norm::{self, RmsNorm, rms_norm};
use kernels::rms_norm_sum::rms_norm_sum;
use tch::{Kind, Tensor};

fn inputs(residual: bool) -> Vec<(&'static str, Tensor)> {
    let mut noise = Noise(7);
    let mut inputs = vec![("x", noise.tensor(&[2, 3, 5])), ("weight", noise.tensor(&[5]))];
    if residual {
        inputs.push(("residual", noise.tensor(&[2, 3, 5])));
    }
    inputs
}

fn run(tensors: &[Tensor]) -> torch_bridge::Result<(Tensor, Tensor)> {
    let args =
        RmsNorm { x: &tensors[0], weight: &tensors[1], residual: tensors.get(2), eps: 1e-3, output: None };
    rms_norm(&args)
}

#[test]
fn it_is_the_equation_and_its_gradients_are_exact() {
    for residual in [false, true] {
        let inputs = inputs(residual);
        gradcheck(&inputs, &run);
        let outcome = outcome(&inputs, Kind::Double, &run);
        let number = |x: &Tensor, at: [i64; 3]| x.double_value(&at);
        for row in 0..3 {
            let h: Vec<f64> = (0..5)
                .map(|i| {
                    let more = inputs.get(2).map_or(0.0, |(_, x)| number(x, [1, row, i]));
                    number(&inputs[0].1, [1, row, i]) + more
                })
                .collect();
            let root = (h.iter().map(|x| x * x).sum::<f64>() / 5.0 + 1e-3).sqrt();
            for (i, h) in h.iter().enumerate() {
                let y = h / root * inputs[1].1.double_value(&[i as i64]);
                assert!((number(&outcome.values[0], [1, row, i as i64]) - y).abs() < 1e-12);
                assert!((number(&outcome.values[1], [1, row, i as i64]) - h).abs() < 1e-12);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let inputs = inputs(true);
    let (x, weight, residual) = (&inputs[0].1, &inputs[1].1, &inputs[2].1);
    let refused = |x: &Tensor, weight: &Tensor, residual: Option<&Tensor>| {
        rms_norm(&RmsNorm { x, weight, residual, eps: 0.0, output: None }).unwrap_err().to_string()
    };
    assert!(refused(x, &weight.narrow(0, 0, 4), None).contains("`weight`"));
    assert!(refused(x, weight, Some(&residual.narrow(0, 0, 1))).contains("`residual`"));
}

#[test]
fn the_sum_of_normed_branches_is_the_sum_of_norms_and_its_gradients_are_exact() {
    let mut noise = Noise(8);
    let mut inputs: Vec<_> = ["x0", "x1", "x2"].map(|name| (name, noise.tensor(&[2, 3, 5]))).into();
    inputs.extend(["w0", "w1", "w2"].map(|name| (name, noise.tensor(&[5]))));
    let fused = |tensors: &[Tensor]| {
        let all: Vec<&Tensor> = tensors.iter().collect();
        let y = rms_norm_sum(&all[..3], &all[3..], 1e-3)?;
        Ok((y.shallow_clone(), y))
    };
    gradcheck(&inputs, &fused);
    let apart = |tensors: &[Tensor]| {
        let norm = |i: usize| {
            let (x, weight) = (&tensors[i], &tensors[i + 3]);
            rms_norm(&RmsNorm { x, weight, residual: None, eps: 1e-3, output: None }).map(|(y, _)| y)
        };
        let y = norm(0)? + norm(1)? + norm(2)?;
        Ok((y.shallow_clone(), y))
    };
    let (fused, apart) = (outcome(&inputs, Kind::Double, &fused), outcome(&inputs, Kind::Double, &apart));
    for (a, b) in fused.values.iter().zip(&apart.values) {
        assert!((a - b).abs().max().double_value(&[]) < 1e-12);
    }
    let (x, weight) = (&inputs[0].1, &inputs[3].1);
    assert!(rms_norm_sum(&[], &[], 0.0).is_err());
    assert!(rms_norm_sum(&[x, x], &[weight], 0.0).unwrap_err().to_string().contains("one for each branch"));
}

/// The fast path against the definition: every width around a vector's, rows around a tile's, with and without a residual.
#[test]
fn the_fast_path_is_as_near_as_the_definition() {
    for (rows, d) in [(1, 1), (1, 768), (3, 7), (63, 16), (64, 17), (65, 33), (200, 256), (5, 4097)] {
        for residual in [false, true] {
            let mut noise = Noise((rows * 131 + d) as u64);
            let mut inputs = vec![("x", noise.tensor(&[rows, d])), ("weight", noise.tensor(&[d]))];
            if residual {
                inputs.push(("residual", noise.tensor(&[rows, d])));
            }
            let run = |definition: bool| {
                move |tensors: &[Tensor]| {
                    let args = RmsNorm {
                        x: &tensors[0],
                        weight: &tensors[1],
                        residual: tensors.get(2),
                        eps: 1e-3,
                        output: None,
                    };
                    if definition { rms_norm::reference(&args) } else { rms_norm::rms_norm(&args) }
                }
            };
            let single: Vec<_> = inputs.iter().map(|(name, x)| (*name, x.to_kind(Kind::Float))).collect();
            let truth: Vec<_> = single.iter().map(|(name, x)| (*name, x.to_kind(Kind::Double))).collect();
            let truth = outcome(&truth, Kind::Double, &run(true));
            let peer = outcome(&single, Kind::Double, &run(true));
            let ours = outcome(&single, Kind::Double, &run(false));
            ours.assert_as_near_as(&peer, &truth, &format!("{rows} x {d}, residual {residual}"));
            outcome(&single, Kind::Double, &run(false)).assert_equal(&ours, "again");
        }
    }
}

/// Sixteen bits and several types go through the type that the norm is computed in: the definition's values, rounded.
#[test]
fn other_types_are_the_definition() {
    let mut noise = Noise(11);
    let (x, residual, weight) = (noise.tensor(&[9, 40]), noise.tensor(&[9, 40]), noise.tensor(&[40]));
    for (x_kind, residual_kind, output) in [
        (Kind::BFloat16, Some(Kind::Float), Some(Kind::BFloat16)),
        (Kind::BFloat16, Some(Kind::BFloat16), None),
        (Kind::BFloat16, None, Some(Kind::Float)),
        (Kind::Float, None, Some(Kind::BFloat16)),
    ] {
        let (x, weight) = (x.to_kind(x_kind), weight.to_kind(Kind::Float));
        let residual = residual_kind.map(|kind| residual.to_kind(kind));
        let args = RmsNorm { x: &x, weight: &weight, residual: residual.as_ref(), eps: 1e-5, output };
        let (ours, theirs) = (rms_norm::rms_norm(&args).unwrap(), rms_norm::reference(&args).unwrap());
        assert_eq!((ours.0.kind(), ours.1.kind()), (theirs.0.kind(), theirs.1.kind()));
        for (ours, theirs) in [(ours.0, theirs.0), (ours.1, theirs.1)] {
            let (ours, theirs) = (ours.to_kind(Kind::Double), theirs.to_kind(Kind::Double));
            let most = (&ours - &theirs).abs().max().double_value(&[]);
            assert!(most <= 1.6e-2, "{x_kind:?} {residual_kind:?} {output:?}: {most}"); // one step of bf16 at 2 to 4
        }
    }
}
