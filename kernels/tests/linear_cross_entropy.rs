//! The head with its loss: rows at a time against all logits at once, and what both must obey.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

mod common;

use common::{Noise, distance, gradcheck, outcome, second_outcome, strided, with_threads};
use kernels::linear_cross_entropy::{
    IGNORE_INDEX, LinearCrossEntropy, Settings, linear_cross_entropy, reference,
};
use tch::{Device, Kind, Tensor};
use torch_bridge::{Result, guards::Autocast};

type Operation = fn(&LinearCrossEntropy<'_>) -> Result<(Tensor, Tensor)>;

struct Case {
    tensors: Vec<(&'static str, Tensor)>,
    targets: Tensor,
    settings: Settings,
}

impl Case {
    /// Rows of `shape`, `d` and `vocab`; one target in `ignored` is none.
    fn new(shape: &[i64], d: i64, vocab: i64, settings: Settings, ignored: usize) -> Self {
        let mut noise = Noise(shape.iter().sum::<i64>() as u64 * 1009 + vocab as u64);
        let count = shape.iter().product::<i64>();
        let targets: Vec<i64> = (0..count)
            .map(|_| {
                let target = noise.below(vocab as usize) as i64;
                if noise.chance(ignored) { IGNORE_INDEX } else { target }
            })
            .collect();
        let tensors =
            vec![("hidden", noise.tensor(&[shape, &[d]].concat())), ("weight", noise.tensor(&[vocab, d]))];
        Self { tensors, targets: Tensor::from_slice(&targets).view(shape), settings }
    }

    /// The sum of `log(sum exp)^2` carries no gradient; the test's harness wants a graph on both.
    fn run(&self, tensors: &[Tensor], operation: Operation) -> Result<(Tensor, Tensor)> {
        let [hidden, weight] = tensors else { panic!("two operands") };
        let args = LinearCrossEntropy { hidden, weight, targets: &self.targets, settings: self.settings };
        let (loss, square) = operation(&args)?;
        assert!(!square.requires_grad());
        let square = &loss * 0.0 + square;
        Ok((loss, square))
    }
}

const SETTINGS: [Settings; 5] = [
    Settings::PLAIN,
    Settings { label_smoothing: 0.1, ..Settings::PLAIN },
    Settings { z_loss: 0.01, ..Settings::PLAIN },
    Settings { soft_cap: Some(2.5), ..Settings::PLAIN },
    Settings { label_smoothing: 0.2, z_loss: 0.003, soft_cap: Some(4.0) },
];

#[test]
fn loss_and_gradients_are_the_definitions() {
    for settings in SETTINGS {
        for (shape, d, vocab) in [
            (&[1_i64][..], 1, 1),
            (&[7], 5, 3),
            (&[2, 13], 8, 16),
            (&[3, 1], 9, 33),
            (&[5], 16, 1100),
            // More logits than stand in memory at a time.
            (&[2, 1100], 6, 2003),
        ] {
            let case = Case::new(shape, d, vocab, settings, 4);
            let ours = |tensors: &[Tensor]| case.run(tensors, linear_cross_entropy);
            let theirs = |tensors: &[Tensor]| case.run(tensors, reference);
            let what = format!("{shape:?} {d} {vocab} {settings:?}");
            let truth = outcome(&case.tensors, Kind::Double, &theirs);
            outcome(&case.tensors, Kind::Double, &ours).assert_near(&truth, 1e-12, &what);
            let single = outcome(&case.tensors, Kind::Float, &ours);
            single.assert_as_near_as(&outcome(&case.tensors, Kind::Float, &theirs), &truth, &what);
        }
    }
}

/// The sum of squares has no gradient to check.
fn only_loss(outputs: Result<(Tensor, Tensor)>) -> Result<(Tensor, Tensor)> {
    outputs.map(|(loss, _)| (loss.shallow_clone(), loss * 0.0))
}

#[test]
fn gradients_are_numerically_right_and_can_be_differentiated_again() {
    for settings in SETTINGS {
        let case = Case::new(&[2, 3], 4, 7, settings, 3);
        let ours = |tensors: &[Tensor]| only_loss(case.run(tensors, linear_cross_entropy));
        let theirs = |tensors: &[Tensor]| only_loss(case.run(tensors, reference));
        gradcheck(&case.tensors, &ours);
        let (second, truth) = (second_outcome(&case.tensors, &ours), second_outcome(&case.tensors, &theirs));
        second.assert_near(&truth, 1e-12, "second derivatives");
    }
}

#[test]
fn other_strides_and_threads_change_nothing() {
    let case = Case::new(&[3, 40], 12, 515, SETTINGS[4], 5);
    let ours = |tensors: &[Tensor]| case.run(tensors, linear_cross_entropy);
    let plain = outcome(&case.tensors, Kind::Float, &ours);
    let turned: Vec<_> = case.tensors.iter().map(|(name, x)| (*name, strided(x))).collect();
    outcome(&turned, Kind::Float, &ours).assert_near(&plain, 1e-6, "other strides");
    let [one, two] = [1, 2].map(|threads| {
        with_threads(threads, || {
            let losses = case.run(
                &case.tensors.iter().map(|(_, x)| x.to_kind(Kind::Float)).collect::<Vec<_>>(),
                linear_cross_entropy,
            );
            losses.unwrap().0.double_value(&[])
        })
    });
    assert!((one - two).abs() <= 1e-5 * one.abs(), "{one} with one thread, {two} with two");
}

#[test]
fn extreme_logits_and_ignored_rows_stay_finite() {
    let hidden = Tensor::from_slice(&[1e4_f32, -1e4, 0.0]).view([3, 1]).set_requires_grad(true);
    let weight = Tensor::from_slice(&[1.0_f32, -1.0, 0.5]).view([3, 1]).set_requires_grad(true);
    let targets = Tensor::from_slice(&[1_i64, IGNORE_INDEX, 2]);
    let args =
        LinearCrossEntropy { hidden: &hidden, weight: &weight, targets: &targets, settings: Settings::PLAIN };
    let (loss, _) = linear_cross_entropy(&args).unwrap();
    assert!((loss.double_value(&[]) - (2e4 + 3.0_f64.ln())).abs() < 0.01);
    loss.backward();
    assert!(bool::try_from(hidden.grad().isfinite().all()).unwrap());
    assert!(hidden.grad().double_value(&[1, 0]).abs() < f64::MIN_POSITIVE);
    let none = Tensor::full([3], IGNORE_INDEX, (Kind::Int64, Device::Cpu));
    let (loss, square) = linear_cross_entropy(&LinearCrossEntropy { targets: &none, ..args }).unwrap();
    assert!(loss.double_value(&[]).abs() + square.double_value(&[]).abs() < f64::MIN_POSITIVE);
}

#[test]
fn under_autocast_products_are_in_sixteen_bits() {
    let case = Case::new(&[64], 32, 100, Settings::PLAIN, 9);
    let theirs = |tensors: &[Tensor]| case.run(tensors, reference);
    let truth = outcome(&case.tensors, Kind::Double, &theirs);
    let ours = |tensors: &[Tensor]| {
        let _autocast = Autocast::new(Device::Cpu, Kind::BFloat16, true);
        let (loss, square) = case.run(tensors, linear_cross_entropy)?;
        assert_eq!(loss.kind(), Kind::Float);
        Ok((loss, square))
    };
    let rounded = outcome(&case.tensors, Kind::Float, &ours);
    for ((name, x), y) in rounded.names.iter().zip(&rounded.values).zip(&truth.values) {
        let distance = distance(x, y);
        assert!(distance < 1e-2, "{name} is off by {distance:e}");
        assert!(distance > 0.0, "{name} was not rounded at all");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let case = Case::new(&[4], 3, 5, Settings::PLAIN, 99);
    let (hidden, weight) = (&case.tensors[0].1, &case.tensors[1].1);
    let refused = |hidden: &Tensor, weight: &Tensor, targets: &Tensor| {
        let args = LinearCrossEntropy { hidden, weight, targets, settings: Settings::PLAIN };
        for operation in [linear_cross_entropy as Operation, reference] {
            assert!(operation(&args).is_err());
        }
        linear_cross_entropy(&args).unwrap_err().to_string()
    };
    let error = refused(hidden, weight, &Tensor::from_slice(&[0_i64, 5, 1, 2]));
    assert!(error.contains("a target is 5, and the vocabulary has 5 tokens"), "{error}");
    let error = refused(hidden, weight, &Tensor::from_slice(&[0_i64, -1, 1, 2]));
    assert!(error.contains("a target is -1"), "{error}");
    let error = refused(hidden, weight, &Tensor::from_slice(&[0_i64, 1]));
    assert!(error.contains("`targets`"), "{error}");
    let error = refused(&hidden.narrow(1, 0, 2), weight, &case.targets);
    assert!(error.contains("`weight`"), "{error}");
}
