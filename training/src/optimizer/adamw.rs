//! `kind: adamw`: Adam with decoupled weight decay (Loshchilov & Hutter 2019), one fused call per group.

use hymba_plus::{
    component_config,
    params::{Parameter, Parameters},
    register,
};
use tch::{Device, Kind, Tensor};
use torch_bridge::optim::{FusedAdamW, fused_adamw_};

use super::{Optimizer, OptimizerError};
use crate::{
    checkpoint::NamedTensors,
    slot::{OptimizerSpec, optimizer},
};

/// Adam with decoupled weight decay. Parameters whose plan exempts them (biases, norms, `A_log`, `D`, ...) are not
/// decayed.
#[component_config]
pub struct AdamW {
    /// Learning rate; the schedule multiplies it.
    #[schemars(range(min = 0.0))]
    #[default(1e-3)]
    pub lr: f64,
    /// Decay rates of the first and second moment.
    #[default([0.9, 0.95])]
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    #[schemars(range(min = 0.0))]
    #[default(1e-8)]
    pub eps: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    #[schemars(range(min = 0.0))]
    #[default(0.1)]
    pub weight_decay: f64,
}

register!(optimizer "adamw" => AdamW);

impl AdamW {
    fn check(&self) -> Result<(), OptimizerError> {
        let positive = |value: f64| value >= 0.0 && value.is_finite();
        for (name, value, right, expected) in [
            ("lr", self.lr, positive(self.lr), "a finite number, 0 or more"),
            ("eps", self.eps, positive(self.eps), "a finite number, 0 or more"),
            ("weight_decay", self.weight_decay, positive(self.weight_decay), "a finite number, 0 or more"),
            ("betas[0]", self.betas[0], (0.0..1.0).contains(&self.betas[0]), "in 0 to 1, without 1"),
            ("betas[1]", self.betas[1], (0.0..1.0).contains(&self.betas[1]), "in 0 to 1, without 1"),
        ] {
            if !right {
                return Err(OptimizerError::Setting { name, value, expected });
            }
        }
        Ok(())
    }
}

impl OptimizerSpec for AdamW {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn build(&self, parameters: &Parameters) -> Result<Box<dyn Optimizer>, OptimizerError> {
        over(self, parameters.trained())
    }
}

/// AdamW over some of the parameters.
pub(super) fn over<'a>(
    config: &AdamW,
    parameters: impl Iterator<Item = &'a Parameter>,
) -> Result<Box<dyn Optimizer>, OptimizerError> {
    config.check()?;
    let mut groups: Vec<Group> = Vec::new();
    for parameter in parameters {
        let tensor = parameter.tensor.shallow_clone();
        let key = Key { decay: parameter.plan.weight_decay, device: tensor.device(), kind: tensor.kind() };
        let index = groups.iter().position(|group| group.key == key).unwrap_or_else(|| {
            groups.push(Group::new(key));
            groups.len() - 1
        });
        let group = &mut groups[index];
        group.names.push(parameter.plan.name.clone());
        group.exp_avgs.push(tensor.f_zeros_like()?.f_detach()?);
        group.exp_avg_sqs.push(tensor.f_zeros_like()?.f_detach()?);
        group.params.push(tensor);
    }
    let steps = Tensor::f_zeros([], (Kind::Int64, Device::Cpu))?;
    Ok(Box::new(Built { config: config.clone(), groups, steps }))
}

/// What the parameters of one fused call have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Key {
    decay: bool,
    device: Device,
    kind: Kind,
}

/// Parameters of one fused call and their moments, in the plan's order.
#[derive(Debug)]
struct Group {
    key: Key,
    names: Vec<String>,
    params: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
}

impl Group {
    fn new(key: Key) -> Self {
        Self { key, names: vec![], params: vec![], exp_avgs: vec![], exp_avg_sqs: vec![] }
    }
}

/// AdamW over its parameters.
#[derive(Debug)]
struct Built {
    config: AdamW,
    groups: Vec<Group>,
    /// Steps that were made: one number for all, `Int64 []` on the CPU.
    steps: Tensor,
}

impl Optimizer for Built {
    fn step(&mut self, factor: f64) -> Result<(), OptimizerError> {
        let _no_grad = torch_bridge::guards::NoGrad::new();
        let _ = self.steps.f_add_scalar_(1)?;
        let count = self.steps.f_int64_value(&[])?;
        for group in &self.groups {
            let grads = group
                .params
                .iter()
                .map(|param| {
                    let grad = param.f_grad()?;
                    if grad.defined() { Ok(grad) } else { param.f_zeros_like() }
                })
                .collect::<Result<Vec<_>, tch::TchError>>()?;
            // The kernel reads one counter per parameter; they are all the same one.
            let state_step = Tensor::f_full([], count, (Kind::Float, group.key.device))?;
            let state_steps: Vec<Tensor> = group.params.iter().map(|_| state_step.shallow_clone()).collect();
            fused_adamw_(&FusedAdamW {
                params: &group.params,
                grads: &grads,
                exp_avgs: &group.exp_avgs,
                exp_avg_sqs: &group.exp_avg_sqs,
                max_exp_avg_sqs: &[],
                state_steps: &state_steps,
                lr: self.config.lr * factor,
                beta1: self.config.betas[0],
                beta2: self.config.betas[1],
                weight_decay: if group.key.decay { self.config.weight_decay } else { 0.0 },
                eps: self.config.eps,
                amsgrad: false,
                maximize: false,
            })?;
        }
        Ok(())
    }

    fn state(&self) -> NamedTensors {
        let mut state = vec![("step".to_owned(), self.steps.shallow_clone())];
        for group in &self.groups {
            for (index, name) in group.names.iter().enumerate() {
                state.push((format!("exp_avg.{name}"), group.exp_avgs[index].shallow_clone()));
                state.push((format!("exp_avg_sq.{name}"), group.exp_avg_sqs[index].shallow_clone()));
            }
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use hymba_plus::params::{Init, ParameterPlan};

    use super::*;
    use crate::checkpoint::{TensorFile, write_tensors};

    fn plan(name: &str, shape: &[i64], weight_decay: bool) -> ParameterPlan {
        ParameterPlan {
            name: name.to_owned(),
            shape: shape.to_vec(),
            init: Init::Normal { std: 1.0 },
            weight_decay,
            keep_float: false,
            trained: true,
        }
    }

    fn parameters() -> Parameters {
        let plan = [plan("linear.weight", &[3, 2], true), plan("norm.weight", &[3], false)];
        Parameters::allocate(&plan, Device::Cpu, Kind::Double, 1).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.reshape([-1])).unwrap()
    }

    /// Algorithm 2 of Loshchilov & Hutter 2019, by hand, on one number.
    fn reference(mut x: f64, grads: &[f64], lr: f64, decay: f64) -> f64 {
        let (mut m, mut v) = (0.0, 0.0);
        for (t, g) in (1..).zip(grads) {
            m = 0.9 * m + 0.1 * g;
            v = 0.95 * v + 0.05 * g * g;
            x -= lr * decay * x;
            x -= lr * (m / (1.0 - 0.9_f64.powi(t))) / ((v / (1.0 - 0.95_f64.powi(t))).sqrt() + 1e-8);
        }
        x
    }

    #[test]
    fn groups_decay_as_planned_and_a_step_is_the_papers() {
        let parameters = parameters();
        let before: Vec<Vec<f64>> = parameters.iter().map(|p| values(&p.tensor)).collect();
        let config = AdamW { lr: 0.01, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.5 };
        let mut optimizer = config.build(&parameters).unwrap();
        for scale in [1.0, -3.0, 0.5] {
            zero_and_backward(&parameters, scale);
            optimizer.step(0.1).unwrap();
        }
        for (index, parameter) in parameters.iter().enumerate() {
            let decay = if parameter.plan.weight_decay { 0.5 } else { 0.0 };
            for (now, was) in values(&parameter.tensor).iter().zip(&before[index]) {
                let expected = reference(*was, &[1.0, -3.0, 0.5], 0.001, decay);
                assert!(
                    (now - expected).abs() < 1e-10,
                    "{}: {now}, expected {expected}",
                    parameter.plan.name
                );
            }
        }
    }

    fn zero_and_backward(parameters: &Parameters, scale: f64) {
        super::super::zero_gradients(parameters).unwrap();
        let sum = |p: &hymba_plus::params::Parameter| p.tensor.sum(None::<Kind>);
        (parameters.iter().map(sum).reduce(|a, b| a + b).unwrap() * scale).backward();
    }

    #[test]
    fn a_saved_state_goes_on_bit_for_bit_and_another_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optimizer.safetensors");
        let config = AdamW { lr: 0.1, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1 };
        let (one, two) = (parameters(), parameters());
        let (mut a, mut b) = (config.build(&one).unwrap(), config.build(&two).unwrap());
        zero_and_backward(&one, 2.0);
        a.step(1.0).unwrap();
        write_tensors(&path, &a.state()).unwrap();
        b.load_state(&TensorFile::open(&path).unwrap()).unwrap();
        for (target, source) in two.iter().zip(&one) {
            tch::no_grad(|| target.tensor.shallow_clone().copy_(&source.tensor));
        }
        for (parameters, optimizer) in [(&one, &mut a), (&two, &mut b)] {
            zero_and_backward(parameters, -1.0);
            optimizer.step(0.5).unwrap();
        }
        for (x, y) in one.iter().zip(&two) {
            assert_eq!(values(&x.tensor), values(&y.tensor));
        }
        let other =
            Parameters::allocate(&[plan("linear.weight", &[4, 2], true)], Device::Cpu, Kind::Double, 1);
        let error = config
            .build(&other.unwrap())
            .unwrap()
            .load_state(&TensorFile::open(&path).unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("2 unexpected: exp_avg.norm.weight, exp_avg_sq.norm.weight"), "{error}");
        assert!(error.contains("exp_avg.linear.weight is [3, 2] in the file, [4, 2] here"), "{error}");
    }

    #[test]
    fn a_parameter_that_nothing_reaches_still_decays_the_same_way_after_a_resume() {
        let parameters = parameters();
        let mut optimizer =
            AdamW { lr: 0.1, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.5 }.build(&parameters).unwrap();
        let weight = parameters.get("linear.weight").unwrap();
        let before = values(&weight.tensor);
        optimizer.step(1.0).unwrap();
        for (now, was) in values(&weight.tensor).iter().zip(before) {
            assert!((now - was * 0.95).abs() < 1e-12);
        }
        assert_eq!(super::super::without_gradient(&parameters).len(), 2);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let config = AdamW { lr: 0.1, betas: [0.9, 1.0], eps: 1e-8, weight_decay: 0.5 };
        let error = config.build(&parameters()).err().unwrap().to_string();
        assert!(error.contains("betas[1] is 1"), "{error}");
    }
}
