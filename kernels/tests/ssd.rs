//! Mamba-2's scan: the chunked form against the definition, and what both must obey.

#![allow(clippy::unwrap_used, clippy::struct_excessive_bools)]

mod common;

use common::{Noise, Outcome, distance, gradcheck, outcome, second_outcome, strided, with_threads};
use kernels::ssd::{Ssd, chunked, chunked_within, reference, ssd};
use tch::{Kind, Tensor};
use torch_bridge::Result;

type Operation = fn(&Ssd<'_>) -> Result<(Tensor, Tensor)>;

/// One chunk at a time: the longest row of runs.
fn in_many_runs(args: &Ssd<'_>) -> Result<(Tensor, Tensor)> {
    chunked_within(args, 1)
}

/// Operands in f64, in a fixed order, and what is not differentiable.
struct Case {
    tensors: Vec<(&'static str, Tensor)>,
    resets: Option<Tensor>,
    valid: Option<Tensor>,
    chunk_size: Option<i64>,
}

/// Sizes of a case.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: i64,
    time: i64,
    heads: i64,
    groups: i64,
    head_dim: i64,
    d_state: i64,
}

/// Which operands a case has.
#[derive(Clone, Copy, Debug, Default)]
struct With {
    d: bool,
    shared_initial: bool,
    shared_reset: bool,
    strided: bool,
}

const ALL: With = With { d: true, shared_initial: true, shared_reset: true, strided: false };

const SMALL: Sizes = Sizes { batch: 2, time: 21, heads: 4, groups: 2, head_dim: 3, d_state: 5 };

const PER_TOKEN: [&str; 4] = ["x", "dt", "b", "c"];

impl Case {
    fn new(sizes: Sizes, with: With, resets: Option<Tensor>, chunk_size: Option<i64>) -> Self {
        let Sizes { batch, time, heads, groups, head_dim, d_state } = sizes;
        let mut noise = Noise((batch * 31 + time * 7 + heads * 5 + head_dim * 3 + d_state) as u64);
        let rows = |shared| if shared { 1 } else { batch };
        let mut tensors = vec![
            ("x", noise.tensor(&[batch, time, heads, head_dim])),
            ("dt", noise.tensor(&[batch, time, heads]).abs() * 0.5),
            ("a", -(noise.tensor(&[heads]).abs() + 0.1)),
            ("b", noise.tensor(&[batch, time, groups, d_state])),
            ("c", noise.tensor(&[batch, time, groups, d_state])),
            ("initial_state", noise.tensor(&[rows(with.shared_initial), heads, head_dim, d_state])),
        ];
        if with.d {
            tensors.push(("d", noise.tensor(&[heads])));
        }
        if resets.is_some() {
            tensors.push(("reset_state", noise.tensor(&[rows(with.shared_reset), heads, head_dim, d_state])));
        }
        for (_, x) in &mut tensors {
            let rounded = x.to_kind(Kind::Float).to_kind(Kind::Double);
            *x = if with.strided { strided(&rounded) } else { rounded };
        }
        Self { tensors, resets, valid: None, chunk_size }
    }

    fn with_valid(mut self, valid: Tensor) -> Self {
        self.valid = Some(valid);
        self
    }

    fn values(&self) -> Vec<Tensor> {
        self.tensors.iter().map(|(_, x)| x.shallow_clone()).collect()
    }

    /// The case with each operand changed.
    fn map(&self, change: impl Fn(&str, &Tensor) -> Tensor) -> Self {
        Self {
            tensors: self.tensors.iter().map(|(name, x)| (*name, change(name, x))).collect(),
            resets: self.resets.as_ref().map(Tensor::shallow_clone),
            valid: self.valid.as_ref().map(Tensor::shallow_clone),
            chunk_size: self.chunk_size,
        }
    }

    fn run(&self, tensors: &[Tensor], operation: Operation) -> Result<(Tensor, Tensor)> {
        let find =
            |name| self.tensors.iter().position(|(known, _)| *known == name).map(|index| &tensors[index]);
        let need = |name| find(name).unwrap();
        operation(&Ssd {
            x: need("x"),
            dt: need("dt"),
            a: need("a"),
            b: need("b"),
            c: need("c"),
            d: find("d"),
            initial_state: need("initial_state"),
            reset_state: find("reset_state"),
            resets: self.resets.as_ref(),
            valid: self.valid.as_ref(),
            chunk_size: self.chunk_size,
        })
    }

    fn outcome(&self, kind: Kind, operation: Operation) -> Outcome {
        outcome(&self.tensors, kind, &|tensors| self.run(tensors, operation))
    }

    /// The chunked form, in one run and in many, against the definition, in both precisions.
    fn compare(&self, what: &str) {
        let truth = self.outcome(Kind::Double, reference);
        let peer = self.outcome(Kind::Float, reference);
        for (runs, operation) in [("one run", chunked as Operation), ("many runs", in_many_runs)] {
            let what = format!("{what}, {runs}");
            self.outcome(Kind::Double, operation).assert_near(&truth, 1e-12, &format!("f64, {what}"));
            self.outcome(Kind::Float, operation).assert_as_near_as(&peer, &truth, &format!("f32, {what}"));
        }
    }
}

/// True at the given tokens of every row.
fn at(batch: i64, time: i64, tokens: &[i64]) -> Tensor {
    let row: Vec<bool> = (0..time).map(|t| tokens.contains(&t)).collect();
    Tensor::from_slice(&row).reshape([1, time]).expand([batch, time], false).contiguous()
}

#[test]
fn agrees_with_the_definition_for_every_length_and_chunk() {
    for time in [0, 1, 2, 7, 16, 17, 65, 130] {
        for chunk_size in [Some(1), Some(7), Some(16), None] {
            let sizes = Sizes { time, ..SMALL };
            Case::new(sizes, ALL, None, chunk_size).compare(&format!("{time} in {chunk_size:?}"));
            let resets = Some(Noise(time as u64).mask(&[2, time], 9));
            Case::new(sizes, ALL, resets, chunk_size).compare(&format!("{time} in {chunk_size:?}, resets"));
        }
    }
}

#[test]
fn agrees_with_the_definition_for_any_mix_of_options() {
    let mut noise = Noise(3);
    for round in 0..100 {
        let mut flip = || noise.chance(2);
        let with = With { d: flip(), shared_initial: flip(), shared_reset: flip(), strided: flip() };
        let (has_resets, has_valid) = (flip(), flip());
        let groups = noise.pick(&[1, 2, 3]);
        let sizes = Sizes {
            batch: noise.pick(&[1, 2, 3]),
            time: noise.pick(&[1, 2, 5, 17, 33, 70]),
            heads: groups * noise.pick(&[1, 2, 3]),
            groups,
            head_dim: noise.pick(&[1, 4, 7]),
            d_state: noise.pick(&[1, 5, 16]),
        };
        let shape = [sizes.batch, sizes.time];
        let often = noise.pick(&[1, 2, 5, 40]);
        let resets = has_resets.then(|| noise.mask(&shape, often));
        let valid = has_valid.then(|| noise.mask(&shape, 3).logical_not());
        let chunk_size = noise.pick(&[None, Some(4), Some(16)]);
        let what = format!("round {round}: {sizes:?}, {with:?}, {chunk_size:?}, {has_resets}, {has_valid}");
        let case = Case::new(sizes, with, resets, chunk_size);
        match valid {
            Some(valid) => case.with_valid(valid).compare(&what),
            None => case.compare(&what),
        }
    }
}

#[test]
fn resets_at_every_kind_of_place() {
    let time = 24;
    let all: Vec<i64> = (0..time).collect();
    for tokens in [&[0][..], &[5, 6, 7], &[time - 1], &[7, 8, 9, 16], &[0, 8, time - 1], &all] {
        let resets = Some(at(2, time, tokens));
        Case::new(Sizes { time, ..SMALL }, ALL, resets, Some(8)).compare(&format!("resets at {tokens:?}"));
    }
}

#[test]
fn a_reset_hides_everything_before_it() {
    let case = Case::new(SMALL, ALL, Some(at(2, SMALL.time, &[9])), Some(6));
    let other = case.map(|name, x| {
        if PER_TOKEN.contains(&name) {
            Tensor::cat(&[x.narrow(1, 0, 9) * 3.0, x.narrow(1, 9, SMALL.time - 9)], 1)
        } else if name == "initial_state" {
            x * 3.0
        } else {
            x.shallow_clone()
        }
    });
    let [(y, last), (other_y, other_last)] =
        [&case, &other].map(|case| case.run(&case.values(), chunked).unwrap());
    let after = |y: &Tensor| y.narrow(1, 9, SMALL.time - 9);
    assert!(after(&y).equal(&after(&other_y)) && last.equal(&other_last));
}

#[test]
fn padding_passes_the_state_on_and_shows_zero() {
    let (batch, time, left, right) = (2, 45, 4, 9);
    let padding: Vec<i64> = (0..left).chain(time - right..time).collect();
    let valid = at(batch, time, &padding).logical_not();
    // A reset in the padding does nothing, one on the first token that counts does.
    let resets = Some(at(batch, time, &[1, left, time - 2]));
    let case = Case::new(Sizes { time, ..SMALL }, ALL, resets, Some(16)).with_valid(valid);
    case.compare("padding");
    let middle = |x: &Tensor| x.narrow(1, left, time - left - right);
    for operation in [reference as Operation, chunked] {
        let (y, state) = case.run(&case.values(), operation).unwrap();
        assert!(y.narrow(1, 0, left).eq(0.0).all().int64_value(&[]) == 1);
        assert!(y.narrow(1, time - right, right).eq(0.0).all().int64_value(&[]) == 1);
        let mut plain =
            case.map(|name, x| if PER_TOKEN.contains(&name) { middle(x) } else { x.shallow_clone() });
        plain.resets = case.resets.as_ref().map(middle);
        plain.valid = None;
        let (plain_y, plain_state) = plain.run(&plain.values(), operation).unwrap();
        assert!(distance(&middle(&y), &plain_y) < 1e-14 && distance(&state, &plain_state) < 1e-14);
    }
}

#[test]
fn padding_may_hold_anything() {
    let valid = at(1, 6, &[0, 1, 4]);
    let sizes = Sizes { batch: 1, time: 6, ..SMALL };
    let clean = Case::new(sizes, ALL, None, None).with_valid(valid.shallow_clone());
    let dirty = clean.map(|name, x| {
        let mut shape = vec![1, 6];
        shape.resize(x.dim().max(2), 1);
        if PER_TOKEN.contains(&name) {
            x.masked_fill(&valid.logical_not().reshape(&shape), f64::NAN)
        } else {
            x.shallow_clone()
        }
    });
    for operation in [reference as Operation, chunked] {
        dirty
            .outcome(Kind::Float, operation)
            .assert_equal(&clean.outcome(Kind::Float, operation), "NaN in the padding");
    }
}

#[test]
fn the_definition_has_the_gradients_it_says() {
    let sizes = Sizes { batch: 2, time: 5, heads: 2, groups: 1, head_dim: 2, d_state: 3 };
    let valid = at(2, 5, &[1]).logical_not();
    let case = Case::new(sizes, ALL, Some(at(2, 5, &[0, 3])), Some(2)).with_valid(valid);
    for operation in [reference as Operation, chunked, in_many_runs] {
        gradcheck(&case.tensors, &|tensors| case.run(tensors, operation));
    }
}

#[test]
fn any_split_into_calls_gives_the_same() {
    let time = 70;
    let resets = at(2, time, &[0, 6, 7, 31, 50]);
    let case = Case::new(Sizes { time, ..SMALL }, ALL, Some(resets), Some(16));
    let (expected_y, expected_state) = case.run(&case.values(), reference).unwrap();
    for length in [1, 3, 7, 20, 70] {
        let (mut ys, mut state, mut start) = (Vec::new(), case.values()[5].shallow_clone(), 0);
        while start < time {
            let count = length.min(time - start);
            let cut = |x: &Tensor| x.narrow(1, start, count);
            let mut part = case.map(|name, x| match name {
                name if PER_TOKEN.contains(&name) => cut(x),
                "initial_state" => state.shallow_clone(),
                _ => x.shallow_clone(),
            });
            part.resets = case.resets.as_ref().map(cut);
            let (y, after) = part.run(&part.values(), ssd).unwrap();
            ys.push(y);
            state = after;
            start += count;
        }
        let (y, state) = (distance(&Tensor::cat(&ys, 1), &expected_y), distance(&state, &expected_state));
        assert!(y < 1e-12 && state < 1e-12, "calls of {length}: {y:e}, {state:e}");
    }
}

#[test]
fn short_distances_keep_their_precision_after_long_sums() {
    // Large steps first: the sum of logarithms is so large that its 32-bit neighbours are further apart than what
    // the later small steps add.
    let sizes = Sizes { time: 64, ..SMALL };
    let case = Case::new(sizes, ALL, Some(at(2, 64, &[40])), Some(64));
    let steps = Tensor::cat(
        &[
            Tensor::full([2, 32, 4], 3e3, tch::kind::DOUBLE_CPU),
            Tensor::full([2, 32, 4], 1e-3, tch::kind::DOUBLE_CPU),
        ],
        1,
    );
    let case = case.map(|name, x| if name == "dt" { steps.shallow_clone() } else { x.shallow_clone() });
    let (truth, peer) = (case.outcome(Kind::Double, reference), case.outcome(Kind::Float, reference));
    case.outcome(Kind::Float, chunked).assert_as_near_as(&peer, &truth, "large steps, then small ones");
}

#[test]
fn extreme_steps_stay_finite() {
    for size in [1e4, 80.0, 1e-8, 0.0] {
        let case = Case::new(SMALL, ALL, Some(at(2, SMALL.time, &[0, 9])), Some(8));
        let case = case.map(|name, x| if name == "dt" { x * 0.0 + size } else { x.shallow_clone() });
        for kind in [Kind::Float, Kind::Double] {
            case.outcome(kind, chunked).assert_finite(&format!("dt {size}"));
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let resets = Noise(5).mask(&[3, 70], 9);
    let sizes = Sizes { batch: 3, time: 70, heads: 6, groups: 2, head_dim: 16, d_state: 16 };
    for kind in [Kind::Float, Kind::Double] {
        let [one, two] = [1, 2].map(|threads| {
            with_threads(threads, || {
                Case::new(sizes, ALL, Some(resets.shallow_clone()), None).outcome(kind, chunked)
            })
        });
        two.assert_near(&one, if kind == Kind::Float { 1e-6 } else { 1e-14 }, "2 threads");
        let again = with_threads(2, || {
            Case::new(sizes, ALL, Some(resets.shallow_clone()), None).outcome(kind, chunked)
        });
        again.assert_equal(&two, "the same again");
    }
}

#[test]
fn half_precision_comes_back_as_it_came() {
    let case = Case::new(Sizes { time: 40, ..SMALL }, ALL, None, Some(16));
    for kind in [Kind::BFloat16, Kind::Half] {
        let halved = |name: &str| if PER_TOKEN.contains(&name) { kind } else { Kind::Float };
        let tensors: Vec<Tensor> = case.tensors.iter().map(|(name, x)| x.to_kind(halved(name))).collect();
        let rounded: Vec<Tensor> = tensors.iter().map(|x| x.to_kind(Kind::Double)).collect();
        let (truth, truth_state) = case.run(&rounded, reference).unwrap();
        for operation in [reference as Operation, chunked, in_many_runs] {
            let (y, state) = case.run(&tensors, operation).unwrap();
            assert_eq!((y.kind(), state.kind()), (kind, Kind::Float));
            // The output is rounded once, the state is not.
            assert!(distance(&y.to_kind(Kind::Double), &truth) < 4e-3);
            assert!(distance(&state.to_kind(Kind::Double), &truth_state) < 1e-6);
        }
    }
}

#[test]
fn autocast_does_not_reach_the_products() {
    let case = Case::new(Sizes { time: 40, ..SMALL }, ALL, None, Some(16));
    let values: Vec<Tensor> = case.values().iter().map(|x| x.to_kind(Kind::Float)).collect();
    let (y, state) = case.run(&values, chunked).unwrap();
    let _guard = torch_bridge::guards::Autocast::new(common::CPU, Kind::BFloat16, true);
    for operation in [chunked as Operation, in_many_runs] {
        let (lowered_y, lowered_state) = case.run(&values, operation).unwrap();
        assert!(distance(&lowered_y, &y) < 1e-6 && distance(&lowered_state, &state) < 1e-6);
    }
}

#[test]
fn only_one_of_the_outputs_may_be_used() {
    let case = Case::new(SMALL, ALL, None, Some(8));
    for unused in [0, 1] {
        let pick = |operation: Operation| {
            outcome(&case.tensors, Kind::Double, &|tensors| {
                let (y, state) = case.run(tensors, operation)?;
                Ok(if unused == 0 { (state.shallow_clone(), state) } else { (y.shallow_clone(), y) })
            })
        };
        pick(chunked).assert_near(&pick(reference), 1e-12, "one output");
        pick(in_many_runs).assert_near(&pick(reference), 1e-12, "one output, many runs");
    }
}

#[test]
fn second_derivatives_are_the_definitions() {
    let case = Case::new(SMALL, ALL, Some(at(2, SMALL.time, &[0, 5])), Some(8));
    let second =
        |operation: Operation| second_outcome(&case.tensors, &|tensors| case.run(tensors, operation));
    second(chunked).assert_near(&second(reference), 1e-12, "second derivatives");
    second(in_many_runs).assert_near(&second(reference), 1e-12, "second derivatives, many runs");
}

#[test]
fn refusals_name_the_operand() {
    let case = Case::new(SMALL, ALL, Some(at(2, SMALL.time, &[1])), None);
    for index in 0..case.tensors.len() {
        let name = case.tensors[index].0;
        for bad in [
            Tensor::zeros([9, 9, 9, 9, 9], tch::kind::DOUBLE_CPU),
            case.tensors[index].1.to_kind(Kind::Int64),
        ] {
            let mut tensors = case.values();
            tensors[index] = bad;
            let error = case.run(&tensors, ssd).unwrap_err().to_string();
            assert!(error.starts_with("ssd: expected ") && error.contains("got "), "{error}");
            assert!(error.contains(&format!("`{name}`")), "{name}: {error}");
        }
    }
    let odd = Case::new(Sizes { heads: 4, groups: 3, ..SMALL }, ALL, None, None);
    let error = odd.run(&odd.values(), ssd).unwrap_err().to_string();
    assert_eq!(error, "ssd: expected groups that divide 4 heads for `b`, got 3 groups");
    let none = Case::new(SMALL, ALL, None, Some(0));
    let error = none.run(&none.values(), ssd).unwrap_err().to_string();
    assert_eq!(error, "ssd: expected at least 1 for `chunk_size`, got 0");
}
