//! The selective scan: fast path against definition, and what both must obey.

#![allow(clippy::unwrap_used)]

mod common;

use common::selective_scan::{ALL, Case, Operation, With};
use common::{Noise, at, distance, gradcheck, outcome, second_outcome, with_threads};
use kernels::selective_scan::{reference, selective_scan};
use tch::{Kind, Tensor};

#[test]
fn agrees_with_the_definition_for_every_length_and_width() {
    for time in [0, 1, 2, 3, 17, 64, 65, 130] {
        for (d_inner, d_state) in [(1, 16), (5, 1), (16, 4), (17, 17), (40, 16)] {
            let resets = Some(Noise(time as u64).mask(&[2, time], 9));
            Case::new([2, time, d_inner, d_state], ALL, resets, None)
                .compare(&format!("{time} {d_inner} {d_state}"));
        }
    }
}

#[test]
fn agrees_with_the_definition_for_any_mix_of_options() {
    let mut noise = Noise(3);
    for round in 0..120 {
        let mut flip = || noise.chance(2);
        let with = With {
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
        let time = noise.pick(&[1, 2, 3, 17, 33, 65]);
        let sizes = [batch, time, noise.pick(&[1, 5, 16, 17, 40, 70]), noise.pick(&[1, 4, 7, 16, 17])];
        let often = noise.pick(&[1, 2, 5, 40]);
        let resets = has_resets.then(|| noise.mask(&[batch, time], often));
        let valid = has_valid.then(|| noise.mask(&[batch, time], 3).logical_not());
        let what = format!("round {round}: {sizes:?}, {with:?}, resets {has_resets}, valid {has_valid}");
        Case::new(sizes, with, resets, valid).compare(&what);
    }
}

#[test]
fn resets_at_every_kind_of_place() {
    let time = 70;
    let all: Vec<i64> = (0..time).collect();
    for tokens in [&[0][..], &[5, 6, 7], &[time - 1], &[31, 32, 33, 64], &[0, time - 1], &all] {
        let sizes = [2, time, 17, 5];
        Case::new(sizes, ALL, Some(at(2, time, tokens)), None).compare(&format!("resets at {tokens:?}"));
    }
}

#[test]
fn padding_passes_the_state_on_and_shows_zero() {
    let (batch, time, left, right) = (2, 45, 4, 9);
    let padding: Vec<i64> = (0..left).chain(time - right..time).collect();
    let valid = at(batch, time, &padding).logical_not();
    // A reset in the padding does nothing, one on the first token that counts does.
    let case = Case::new([batch, time, 5, 3], ALL, Some(at(batch, time, &[1, left, time - 2])), Some(valid));
    case.compare("padding");

    let tensors: Vec<Tensor> = case.tensors.iter().map(|(_, x)| x.shallow_clone()).collect();
    let (y, state) = case.run(&tensors, selective_scan).unwrap();
    assert!(y.narrow(1, 0, left).eq(0.0).all().int64_value(&[]) == 1);
    assert!(y.narrow(1, time - right, right).eq(0.0).all().int64_value(&[]) == 1);
    let middle = |x: &Tensor| x.narrow(1, left, time - left - right);
    let plain = Case {
        tensors: case
            .tensors
            .iter()
            .map(|(name, x)| {
                (*name, if x.dim() == 3 && x.size()[1] == time { middle(x) } else { x.shallow_clone() })
            })
            .collect(),
        resets: case.resets.as_ref().map(middle),
        valid: None,
        ..case
    };
    let tensors: Vec<Tensor> = plain.tensors.iter().map(|(_, x)| x.shallow_clone()).collect();
    let (plain_y, plain_state) = plain.run(&tensors, selective_scan).unwrap();
    assert!(distance(&middle(&y), &plain_y) < 1e-14 && distance(&state, &plain_state) < 1e-14);
}

#[test]
fn padding_may_hold_anything() {
    let valid = at(1, 6, &[0, 1, 4]);
    let case = Case::new([1, 6, 5, 4], ALL, None, Some(valid.shallow_clone()));
    let clean = case.outcome(Kind::Float, selective_scan);
    let junk = f64::NAN;
    let dirty = Case {
        tensors: case
            .tensors
            .iter()
            .map(|(name, x)| {
                let per_token = x.dim() == 3 && x.size()[1] == 6;
                let dirty = if per_token {
                    x.masked_fill(&valid.logical_not().reshape([1, 6, 1]), junk)
                } else {
                    x.shallow_clone()
                };
                (*name, dirty)
            })
            .collect(),
        resets: None,
        valid: Some(valid),
        ..case
    };
    dirty.outcome(Kind::Float, selective_scan).assert_equal(&clean, "NaN in the padding");
}

#[test]
fn the_definition_has_the_gradients_it_says() {
    let resets = Some(at(2, 5, &[0, 3]));
    let valid = Some(at(2, 5, &[1]).logical_not());
    let case = Case::new([2, 5, 2, 3], ALL, resets, valid);
    gradcheck(&case.tensors, &|tensors| case.run(tensors, reference));
    gradcheck(&case.tensors, &|tensors| case.run(tensors, selective_scan));
}

#[test]
fn any_split_into_calls_gives_the_same() {
    let (batch, time) = (2, 70);
    let resets = at(batch, time, &[0, 6, 7, 31, 50]);
    let case = Case::new([batch, time, 17, 5], ALL, Some(resets), None);
    let tensors: Vec<Tensor> = case.tensors.iter().map(|(_, x)| x.shallow_clone()).collect();
    for operation in [selective_scan as Operation, reference] {
        let (y, state) = case.run(&tensors, operation).unwrap();
        for chunk in [1, 3, 7] {
            let mut ys = Vec::new();
            let mut carried = tensors[5].shallow_clone();
            for start in (0..time).step_by(chunk) {
                let length = (chunk as i64).min(time - start);
                let cut = |x: &Tensor| x.narrow(1, start, length);
                let part = Case {
                    tensors: case
                        .tensors
                        .iter()
                        .map(|(name, x)| match *name {
                            "u" | "delta" | "b" | "c" | "z" => (*name, cut(x)),
                            "initial_state" => (*name, carried.shallow_clone()),
                            _ => (*name, x.shallow_clone()),
                        })
                        .collect(),
                    resets: case.resets.as_ref().map(cut),
                    valid: None,
                    ..case
                };
                let tensors: Vec<Tensor> = part.tensors.iter().map(|(_, x)| x.shallow_clone()).collect();
                let (y, state) = part.run(&tensors, operation).unwrap();
                ys.push(y);
                carried = state;
            }
            assert!(distance(&Tensor::cat(&ys, 1), &y) < 1e-12 && distance(&carried, &state) < 1e-12);
        }
    }
}

#[test]
fn extreme_steps_stay_finite() {
    for size in [1e4, -1e4, 80.0, -80.0] {
        let mut case = Case::new([2, 40, 17, 5], ALL, None, None);
        case.tensors[1].1 = &case.tensors[1].1 * 0.0 + size;
        for kind in [Kind::Float, Kind::Double] {
            case.outcome(kind, selective_scan).assert_finite(&format!("delta {size}"));
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let resets = Some(Noise(5).mask(&[3, 70], 9));
    for kind in [Kind::Float, Kind::Double] {
        let [one, two, four] = [1, 2, 4].map(|threads| {
            let resets = resets.as_ref().map(Tensor::shallow_clone);
            with_threads(threads, || {
                Case::new([3, 70, 200, 17], ALL, resets, None).outcome(kind, selective_scan)
            })
        });
        two.assert_equal(&one, "2 threads");
        four.assert_equal(&one, "4 threads");
    }
}

#[test]
fn half_precision_comes_back_as_it_came() {
    let case = Case::new([2, 20, 17, 5], ALL, None, None);
    for kind in [Kind::BFloat16, Kind::Half] {
        let tensors: Vec<Tensor> = case
            .tensors
            .iter()
            .map(|(name, x)| {
                x.to_kind(if matches!(*name, "u" | "delta" | "b" | "c" | "z") { kind } else { Kind::Float })
            })
            .collect();
        let (y, state) = case.run(&tensors, selective_scan).unwrap();
        assert_eq!((y.kind(), state.kind()), (kind, Kind::Float));
        let (truth, truth_state) = case.run(&tensors, reference).unwrap();
        let [y, truth] = [y, truth].map(|x| x.to_kind(Kind::Double));
        assert!(distance(&y, &truth) < 1e-2);
        assert!(distance(&state.to_kind(Kind::Double), &truth_state.to_kind(Kind::Double)) < 1e-5);
    }
}

#[test]
fn only_one_of_the_outputs_may_be_used() {
    let case = Case::new([2, 20, 17, 5], ALL, None, None);
    for unused in [0, 1] {
        let pick = |operation: Operation| {
            outcome(&case.tensors, Kind::Double, &|tensors| {
                let (y, state) = case.run(tensors, operation)?;
                Ok(if unused == 0 { (state.shallow_clone(), state) } else { (y.shallow_clone(), y) })
            })
        };
        pick(selective_scan).assert_near(&pick(reference), 1e-12, "one output");
    }
}

#[test]
fn second_derivatives_are_the_definitions() {
    let case = Case::new([2, 12, 17, 5], ALL, Some(at(2, 12, &[0, 5])), None);
    let second =
        |operation: Operation| second_outcome(&case.tensors, &|tensors| case.run(tensors, operation));
    second(selective_scan).assert_near(&second(reference), 1e-12, "second derivatives");
}

#[test]
fn refusals_name_the_operand() {
    let case = Case::new([2, 4, 3, 5], ALL, Some(at(2, 4, &[1])), Some(at(2, 4, &[1])));
    for index in 0..case.tensors.len() {
        let name = case.tensors[index].0;
        for bad in [
            Tensor::zeros([9, 9, 9, 9], (Kind::Double, common::CPU)),
            case.tensors[index].1.to_kind(Kind::Int64),
        ] {
            let mut tensors: Vec<Tensor> = case.tensors.iter().map(|(_, x)| x.shallow_clone()).collect();
            tensors[index] = bad;
            let error = case.run(&tensors, selective_scan).unwrap_err().to_string();
            assert!(error.starts_with("selective_scan: expected ") && error.contains("got "), "{error}");
            assert!(error.contains(&format!("`{name}`")), "{name}: {error}");
        }
    }
    let tensors: Vec<Tensor> = case.tensors.iter().map(|(_, x)| x.shallow_clone()).collect();
    let wrong = Case { valid: Some(at(2, 3, &[1])), resets: None, tensors: vec![], ..case };
    assert!(wrong.tensors.is_empty());
    let case = Case { tensors: case.tensors, ..wrong };
    let error = case.run(&tensors, selective_scan).unwrap_err().to_string();
    assert_eq!(error, "selective_scan: expected [2, 4] for `valid`, got [2, 3]");
}
