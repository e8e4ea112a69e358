//! Norm and loss on a GPU against their definitions on the CPU in f64: outputs and every gradient. Without a GPU the tests
//! say so and do nothing.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

mod common;

use common::gpu::{GPU, there_is_a_gpu};
use common::{Noise, Outcome, differentiated, distance};
use kernels::linear_cross_entropy::{self, IGNORE_INDEX, LinearCrossEntropy, Settings, linear_cross_entropy};
use kernels::rms_norm::{self, RmsNorm, rms_norm};
use kernels::rms_norm_sum;
use kernels::rotary::{self, Rotary};
use kernels::swiglu;
use tch::{Device, Kind, Tensor};
use torch_bridge::Result;

type Inputs = Vec<(&'static str, Tensor)>;

/// What an operation, or its definition, makes of inputs on any device.
type Run<'a> = &'a dyn Fn(&[Tensor], bool) -> Result<(Tensor, Tensor)>;

fn moved(inputs: &Inputs, device: Device, kind: Kind) -> Inputs {
    inputs.iter().map(|(name, x)| (*name, x.to_kind(kind).to_device(device))).collect()
}

/// Fails unless the kernels are as near to the truth as they must be, in f32 and bf16, and twice the same.
fn check(inputs: &Inputs, what: &str, run: Run<'_>) {
    let outcome = |inputs: &Inputs, weights: Kind, definition: bool| -> Outcome {
        differentiated(inputs, weights, &|tensors| run(tensors, definition))
    };
    let truth = outcome(&moved(inputs, Device::Cpu, Kind::Double), Kind::Double, true);
    let peer = outcome(&moved(inputs, Device::Cpu, Kind::Float), Kind::Double, true);
    let gpu = moved(inputs, GPU, Kind::Float);
    let ours = outcome(&gpu, Kind::Double, false);
    ours.assert_finite(what);
    ours.assert_as_near_as(&peer, &truth, &format!("f32, {what}"));
    outcome(&gpu, Kind::Double, false).assert_equal(&ours, &format!("f32 again, {what}"));

    let rounded = moved(inputs, Device::Cpu, Kind::BFloat16);
    let truth = outcome(&moved(&rounded, Device::Cpu, Kind::Double), Kind::BFloat16, true);
    let gpu = moved(&rounded, GPU, Kind::BFloat16);
    let ours = outcome(&gpu, Kind::BFloat16, false);
    for ((name, x), y) in ours.names.iter().zip(&ours.values).zip(&truth.values) {
        let distance = distance(x, y);
        assert!(distance <= 5e-3, "bf16, {what}: {name} is off by {distance:e}");
    }
    outcome(&gpu, Kind::BFloat16, false).assert_equal(&ours, &format!("bf16 again, {what}"));
}

#[test]
fn the_norm_agrees_for_every_width() {
    if !there_is_a_gpu() {
        return;
    }
    for rows in [1, 3, 70, 2500] {
        for d in [1, 7, 8, 64, 100, 256, 1000, 1024, 1025, 1600, 2048, 3200, 4097, 8192] {
            if rows * d > 4_000_000 {
                continue;
            }
            for residual in [false, true] {
                let mut noise = Noise(rows as u64 * 10_007 + d as u64);
                let mut inputs = vec![("x", noise.tensor(&[rows, d])), ("weight", noise.tensor(&[d]))];
                if residual {
                    inputs.push(("residual", noise.tensor(&[rows, d])));
                }
                check(
                    &inputs,
                    &format!("norm of {rows} x {d}, residual {residual}"),
                    &|tensors, definition| {
                        let args = RmsNorm {
                            x: &tensors[0],
                            weight: &tensors[1],
                            residual: tensors.get(2),
                            eps: 1e-6,
                            output: None,
                        };
                        if definition { rms_norm::reference(&args) } else { rms_norm(&args) }
                    },
                );
            }
        }
    }
}

#[test]
fn the_loss_agrees_for_every_vocabulary() {
    if !there_is_a_gpu() {
        return;
    }
    let settings = [
        Settings::PLAIN,
        Settings { label_smoothing: 0.1, z_loss: 1e-3, soft_cap: None },
        Settings { label_smoothing: 0.0, z_loss: 1e-4, soft_cap: Some(5.0) },
    ];
    for settings in settings {
        for (rows, d, vocab) in [
            (1, 1, 1),
            (5, 8, 3),
            (33, 16, 17),
            (64, 32, 1000),
            (40, 64, 8191),
            (130, 16, 32_001),
            (3, 8, 100_003),
        ] {
            let mut noise = Noise(rows as u64 * 31 + vocab as u64);
            let targets: Vec<i64> = (0..rows)
                .map(|_| {
                    let target = noise.below(vocab as usize) as i64;
                    if noise.chance(5) { IGNORE_INDEX } else { target }
                })
                .collect();
            let targets = Tensor::from_slice(&targets);
            // Logits of a few units, as a model has them.
            let inputs = vec![
                ("hidden", noise.tensor(&[rows, d])),
                ("weight", noise.tensor(&[vocab, d]) / (d as f64).sqrt()),
            ];
            check(
                &inputs,
                &format!("loss of {rows} x {d} x {vocab}, {settings:?}"),
                &|tensors, definition| {
                    let targets = targets.to_device(tensors[0].device());
                    let args = LinearCrossEntropy {
                        hidden: &tensors[0],
                        weight: &tensors[1],
                        targets: &targets,
                        settings,
                    };
                    let outputs = if definition {
                        linear_cross_entropy::reference(&args)
                    } else {
                        linear_cross_entropy(&args)
                    };
                    outputs.map(|(loss, square)| (loss.shallow_clone(), loss * 0.0 + square))
                },
            );
        }
    }
}

#[test]
fn heads_turn_as_the_definition_has_it() {
    if !there_is_a_gpu() {
        return;
    }
    for (batch, heads, time, d) in [(1, 1, 1, 2), (2, 5, 70, 64), (3, 2, 33, 6), (1, 4, 300, 256)] {
        let mut noise = Noise(time as u64);
        let frequencies: Vec<f64> = (0..d / 2).map(|i| 1e4_f64.powf(-2.0 * i as f64 / d as f64)).collect();
        for shared in [true, false] {
            let rows = if shared { 1 } else { batch };
            let positions: Vec<i64> = (0..rows * time).map(|_| noise.below(40) as i64).collect();
            let positions = Tensor::from_slice(&positions).view([rows, time]);
            // A slice of a fused projection.
            let inputs = vec![("x", noise.tensor(&[batch, time, heads + 1, d]))];
            let what = format!("rotary of {batch} x {heads} x {time} x {d}, shared {shared}");
            check(&inputs, &what, &|tensors, definition| {
                let x = tensors[0].narrow(2, 1, heads).transpose(1, 2);
                let positions = positions.to_device(x.device());
                let args = Rotary { x: &x, positions: &positions, frequencies: &frequencies, scale: 1.25 };
                let y = if definition { rotary::reference(&args) } else { rotary::rotary(&args) };
                y.map(|y| (y.shallow_clone(), y * 2.0))
            });
        }
    }
}

#[test]
fn the_gate_agrees_for_every_count() {
    if !there_is_a_gpu() {
        return;
    }
    for count in [1, 7, 8, 2048, 2049, 100_003] {
        for offset in [0, 1] {
            let mut noise = Noise(count as u64);
            let shape = [count + offset];
            let inputs = vec![("gate", noise.tensor(&shape) * 4.0), ("up", noise.tensor(&shape))];
            check(&inputs, &format!("gate of {count} from {offset}"), &|tensors, definition| {
                let [gate, up] = [0, 1].map(|i| tensors[i].narrow(0, offset, count));
                let y = if definition { swiglu::reference(&gate, &up) } else { swiglu::swiglu(&gate, &up) };
                y.map(|y| (y.shallow_clone(), y * 2.0))
            });
        }
    }
}

/// A branch of 16 bits onto a residual stream of 32, normed into 16: outputs and gradients are the definition's, rounded.
#[test]
fn the_norm_of_a_wide_residual_stream_agrees() {
    if !there_is_a_gpu() {
        return;
    }
    for (rows, d) in [(3, 7), (70, 1024), (500, 1600), (40, 4097)] {
        let mut noise = Noise(d as u64);
        let tensors = [noise.tensor(&[rows, d]), noise.tensor(&[d]), noise.tensor(&[rows, d])];
        let slopes = [noise.tensor(&[rows, d]), noise.tensor(&[rows, d])];
        let run = |device: Device, definition: bool| -> Vec<Tensor> {
            let place = |x: &Tensor, kind: Kind| {
                // Rounded alike on both sides.
                let x = if kind == Kind::BFloat16 { x.to_kind(kind) } else { x.to_kind(Kind::Float) };
                let kind = if definition { Kind::Double } else { kind };
                x.to_device(device).to_kind(kind).set_requires_grad(true)
            };
            let x = place(&tensors[0], Kind::BFloat16);
            let (weight, residual) = (place(&tensors[1], Kind::Float), place(&tensors[2], Kind::Float));
            let output = Some(if definition { Kind::Double } else { Kind::BFloat16 });
            let args = RmsNorm { x: &x, weight: &weight, residual: Some(&residual), eps: 1e-6, output };
            let (y, h) = if definition { rms_norm::reference(&args) } else { rms_norm(&args) }.unwrap();
            assert!(definition || (y.kind(), h.kind()) == (Kind::BFloat16, Kind::Float));
            let loss = (y.to_kind(Kind::Double) * slopes[0].to_device(device)).sum(Kind::Double)
                + (h.to_kind(Kind::Double) * slopes[1].to_device(device)).sum(Kind::Double);
            loss.backward();
            vec![y.detach(), h.detach(), x.grad(), weight.grad(), residual.grad()]
        };
        let (truth, ours) = (run(Device::Cpu, true), run(GPU, false));
        for (name, (x, y)) in ["y", "h", "dx", "dweight", "dresidual"].iter().zip(ours.iter().zip(&truth)) {
            let distance = distance(&x.to_device(Device::Cpu).to_kind(Kind::Double), y);
            assert!(distance <= 5e-3, "{rows} x {d}: {name} is off by {distance:e}");
        }
    }
}

#[test]
fn the_sum_of_normed_branches_agrees() {
    if !there_is_a_gpu() {
        return;
    }
    for (rows, d) in [(1, 3), (3, 7), (70, 64), (600, 1024), (2500, 1025), (300, 3200), (40, 8192)] {
        for branches in 1..=4 {
            let mut noise = Noise(d as u64 * 5 + branches as u64);
            let mut inputs = Vec::new();
            for name in ["x0", "x1", "x2", "x3"].iter().take(branches) {
                inputs.push((*name, noise.tensor(&[rows, d]) * 3.0));
            }
            for name in ["w0", "w1", "w2", "w3"].iter().take(branches) {
                inputs.push((*name, noise.tensor(&[d])));
            }
            check(&inputs, &format!("{branches} branches of {rows} x {d}"), &|tensors, definition| {
                let all: Vec<&Tensor> = tensors.iter().collect();
                let (x, weights) = all.split_at(branches);
                let y = if definition {
                    rms_norm_sum::reference(x, weights, 1e-6)
                } else {
                    rms_norm_sum::rms_norm_sum(x, weights, 1e-6)
                };
                y.map(|y| (y.shallow_clone(), y * 2.0))
            });
        }
    }
}
