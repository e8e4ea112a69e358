//! The sLSTM: fast path against definition, and what both must obey.

#![allow(clippy::unwrap_used)]

mod common;

use common::slstm::{Case, Operation};
use common::{Noise, at, distance, gradcheck, outcome, second_outcome, strided, with_threads};
use kernels::slstm::{Slstm, SlstmState, reference, slstm};
use tch::{Kind, Tensor};

#[test]
fn agrees_with_the_definition_for_every_length_and_width() {
    for time in [0, 1, 2, 17] {
        for (batch, heads, head_dim) in [(1, 1, 1), (2, 3, 5), (4, 1, 16), (5, 2, 17), (9, 2, 40)] {
            let resets = Some(Noise(time as u64).mask(&[batch, time], 9));
            let what = format!("{batch} {time} {heads} {head_dim}");
            Case::new([batch, time, heads, head_dim], [false; 2], resets, None).compare(&what);
        }
    }
}

#[test]
fn agrees_with_the_definition_for_any_mix_of_options() {
    let mut noise = Noise(3);
    for round in 0..60 {
        let shared = [noise.chance(2), noise.chance(2)];
        let (batch, time) = (noise.pick(&[1, 2, 3, 6]), noise.pick(&[1, 2, 3, 17]));
        let sizes = [batch, time, noise.pick(&[1, 2]), noise.pick(&[1, 4, 8, 19])];
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
        case.compare(&what);
    }
}

#[test]
fn an_empty_state_is_all_zeros() {
    let mut case = Case::new([2, 9, 2, 5], [true; 2], Some(at(2, 9, &[4])), None);
    for (_, x) in &mut case.tensors[3..] {
        *x = x.zeros_like();
    }
    // Not compared: what would flow into a state that is a constant.
    let states = case.tensors.split_off(3);
    let run = |tensors: &[Tensor], operation| {
        let all: Vec<Tensor> =
            tensors.iter().chain(states.iter().map(|(_, x)| x)).map(Tensor::shallow_clone).collect();
        let all: Vec<Tensor> = all.iter().map(|x| x.to_kind(tensors[0].kind())).collect();
        case.run(&all, operation)
    };
    let truth = outcome(&case.tensors, Kind::Double, &|tensors| run(tensors, reference));
    truth.assert_finite("definition");
    outcome(&case.tensors, Kind::Double, &|tensors| run(tensors, slstm)).assert_near(&truth, 1e-11, "empty");

    // The first token's cell is its own value, however small its input gate.
    for gate in [-1e4, -200.0, 0.0, 200.0] {
        for kind in [Kind::Float, Kind::Double] {
            let gates = case.tensors[0].1.copy();
            let _ = gates.select(2, 0).fill_(gate);
            let tensors = [&gates, &case.tensors[1].1, &case.tensors[2].1].map(|x| x.to_kind(kind));
            let (h, _) = run(&tensors, slstm).unwrap();
            let first = |gate: i64| tensors[0].select(1, 0).select(1, gate) + tensors[2].get(gate);
            let expected = first(2).tanh() * first(3).sigmoid();
            assert!(distance(&h.select(1, 0), &expected) < 1e-6, "input gate {gate}");
        }
    }
}

#[test]
fn padding_passes_the_state_on_and_shows_zero() {
    let (batch, time, left, right) = (2, 25, 4, 9);
    let padding: Vec<i64> = (0..left).chain(time - right..time).collect();
    let valid = at(batch, time, &padding).logical_not();
    // A reset in the padding does nothing, one on the first token that counts does.
    let resets = at(batch, time, &[1, left, time - 2]);
    let case = Case::new([batch, time, 2, 5], [false; 2], Some(resets), Some(valid));
    case.compare("padding");

    let (h, state) = case.run(&case.plain(), slstm).unwrap();
    assert!(h.narrow(1, 0, left).eq(0.0).all().int64_value(&[]) == 1);
    assert!(h.narrow(1, time - right, right).eq(0.0).all().int64_value(&[]) == 1);
    let middle = |x: &Tensor| x.narrow(1, left, time - left - right);
    let mut tensors = case.plain();
    tensors[0] = middle(&tensors[0]);
    let cut = Case { tensors: vec![], resets: case.resets.as_ref().map(middle), valid: None };
    let (plain_h, plain_state) = cut.run(&tensors, slstm).unwrap();
    assert!(distance(&middle(&h), &plain_h) < 1e-14 && distance(&state, &plain_state) < 1e-14);
}

#[test]
fn padding_may_hold_anything() {
    let valid = at(3, 6, &[0, 1, 4]);
    let mut case = Case::new([3, 6, 2, 5], [false; 2], None, Some(valid.shallow_clone()));
    let clean = case.outcome(Kind::Float, slstm);
    for junk in [f64::NAN, f64::INFINITY, -1e30] {
        case.tensors[0].1 =
            case.tensors[0].1.masked_fill(&valid.logical_not().reshape([3, 6, 1, 1, 1]), junk);
        case.outcome(Kind::Float, slstm).assert_equal(&clean, &format!("{junk} in the padding"));
    }
}

#[test]
fn the_gradients_are_exact() {
    let resets = Some(at(2, 5, &[0, 3]));
    let valid = Some(at(2, 5, &[1]).logical_not());
    let case = Case::new([2, 5, 2, 2], [false, true], resets, valid);
    gradcheck(&case.tensors, &|tensors| case.run(tensors, reference));
    gradcheck(&case.tensors, &|tensors| case.run(tensors, slstm));
}

#[test]
fn second_derivatives_are_the_definitions() {
    let case =
        Case::new([2, 7, 2, 3], [true; 2], Some(at(2, 7, &[0, 5])), Some(at(2, 7, &[2]).logical_not()));
    let second =
        |operation: Operation| second_outcome(&case.tensors, &|tensors| case.run(tensors, operation));
    second(slstm).assert_near(&second(reference), 1e-10, "second derivatives");
}

#[test]
fn any_split_into_calls_gives_the_same() {
    let (batch, time) = (3, 30);
    let resets = at(batch, time, &[0, 6, 7, 21]);
    let case = Case::new([batch, time, 2, 5], [false; 2], Some(resets.shallow_clone()), None);
    let tensors = case.plain();
    let state = |first: usize| {
        let [h, c, n, m] = [0, 1, 2, 3].map(|i| tensors[first + i].shallow_clone());
        SlstmState { h, c, n, m }
    };
    let call = |start: i64, length: i64, initial: &SlstmState| {
        slstm(&Slstm {
            gates: &tensors[0].narrow(1, start, length),
            bias: Some(&tensors[2]),
            recurrent: &tensors[1],
            initial_state: initial,
            reset_state: Some(&state(7)),
            resets: Some(&resets.narrow(1, start, length)),
            valid: None,
        })
        .unwrap()
    };
    let (h, last) = call(0, time, &state(3));
    for chunk in [1, 3, 7] {
        let (mut hs, mut carried) = (Vec::new(), state(3));
        for start in (0..time).step_by(chunk) {
            let (h, after) = call(start, (chunk as i64).min(time - start), &carried);
            hs.push(h);
            carried = after;
        }
        assert!(Tensor::cat(&hs, 1).equal(&h), "calls of {chunk}");
        for (ours, whole) in
            [(&carried.h, &last.h), (&carried.c, &last.c), (&carried.n, &last.n), (&carried.m, &last.m)]
        {
            assert!(ours.equal(whole), "calls of {chunk}");
        }
    }
}

#[test]
fn gates_may_be_anything_finite() {
    for (i, f) in [(1e4, 1e4), (1e4, -1e4), (-1e4, 1e4), (-1e4, -1e4), (90.0, 30.0)] {
        let mut case = Case::new([2, 20, 1, 5], [false; 2], Some(at(2, 20, &[7])), None);
        let shift = Tensor::from_slice(&[i, f, 0.0, 0.0]).reshape([1, 1, 4, 1, 1]);
        case.tensors[0].1 = &case.tensors[0].1 + shift;
        for kind in [Kind::Float, Kind::Double] {
            for operation in [slstm as Operation, reference] {
                case.outcome(kind, operation).assert_finite(&format!("gates {i} and {f}"));
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for kind in [Kind::Float, Kind::Double] {
        let [one, two] = [1, 2].map(|threads| {
            let resets = Some(Noise(5).mask(&[9, 30], 9));
            with_threads(threads, || Case::new([9, 30, 2, 20], [true; 2], resets, None).outcome(kind, slstm))
        });
        two.assert_equal(&one, "2 threads");
    }
}

#[test]
fn half_precision_comes_back_as_it_came() {
    let case = Case::new([2, 20, 2, 5], [false; 2], None, None);
    for kind in [Kind::BFloat16, Kind::Half] {
        let tensors: Vec<Tensor> = case
            .tensors
            .iter()
            .enumerate()
            .map(|(i, (_, x))| x.to_kind(if i < 3 { kind } else { Kind::Float }))
            .collect();
        let (h, state) = case.run(&tensors, slstm).unwrap();
        assert_eq!((h.kind(), state.kind()), (kind, Kind::Float));
        let (truth, truth_state) = case.run(&tensors, reference).unwrap();
        let [h, truth] = [h, truth].map(|x| x.to_kind(Kind::Double));
        assert!(distance(&h, &truth) < 1e-2);
        assert!(distance(&state.to_kind(Kind::Double), &truth_state.to_kind(Kind::Double)) < 1e-5);
    }
}

#[test]
fn refusals_name_the_operand() {
    let case = Case::new([2, 4, 1, 3], [false; 2], Some(at(2, 4, &[1])), Some(at(2, 4, &[1])));
    let operands = [
        "gates",
        "recurrent",
        "bias",
        "initial_state.h",
        "initial_state.c",
        "initial_state.n",
        "initial_state.m",
        "reset_state.h",
        "reset_state.c",
        "reset_state.n",
        "reset_state.m",
    ];
    for (index, name) in operands.into_iter().enumerate() {
        for bad in
            [Tensor::zeros([9; 6], (Kind::Double, common::CPU)), case.tensors[index].1.to_kind(Kind::Int64)]
        {
            let mut tensors = case.plain();
            tensors[index] = bad;
            let error = case.run(&tensors, slstm).unwrap_err().to_string();
            assert!(error.starts_with("slstm: expected ") && error.contains("got "), "{error}");
            assert!(error.contains(&format!("`{name}`")), "{name}: {error}");
        }
    }
}

#[test]
fn no_bias_is_a_bias_of_zero() {
    let case = Case::new([3, 9, 2, 5], [false; 2], None, None);
    let tensors = case.plain();
    let state = || SlstmState {
        h: tensors[3].shallow_clone(),
        c: tensors[4].shallow_clone(),
        n: tensors[5].shallow_clone(),
        m: tensors[6].shallow_clone(),
    };
    let zeros = tensors[2].zeros_like();
    for operation in [slstm as Operation, reference] {
        let [with, without] = [Some(&zeros), None].map(|bias| {
            let args = Slstm {
                gates: &tensors[0],
                bias,
                recurrent: &tensors[1],
                initial_state: &state(),
                reset_state: None,
                resets: None,
                valid: None,
            };
            operation(&args).unwrap().0
        });
        assert!(with.equal(&without));
    }
}
