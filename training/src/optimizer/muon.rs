//! `kind: muon`: momentum whose matrices are made orthogonal (Jordan et al. 2024), AdamW for everything else.

use glob::Pattern;
use hymba_plus::{
    component_config,
    params::{Parameter, Parameters},
    register,
};
use tch::{Device, Kind, Tensor};
use torch_bridge::{guards::NoGrad, optim};

use super::{AdamW, Optimizer, OptimizerError, adamw};
use crate::{
    checkpoint::NamedTensors,
    slot::{OptimizerSpec, optimizer},
};

/// Muon for matrices between hidden vectors, AdamW for embeddings, heads, convolutions, norms, biases and whatever is no
/// matrix. Settings and equations are those of PyTorch's `Muon`.
///
/// `buffer = momentum buffer + (1 - momentum) gradient`; the update is the nearest orthogonal matrix to the buffer (to
/// `momentum buffer + (1 - momentum) gradient` under `nesterov`), found by Newton and Schulz's iteration in bfloat16;
/// `weight = (1 - lr weight_decay) weight - lr scale update`.
#[component_config]
pub struct Muon {
    /// Learning rate of the matrices; the schedule multiplies it.
    #[schemars(range(min = 0.0))]
    #[default(1e-3)]
    pub lr: f64,
    /// Share of the buffer that stays.
    #[default(0.95)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub momentum: f64,
    /// Look ahead by one step of momentum.
    #[default(true)]
    pub nesterov: bool,
    /// Iterations of Newton and Schulz.
    #[default(5)]
    #[schemars(range(min = 1, max = 100))]
    pub ns_steps: usize,
    /// Decoupled weight decay of the matrices, multiplied by the learning rate.
    #[schemars(range(min = 0.0))]
    #[default(0.1)]
    pub weight_decay: f64,
    /// What the update is multiplied by.
    #[default(Scale::MatchRmsAdamw)]
    pub adjust_lr: Scale,
    /// Patterns of parameters that AdamW moves although they are matrices.
    #[default(["embedding.*", "head.*", "heads.*", "meta_tokens", "*.conv.weight"].map(str::to_owned).to_vec())]
    pub adamw_for: Vec<String>,
    /// What moves the other parameters; the schedule multiplies its learning rate, too.
    #[default(AdamW { lr: 1e-3, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1 })]
    pub adamw: AdamW,
}

/// Scales of an orthogonal update of `rows x columns`.
#[component_config]
pub enum Scale {
    /// `sqrt(max(1, rows / columns))` (Jordan et al. 2024).
    Original,
    /// `0.2 sqrt(max(rows, columns))`: as large, element by element, as AdamW's usual update, so that learning rates and
    /// decays tuned for it serve (Liu et al. 2025).
    MatchRmsAdamw,
}

register!(optimizer "muon" => Muon);

/// Coefficients of the iteration `X = a X + (b A + c A A) X` with `A = X X^T`: steepest at zero, never far from one.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.775, 2.0315];
/// The least norm that a matrix is divided by.
const EPS: f64 = 1e-7;

impl Muon {
    fn check(&self) -> Result<Vec<Pattern>, OptimizerError> {
        let positive = |value: f64| value >= 0.0 && value.is_finite();
        for (name, value, right, expected) in [
            ("lr", self.lr, positive(self.lr), "a finite number, 0 or more"),
            ("weight_decay", self.weight_decay, positive(self.weight_decay), "a finite number, 0 or more"),
            ("momentum", self.momentum, (0.0..1.0).contains(&self.momentum), "in 0 to 1, without 1"),
        ] {
            if !right {
                return Err(OptimizerError::Setting { name, value, expected });
            }
        }
        let pattern = |text: &String| {
            Pattern::new(text).map_err(|error| OptimizerError::Pattern {
                pattern: text.clone(),
                message: error.to_string(),
            })
        };
        self.adamw_for.iter().map(pattern).collect()
    }
}

impl OptimizerSpec for Muon {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn build(&self, parameters: &Parameters) -> Result<Box<dyn Optimizer>, OptimizerError> {
        let patterns = self.check()?;
        let is_matrix = |parameter: &Parameter| {
            let plan = &parameter.plan;
            plan.shape.len() == 2
                && plan.weight_decay
                && !plan.keep_float
                && !patterns.iter().any(|pattern| pattern.matches(&plan.name))
        };
        let (matrices, others): (Vec<&Parameter>, Vec<&Parameter>) =
            parameters.trained().partition(|parameter| is_matrix(parameter));
        let mut groups: Vec<Group> = Vec::new();
        for parameter in matrices {
            let tensor = parameter.tensor.shallow_clone();
            let key = (tensor.size(), tensor.device(), tensor.kind());
            let index = groups.iter().position(|group| group.key == key).unwrap_or_else(|| {
                groups.push(Group { key, names: vec![], params: vec![], buffers: vec![] });
                groups.len() - 1
            });
            let group = &mut groups[index];
            group.names.push(parameter.plan.name.clone());
            group.buffers.push(tensor.f_zeros_like()?.f_detach()?);
            group.params.push(tensor);
        }
        let rest = adamw::over(&self.adamw, others.into_iter())?;
        Ok(Box::new(Built { config: self.clone(), groups, rest }))
    }
}

/// Matrices of one shape: the iteration runs for all of them at once.
#[derive(Debug)]
struct Group {
    key: (Vec<i64>, Device, Kind),
    names: Vec<String>,
    params: Vec<Tensor>,
    buffers: Vec<Tensor>,
}

/// Muon over its matrices, and AdamW over the rest.
struct Built {
    config: Muon,
    groups: Vec<Group>,
    rest: Box<dyn Optimizer>,
}

impl Optimizer for Built {
    fn step(&mut self, factor: f64) -> Result<(), OptimizerError> {
        {
            let _no_grad = NoGrad::new();
            for group in &self.groups {
                group.step(&self.config, self.config.lr * factor)?;
            }
        }
        self.rest.step(factor)
    }

    fn state(&self) -> NamedTensors {
        let mut state = self.rest.state();
        for group in &self.groups {
            for (name, buffer) in group.names.iter().zip(&group.buffers) {
                state.push((format!("momentum_buffer.{name}"), buffer.shallow_clone()));
            }
        }
        state
    }
}

impl Group {
    fn step(&self, config: &Muon, lr: f64) -> Result<(), OptimizerError> {
        let grads = self
            .params
            .iter()
            .map(|param| {
                let grad = param.f_grad()?;
                if grad.defined() { Ok(grad) } else { param.f_zeros_like() }
            })
            .collect::<Result<Vec<_>, tch::TchError>>()?;
        optim::foreach_lerp_(&self.buffers, &grads, 1.0 - config.momentum)?;
        let buffers = Tensor::f_stack(&self.buffers, 0)?;
        let direction = if config.nesterov {
            Tensor::f_stack(&grads, 0)?.f_lerp(&buffers, config.momentum)?
        } else {
            buffers
        };
        let update = orthogonal(&direction, config.ns_steps)?;
        let (rows, columns) = (self.key.0[0] as f64, self.key.0[1] as f64);
        let scale = match config.adjust_lr {
            Scale::Original => (rows / columns).max(1.0).sqrt(),
            Scale::MatchRmsAdamw => 0.2 * rows.max(columns).sqrt(),
        };
        optim::foreach_mul_scalar_(&self.params, 1.0 - lr * config.weight_decay)?;
        optim::foreach_add_(&self.params, &update.f_unbind(0)?, -lr * scale)?;
        Ok(())
    }
}

/// The orthogonal matrices nearest to `x [count, rows, columns]`, nearly (singular values between 0.7 and 1.2), in `x`'s
/// type: each is divided by its norm, then iterated in bfloat16 (in `Double` where `x` is), the smaller side in front.
fn orthogonal(x: &Tensor, steps: usize) -> Result<Tensor, tch::TchError> {
    let [a, b, c] = COEFFICIENTS;
    let (_, rows, columns) = x.size3()?;
    let kind = if x.kind() == Kind::Double { Kind::Double } else { Kind::BFloat16 };
    let tall = rows > columns;
    let mut y = x.f_to_kind(kind)?;
    if tall {
        y = y.f_transpose(1, 2)?;
    }
    let norm = y.f_norm_scalaropt_dim(2.0, [1_i64, 2].as_slice(), true)?;
    y = y.f_div(&norm.f_clamp_min(EPS)?)?;
    for _ in 0..steps {
        let gram = y.f_matmul(&y.f_transpose(1, 2)?)?;
        let polynomial = Tensor::f_baddbmm(&gram, &gram, &gram, b, c)?;
        y = Tensor::f_baddbmm(&y, &polynomial, &y, a, 1.0)?;
    }
    if tall {
        y = y.f_transpose(1, 2)?;
    }
    y.f_to_kind(x.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_are_nearly_orthogonal_whatever_the_shape_and_scale() {
        for (rows, columns) in [(8, 8), (16, 6), (6, 16)] {
            let x = Tensor::randn([3, rows, columns], (Kind::Double, Device::Cpu)) * 1e3;
            let y = orthogonal(&x, 10).unwrap();
            let (_, values, _) = y.svd(true, false);
            let (least, most) = (values.min().double_value(&[]), values.max().double_value(&[]));
            assert!(least > 0.5 && most < 1.4, "{rows} x {columns}: singular values {least} to {most}");
        }
    }
}
