//! The mLSTM: chunks against steps, and what both must obey.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Noise, Outcome, distance, gradcheck, outcome, second_outcome, strided, with_threads};
use kernels::mlstm::{Mlstm, MlstmState, mlstm, reference};
use tch::{Kind, Tensor};
use torch_bridge::Result;

type Operation = fn(&Mlstm<'_>) -> Result<(Tensor, MlstmState)>;

const EPS: f64 = 1e-6;
const NAMES: [&str; 11] =
    ["q", "k", "v", "input_gate", "forget_gate", "c", "n", "m", "reset c", "reset n", "reset m"];

/// Operands in f64, in the order of `NAMES`, and what is not differentiable.
struct Case {
    tensors: Vec<(&'static str, Tensor)>,
    resets: Option<Tensor>,
    valid: Option<Tensor>,
    chunk_size: i64,
}

impl Case {
    /// `sizes` are batch, time, heads, d_qk, d_v; states are shared by the rows where `shared` says so.
    fn new(
        sizes: [i64; 5],
        shared: [bool; 2],
        resets: Option<Tensor>,
        valid: Option<Tensor>,
        chunk_size: i64,
    ) -> Self {
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
        let round = |x: &Tensor| x.to_kind(Kind::Float).to_kind(Kind::Double);
        let tensors = NAMES.into_iter().zip(tensors.iter().map(round)).collect();
        Self { tensors, resets, valid, chunk_size }
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
            eps: EPS,
            initial_state: &state(5).unwrap(),
            reset_state: state(8).as_ref(),
            resets: self.resets.as_ref(),
            valid: self.valid.as_ref(),
            chunk_size: self.chunk_size,
        })?;
        Ok((h, Tensor::cat(&[state.c, state.n, state.m].map(|x| x.flatten(1, -1)), 1)))
    }

    fn outcome(&self, kind: Kind, operation: Operation) -> Outcome {
        outcome(&self.tensors, kind, &|tensors| self.run(tensors, operation))
    }

    /// Chunks against steps, in both precisions.
    fn compare(&self, what: &str) {
        let truth = self.outcome(Kind::Double, reference);
        self.outcome(Kind::Double, mlstm).assert_near(&truth, 1e-10, &format!("f64, {what}"));
        let truth = whole_states(&truth);
        let [peer, ours] = [reference, mlstm].map(|op| whole_states(&self.outcome(Kind::Float, op)));
        ours.assert_as_near_as(&peer, &truth, &format!("f32, {what}"));
    }

    fn plain(&self) -> Vec<Tensor> {
        self.tensors.iter().map(|(_, x)| x.shallow_clone()).collect()
    }
}

/// The gradient of a state as one vector: that of `m` is a sum of the terms of `c` and `n` that may all but cancel, so
/// its error in single precision is measured beside them.
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

/// True at the given tokens of every row.
fn at(batch: i64, time: i64, tokens: &[i64]) -> Tensor {
    let row: Vec<bool> = (0..time).map(|t| tokens.contains(&t)).collect();
    Tensor::from_slice(&row).reshape([1, time]).expand([batch, time], false).contiguous()
}

#[test]
fn agrees_with_the_definition_for_every_length_and_width() {
    for time in [0, 1, 2, 3, 17, 31] {
        for (d_qk, d_v) in [(1, 4), (5, 1), (3, 7), (8, 8)] {
            for chunk_size in [1, 4, 16, 64] {
                let resets = Some(Noise(time as u64).mask(&[2, time], 9));
                let what = format!("{time} {d_qk} {d_v} {chunk_size}");
                Case::new([2, time, 3, d_qk, d_v], [false; 2], resets, None, chunk_size).compare(&what);
            }
        }
    }
}

#[test]
fn agrees_with_the_definition_for_any_mix_of_options() {
    let mut noise = Noise(3);
    for round in 0..60 {
        let shared = [noise.chance(2), noise.chance(2)];
        let (batch, time) = (noise.pick(&[1, 2, 3]), noise.pick(&[2, 3, 17, 33]));
        let sizes = [batch, time, noise.pick(&[1, 2]), noise.pick(&[1, 4, 5]), noise.pick(&[1, 3, 8])];
        let chunk_size = noise.pick(&[1, 2, 5, 8, 64]);
        let often = noise.pick(&[1, 2, 5, 40]);
        let resets = noise.chance(2).then(|| noise.mask(&[batch, time], often));
        let valid = noise.chance(2).then(|| noise.mask(&[batch, time], 3).logical_not());
        let what = format!(
            "round {round}: {sizes:?}, shared {shared:?}, chunks of {chunk_size}, resets {}, valid {}",
            resets.is_some(),
            valid.is_some()
        );
        let mut case = Case::new(sizes, shared, resets, valid, chunk_size);
        if noise.chance(2) {
            case.tensors.iter_mut().for_each(|(_, x)| *x = strided(x));
        }
        case.compare(&what);
    }
}

#[test]
fn more_tokens_than_one_round_of_chunks() {
    let resets = Some(at(2, 150, &[0, 70, 127, 128, 149]));
    Case::new([2, 150, 1, 3, 4], [true, true], resets, None, 2).compare("rounds, resets");
    Case::new([2, 150, 1, 3, 4], [true, true], None, None, 2).compare("rounds");
}

#[test]
fn resets_at_every_kind_of_place() {
    let time = 40;
    let all: Vec<i64> = (0..time).collect();
    for tokens in [&[0][..], &[5, 6, 7], &[time - 1], &[15, 16, 17, 32], &[0, time - 1], &all] {
        let sizes = [2, time, 2, 3, 5];
        Case::new(sizes, [false, true], Some(at(2, time, tokens)), None, 16)
            .compare(&format!("resets at {tokens:?}"));
    }
}

#[test]
fn padding_passes_the_state_on_and_shows_zero() {
    let (batch, time, left, right) = (2, 25, 4, 9);
    let padding: Vec<i64> = (0..left).chain(time - right..time).collect();
    let valid = at(batch, time, &padding).logical_not();
    // A reset in the padding does nothing, one on the first token that counts does.
    let resets = at(batch, time, &[1, left, time - 2]);
    let case = Case::new([batch, time, 2, 3, 4], [false; 2], Some(resets), Some(valid), 8);
    case.compare("padding");

    let (h, state) = case.run(&case.plain(), mlstm).unwrap();
    assert!(h.narrow(1, 0, left).eq(0.0).all().int64_value(&[]) == 1);
    assert!(h.narrow(1, time - right, right).eq(0.0).all().int64_value(&[]) == 1);
    let middle = |x: &Tensor| x.narrow(1, left, time - left - right);
    let cut = Case {
        tensors: case
            .tensors
            .iter()
            .enumerate()
            .map(|(i, (name, x))| (*name, if i < 5 { middle(x) } else { x.shallow_clone() }))
            .collect(),
        resets: case.resets.as_ref().map(middle),
        valid: None,
        chunk_size: 8,
    };
    let (plain_h, plain_state) = cut.run(&cut.plain(), mlstm).unwrap();
    assert!(distance(&middle(&h), &plain_h) < 1e-14 && distance(&state, &plain_state) < 1e-14);
}

#[test]
fn padding_may_hold_anything() {
    let valid = at(1, 6, &[0, 1, 4]);
    let mut case = Case::new([1, 6, 2, 3, 4], [false; 2], None, Some(valid.shallow_clone()), 4);
    let clean = case.outcome(Kind::Float, mlstm);
    for junk in [f64::NAN, f64::INFINITY, -1e30] {
        for (_, x) in &mut case.tensors[..5] {
            let mut shape = vec![1, 6];
            shape.resize(x.dim(), 1);
            *x = x.masked_fill(&valid.logical_not().reshape(shape.as_slice()), junk);
        }
        case.outcome(Kind::Float, mlstm).assert_equal(&clean, &format!("{junk} in the padding"));
    }
}

#[test]
fn the_gradients_are_exact() {
    let resets = Some(at(2, 5, &[0, 3]));
    let valid = Some(at(2, 5, &[1]).logical_not());
    let case = Case::new([2, 5, 1, 2, 2], [false, true], resets, valid, 3);
    gradcheck(&case.tensors, &|tensors| case.run(tensors, reference));
    gradcheck(&case.tensors, &|tensors| case.run(tensors, mlstm));
    // A large eps makes the outputs depend on the maximum, so that a gradient that ignores it would be seen.
    let big_eps = |args: &Mlstm<'_>| mlstm(&Mlstm { eps: 0.5, ..*args });
    gradcheck(&case.tensors, &|tensors| case.run(tensors, big_eps));
}

#[test]
fn second_derivatives_are_the_definitions() {
    let case = Case::new([2, 12, 1, 3, 2], [true; 2], Some(at(2, 12, &[0, 5])), None, 5);
    let second =
        |operation: Operation| second_outcome(&case.tensors, &|tensors| case.run(tensors, operation));
    second(mlstm).assert_near(&second(reference), 1e-10, "second derivatives");
}

#[test]
fn any_split_into_calls_gives_the_same() {
    let (batch, time) = (2, 40);
    let resets = at(batch, time, &[0, 6, 7, 31]);
    let case = Case::new([batch, time, 2, 3, 5], [false; 2], Some(resets.shallow_clone()), None, 8);
    let tensors = case.plain();
    let state = |first: usize| {
        let [c, n, m] = [0, 1, 2].map(|i| tensors[first + i].shallow_clone());
        MlstmState { c, n, m }
    };
    let call = |start: i64, length: i64, initial: &MlstmState| {
        let cut = |i: usize| tensors[i].narrow(1, start, length);
        let [q, k, v, input_gate, forget_gate] = [0, 1, 2, 3, 4].map(cut);
        mlstm(&Mlstm {
            q: &q,
            k: &k,
            v: &v,
            input_gate: &input_gate,
            forget_gate: &forget_gate,
            eps: EPS,
            initial_state: initial,
            reset_state: Some(&state(8)),
            resets: Some(&resets.narrow(1, start, length)),
            valid: None,
            chunk_size: 8,
        })
        .unwrap()
    };
    let (h, last) = call(0, time, &state(5));
    for chunk in [1, 3, 7] {
        let (mut hs, mut carried) = (Vec::new(), state(5));
        for start in (0..time).step_by(chunk) {
            let (h, after) = call(start, (chunk as i64).min(time - start), &carried);
            hs.push(h);
            carried = after;
        }
        assert!(distance(&Tensor::cat(&hs, 1), &h) < 1e-12, "calls of {chunk}");
        for (ours, whole) in [(&carried.c, &last.c), (&carried.n, &last.n), (&carried.m, &last.m)] {
            assert!(distance(ours, whole) < 1e-12, "calls of {chunk}");
        }
    }
}

#[test]
fn gates_may_be_anything_finite() {
    for (i, f) in [(1e4, 1e4), (1e4, -1e4), (-1e4, 1e4), (-1e4, -1e4), (-200.0, -0.1), (90.0, 30.0)] {
        for resets in [None, Some(at(2, 20, &[7]))] {
            let mut case = Case::new([2, 20, 1, 3, 4], [false; 2], resets, None, 8);
            case.tensors[3].1 = &case.tensors[3].1 + i;
            case.tensors[4].1 = &case.tensors[4].1 + f;
            for kind in [Kind::Float, Kind::Double] {
                for operation in [mlstm as Operation, reference] {
                    case.outcome(kind, operation).assert_finite(&format!("gates {i} and {f}"));
                }
            }
        }
    }
}

#[test]
fn the_empty_state_leaves_no_trace() {
    // Without a past, one token reads its own value: h = v (q k) i / max(|q k| i, 1), whatever m starts from.
    let mut case = Case::new([1, 1, 1, 3, 4], [false; 2], None, None, 8);
    for (_, x) in &mut case.tensors[5..8] {
        *x = x.zeros_like();
    }
    for input_gate in [-30.0_f64, -3.0, 0.0, 3.0, 30.0] {
        case.tensors[3].1 = Tensor::from(input_gate).reshape([1, 1, 1]);
        let tensors = case.plain();
        let (h, _) = case.run(&tensors, mlstm).unwrap();
        let qk = (&tensors[0] * &tensors[1]).sum(Kind::Double) / 3.0_f64.sqrt();
        let read = qk * input_gate.exp();
        let expected = &tensors[2] * &read / read.abs().clamp_min(1.0);
        assert!(distance(&h, &expected) < 1e-5, "input gate {input_gate}: {:e}", distance(&h, &expected));
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for kind in [Kind::Float, Kind::Double] {
        let [one, two] = [1, 2].map(|threads| {
            let resets = Some(Noise(5).mask(&[3, 70], 9));
            with_threads(threads, || {
                Case::new([3, 70, 2, 16, 17], [true; 2], resets, None, 16).outcome(kind, mlstm)
            })
        });
        two.assert_equal(&one, "2 threads");
    }
}

#[test]
fn half_precision_comes_back_as_it_came() {
    let case = Case::new([2, 20, 2, 4, 5], [false; 2], None, None, 8);
    for kind in [Kind::BFloat16, Kind::Half] {
        let tensors: Vec<Tensor> = case
            .tensors
            .iter()
            .enumerate()
            .map(|(i, (_, x))| x.to_kind(if i < 5 { kind } else { Kind::Float }))
            .collect();
        let (h, state) = case.run(&tensors, mlstm).unwrap();
        assert_eq!((h.kind(), state.kind()), (kind, Kind::Float));
        let (truth, truth_state) = case.run(&tensors, reference).unwrap();
        let [h, truth] = [h, truth].map(|x| x.to_kind(Kind::Double));
        assert!(distance(&h, &truth) < 1e-2);
        assert!(distance(&state.to_kind(Kind::Double), &truth_state.to_kind(Kind::Double)) < 1e-5);
    }
}

#[test]
fn refusals_name_the_operand() {
    let case = Case::new([2, 4, 1, 3, 5], [false; 2], Some(at(2, 4, &[1])), Some(at(2, 4, &[1])), 8);
    let operands = [
        "q",
        "k",
        "v",
        "input_gate",
        "forget_gate",
        "initial_state.c",
        "initial_state.n",
        "initial_state.m",
        "reset_state.c",
        "reset_state.n",
        "reset_state.m",
    ];
    for (index, name) in operands.into_iter().enumerate() {
        for bad in
            [Tensor::zeros([9; 5], (Kind::Double, common::CPU)), case.tensors[index].1.to_kind(Kind::Int64)]
        {
            let mut tensors = case.plain();
            tensors[index] = bad;
            let error = case.run(&tensors, mlstm).unwrap_err().to_string();
            assert!(error.starts_with("mlstm: expected ") && error.contains("got "), "{error}");
            assert!(error.contains(&format!("`{name}`")), "{name}: {error}");
        }
    }
    let none = Case { chunk_size: 0, ..case };
    let error = none.run(&none.plain(), mlstm).unwrap_err().to_string();
    assert_eq!(error, "mlstm: expected at least 1 for `chunk_size`, got 0");
}
