//! The causal convolution: fast path against definition, and what both must obey.

#![allow(clippy::unwrap_used)]

mod common;

use common::causal_conv1d::{ALL, Case, Operation, With};
use common::{Noise, at, distance, gradcheck, outcome, second_outcome, with_threads};
use kernels::causal_conv1d::{causal_conv1d, reference};
use tch::{Kind, Tensor};

#[test]
fn agrees_with_the_definition_for_every_length_and_width() {
    for time in [0, 1, 2, 3, 17, 64, 65, 130] {
        for (d, width) in [(1, 4), (5, 1), (16, 2), (17, 8), (40, 4)] {
            let resets = Some(Noise(time as u64).mask(&[2, time], 9));
            Case::new([2, time, d, width], ALL, resets, None).compare(&format!("{time} {d} {width}"));
        }
    }
}

#[test]
fn agrees_with_the_definition_for_any_mix_of_options() {
    let mut noise = Noise(4);
    for round in 0..150 {
        let mut flip = || noise.chance(2);
        let with =
            With { bias: flip(), silu: flip(), shared_tail: flip(), shared_reset: flip(), strided: flip() };
        let (has_resets, has_lengths) = (flip(), flip());
        let batch = noise.pick(&[1, 2, 3]);
        let time = noise.pick(&[1, 2, 3, 17, 33, 65]);
        let sizes = [batch, time, noise.pick(&[1, 5, 16, 17, 40, 70]), noise.pick(&[1, 2, 3, 4, 5, 6, 7, 8])];
        let often = noise.pick(&[1, 2, 5, 40]);
        let resets = has_resets.then(|| noise.mask(&[batch, time], often));
        let lengths: Vec<i64> = (0..batch).map(|_| noise.below(time as usize + 1) as i64).collect();
        let what = format!(
            "round {round}: {sizes:?}, {with:?}, resets {has_resets}, lengths {has_lengths} {lengths:?}"
        );
        Case::new(sizes, with, resets, has_lengths.then_some(&lengths)).compare(&what);
    }
}

#[test]
fn resets_at_every_kind_of_place() {
    let time = 70;
    let all: Vec<i64> = (0..time).collect();
    for tokens in [&[0][..], &[5, 6, 7], &[time - 1], &[31, 32, 33, 64], &[0, time - 1], &[time - 3], &all] {
        Case::new([2, time, 17, 4], ALL, Some(at(2, time, tokens)), None)
            .compare(&format!("resets at {tokens:?}"));
    }
}

#[test]
fn few_tokens_leave_older_inputs_in_the_tail() {
    for lengths in [[0, 1], [2, 3], [4, 9], [-5, 99]] {
        Case::new([2, 9, 5, 5], ALL, None, Some(&lengths)).compare(&format!("lengths {lengths:?}"));
        // The second reset comes after the last token that counts, or is the last.
        let resets = Some(at(2, 9, &[1, 4]));
        Case::new([2, 9, 5, 5], ALL, resets, Some(&lengths)).compare(&format!("resets, lengths {lengths:?}"));
    }
    let case = Case::new([1, 3, 2, 5], ALL, None, Some(&[1]));
    let (_, new_tail) = case.run(&case.plain(), causal_conv1d).unwrap();
    let expected = Tensor::cat(&[case.tensors[2].1.narrow(1, 1, 3), case.tensors[0].1.narrow(1, 0, 1)], 1);
    assert!(new_tail.equal(&expected));
}

#[test]
fn padding_may_hold_anything_and_shows_zero() {
    let case = Case::new([2, 40, 17, 4], ALL, None, Some(&[7, 33]));
    let clean = case.outcome(Kind::Float, causal_conv1d);
    assert!(clean.values[0].narrow(1, 33, 7).eq(0.0).all().int64_value(&[]) == 1);
    let mut dirty = Case { tensors: case.tensors, resets: None, lengths: case.lengths, silu: case.silu };
    let padding = Tensor::arange(40, (Kind::Int64, common::CPU))
        .reshape([1, 40, 1])
        .ge_tensor(&dirty.lengths.as_ref().unwrap().reshape([2, 1, 1]));
    dirty.tensors[0].1 = dirty.tensors[0].1.masked_fill(&padding, f64::NAN);
    dirty.outcome(Kind::Float, causal_conv1d).assert_equal(&clean, "NaN in the padding");
}

#[test]
fn the_definition_has_the_gradients_it_says() {
    let case = Case::new([2, 6, 2, 3], ALL, Some(at(2, 6, &[3, 4])), Some(&[6, 4]));
    gradcheck(&case.tensors, &|tensors| case.run(tensors, reference));
    gradcheck(&case.tensors, &|tensors| case.run(tensors, causal_conv1d));
}

#[test]
fn any_split_into_calls_gives_the_same() {
    let (batch, time) = (2, 70);
    let case = Case::new([batch, time, 17, 4], ALL, Some(at(batch, time, &[0, 6, 7, 31, 50])), None);
    let tensors = case.plain();
    for operation in [causal_conv1d as Operation, reference] {
        let (y, tail) = case.run(&tensors, operation).unwrap();
        for chunk in [1, 3, 7] {
            let mut ys = Vec::new();
            let mut carried = tensors[2].shallow_clone();
            for start in (0..time).step_by(chunk) {
                let cut = |x: &Tensor| x.narrow(1, start, (chunk as i64).min(time - start));
                let mut part = case.plain();
                part[0] = cut(&tensors[0]);
                part[2] = carried;
                let resets = case.resets.as_ref().map(cut);
                let named = case.tensors.iter().map(|(name, x)| (*name, x.shallow_clone())).collect();
                let call = Case { tensors: named, resets, lengths: None, silu: case.silu };
                let (y, tail) = call.run(&part, operation).unwrap();
                ys.push(y);
                carried = tail;
            }
            assert!(distance(&Tensor::cat(&ys, 1), &y) < 1e-12 && carried.equal(&tail));
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for kind in [Kind::Float, Kind::Double] {
        let [one, two, four] = [1, 2, 4].map(|threads| {
            with_threads(threads, || {
                let resets = Some(Noise(5).mask(&[3, 130], 9));
                Case::new([3, 130, 600, 4], ALL, resets, Some(&[130, 64, 99])).outcome(kind, causal_conv1d)
            })
        });
        two.assert_equal(&one, "2 threads");
        four.assert_equal(&one, "4 threads");
    }
}

#[test]
fn half_precision_comes_back_as_it_came() {
    let case = Case::new([2, 20, 17, 4], ALL, None, None);
    for kind in [Kind::BFloat16, Kind::Half] {
        let mut tensors: Vec<Tensor> = case.plain().iter().map(|x| x.to_kind(Kind::Float)).collect();
        tensors[0] = tensors[0].to_kind(kind);
        let (y, tail) = case.run(&tensors, causal_conv1d).unwrap();
        assert_eq!((y.kind(), tail.kind()), (kind, Kind::Float));
        let (truth, _) = case.run(&tensors, reference).unwrap();
        assert!(distance(&y.to_kind(Kind::Double), &truth.to_kind(Kind::Double)) < 1e-2);
    }
}

#[test]
fn only_one_of_the_outputs_may_be_used() {
    let case = Case::new([2, 20, 17, 4], ALL, None, None);
    for unused in [0, 1] {
        let pick = |operation: Operation| {
            outcome(&case.tensors, Kind::Double, &|tensors| {
                let (y, tail) = case.run(tensors, operation)?;
                Ok(if unused == 0 { (tail.shallow_clone(), tail) } else { (y.shallow_clone(), y) })
            })
        };
        pick(causal_conv1d).assert_near(&pick(reference), 1e-12, "one output");
    }
}

#[test]
fn second_derivatives_are_the_definitions() {
    let case = Case::new([2, 12, 17, 4], ALL, Some(at(2, 12, &[0, 5])), None);
    let second =
        |operation: Operation| second_outcome(&case.tensors, &|tensors| case.run(tensors, operation));
    second(causal_conv1d).assert_near(&second(reference), 1e-12, "second derivatives");
}

#[test]
fn refusals_name_the_operand() {
    let case = Case::new([2, 4, 3, 4], ALL, Some(at(2, 4, &[1])), Some(&[1, 2]));
    for index in 0..case.tensors.len() {
        let (name, x) = &case.tensors[index];
        for bad in [Tensor::zeros([9, 9, 9, 9], (Kind::Double, common::CPU)), x.to_kind(Kind::Int64)] {
            let mut tensors = case.plain();
            tensors[index] = bad;
            let error = case.run(&tensors, causal_conv1d).unwrap_err().to_string();
            assert!(error.starts_with("causal_conv1d: expected ") && error.contains("got "), "{error}");
            assert!(error.contains(&format!("`{name}`")), "{name}: {error}");
        }
    }
    let mut tensors = case.plain();
    tensors[1] = Tensor::zeros([3, 9], (Kind::Double, common::CPU));
    let error = case.run(&tensors, causal_conv1d).unwrap_err().to_string();
    assert_eq!(error, "causal_conv1d: expected [3, width] with width in 1..=8 for `weight`, got [3, 9]");

    let bare = Case::new([2, 4, 3, 4], ALL, None, None);
    let missing = Case { resets: Some(at(2, 4, &[1])), ..bare };
    let error = missing.run(&missing.plain(), causal_conv1d).unwrap_err().to_string();
    assert_eq!(
        error,
        "causal_conv1d: expected a tensor, because `resets` is given for `reset_tail`, got none"
    );
}
