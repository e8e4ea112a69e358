//! The fused step against AdamW written out, and lists of tensors against tensor by tensor.

use tch::{Device, Kind, Tensor, kind::DOUBLE_CPU};
use torch_bridge::guards::NoGrad;
use torch_bridge::optim::{self, FusedAdamW};

fn randn(shapes: &[&[i64]]) -> Vec<Tensor> {
    shapes.iter().map(|shape| Tensor::randn(*shape, DOUBLE_CPU)).collect()
}

fn copies(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(Tensor::copy).collect()
}

fn zeros(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(Tensor::zeros_like).collect()
}

fn all_close(a: &[Tensor], b: &[Tensor], tolerance: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.allclose(b, tolerance, tolerance, false))
}

/// Loshchilov and Hutter 2019, algorithm 2, for one parameter in plain numbers.
struct Reference {
    weight: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
    largest: Vec<f64>,
}

impl Reference {
    fn step(&mut self, grad: &[f64], t: i32, args: &FusedAdamW<'_>) {
        for (i, grad) in grad.iter().enumerate() {
            let grad = if args.maximize { -grad } else { *grad };
            self.weight[i] *= 1.0 - args.lr * args.weight_decay;
            self.first[i] = args.beta1 * self.first[i] + (1.0 - args.beta1) * grad;
            self.second[i] = args.beta2 * self.second[i] + (1.0 - args.beta2) * grad * grad;
            self.largest[i] = self.largest[i].max(self.second[i]);
            let second = if args.amsgrad { self.largest[i] } else { self.second[i] };
            let first = self.first[i] / (1.0 - args.beta1.powi(t));
            let second = second / (1.0 - args.beta2.powi(t));
            self.weight[i] -= args.lr * first / (second.sqrt() + args.eps);
        }
    }
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten(0, -1).try_into().expect("a tensor of doubles")
}

#[test]
fn the_fused_step_is_adamw() {
    for (amsgrad, maximize, weight_decay) in [(false, false, 0.1), (true, false, 0.0), (false, true, 0.3)] {
        let params: Vec<Tensor> =
            randn(&[&[5, 3], &[7], &[]]).into_iter().map(|p| p.set_requires_grad(true)).collect();
        let (exp_avgs, exp_avg_sqs, largest) = (zeros(&params), zeros(&params), zeros(&params));
        let steps: Vec<Tensor> =
            params.iter().map(|_| Tensor::zeros([] as [i64; 0], (Kind::Float, Device::Cpu))).collect();
        let mut references: Vec<Reference> = params
            .iter()
            .map(|p| {
                let zeros = || vec![0.0; p.numel()];
                Reference { weight: numbers(p), first: zeros(), second: zeros(), largest: zeros() }
            })
            .collect();
        for t in 1..=6 {
            let grads = randn(&[&[5, 3], &[7], &[]]);
            optim::foreach_add_scalar_(&steps, 1.0).unwrap();
            let args = FusedAdamW {
                params: &params,
                grads: &grads,
                exp_avgs: &exp_avgs,
                exp_avg_sqs: &exp_avg_sqs,
                max_exp_avg_sqs: if amsgrad { &largest } else { &[] },
                state_steps: &steps,
                lr: 0.05,
                beta1: 0.8,
                beta2: 0.97,
                weight_decay,
                eps: 1e-8,
                amsgrad,
                maximize,
            };
            optim::fused_adamw_(&args).unwrap();
            for (reference, grad) in references.iter_mut().zip(&grads) {
                reference.step(&numbers(grad), t, &args);
            }
        }
        for (param, reference) in params.iter().zip(&references) {
            let error =
                numbers(param).iter().zip(&reference.weight).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            // The kernel keeps its bias corrections in double and the step counts are small whole numbers.
            assert!(error < 1e-9, "amsgrad {amsgrad}, maximize {maximize}: {error}");
            assert!(param.requires_grad() && param.is_leaf());
        }
    }
}

#[test]
fn a_step_with_unequal_lists_is_refused() {
    let (params, grads) = (randn(&[&[2], &[3]]), randn(&[&[2]]));
    let moments = zeros(&params);
    let args = FusedAdamW {
        params: &params,
        grads: &grads,
        exp_avgs: &moments,
        exp_avg_sqs: &moments,
        max_exp_avg_sqs: &[],
        state_steps: &moments,
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        weight_decay: 0.0,
        eps: 1e-8,
        amsgrad: false,
        maximize: false,
    };
    let before = copies(&params);
    assert!(optim::fused_adamw_(&args).unwrap_err().to_string().starts_with("aten::_fused_adamw_: "));
    assert_eq!(params, before);
    assert!(optim::fused_adamw_(&FusedAdamW { params: &[], ..args }).is_ok());
}

#[test]
fn lists_do_what_single_tensors_do() {
    let shapes: [&[i64]; 3] = [&[4, 2], &[3], &[]];
    let (tensors, others) = (randn(&shapes), randn(&shapes));
    let factor = Tensor::from(0.25f64);
    let each = |f: &dyn Fn(&Tensor, &Tensor) -> Tensor| -> Vec<Tensor> {
        tensors.iter().zip(&others).map(|(a, b)| f(a, b)).collect()
    };
    let on_copy = |f: &dyn Fn(&[Tensor]) -> torch_bridge::Result<()>| {
        let copy: Vec<Tensor> = copies(&tensors).into_iter().map(|t| t.set_requires_grad(true)).collect();
        f(&copy).unwrap();
        copy
    };
    let same = |ours: Vec<Tensor>, theirs: Vec<Tensor>| {
        let _off = NoGrad::new();
        assert!(all_close(&ours, &theirs, 1e-12));
    };
    same(on_copy(&|t| optim::foreach_mul_scalar_(t, 3.0)), each(&|a, _| a * 3.0));
    same(on_copy(&|t| optim::foreach_mul_tensor_(t, &factor)), each(&|a, _| a * 0.25));
    same(on_copy(&|t| optim::foreach_add_(t, &others, -0.5)), each(&|a, b| a - b * 0.5));
    same(on_copy(&|t| optim::foreach_add_scalar_(t, 2.0)), each(&|a, _| a + 2.0));
    same(on_copy(&|t| optim::foreach_zero_(t)), each(&|a, _| a.zeros_like()));
    same(on_copy(&|t| optim::foreach_copy_(t, &others)), each(&|_, b| b.copy()));
    same(on_copy(&|t| optim::foreach_lerp_(t, &others, 0.3)), each(&|a, b| a.lerp(b, 0.3)));
    same(optim::foreach_norm(&tensors, 1.0).unwrap(), each(&|a, _| a.abs().sum(None)));
    same(optim::foreach_norm(&tensors, f64::INFINITY).unwrap(), each(&|a, _| a.abs().max()));

    let low: Vec<Tensor> = tensors.iter().map(|t| t.zeros_like().to_kind(Kind::BFloat16)).collect();
    optim::foreach_copy_(&low, &tensors).unwrap();
    assert!(
        low.iter().zip(&tensors).all(|(low, t)| *low == t.to_kind(Kind::BFloat16)),
        "kinds are converted"
    );
}

#[test]
fn empty_lists_do_nothing_and_unequal_ones_are_refused() {
    let one = randn(&[&[2]]);
    assert!(optim::foreach_norm(&[], 2.0).unwrap().is_empty());
    for outcome in [
        optim::foreach_mul_scalar_(&[], 2.0),
        optim::foreach_zero_(&[]),
        optim::foreach_copy_(&[], &[]),
        optim::clip_grad_norm_(&[], 1.0).map(drop),
    ] {
        assert!(outcome.is_ok());
    }
    assert!(optim::foreach_copy_(&[], &one).is_err());
    assert!(optim::foreach_add_(&one, &[], 1.0).is_err());
    assert!(optim::foreach_mul_tensor_(&one, &Tensor::ones([2], DOUBLE_CPU)).is_err());
}

#[test]
fn clipping_is_torchs() {
    let grads = randn(&[&[4, 4], &[5], &[]]);
    let expected = Tensor::cat(&grads.iter().map(|g| g.flatten(0, -1)).collect::<Vec<_>>(), 0).norm();
    let norm = expected.double_value(&[]);
    assert!((optim::total_norm(&grads).unwrap().double_value(&[]) - norm).abs() < 1e-12);

    for max_norm in [norm * 2.0, norm * 0.1, 0.0] {
        let clipped = copies(&grads);
        let before = optim::clip_grad_norm_(&clipped, max_norm).unwrap();
        assert!((before.double_value(&[]) - norm).abs() < 1e-12 && before.size().is_empty());
        let factor = (max_norm / (norm + 1e-6)).min(1.0);
        assert!(all_close(&clipped, &grads.iter().map(|g| g * factor).collect::<Vec<_>>(), 1e-14));
    }
    let unclipped = copies(&grads);
    let _ = optim::clip_grad_norm_(&unclipped, norm * 2.0).unwrap();
    assert_eq!(unclipped, grads, "bit for bit");
}

#[test]
fn norms_of_low_precision_are_accumulated_in_float() {
    let low = Tensor::ones([100_000], (Kind::BFloat16, Device::Cpu)) * 0.01;
    let mixed = [low.shallow_clone(), Tensor::from_slice(&[1.0f32, 2.0]), Tensor::from_slice(&[2.0f64])];
    let exact: f64 = mixed.iter().map(|t| t.to_kind(Kind::Double).square().sum(None).double_value(&[])).sum();
    let norm = optim::total_norm(&mixed).unwrap();
    assert_eq!(norm.kind(), Kind::Double);
    // Summed in float; in bfloat16 the result alone would be off by up to 4e-3.
    let error = norm.double_value(&[]) / exact.sqrt() - 1.0;
    assert!(error.abs() < 1e-4, "{error}");
    assert_eq!(optim::total_norm(&[low]).unwrap().kind(), Kind::Float);
    let clipped = copies(&mixed);
    let _ = optim::clip_grad_norm_(&clipped, 1.0).unwrap();
    assert_eq!(
        clipped.iter().map(Tensor::kind).collect::<Vec<_>>(),
        [Kind::BFloat16, Kind::Float, Kind::Double]
    );
    assert!((optim::total_norm(&clipped).unwrap().double_value(&[]) - 1.0).abs() < 5e-3);
}

#[test]
fn a_norm_that_is_not_finite_is_seen() {
    let grads = [Tensor::from_slice(&[1.0f64, f64::INFINITY])];
    assert!(optim::clip_grad_norm_(&grads, 1.0).unwrap().double_value(&[]).is_infinite());
}
