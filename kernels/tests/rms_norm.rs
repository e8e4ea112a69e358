//! The norm's definition, and what it must obey.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

mod common;

use common::{Noise, gradcheck, outcome};
use kernels::rms_norm::{RmsNorm, rms_norm};
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
