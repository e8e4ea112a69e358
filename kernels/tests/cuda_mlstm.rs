//! The mLSTM on a GPU against its definition in f64: outputs, states and every gradient. Without a GPU the tests say so and do
//! nothing.

#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

mod common;

use common::gpu::{GPU, there_is_a_gpu};
use common::{Noise, Outcome, at, differentiated, distance, second_outcome};
use kernels::mlstm::{Mlstm, MlstmState, mlstm, reference};
use tch::{Device, Kind, Tensor};
use torch_bridge::Result;

type Operation = fn(&Mlstm<'_>) -> Result<(Tensor, MlstmState)>;

/// The largest relative error in bf16, whose last bit is 2^-8 of a number.
const BFLOAT16: f64 = 5e-3;
const EPS: f64 = 1e-6;
const NAMES: [&str; 11] =
    ["q", "k", "v", "input_gate", "forget_gate", "c", "n", "m", "reset c", "reset n", "reset m"];

/// Operands in the order of `NAMES`, and what is not differentiable.
struct Case {
    tensors: Vec<(&'static str, Tensor)>,
    resets: Option<Tensor>,
    valid: Option<Tensor>,
    /// Whether the state after the last token is looked at.
    last: bool,
    eps: f64,
}

impl Case {
    /// `sizes` are batch, time, heads, d_qk, d_v; states are shared by the rows where `shared` says so. Numbers are such
    /// that bf16 (q, k, v) and f32 hold.
    fn new(sizes: [i64; 5], shared: [bool; 2], resets: Option<Tensor>, valid: Option<Tensor>) -> Self {
        let [batch, time, heads, d_qk, d_v] = sizes;
        let mut noise = Noise(sizes.iter().fold(7, |seed, size| seed * 131 + *size as u64));
        let mut tensors = vec![
            noise.tensor(&[batch, time, heads, d_qk]),
            noise.tensor(&[batch, time, heads, d_qk]),
            noise.tensor(&[batch, time, heads, d_v]),
            noise.tensor(&[batch, time, heads]) * 2.0 - 1.0,
            noise.tensor(&[batch, time, heads]) * 2.0 + 1.0,
        ];
        for shared in shared {
            let rows = if shared { 1 } else { batch };
            tensors.push(noise.tensor(&[rows, heads, d_qk, d_v]));
            tensors.push(noise.tensor(&[rows, heads, d_qk]));
            tensors.push(noise.tensor(&[rows, heads]) * 2.0);
        }
        if resets.is_none() {
            tensors.truncate(8);
        }
        let round = |(i, x): (usize, &Tensor)| {
            x.to_kind(if i < 3 { Kind::BFloat16 } else { Kind::Float }).to_kind(Kind::Double)
        };
        let tensors = NAMES.into_iter().zip(tensors.iter().enumerate().map(round)).collect();
        Self { tensors, resets, valid, last: true, eps: EPS }
    }

    /// The same case on a device: tokens in one kind, states and gates in another.
    fn to(&self, device: Device, [tokens, rest]: [Kind; 2]) -> Self {
        let tensors = self.tensors.iter().enumerate().map(|(i, (name, x))| {
            let moved = x.to_device(device).to_kind(if i < 3 { tokens } else { rest });
            (*name, if x.is_contiguous() { moved } else { sliced(&moved) })
        });
        let mask = |mask: &Option<Tensor>| mask.as_ref().map(|mask| mask.to_device(device));
        Self {
            tensors: tensors.collect(),
            resets: mask(&self.resets),
            valid: mask(&self.valid),
            last: self.last,
            eps: self.eps,
        }
    }

    fn bfloat16(&self) -> Self {
        self.to(GPU, [Kind::BFloat16, Kind::Float])
    }

    /// `h` and the state as one vector.
    fn run(&self, tensors: &[Tensor], operation: Operation) -> Result<(Tensor, Tensor)> {
        let state = |first: usize| {
            let [c, n, m] = [0, 1, 2].map(|i| tensors.get(first + i).map(Tensor::shallow_clone));
            c.zip(n).zip(m).map(|((c, n), m)| MlstmState { c, n, m })
        };
        let (h, state) = operation(&Mlstm {
            q: &tensors[0],
            k: &tensors[1],
            v: &tensors[2],
            input_gate: &tensors[3],
            forget_gate: &tensors[4],
            eps: self.eps,
            initial_state: &state(5).unwrap(),
            reset_state: state(8).as_ref(),
            resets: self.resets.as_ref(),
            valid: self.valid.as_ref(),
            chunk_size: 64,
        })?;
        let whole = Tensor::cat(&[state.c, state.n, state.m].map(|x| x.flatten(1, -1)), 1);
        Ok((h, if self.last { whole } else { whole.detach() * 0.0 + tensors[6].sum(whole.kind()) * 0.0 }))
    }

    fn outcome(&self, weights: Kind, operation: Operation) -> Outcome {
        whole_states(&differentiated(&self.tensors, weights, &|tensors| self.run(tensors, operation)))
    }

    /// bf16 against `truth` of the same numbers, twice the same.
    fn compare_bfloat16(&self, truth: &Outcome, what: &str) {
        let gpu = self.bfloat16();
        let ours = gpu.outcome(Kind::BFloat16, mlstm);
        ours.assert_finite(what);
        for ((name, x), y) in ours.names.iter().zip(&ours.values).zip(&truth.values) {
            println!("{what}: {name} {:.1e}", distance(x, y));
        }
        ours.assert_near(truth, BFLOAT16, &format!("bf16, {what}"));
        gpu.outcome(Kind::BFloat16, mlstm).assert_equal(&ours, &format!("bf16 again, {what}"));
    }

    /// The kernels (bf16) and the tensor operations (f32) against the definition.
    fn compare(&self, what: &str) {
        let truth = self.outcome(Kind::BFloat16, reference);
        self.compare_bfloat16(&truth, what);
        let f32 = [Kind::Float; 2];
        let peer = self.to(Device::Cpu, f32).outcome(Kind::BFloat16, reference);
        self.to(GPU, f32).outcome(Kind::BFloat16, mlstm).assert_as_near_as(
            &peer,
            &truth,
            &format!("f32, {what}"),
        );
    }
}

/// The same numbers as a slice of something wider, which has none beside them.
fn sliced(x: &Tensor) -> Tensor {
    Tensor::cat(&[x, &(x * f64::NAN)], 3).narrow(3, 0, x.size()[3])
}

/// The gradient of a state as one vector: that of `m` is a sum of the terms of `c` and `n` that may all but cancel, so
/// its error is measured beside them.
fn whole_states(outcome: &Outcome) -> Outcome {
    let of = |name: &str| {
        let at = outcome.names.iter().position(|known| known == name);
        at.map(|at| outcome.values[at].flatten(0, -1))
    };
    let mut whole = Outcome { names: Vec::new(), values: Vec::new() };
    for (name, value) in outcome.names.iter().zip(&outcome.values) {
        let parts = match name.as_str() {
            "dc" => ["dc", "dn", "dm"],
            "dreset c" => ["dreset c", "dreset n", "dreset m"],
            "dn" | "dm" | "dreset n" | "dreset m" => continue,
            other => [other; 3],
        };
        whole.names.push(name.clone());
        whole.values.push(if parts[0] == parts[1] {
            value.shallow_clone()
        } else {
            Tensor::cat(&parts.map(|part| of(part).unwrap()), 0)
        });
    }
    whole
}

/// Errors are of sums that nearly cancel, so a handful of numbers is no measure: few tokens come with more heads.
fn enough_heads(time: i64, heads: i64) -> i64 {
    if time < 8 { 8 * heads } else { heads }
}

#[test]
fn agrees_for_every_length_and_width() {
    if !there_is_a_gpu() {
        return;
    }
    for time in [1, 2, 17, 64, 65, 128, 129, 257] {
        for (d_qk, d_v) in [(8, 8), (24, 40), (64, 64), (128, 256), (160, 200), (256, 512)] {
            if time == 1 && d_qk == 8 || time > 1 && (d_qk < 100 || time % 2 == 1) {
                let resets = (time % 3 == 2).then(|| Noise(time as u64).mask(&[2, time], 9));
                let heads = enough_heads(time, 2);
                let case = Case::new([2, time, heads, d_qk, d_v], [false; 2], resets, None);
                case.compare(&format!("{time} tokens of {d_qk} {d_v}"));
            }
        }
    }
}

#[test]
fn agrees_for_any_mix_of_options() {
    if !there_is_a_gpu() {
        return;
    }
    let mut noise = Noise(3);
    for round in 0..16 {
        let shared = [noise.chance(2), noise.chance(2)];
        let (batch, time) = (noise.pick(&[1, 2, 3]), noise.pick(&[2, 33, 130, 200]));
        let heads = enough_heads(time, noise.pick(&[1, 3]));
        let sizes = [batch, time, heads, noise.pick(&[16, 64, 72]), noise.pick(&[8, 64, 136])];
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
            // As slices of one projection, whose other columns are none of ours.
            for (_, x) in &mut case.tensors[..3] {
                *x = sliced(x);
            }
        }
        if noise.chance(3) {
            case.eps = 0.5;
        }
        case.compare(&what);
    }
}

#[test]
fn resets_at_every_kind_of_place() {
    if !there_is_a_gpu() {
        return;
    }
    let time = 300;
    for tokens in [&[0][..], &[5, 6, 7], &[time - 1], &[127, 128, 129, 256], &[0, time - 1]] {
        let sizes = [2, time, 1, 64, 72];
        Case::new(sizes, [false, true], Some(at(2, time, tokens)), None)
            .compare(&format!("resets at {tokens:?}"));
    }
}

#[test]
fn padding_may_hold_anything() {
    if !there_is_a_gpu() {
        return;
    }
    let valid = at(2, 150, &[0, 1, 40, 127, 128, 149]).logical_not();
    let mut case = Case::new([2, 150, 2, 32, 40], [false; 2], None, Some(valid.shallow_clone()));
    let clean = case.bfloat16().outcome(Kind::BFloat16, mlstm);
    for junk in [f64::NAN, f64::INFINITY, -1e30] {
        for (_, x) in &mut case.tensors[..5] {
            let mut shape = vec![2, 150];
            shape.resize(x.dim(), 1);
            *x = x.masked_fill(&valid.logical_not().reshape(shape.as_slice()), junk);
        }
        case.bfloat16()
            .outcome(Kind::BFloat16, mlstm)
            .assert_equal(&clean, &format!("{junk} in the padding"));
    }
}

/// Gates uniform in +-30. With keys and queries of both signs outputs have poles, and a few tokens are all that a norm over
/// all of them sees: there each token is measured by its own size.
#[test]
fn gates_may_be_large() {
    if !there_is_a_gpu() {
        return;
    }
    for positive in [true, false] {
        let mut case = Case::new([2, 400, 2, 128, 64], [false; 2], None, None);
        for (i, (_, x)) in case.tensors.iter_mut().enumerate() {
            if i == 3 || i == 4 {
                *x = ((&*x + if i == 3 { 1.0 } else { -1.0 }) * (30.0 / 3.4))
                    .to_kind(Kind::Float)
                    .to_kind(Kind::Double);
            } else if positive && [0, 1, 6].contains(&i) {
                *x = x.abs();
            }
        }
        case.last = false;
        if positive {
            let truth = case.outcome(Kind::BFloat16, reference);
            case.compare_bfloat16(&truth, "gates in +-30");
        } else {
            let run = |case: &Case, operation| {
                let tensors: Vec<Tensor> = case.tensors.iter().map(|(_, x)| x.shallow_clone()).collect();
                let (h, _) = tch::no_grad(|| case.run(&tensors, operation)).unwrap();
                h.to_device(Device::Cpu).to_kind(Kind::Double)
            };
            let truth = run(&case, reference);
            let size = truth.square().mean_dim(-1, true, None).sqrt();
            let distance = distance(&(run(&case.bfloat16(), mlstm) / &size), &(truth / &size));
            println!("gates in +-30, poles: {distance:.1e}");
            assert!(distance <= BFLOAT16, "gates in +-30 with poles: {distance:e}");
        }
    }
}

#[test]
fn a_step_is_the_definitions() {
    if !there_is_a_gpu() {
        return;
    }
    for (d_qk, d_v) in [(1, 1), (5, 7), (64, 64), (100, 130), (128, 256), (256, 512)] {
        for shared in [false, true] {
            let case = Case::new([3, 1, 2, d_qk, d_v], [shared; 2], None, None);
            let run = |case: &Case, operation| {
                let tensors: Vec<Tensor> = case.tensors.iter().map(|(_, x)| x.shallow_clone()).collect();
                let (h, state) = tch::no_grad(|| case.run(&tensors, operation)).unwrap();
                [h, state].map(|x| x.to_device(Device::Cpu).to_kind(Kind::Double))
            };
            let truth = run(&case, reference);
            for (kind, tolerance) in [(Kind::Float, [1e-5, 1e-5]), (Kind::BFloat16, [BFLOAT16, 1e-5])] {
                let ours = run(&case.to(GPU, [kind, Kind::Float]), mlstm);
                for ((ours, truth), tolerance) in ours.iter().zip(&truth).zip(tolerance) {
                    let distance = distance(ours, truth);
                    assert!(distance <= tolerance, "step of {d_qk} {d_v} in {kind:?}: off by {distance:e}");
                }
            }
        }
    }
}

#[test]
fn second_derivatives_are_those_of_tensor_operations() {
    if !there_is_a_gpu() {
        return;
    }
    let case = Case::new([1, 40, 1, 16, 16], [true; 2], Some(at(1, 40, &[0, 5])), None);
    let second = |case: &Case| {
        let tensors: Vec<_> = case.tensors.iter().map(|(name, x)| (*name, x.shallow_clone())).collect();
        second_outcome(&tensors, &|tensors| case.run(tensors, mlstm))
    };
    let on_cpu = second(&case.to(Device::Cpu, [Kind::BFloat16, Kind::Float]));
    second(&case.bfloat16()).assert_near(&on_cpu, BFLOAT16, "second derivatives");
}

/// Against the chunked tensor operations in f64, which the tests of the CPU compare with the definition.
#[test]
fn many_tokens() {
    if !there_is_a_gpu() {
        return;
    }
    let time = 65_537;
    for resets in [None, Some(at(1, time, &[3, 40_000, 65_535]))] {
        let what = format!("{time} tokens, resets {}", resets.is_some());
        let case = Case::new([1, time, 2, 32, 64], [true; 2], resets, None);
        let truth = case.to(GPU, [Kind::Double; 2]).outcome(Kind::BFloat16, mlstm);
        case.compare_bfloat16(&truth, &what);
    }
}

/// More than 2^31 elements in each operand: the last row is what a call of its own makes of it. Wants 60 GB.
#[test]
#[ignore = "wants a GPU with 60 GB"]
fn more_elements_than_32_bits_count() {
    if !there_is_a_gpu() {
        return;
    }
    let (batch, time, heads, d) = (17, 65_536, 16, 128);
    let kind = (Kind::BFloat16, GPU);
    let token = || Tensor::randn([batch, time, heads, d], kind).set_requires_grad(true);
    let (q, k, v) = (token(), token(), token());
    let gate = || Tensor::randn([batch, time, heads], (Kind::Float, GPU)).set_requires_grad(true);
    let (input_gate, forget_gate) = (gate(), gate());
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, GPU));
    let state = MlstmState { c: zeros(&[1, heads, d, d]), n: zeros(&[1, heads, d]), m: zeros(&[1, heads]) };
    let weight = Tensor::randn([1, time, heads, d], kind);
    let run = |leaves: &[&Tensor; 5]| {
        let [q, k, v, input_gate, forget_gate] = *leaves;
        let (h, _) = mlstm(&Mlstm {
            q,
            k,
            v,
            input_gate,
            forget_gate,
            eps: EPS,
            initial_state: &state,
            reset_state: None,
            resets: None,
            valid: None,
            chunk_size: 64,
        })
        .unwrap();
        let options = torch_bridge::autograd::GradOptions::default();
        let dh = weight.expand_as(&h);
        let grads =
            torch_bridge::autograd::grad(&[h.shallow_clone()], Some(&[Some(dh)]), leaves, options).unwrap();
        let last = |x: Tensor| x.narrow(0, x.size()[0] - 1, 1).to_device(Device::Cpu);
        let mut results = vec![last(h)];
        results.extend(grads.into_iter().map(|x| last(x.unwrap())));
        results
    };
    let all = run(&[&q, &k, &v, &input_gate, &forget_gate]);
    let row = [&q, &k, &v, &input_gate, &forget_gate]
        .map(|x| x.detach().narrow(0, batch - 1, 1).contiguous().set_requires_grad(true));
    for (all, one) in all.iter().zip(run(&row.each_ref())) {
        assert!(
            all.equal(&one),
            "the last row differs by {:e}",
            distance(&all.to_kind(Kind::Double), &one.to_kind(Kind::Double))
        );
    }
}
