//! The kernels on a GPU against the definitions on the CPU in f64: outputs, states and every gradient. Without a GPU the
//! tests say so and do nothing.
//!
//! The binary runs on a machine without Rust too: it needs libtorch's libraries on the loader's path, and finds the
//! driver and NVRTC by itself.

#![allow(clippy::unwrap_used)]

mod common;

use common::gpu::{GPU, there_is_a_gpu};
use common::{Noise, Outcome, at, causal_conv1d as conv, differentiated, distance, selective_scan as scan};
use kernels::causal_conv1d;
use kernels::selective_scan;
use tch::{Device, Kind, Tensor};
use torch_bridge::Result;

/// The largest relative error in bf16, whose last bit is 2^-8 of a number.
const BFLOAT16: f64 = 5e-3;

/// The kind of the tensor of this name.
type KindOf = fn(&str) -> Kind;

/// What a GPU has in bf16; the rest, parameters and states, is f32.
fn bfloat16(name: &str) -> Kind {
    if ["u", "delta", "b", "c", "z", "x"].contains(&name) { Kind::BFloat16 } else { Kind::Float }
}

fn float(_: &str) -> Kind {
    Kind::Float
}

fn double(_: &str) -> Kind {
    Kind::Double
}

/// A case of an operation that has kernels.
trait Compared: Sized {
    /// The same case on a device, its tensors in the kinds that `kind` gives by name.
    fn moved(&self, device: Device, kind: KindOf) -> Self;

    /// Its tensors by name.
    fn tensors(&self) -> &[(&'static str, Tensor)];

    /// The operation, or its definition, on these tensors.
    fn outputs(&self, tensors: &[Tensor], definition: bool) -> Result<(Tensor, Tensor)>;

    /// Outputs and gradients of the operation, or of its definition.
    fn outcome_of(&self, weights: Kind, definition: bool) -> Outcome {
        differentiated(self.tensors(), weights, &|tensors| self.outputs(tensors, definition))
    }

    /// Fails unless outputs without gradients, which decoding has kernels of its own for, are near to the truth.
    fn check_without_gradients(&self, what: &str) {
        let run = |case: &Self, definition| {
            let tensors: Vec<Tensor> = case.tensors().iter().map(|(_, x)| x.shallow_clone()).collect();
            let (y, state) = tch::no_grad(|| case.outputs(&tensors, definition)).unwrap();
            [y, state].map(|x| x.to_device(Device::Cpu).to_kind(Kind::Double))
        };
        let kinds: [(KindOf, f64); 2] = [(float, 1e-5), (bfloat16, BFLOAT16)];
        for (kind, tolerance) in kinds {
            let rounded = self.moved(Device::Cpu, kind);
            let truth = run(&rounded.moved(Device::Cpu, double), true);
            for (ours, truth) in run(&rounded.moved(GPU, kind), false).iter().zip(&truth) {
                let distance = distance(ours, truth);
                assert!(distance <= tolerance, "{what}: off by {distance:e}");
            }
        }
    }

    /// Fails unless the kernels are as near to the truth as they must be, and twice the same.
    fn check(&self, what: &str) {
        let truth = self.moved(Device::Cpu, double).outcome_of(Kind::Double, true);
        let peer = self.moved(Device::Cpu, float).outcome_of(Kind::Double, true);
        let gpu = self.moved(GPU, float);
        let ours = gpu.outcome_of(Kind::Double, false);
        ours.assert_finite(what);
        ours.assert_as_near_as(&peer, &truth, &format!("f32, {what}"));
        gpu.outcome_of(Kind::Double, false).assert_equal(&ours, &format!("f32 again, {what}"));

        // The definition sees the numbers that the GPU sees, in f64.
        let rounded = self.moved(Device::Cpu, bfloat16);
        let truth = rounded.moved(Device::Cpu, double).outcome_of(Kind::BFloat16, true);
        let gpu = rounded.moved(GPU, bfloat16);
        let ours = gpu.outcome_of(Kind::BFloat16, false);
        ours.assert_near(&truth, BFLOAT16, &format!("bf16, {what}"));
        gpu.outcome_of(Kind::BFloat16, false).assert_equal(&ours, &format!("bf16 again, {what}"));
    }
}

impl Compared for conv::Case {
    fn moved(&self, device: Device, kind: KindOf) -> Self {
        self.to(device, kind)
    }

    fn tensors(&self) -> &[(&'static str, Tensor)] {
        &self.tensors
    }

    fn outputs(&self, tensors: &[Tensor], definition: bool) -> Result<(Tensor, Tensor)> {
        self.run(tensors, if definition { causal_conv1d::reference } else { causal_conv1d::causal_conv1d })
    }
}

impl Compared for scan::Case {
    fn moved(&self, device: Device, kind: KindOf) -> Self {
        self.to(device, kind)
    }

    fn tensors(&self) -> &[(&'static str, Tensor)] {
        &self.tensors
    }

    fn outputs(&self, tensors: &[Tensor], definition: bool) -> Result<(Tensor, Tensor)> {
        self.run(tensors, if definition { selective_scan::reference } else { selective_scan::selective_scan })
    }
}

#[test]
fn convolution_agrees_for_every_length_and_width() {
    if !there_is_a_gpu() {
        return;
    }
    for time in [1, 2, 3, 31, 64, 65, 257] {
        for (d, width) in [(1, 4), (5, 1), (16, 2), (131, 3), (40, 8), (256, 4)] {
            let resets = Some(Noise(time as u64).mask(&[2, time], 9));
            let case = conv::Case::new([2, time, d, width], conv::ALL, resets, None);
            case.check(&format!("{time} {d} {width}"));
        }
    }
}

#[test]
fn convolution_agrees_for_any_mix_of_options() {
    if !there_is_a_gpu() {
        return;
    }
    let mut noise = Noise(14);
    for round in 0..40 {
        let mut flip = || noise.chance(2);
        let with = conv::With {
            bias: flip(),
            silu: flip(),
            shared_tail: flip(),
            shared_reset: flip(),
            strided: flip(),
        };
        let (has_resets, has_lengths) = (flip(), flip());
        let batch = noise.pick(&[1, 2, 3]);
        let time = noise.pick(&[1, 2, 3, 17, 33, 65, 300]);
        let sizes = [batch, time, noise.pick(&[1, 5, 16, 70, 136]), noise.pick(&[1, 4, 8])];
        let often = noise.pick(&[1, 2, 5, 40]);
        let resets = has_resets.then(|| noise.mask(&[batch, time], often));
        let lengths: Vec<i64> = (0..batch).map(|_| noise.below(time as usize + 1) as i64).collect();
        let what = format!("round {round}: {sizes:?}, {with:?}, {has_resets}, {has_lengths} {lengths:?}");
        conv::Case::new(sizes, with, resets, has_lengths.then_some(&lengths)).check(&what);
    }
}

#[test]
fn scan_agrees_for_every_length_and_width() {
    if !there_is_a_gpu() {
        return;
    }
    for time in [1, 2, 17, 32, 65, 200] {
        for (d_inner, d_state) in [(1, 16), (5, 1), (136, 4), (17, 17), (130, 16), (256, 8), (24, 64)] {
            let resets = Some(Noise(time as u64).mask(&[2, time], 9));
            let case = scan::Case::new([2, time, d_inner, d_state], scan::ALL, resets, None);
            case.check(&format!("{time} {d_inner} {d_state}"));
        }
    }
}

#[test]
fn scan_agrees_for_any_mix_of_options() {
    if !there_is_a_gpu() {
        return;
    }
    let mut noise = Noise(13);
    for round in 0..40 {
        let mut flip = || noise.chance(2);
        let with = scan::With {
            delta_bias: flip(),
            delta_softplus: flip(),
            d: flip(),
            z: flip(),
            shared_initial: flip(),
            shared_reset: flip(),
            strided: flip(),
        };
        let (has_resets, has_valid) = (flip(), flip());
        let batch = noise.pick(&[1, 2, 3]);
        let time = noise.pick(&[1, 2, 3, 17, 33, 65, 130]);
        let sizes = [batch, time, noise.pick(&[1, 5, 40, 128, 136]), noise.pick(&[4, 16, 17])];
        let often = noise.pick(&[1, 2, 5, 40]);
        let resets = has_resets.then(|| noise.mask(&[batch, time], often));
        let valid = has_valid.then(|| noise.mask(&[batch, time], 3).logical_not());
        let what = format!("round {round}: {sizes:?}, {with:?}, resets {has_resets}, valid {has_valid}");
        scan::Case::new(sizes, with, resets, valid).check(&what);
    }
}

#[test]
fn scan_of_few_channels_is_cut_in_time_and_agrees() {
    if !there_is_a_gpu() {
        return;
    }
    let time = 2_100;
    for resets in [None, Some(at(1, time, &[0, 255, 256, 1_400, time - 1]))] {
        let what = format!("{time} tokens, resets {}", resets.is_some());
        scan::Case::new([1, time, 40, 16], scan::ALL, resets, None).check(&what);
    }
}

#[test]
fn calls_without_gradients_agree() {
    if !there_is_a_gpu() {
        return;
    }
    for time in [1, 2, 40] {
        for (d, width) in [(1, 4), (131, 3), (256, 4), (40, 8), (8, 1)] {
            let case = conv::Case::new([3, time, d, width], conv::ALL, None, None);
            case.check_without_gradients(&format!("convolution {time} {d} {width}"));
        }
        for (d_inner, d_state) in [(1, 16), (136, 1), (130, 16), (33, 17), (256, 64)] {
            for with in [scan::ALL, scan::With::default()] {
                let case = scan::Case::new([3, time, d_inner, d_state], with, None, None);
                case.check_without_gradients(&format!("scan {time} {d_inner} {d_state}"));
            }
        }
    }
}

#[test]
fn padding_may_hold_anything() {
    if !there_is_a_gpu() {
        return;
    }
    let valid = at(1, 6, &[0, 1, 4]);
    let case = scan::Case::new([1, 6, 5, 4], scan::ALL, None, Some(valid.shallow_clone()));
    let clean = case.moved(GPU, float).outcome_of(Kind::Float, false);
    let mut dirty = case.to(Device::Cpu, float);
    for (_, x) in &mut dirty.tensors {
        if x.dim() == 3 && x.size()[1] == 6 {
            *x = x.masked_fill(&valid.logical_not().reshape([1, 6, 1]), f64::NAN);
        }
    }
    dirty.moved(GPU, float).outcome_of(Kind::Float, false).assert_equal(&clean, "NaN in the padding");

    // Several chunks of a thread lie in the padding.
    let case = conv::Case::new([1, 300, 5, 4], conv::ALL, None, Some(&[50]));
    let clean = case.moved(GPU, float).outcome_of(Kind::Float, false);
    let mut dirty = case.to(Device::Cpu, float);
    for (_, x) in &mut dirty.tensors {
        if x.dim() == 3 && x.size()[1] == 300 {
            let _ = x.narrow(1, 50, 250).fill_(f64::NAN);
        }
    }
    dirty
        .moved(GPU, float)
        .outcome_of(Kind::Float, false)
        .assert_equal(&clean, "convolution, NaN in the padding");
}

/// Truth is the CPU's kernel in f64 here, which other tests compare with the definition: token by token, the definition
/// would take minutes.
#[test]
fn long_sequences_agree() {
    if !there_is_a_gpu() {
        return;
    }
    let time = 65_537;
    let resets = || Some(at(1, time, &[0, 1, 30_000, time - 1]));
    agrees(&scan::Case::new([1, time, 24, 16], scan::ALL, resets(), None), "scan");
    agrees(&conv::Case::new([1, time, 24, 4], conv::ALL, resets(), None), "convolution");
}

/// As many blocks as leave some multiprocessors of an H100 half empty: the backward cuts time unevenly there.
#[test]
fn many_channels_agree() {
    if !there_is_a_gpu() {
        return;
    }
    let resets = Some(at(8, 1_024, &[3, 700, 900]));
    agrees(&scan::Case::new([8, 1_024, 3_200, 8], scan::ALL, resets, None), "scan");
    let resets = Some(at(8, 300, &[3, 250]));
    agrees(&conv::Case::new([8, 300, 3_200, 4], conv::ALL, resets, None), "convolution");
}

fn agrees(case: &impl Compared, what: &str) {
    let run = |device, kind| case.moved(device, kind).outcome_of(Kind::Double, false);
    let (truth, peer) = (run(Device::Cpu, double), run(Device::Cpu, float));
    run(GPU, float).assert_as_near_as(&peer, &truth, what);
}

/// The last row of operands with more than 2^31 elements, against the same row alone.
#[test]
#[ignore = "needs 60 GB on the GPU"]
fn offsets_beyond_2_to_the_31_are_right() {
    if !there_is_a_gpu() {
        return;
    }
    let [batch, time, d, states] = [65, 8_192, 4_096, 16];
    assert!(batch * time * d > 1 << 31);
    tch::manual_seed(5);
    let bf16 = (Kind::BFloat16, GPU);
    let float = (Kind::Float, GPU);
    let token = |width: i64| Tensor::randn([batch, time, width], bf16);
    let last_row = |x: &Tensor| x.narrow(0, batch - 1, 1).copy();
    let near = |x: &Tensor, y: &Tensor| {
        let [x, y] = [x, y].map(|x| x.detach().to_device(Device::Cpu).to_kind(Kind::Double));
        // Rows alone may be cut in time, which rounds otherwise.
        assert!(distance(&x, &y) < BFLOAT16, "{}", distance(&x, &y));
    };
    {
        let x = token(d).set_requires_grad(true);
        let (weight, tail) = (Tensor::randn([d, 4], float), Tensor::randn([1, 3, d], float));
        let run = |x: &Tensor| {
            causal_conv1d::causal_conv1d(&causal_conv1d::CausalConv1d {
                x,
                weight: &weight,
                bias: None,
                tail: &tail,
                reset_tail: None,
                resets: None,
                lengths: None,
                silu: true,
            })
            .unwrap()
            .0
        };
        let alone = last_row(&x.detach()).set_requires_grad(true);
        let (all, row) = (run(&x), run(&alone));
        near(&last_row(&all), &row);
        all.narrow(0, batch - 1, 1).sum(Kind::Float).backward();
        row.sum(Kind::Float).backward();
        near(&last_row(&x.grad()), &alone.grad());
    }
    let (u, delta) = (token(d).set_requires_grad(true), token(d) - 3.0);
    let (b, c) = (token(states), token(states));
    let a = -(Tensor::rand([d, states], float) + 0.1);
    let start = Tensor::zeros([1, d, states], float);
    let run = |u: &Tensor, delta: &Tensor, b: &Tensor, c: &Tensor| {
        selective_scan::selective_scan(&selective_scan::SelectiveScan {
            u,
            delta,
            delta_bias: None,
            delta_softplus: true,
            a: &a,
            b,
            c,
            d: None,
            z: None,
            initial_state: &start,
            reset_state: None,
            resets: None,
            valid: None,
        })
        .unwrap()
        .0
    };
    let alone = last_row(&u.detach()).set_requires_grad(true);
    let (all, row) = (run(&u, &delta, &b, &c), run(&alone, &last_row(&delta), &last_row(&b), &last_row(&c)));
    near(&last_row(&all), &row);
    all.narrow(0, batch - 1, 1).sum(Kind::Float).backward();
    row.sum(Kind::Float).backward();
    near(&last_row(&u.grad()), &alone.grad());
}

#[test]
fn second_derivatives_are_the_definitions() {
    if !there_is_a_gpu() {
        return;
    }
    let case = scan::Case::new([2, 12, 17, 8], scan::ALL, Some(at(2, 12, &[0, 5])), None);
    let (cpu, gpu) = (case.to(Device::Cpu, float), case.to(GPU, float));
    let second = |case: &scan::Case, operation: scan::Operation| {
        common::second_outcome(&case.tensors, &|tensors| case.run(tensors, operation))
    };
    second(&gpu, selective_scan::selective_scan).assert_near(
        &second(&cpu, selective_scan::reference),
        1e-4,
        "second",
    );
}

#[test]
fn what_has_no_kernel_is_refused_or_runs_as_its_definition() {
    if !there_is_a_gpu() {
        return;
    }
    let case = scan::Case::new([1, 3, 5, 4], scan::ALL, None, None).to(GPU, double);
    let tensors: Vec<Tensor> = case.tensors.iter().map(|(_, x)| x.shallow_clone()).collect();
    let error = case.run(&tensors, selective_scan::selective_scan).unwrap_err().to_string();
    assert!(error.contains("required") && error.contains("float64"), "{error}");
}
