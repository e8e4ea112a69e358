//! Muon against three steps of PyTorch's, and against its equations in `f64`.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

use hymba_plus::params::{Init, ParameterPlan, Parameters};
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use training::{
    optimizer::{AdamW, Muon, Scale},
    prelude::OptimizerSpec,
};

fn plan(name: &str, shape: &[i64]) -> ParameterPlan {
    ParameterPlan {
        name: name.to_owned(),
        shape: shape.to_vec(),
        init: Init::Normal { std: 1.0 },
        weight_decay: shape.len() > 1,
        keep_float: false,
        trained: true,
    }
}

fn muon(adjust_lr: Scale) -> Muon {
    let adamw = AdamW { lr: 0.01, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1 };
    Muon {
        lr: 0.02,
        momentum: 0.95,
        nesterov: true,
        ns_steps: 5,
        weight_decay: 0.1,
        adjust_lr,
        adamw_for: vec!["embedding.*".to_owned()],
        adamw,
    }
}

fn set(tensor: &Tensor, values: &Tensor) {
    tch::no_grad(|| tensor.shallow_clone().copy_(values));
}

/// Makes `gradient` the gradient of a parameter.
fn give(parameter: &Tensor, gradient: &Tensor) {
    if parameter.grad().defined() {
        let _ = parameter.grad().zero_();
    }
    (parameter * gradient).sum(None::<Kind>).backward();
}

fn distance(x: &Tensor, y: &Tensor) -> f64 {
    ((x - y).square().mean(Kind::Double) / y.square().mean(Kind::Double)).sqrt().double_value(&[])
}

#[test]
fn three_steps_are_those_of_pytorch() {
    let all: Value = serde_json::from_str(include_str!("fixtures/muon.json")).unwrap();
    let shapes: Vec<Vec<i64>> = serde_json::from_value(all["shapes"].clone()).unwrap();
    let tensor = |value: &Value, shape: &[i64]| {
        Tensor::from_slice(&serde_json::from_value::<Vec<f32>>(value.clone()).unwrap()).view(shape)
    };
    for (name, scale) in [("original", Scale::Original), ("match_rms_adamw", Scale::MatchRmsAdamw)] {
        let given = &all[name];
        let plans: Vec<_> =
            shapes.iter().enumerate().map(|(i, shape)| plan(&format!("layers.{i}.weight"), shape)).collect();
        let parameters = Parameters::allocate(&plans, Device::Cpu, Kind::Float, 1).unwrap();
        for (i, parameter) in parameters.iter().enumerate() {
            set(&parameter.tensor, &tensor(&given["initial"][i], &shapes[i]));
        }
        let mut optimizer = muon(scale).build(&parameters).unwrap();
        for step in 0..3 {
            for (i, parameter) in parameters.iter().enumerate() {
                give(&parameter.tensor, &tensor(&given["grads"][step][i], &shapes[i]));
            }
            optimizer.step(1.0).unwrap();
        }
        for (i, parameter) in parameters.iter().enumerate() {
            let start = tensor(&given["initial"][i], &shapes[i]);
            // What moved, not where it stands. Both iterate in bfloat16, in products of other orders.
            let ours = parameter.tensor.detach() - &start;
            let distance = distance(&ours, &(tensor(&given["final"][i], &shapes[i]) - &start));
            assert!(distance < 2e-2, "{name}, {:?}: {distance:e}", shapes[i]);
        }
    }
}

#[test]
fn matrices_move_by_the_equations_and_the_rest_by_adamw() {
    let plans = [
        plan("embedding.weight", &[7, 4]),
        plan("layers.0.a", &[4, 6]),
        plan("layers.0.norm", &[4]),
        plan("layers.1.a", &[4, 6]),
    ];
    let (ours, adamw) = (
        Parameters::allocate(&plans, Device::Cpu, Kind::Double, 5).unwrap(),
        Parameters::allocate(&plans, Device::Cpu, Kind::Double, 5).unwrap(),
    );
    let config = muon(Scale::Original);
    let (mut a, mut b) = (config.build(&ours).unwrap(), config.adamw.build(&adamw).unwrap());
    let start: Vec<Tensor> = ours.iter().map(|parameter| parameter.tensor.detach().copy()).collect();
    let gradients: Vec<Vec<Tensor>> = (0..2)
        .map(|_| plans.iter().map(|plan| Tensor::randn(&plan.shape, (Kind::Double, Device::Cpu))).collect())
        .collect();
    for step in &gradients {
        for (i, gradient) in step.iter().enumerate() {
            give(&ours.iter().nth(i).unwrap().tensor, gradient);
            give(&adamw.iter().nth(i).unwrap().tensor, gradient);
        }
        a.step(0.5).unwrap();
        b.step(0.5).unwrap();
    }
    for (i, (ours, adamw)) in ours.iter().zip(&adamw).enumerate() {
        if !ours.plan.name.starts_with("layers") || ours.plan.shape.len() < 2 {
            assert!(ours.tensor.equal(&adamw.tensor), "{}", ours.plan.name);
            continue;
        }
        let (mut x, mut buffer) = (start[i].copy(), start[i].zeros_like());
        for step in &gradients {
            buffer = &buffer * 0.95 + &step[i] * 0.05;
            let mut y = &buffer * 0.95 + &step[i] * 0.05;
            y = &y / y.square().sum(Kind::Double).sqrt();
            for _ in 0..5 {
                let gram = y.matmul(&y.transpose(0, 1));
                y = &y * 3.4445 + (&gram * -4.775 + gram.matmul(&gram) * 2.0315).matmul(&y);
            }
            x = &x * (1.0 - 0.01 * 0.1) - y * 0.01;
        }
        assert!(distance(&ours.tensor.detach(), &x) < 1e-12, "{}", ours.plan.name);
    }
    let names: Vec<String> = a.state().into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"momentum_buffer.layers.1.a".to_owned()), "{names:?}");
    assert!(names.contains(&"exp_avg.embedding.weight".to_owned()) && names.contains(&"step".to_owned()));
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    let parameters = Parameters::allocate(&[plan("a", &[2, 2])], Device::Cpu, Kind::Float, 1).unwrap();
    let refused = |muon: Muon| muon.build(&parameters).err().unwrap().to_string();
    assert!(refused(Muon { momentum: 1.0, ..muon(Scale::Original) }).contains("momentum is 1"));
    let pattern = Muon { adamw_for: vec!["a[".to_owned()], ..muon(Scale::Original) };
    assert!(refused(pattern).contains("`a[` is no pattern"));
}
