//! The rotary embedding's definition, and its fast path on the CPU.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

mod common;

use common::{Noise, gradcheck, outcome};
use kernels::rotary::{self, Rotary};
use tch::{Device, Kind, Tensor};

fn frequencies(d: i64) -> Vec<f64> {
    (0..d / 2).map(|i| 1e4_f64.powf(-2.0 * i as f64 / d as f64)).collect()
}

/// Two outputs, because the tests' tools want two.
fn run(
    tensors: &[Tensor],
    positions: &Tensor,
    heads: i64,
    definition: bool,
) -> torch_bridge::Result<(Tensor, Tensor)> {
    // A slice of a fused projection.
    let x = tensors[0].narrow(2, 1, heads).transpose(1, 2);
    let frequencies = frequencies(x.size()[3]);
    let args = Rotary { x: &x, positions, frequencies: &frequencies, scale: 1.25 };
    let y = if definition { rotary::reference(&args)? } else { rotary::rotary(&args)? };
    Ok((y.shallow_clone(), y * 2.0))
}

#[test]
fn pairs_turn_by_their_angle() {
    let (x, positions) =
        (Tensor::from_slice(&[3.0, 1.0, 4.0, 2.0]).view([1, 1, 1, 4]), Tensor::from_slice(&[5_i64]));
    let frequencies = [1.0, 0.1];
    let args = Rotary { x: &x, positions: &positions.view([1, 1]), frequencies: &frequencies, scale: 2.0 };
    for y in [rotary::rotary(&args).unwrap(), rotary::reference(&args).unwrap()] {
        let y = Vec::<f64>::try_from(y.view(-1)).unwrap();
        let turned = |a: f64, b: f64, angle: f64| {
            [2.0 * (a * angle.cos() - b * angle.sin()), 2.0 * (b * angle.cos() + a * angle.sin())]
        };
        let (first, second) = (turned(3.0, 4.0, 5.0), turned(1.0, 2.0, 0.5));
        for (y, expected) in y.iter().zip([first[0], second[0], first[1], second[1]]) {
            assert!((y - expected).abs() < 1e-12);
        }
    }
}

#[test]
fn the_fast_path_is_as_near_as_the_definition() {
    for (batch, heads, time, d) in [(1, 1, 1, 2), (2, 5, 70, 64), (3, 2, 33, 6), (1, 4, 300, 256)] {
        for rows in [1, batch] {
            let mut noise = Noise(time as u64 + rows as u64);
            let positions: Vec<i64> = (0..rows * time).map(|_| noise.below(40) as i64).collect();
            let positions = Tensor::from_slice(&positions).view([rows, time]);
            let inputs = [("x", noise.tensor(&[batch, time, heads + 1, d]))];
            let of = |kind: Kind, definition: bool| {
                let inputs: Vec<_> = inputs.iter().map(|(name, x)| (*name, x.to_kind(kind))).collect();
                outcome(&inputs, Kind::Double, &|tensors: &[Tensor]| {
                    run(tensors, &positions, heads, definition)
                })
            };
            let (truth, peer, ours) = (of(Kind::Double, true), of(Kind::Float, true), of(Kind::Float, false));
            ours.assert_as_near_as(&peer, &truth, &format!("{batch} x {heads} x {time} x {d}, {rows} rows"));
            of(Kind::Float, false).assert_equal(&ours, "again");
        }
    }
    let mut noise = Noise(9);
    let (inputs, positions) =
        (vec![("x", noise.tensor(&[1, 3, 3, 4]))], Tensor::from_slice(&[2_i64, 0, 7]).view([1, 3]));
    gradcheck(&inputs, &|tensors: &[Tensor]| run(tensors, &positions, 2, false));
}

#[test]
fn what_does_not_fit_is_refused() {
    let (x, positions) =
        (Tensor::zeros([1, 1, 2, 4], (Kind::Float, Device::Cpu)), Tensor::from_slice(&[0_i64, 1]));
    let refused = |positions: &Tensor, frequencies: &[f64]| {
        rotary::rotary(&Rotary { x: &x, positions, frequencies, scale: 1.0 }).unwrap_err().to_string()
    };
    assert!(refused(&positions.view([1, 2]), &[1.0]).contains("`frequencies`"));
    assert!(refused(&positions, &[1.0, 0.1]).contains("`positions`"));
}
