//! Mixture of experts: sorted by expert against every expert on every token, and routing against a router written out.

#![allow(clippy::unwrap_used)]

mod common;

use common::{CPU, Noise, distance, gradcheck, outcome, second_outcome, strided};
use kernels::moe::{Experts, Router, Scores, balance_loss, counts, experts, reference, route};
use tch::{Device, Kind, Tensor};
use torch_bridge::{Result, guards::Autocast};

type Operation = fn(&Experts<'_>) -> Result<Tensor>;

/// Sizes of a case.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    tokens: i64,
    n_experts: i64,
    top_k: i64,
    d_model: i64,
    d_hidden: i64,
}

const SMALL: Sizes = Sizes { tokens: 13, n_experts: 5, top_k: 2, d_model: 6, d_hidden: 7 };

/// Operands in f64, logits among them, and a router.
struct Case {
    tensors: Vec<(&'static str, Tensor)>,
    top_k: i64,
    scores: Scores,
    bias: Option<Tensor>,
}

impl Case {
    fn new(sizes: Sizes, scores: Scores) -> Self {
        let Sizes { tokens, n_experts, top_k, d_model, d_hidden } = sizes;
        let mut noise = Noise((tokens * 31 + n_experts * 7 + top_k * 5 + d_model + d_hidden) as u64);
        let tensors = vec![
            ("x", noise.tensor(&[tokens, d_model])),
            ("logits", noise.tensor(&[tokens, n_experts])),
            ("gate", noise.tensor(&[n_experts, d_hidden, d_model])),
            ("up", noise.tensor(&[n_experts, d_hidden, d_model])),
            ("down", noise.tensor(&[n_experts, d_model, d_hidden])),
        ];
        Self { tensors, top_k, scores, bias: None }
    }

    fn router(&self) -> Router<'_> {
        // One choice with a weight of always one has no gradient to compare.
        let normalise = self.top_k > 1;
        Router { scores: self.scores, top_k: self.top_k, bias: self.bias.as_ref(), normalise, scale: 1.5 }
    }

    fn run(&self, tensors: &[Tensor], operation: Operation) -> Result<(Tensor, Tensor)> {
        let [x, logits, gate, up, down] = tensors else { panic!("five operands") };
        let routing = route(logits, &self.router())?;
        let args = Experts { x, choice: &routing.choice, weights: &routing.weights, gate, up, down };
        let y = operation(&args)?;
        Ok((y.shallow_clone(), y * 0.5))
    }

    fn values(&self) -> Vec<Tensor> {
        self.tensors.iter().map(|(_, x)| x.shallow_clone()).collect()
    }

    /// Sorted by expert against the definition: output and every gradient, that of the router's logits among them.
    fn compare(&self, what: &str) {
        let of = |kind, operation| outcome(&self.tensors, kind, &|tensors| self.run(tensors, operation));
        let truth = of(Kind::Double, reference);
        of(Kind::Double, experts).assert_near(&truth, 1e-13, &format!("f64, {what}"));
        let peer = of(Kind::Float, reference);
        of(Kind::Float, experts).assert_as_near_as(&peer, &truth, &format!("f32, {what}"));
    }
}

#[test]
fn agrees_with_every_expert_on_every_token() {
    for scores in [Scores::Softmax, Scores::Sigmoid] {
        for tokens in [0, 1, 2, 13, 70] {
            for (n_experts, top_k) in [(1, 1), (5, 1), (5, 2), (5, 5), (33, 3)] {
                for (d_model, d_hidden) in [(6, 7), (16, 8), (1, 1)] {
                    let sizes = Sizes { tokens, n_experts, top_k, d_model, d_hidden };
                    Case::new(sizes, scores).compare(&format!("{scores:?}, {sizes:?}"));
                }
            }
        }
    }
}

#[test]
fn an_expert_that_nobody_chose_has_no_gradient() {
    let mut case = Case::new(SMALL, Scores::Sigmoid);
    case.bias = Some(Tensor::from_slice(&[0.0, -9.0, 0.0, 9.0, 0.0]));
    case.compare("one expert is always chosen, one never");
    let out = outcome(&case.tensors, Kind::Double, &|tensors| case.run(tensors, experts));
    for (name, value) in out.names.iter().zip(&out.values).filter(|(name, _)| name.as_str() != "dlogits") {
        if ["dgate", "dup", "ddown"].contains(&name.as_str()) {
            assert!(value.select(0, 1).eq(0.0).all().int64_value(&[]) == 1, "{name}");
            assert!(value.select(0, 3).abs().max().double_value(&[]) > 0.0, "{name}");
        }
    }
}

#[test]
fn operands_may_have_any_strides() {
    for scores in [Scores::Softmax, Scores::Sigmoid] {
        let mut case = Case::new(SMALL, scores);
        for (_, x) in &mut case.tensors {
            *x = strided(x);
        }
        case.compare("strided");
    }
}

#[test]
fn the_gradients_are_those_of_the_function() {
    for scores in [Scores::Softmax, Scores::Sigmoid] {
        let case = Case::new(Sizes { tokens: 4, n_experts: 3, d_model: 3, d_hidden: 2, ..SMALL }, scores);
        for operation in [reference as Operation, experts] {
            gradcheck(&case.tensors, &|tensors| case.run(tensors, operation));
        }
    }
}

#[test]
fn second_derivatives_are_the_definitions() {
    let case = Case::new(SMALL, Scores::Softmax);
    let second =
        |operation: Operation| second_outcome(&case.tensors, &|tensors| case.run(tensors, operation));
    second(experts).assert_near(&second(reference), 1e-12, "second derivatives");
}

#[test]
fn a_token_does_not_depend_on_the_others() {
    let case = Case::new(Sizes { tokens: 40, ..SMALL }, Scores::Softmax);
    let values = case.values();
    let (whole, _) = case.run(&values, experts).unwrap();
    for (from, count) in [(0, 1), (3, 17), (39, 1)] {
        let mut part = values.iter().map(Tensor::shallow_clone).collect::<Vec<_>>();
        for operand in &mut part[..2] {
            *operand = operand.narrow(0, from, count);
        }
        let (y, _) = case.run(&part, experts).unwrap();
        assert!(distance(&y, &whole.narrow(0, from, count)) < 1e-14);
    }
}

#[test]
fn the_same_call_gives_the_same_bits() {
    let case =
        Case::new(Sizes { tokens: 300, n_experts: 8, top_k: 3, d_model: 33, d_hidden: 20 }, Scores::Softmax);
    let run = || outcome(&case.tensors, Kind::Float, &|tensors| case.run(tensors, experts));
    run().assert_equal(&run(), "twice");
}

#[test]
fn half_precision_is_rounded_and_no_more() {
    let case = Case::new(Sizes { tokens: 40, d_model: 16, d_hidden: 24, ..SMALL }, Scores::Softmax);
    let (truth, _) = case.run(&case.values(), reference).unwrap();
    for kind in [Kind::BFloat16, Kind::Half] {
        let lower = |name: &str, x: &Tensor| x.to_kind(if name == "logits" { Kind::Float } else { kind });
        let tensors: Vec<Tensor> = case.tensors.iter().map(|(name, x)| lower(name, x)).collect();
        let (y, _) = case.run(&tensors, experts).unwrap();
        assert_eq!(y.kind(), kind);
        assert!(distance(&y.to_kind(Kind::Double), &truth) < 2e-2);
    }
    // Autocast lowers the products and leaves the type of the output.
    let tensors: Vec<Tensor> = case.values().iter().map(|x| x.to_kind(Kind::Float)).collect();
    let (plain, _) = case.run(&tensors, experts).unwrap();
    let guard = Autocast::new(CPU, Kind::BFloat16, true);
    let (y, _) = case.run(&tensors, experts).unwrap();
    drop(guard);
    let off = distance(&y.to_kind(Kind::Double), &plain.to_kind(Kind::Double));
    assert!(y.kind() == Kind::BFloat16 && off > 1e-5 && off < 2e-2, "{:?}, {off:e}", y.kind());
}

/// Runs where there is a GPU: its grouped product against products one by one on the CPU.
#[test]
fn a_gpu_gives_what_the_cpu_gives() {
    if !tch::Cuda::is_available() {
        eprintln!("no GPU here: nothing was compared");
        return;
    }
    let sizes = Sizes { tokens: 515, n_experts: 8, top_k: 2, d_model: 64, d_hidden: 96 };
    let case = Case::new(sizes, Scores::Softmax);
    for (kind, tolerance) in [(Kind::Float, 1e-3), (Kind::BFloat16, 3e-2)] {
        let on = |device: Device| -> Vec<Tensor> {
            let at = |name: &str, x: &Tensor| {
                let kind = if name == "logits" { Kind::Float } else { kind };
                x.to_kind(kind).to_device(device).set_requires_grad(true)
            };
            let leaves: Vec<Tensor> = case.tensors.iter().map(|(name, x)| at(name, x)).collect();
            let (y, _) = case.run(&leaves, experts).unwrap();
            (&y * y.detach()).sum(Kind::Float).backward();
            let grads = leaves.iter().map(Tensor::grad);
            std::iter::once(y).chain(grads).map(|x| x.to_device(CPU).to_kind(Kind::Double)).collect()
        };
        for (cpu, gpu) in on(CPU).iter().zip(on(Device::Cuda(0))) {
            assert!(distance(&gpu, cpu) < tolerance, "{kind:?}: {:e}", distance(&gpu, cpu));
        }
    }
}

/// A router as the papers have it, one token at a time.
fn route_by_hand(logits: &[f64], router: &Router<'_>) -> (Vec<i64>, Vec<f64>, Vec<f64>) {
    let scores: Vec<f64> = match router.scores {
        Scores::Softmax => {
            let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
            logits.iter().map(|logit| logit.exp() / total).collect()
        }
        Scores::Sigmoid => logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
    };
    let bias = |e: usize| router.bias.map_or(0.0, |bias| bias.double_value(&[e as i64]));
    let mut ranked: Vec<usize> = (0..scores.len()).collect();
    ranked.sort_by(|&a, &b| (scores[b] + bias(b)).total_cmp(&(scores[a] + bias(a))));
    ranked.truncate(router.top_k as usize);
    let chosen: f64 = ranked.iter().map(|&e| scores[e]).sum();
    let divisor = if router.normalise { chosen } else { 1.0 };
    let weights = ranked.iter().map(|&e| scores[e] / divisor * router.scale).collect();
    let total: f64 = scores.iter().sum();
    let probabilities = scores.iter().map(|score| score / total).collect();
    (ranked.iter().map(|&e| e as i64).collect(), weights, probabilities)
}

#[test]
fn routing_is_the_papers() {
    let (tokens, n_experts) = (50, 7);
    let logits = Noise(3).tensor(&[tokens, n_experts]) * 2.0;
    let bias = Noise(4).tensor(&[n_experts]) * 0.3;
    for scores in [Scores::Softmax, Scores::Sigmoid] {
        for (bias, normalise, scale, top_k) in [
            (None, true, 1.0, 2),
            (Some(&bias), true, 2.5, 3),
            (Some(&bias), false, 1.0, 7),
            (None, false, 0.5, 1),
        ] {
            let router = Router { scores, top_k, bias, normalise, scale };
            let routing = route(&logits, &router).unwrap();
            for token in 0..tokens {
                let row = |x: &Tensor| Vec::<f64>::try_from(x.get(token).to_kind(Kind::Double)).unwrap();
                let (choice, weights, probabilities) = route_by_hand(&row(&logits), &router);
                assert_eq!(Vec::<i64>::try_from(routing.choice.get(token)).unwrap(), choice);
                for (got, want) in [(&routing.weights, weights), (&routing.probabilities, probabilities)] {
                    let off = row(got).iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    assert!(off < 1e-14, "{router:?}: {off:e}");
                }
            }
        }
    }
}

#[test]
fn logits_of_any_size_route() {
    let logits = Tensor::from_slice(&[-1e4_f32, -2e4, -3e4, 1e4, 0.0, 3e4, 0.0, 0.0, 0.0]).reshape([3, 3]);
    for scores in [Scores::Softmax, Scores::Sigmoid] {
        for kind in [Kind::Float, Kind::BFloat16] {
            let logits = logits.to_kind(kind).copy().set_requires_grad(true);
            let router = Router { scores, top_k: 2, bias: None, normalise: true, scale: 1.0 };
            let routing = route(&logits, &router).unwrap();
            assert_eq!(routing.weights.kind(), Kind::Float);
            (routing.weights.square().sum(Kind::Float) + routing.probabilities.square().sum(Kind::Float))
                .backward();
            for x in [&routing.weights, &routing.probabilities, &logits.grad()] {
                assert!(bool::try_from(x.isfinite().all()).unwrap(), "{scores:?}, {kind:?}");
            }
        }
    }
}

#[test]
fn counts_leave_padding_out() {
    let mut noise = Noise(8);
    let choice: Vec<i64> = (0..60).map(|_| noise.below(6) as i64).collect();
    let valid = noise.mask(&[20], 3);
    let flags = Vec::<bool>::try_from(&valid).unwrap();
    for mask in [None, Some(&valid)] {
        let mut expected = [0.0; 7];
        for (pair, &expert) in choice.iter().enumerate() {
            if mask.is_none() || flags[pair / 3] {
                expected[expert as usize] += 1.0;
            }
        }
        let counted = counts(&Tensor::from_slice(&choice).view([20, 3]), 7, mask, Kind::Double).unwrap();
        assert_eq!(Vec::<f64>::try_from(counted).unwrap(), expected);
    }
    let none = counts(&Tensor::zeros([0, 2], (Kind::Int64, CPU)), 3, None, Kind::Float).unwrap();
    assert_eq!(Vec::<f32>::try_from(none).unwrap(), [0.0; 3]);
}

#[test]
fn even_use_is_the_least_loss() {
    let even = Tensor::from_slice(&[6.0, 6.0, 6.0, 6.0]);
    let tokens = Tensor::from(12.0);
    let loss = |counts: &Tensor, probabilities: &Tensor| {
        balance_loss(counts, probabilities, &tokens).unwrap().double_value(&[])
    };
    assert!((loss(&even, &(&even / 2.0)) - 2.0).abs() < 1e-12, "top_k when even");
    let uneven = Tensor::from_slice(&[12.0, 6.0, 6.0, 0.0]);
    assert!(loss(&uneven, &(&uneven / 2.0)) > 2.0);
}

#[test]
fn refusals_name_the_operand() {
    let case = Case::new(SMALL, Scores::Softmax);
    let values = case.values();
    let routing = route(&values[1], &case.router()).unwrap();
    let good = Experts {
        x: &values[0],
        choice: &routing.choice,
        weights: &routing.weights,
        gate: &values[2],
        up: &values[3],
        down: &values[4],
    };
    let (bad, float) = (Tensor::zeros([9, 9, 9, 9], (Kind::Double, CPU)), values[3].to_kind(Kind::Float));
    for (name, args) in [
        ("x", Experts { x: &bad, ..good }),
        ("choice", Experts { choice: &bad, ..good }),
        ("choice", Experts { choice: &routing.weights, ..good }),
        ("weights", Experts { weights: &bad, ..good }),
        ("gate", Experts { gate: &bad, ..good }),
        ("up", Experts { up: &bad, ..good }),
        ("up", Experts { up: &float, ..good }),
        ("down", Experts { down: &bad, ..good }),
    ] {
        let error = experts(&args).unwrap_err().to_string();
        assert!(error.starts_with("experts: expected ") && error.contains(&format!("`{name}`")), "{error}");
    }
    let error = route(&values[1], &Router { top_k: 6, ..case.router() }).unwrap_err().to_string();
    assert_eq!(error, "route: expected 1 to 5 for `top_k`, got 6");
}
