//! The sLSTM on a GPU against its definition on the CPU in f64: outputs, states and every gradient. Without a GPU the tests
//! say so and do nothing.

#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

mod common;

use common::gpu::{GPU, there_is_a_gpu};
use common::slstm::{Case, Operation};
use common::{Noise, Outcome, at, differentiated, distance, strided};
use kernels::slstm::{Slstm, SlstmState, reference, slstm};
use tch::{Device, Kind, Tensor};
use torch_bridge::Result;

/// The largest relative error in bf16.
const BFLOAT16: f64 = 5e-3;

/// The kind of the tensor of this name.
type KindOf = fn(&str) -> Kind;

/// What a GPU has in bf16; bias and states are f32.
fn bfloat16(name: &str) -> Kind {
    if ["gates", "recurrent"].contains(&name) { Kind::BFloat16 } else { Kind::Float }
}

/// As [`bfloat16`], with R in f32 as an optimiser keeps it, of numbers that bf16 has.
fn bfloat16_gates(name: &str) -> Kind {
    if name == "gates" { Kind::BFloat16 } else { Kind::Float }
}

fn float(_: &str) -> Kind {
    Kind::Float
}

fn double(_: &str) -> Kind {
    Kind::Double
}

fn moved(case: &Case, device: Device, kind: KindOf) -> Case {
    let on = |x: &Tensor| x.to_device(device);
    Case {
        tensors: case.tensors.iter().map(|(name, x)| (*name, on(&x.to_kind(kind(name))))).collect(),
        resets: case.resets.as_ref().map(on),
        valid: case.valid.as_ref().map(on),
    }
}

/// What of the last state is compared: with `parts` the parts as they are, else what does not depend on the maximum, `h`,
/// `c / n` and `log n + m`. Whose a maximum is jumps where two are equal but for their rounding, and the gradients of `c`
/// and `n` by themselves with it, so in bf16 they say nothing.
fn result(case: &Case, operation: Operation, parts: bool) -> Outcome {
    differentiated(&case.tensors, Kind::BFloat16, &|tensors| {
        let (h, state) = case.run(tensors, operation)?;
        if parts {
            return Ok((h, state));
        }
        let [after, c, n, m] = [0, 1, 2, 3].map(|part| state.select(1, part));
        Ok((h, Tensor::stack(&[after, c / &n, n.log() + m], 1)))
    })
}

fn assert_bfloat16(ours: &Outcome, truth: &Outcome, what: &str) {
    ours.assert_finite(what);
    for ((name, x), y) in ours.names.iter().zip(&ours.values).zip(&truth.values) {
        let distance = distance(x, y);
        assert!(distance <= BFLOAT16, "bf16, {what}: {name} is off by {distance:e}");
    }
}

/// Fails unless the kernels are as near to the truth as they must be, and twice the same.
fn check(case: &Case, what: &str) {
    let truth = result(&moved(case, Device::Cpu, double), reference, true);
    let peer = result(&moved(case, Device::Cpu, float), reference, true);
    let gpu = moved(case, GPU, float);
    let ours = result(&gpu, slstm, true);
    ours.assert_finite(what);
    ours.assert_as_near_as(&peer, &truth, &format!("f32, {what}"));
    result(&gpu, slstm, true).assert_equal(&ours, &format!("f32 again, {what}"));

    let rounded = moved(case, Device::Cpu, bfloat16);
    let truth = result(&moved(&rounded, Device::Cpu, double), reference, false);
    for kind in [bfloat16, bfloat16_gates] {
        let gpu = moved(&rounded, GPU, kind);
        let ours = result(&gpu, slstm, false);
        assert_bfloat16(&ours, &truth, what);
        result(&gpu, slstm, false).assert_equal(&ours, &format!("bf16 again, {what}"));
    }
}

#[test]
fn agrees_for_every_length_and_width() {
    if !there_is_a_gpu() {
        return;
    }
    for (batch, time, heads, head_dim) in [
        (1, 1, 1, 1),
        (3, 1, 2, 64),
        (2, 2, 1, 16),
        (5, 33, 2, 32),
        (9, 70, 2, 64),
        (4, 37, 3, 48),
        (3, 65, 2, 112),
        (9, 34, 1, 128),
        (2, 17, 2, 5),
        (5, 20, 1, 130),
        (3, 9, 1, 400),
    ] {
        let resets = Some(Noise(time as u64).mask(&[batch, time], 9));
        let what = format!("{batch} {time} {heads} {head_dim}");
        check(&Case::new([batch, time, heads, head_dim], [false; 2], resets, None), &what);
        check(&Case::new([batch, time, heads, head_dim], [true; 2], None, None), &format!("{what}, plain"));
    }
}

#[test]
fn two_sequences_a_lane_give_the_same() {
    if !there_is_a_gpu() {
        return;
    }
    // So many rows that the card is full.
    let case = Case::new([150, 40, 9, 16], [true, false], Some(Noise(1).mask(&[150, 40], 9)), None);
    check(&case, "many rows");
}

#[test]
fn agrees_for_any_mix_of_options() {
    if !there_is_a_gpu() {
        return;
    }
    let mut noise = Noise(3);
    for round in 0..16 {
        let shared = [noise.chance(2), noise.chance(2)];
        let (batch, time) = (noise.pick(&[1, 2, 6]), noise.pick(&[2, 3, 17, 40]));
        let sizes = [batch, time, noise.pick(&[1, 2]), noise.pick(&[16, 19, 64])];
        let often = noise.pick(&[1, 2, 5, 40]);
        let resets = noise.chance(2).then(|| noise.mask(&[batch, time], often));
        let valid = noise.chance(2).then(|| noise.mask(&[batch, time], 3).logical_not());
        let what = format!(
            "round {round}: {sizes:?}, shared {shared:?}, resets {}, valid {}",
            resets.is_some(),
            valid.is_some()
        );
        let mut case = Case::new(sizes, shared, resets, valid);
        if noise.chance(2) {
            case.tensors.iter_mut().for_each(|(_, x)| *x = strided(x));
        }
        check(&case, &what);
    }
}

#[test]
fn padding_may_hold_anything() {
    if !there_is_a_gpu() {
        return;
    }
    for head_dim in [20, 32] {
        // The last row is nothing but padding.
        let valid = at(3, 41, &[0, 1, 4, 33]);
        let _ = valid.get(2).fill_(0);
        let resets = Some(at(3, 41, &[0, 1, 3, 33]));
        let mut case = Case::new([3, 41, 2, head_dim], [false; 2], resets, Some(valid.shallow_clone()));
        check(&case, "padding");
        for kind in [float, bfloat16] {
            let clean = result(&moved(&case, GPU, kind), slstm, true);
            let gates = case.tensors[0].1.copy();
            for junk in [f64::NAN, f64::INFINITY, -1e30] {
                case.tensors[0].1 = gates.masked_fill(&valid.logical_not().reshape([3, 41, 1, 1, 1]), junk);
                result(&moved(&case, GPU, kind), slstm, true)
                    .assert_equal(&clean, &format!("{junk} in the padding"));
            }
            case.tensors[0].1 = gates;
        }
    }
}

#[test]
fn an_empty_state_and_gates_of_any_size_are_right() {
    if !there_is_a_gpu() {
        return;
    }
    for (i, f) in [(0.0, 0.0), (1e4, 1e4), (1e4, -1e4), (-1e4, 1e4), (-1e4, -1e4), (90.0, 30.0)] {
        let mut case = Case::new([5, 20, 2, 16], [false; 2], Some(at(5, 20, &[7])), None);
        let shift = Tensor::from_slice(&[i, f, 0.0, 0.0]).reshape([1, 1, 4, 1, 1]);
        case.tensors[0].1 = &case.tensors[0].1 + shift;
        for (_, x) in &mut case.tensors[3..] {
            *x = x.zeros_like();
        }
        let truth = case.run(&case.plain(), reference).unwrap();
        for kind in [float, bfloat16] {
            let gpu = moved(&case, GPU, kind);
            result(&gpu, slstm, true).assert_finite(&format!("gates {i} and {f}"));
            let (h, state) = gpu.run(&gpu.plain(), slstm).unwrap();
            assert!(state.isfinite().all().int64_value(&[]) == 1);
            if i == 0.0 {
                let near = distance(&h.to_device(Device::Cpu).to_kind(Kind::Double), &truth.0);
                assert!(near < 1e-2, "an empty state: off by {near:e}");
            }
        }
    }
}

#[test]
fn one_token_without_gradients_is_right() {
    if !there_is_a_gpu() {
        return;
    }
    for (batch, heads, head_dim) in [(1, 1, 1), (1, 12, 64), (9, 3, 20), (5, 2, 300), (33, 2, 128)] {
        let case = Case::new([batch, 1, heads, head_dim], [batch == 5; 2], None, None);
        let kinds: [(KindOf, f64); 3] = [(float, 1e-5), (bfloat16, BFLOAT16), (bfloat16_gates, BFLOAT16)];
        for (kind, tolerance) in kinds {
            let rounded = moved(&moved(&case, Device::Cpu, bfloat16), Device::Cpu, double);
            let (truth, truth_state) = rounded.run(&rounded.plain(), reference).unwrap();
            let gpu = moved(&rounded, GPU, kind);
            let (h, state) = tch::no_grad(|| gpu.run(&gpu.plain(), slstm)).unwrap();
            assert_eq!(h.kind(), kind("gates"));
            for (ours, truth) in [(&h, &truth), (&state, &truth_state)] {
                let off = distance(&ours.to_device(Device::Cpu).to_kind(Kind::Double), truth);
                assert!(off <= tolerance, "{batch} {heads} {head_dim}: off by {off:e}");
            }
        }
    }
}

#[test]
fn gradients_of_the_outputs_alone_and_other_dtypes() {
    if !there_is_a_gpu() {
        return;
    }
    let only_h = |case: &Case, operation: Operation| {
        differentiated(&case.tensors, Kind::BFloat16, &|tensors| {
            let (h, _) = case.run(tensors, operation)?;
            Ok((h.shallow_clone(), h * 0.0))
        })
    };
    let case = Case::new([5, 40, 2, 64], [true; 2], None, None);
    let rounded = moved(&case, Device::Cpu, bfloat16);
    let truth = only_h(&moved(&rounded, Device::Cpu, double), reference);
    assert_bfloat16(&only_h(&moved(&rounded, GPU, bfloat16), slstm), &truth, "outputs alone");
    let half: KindOf = |name| if name == "gates" { Kind::Half } else { Kind::Float };
    let ours = only_h(&moved(&rounded, GPU, half), slstm);
    assert_bfloat16(&ours, &truth, "f16");
}

#[test]
fn a_long_sequence_is_right() {
    if !there_is_a_gpu() {
        return;
    }
    // The truth comes from the CPU's fast path, which has tests of its own.
    let case = Case::new([2, 65_537, 1, 16], [false; 2], None, None);
    let truth = result(&moved(&case, Device::Cpu, double), slstm, true);
    let peer = result(&moved(&case, Device::Cpu, float), slstm, true);
    let ours = result(&moved(&case, GPU, float), slstm, true);
    ours.assert_as_near_as(&peer, &truth, "f32, long");
    let rounded = moved(&case, Device::Cpu, bfloat16);
    let truth = result(&moved(&rounded, Device::Cpu, double), slstm, false);
    assert_bfloat16(&result(&moved(&rounded, GPU, bfloat16), slstm, false), &truth, "long");
}

#[test]
#[ignore = "needs 40 GB on the GPU"]
fn offsets_beyond_2_to_the_31_are_right() {
    if !there_is_a_gpu() {
        return;
    }
    let [batch, time, heads, head_dim] = [65, 8_192, 16, 64];
    assert!(batch * time * 4 * heads * head_dim > 1 << 31);
    tch::manual_seed(5);
    let gates =
        Tensor::randn([batch, time, 4, heads, head_dim], (Kind::BFloat16, GPU)).set_requires_grad(true);
    let recurrent = Tensor::randn([4, heads, head_dim, head_dim], (Kind::Float, GPU)) * 0.1;
    let part = || Tensor::zeros([1, heads, head_dim], (Kind::Float, GPU));
    let start = SlstmState { h: part(), c: part(), n: part(), m: part() };
    let run = |gates: &Tensor| -> Result<Tensor> {
        let args = Slstm {
            gates,
            bias: None,
            recurrent: &recurrent,
            initial_state: &start,
            reset_state: None,
            resets: None,
            valid: None,
        };
        Ok(slstm(&args)?.0)
    };
    let last_row = |x: &Tensor| x.detach().narrow(0, batch - 1, 1).copy();
    let alone = last_row(&gates).set_requires_grad(true);
    let (all, row) = (run(&gates).unwrap(), run(&alone).unwrap());
    assert!(last_row(&all).equal(&row.detach()));
    all.narrow(0, batch - 1, 1).sum(Kind::Float).backward();
    row.sum(Kind::Float).backward();
    assert!(last_row(&gates.grad()).equal(&alone.grad()));
}
