//! Products with weights in few bits on a GPU against their definition on the CPU in f64. Without a GPU the test says so and
//! does nothing.

#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

mod common;

use common::gpu::{GPU, there_is_a_gpu};
use common::{Noise, distance};
use kernels::weight_only_linear::{QuantisedWeight, Zero, reference, weight_only_linear};
use tch::{Device, Kind, Tensor};

fn on_gpu(weight: &QuantisedWeight) -> QuantisedWeight {
    let moved = |x: &Tensor| x.to_device(GPU);
    match weight {
        QuantisedWeight::Int8 { codes, scale } => {
            QuantisedWeight::Int8 { codes: moved(codes), scale: moved(scale) }
        }
        QuantisedWeight::Int4 { codes, scale, zero } => {
            QuantisedWeight::Int4 { codes: moved(codes), scale: moved(scale), zero: zero.as_ref().map(moved) }
        }
    }
}

#[test]
fn agrees_with_the_definition() {
    if !there_is_a_gpu() {
        return;
    }
    let mut noise = Noise(1);
    // The last two have no kernel for eight bits, or none at all: the weight is read back.
    for (out, width) in [(1, 128), (40, 256), (129, 640), (1600, 1600), (70, 4096), (3, 40), (5, 33)] {
        let matrix = noise.tensor(&[out, width]).to_kind(Kind::Float);
        let mut weights = vec![QuantisedWeight::int8(&matrix).unwrap()];
        for group in [32, 64, 128].into_iter().filter(|group| width % group == 0) {
            for zero in [Zero::Free, Zero::Fixed] {
                weights.push(QuantisedWeight::int4(&matrix, group, zero).unwrap());
            }
        }
        for weight in &weights {
            let moved = on_gpu(weight);
            for rows in [1, 2, 8, 9, 16, 17, 100] {
                for (kind, tolerance) in [(Kind::BFloat16, 5e-3), (Kind::Half, 1e-3), (Kind::Float, 1e-5)] {
                    let x = noise.tensor(&[rows, width]).to_kind(kind);
                    let truth = reference(&x.to_kind(Kind::Double), weight).unwrap();
                    let ours = weight_only_linear(&x.to_device(GPU), &moved).unwrap();
                    assert_eq!((ours.kind(), ours.size()), (kind, vec![rows, out]));
                    let off = distance(&ours.to_device(Device::Cpu).to_kind(Kind::Double), &truth);
                    assert!(
                        off <= tolerance,
                        "{rows} x {out} x {width} {kind:?}, {weight:?}: off by {off:e}"
                    );
                    let again = weight_only_linear(&x.to_device(GPU), &moved).unwrap();
                    assert!(ours.equal(&again), "twice the same");
                }
            }
        }
    }
}
