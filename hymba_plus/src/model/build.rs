//! From plan to modules: allocates nothing but what the plan lists.

use std::collections::BTreeMap;

use kernels::weight_only_linear::linear;
use tch::Tensor;
use torch_bridge::{Error, Result};

use super::{
    Parts,
    slot::{NormModule, PositionModule, norm, position},
};
use crate::{
    params::Parameters,
    plan::{ChildPlan, MatrixPlan, ModulePlan},
    registry::{Component, Slot},
};

/// Hands modules the parameters that their plans named.
#[derive(Debug)]
pub(crate) struct Builder<'a> {
    pub(crate) parameters: &'a Parameters,
}

/// Builds a component into its module: `build_module!(component, &plan, builder)`.
macro_rules! build_module {
    ($component:expr, $plan:expr, $builder:expr) => {
        $crate::model::build::made(&$component).and_then(|spec| Ok(spec.build($builder.parts($plan)?)))
    };
}
pub(super) use build_module;

/// The spec of a component; resolve has made it before, so an error means that the plan was altered.
pub(super) fn made<S: Slot>(component: &Component<S>) -> Result<Box<S::Object>> {
    component.make().map_err(|error| Error::other(error.to_string()))
}

impl Builder<'_> {
    pub(super) fn parameter(&self, name: &str) -> Result<Tensor> {
        let found = self.parameters.get(name).map(|parameter| parameter.tensor.shallow_clone());
        found.ok_or_else(|| Error::other(format!("the plan lists no parameter `{name}`")))
    }

    pub(crate) fn parts(&self, plan: &ModulePlan) -> Result<Parts> {
        let prefix = format!("{}.", plan.name);
        let mut parameters = BTreeMap::new();
        for parameter in &plan.parameters {
            let name = parameter.name.strip_prefix(&prefix).unwrap_or(&parameter.name);
            parameters.insert(name.to_owned(), self.parameter(&parameter.name)?);
        }
        let mut norms: BTreeMap<String, Box<dyn NormModule>> = BTreeMap::new();
        let mut positions: BTreeMap<String, Box<dyn PositionModule>> = BTreeMap::new();
        for (name, child) in &plan.children {
            if child.slot == norm::NAME {
                norms.insert(name.clone(), build_module!(component::<norm>(child), &child.plan, self)?);
            } else if child.slot == position::NAME {
                positions
                    .insert(name.clone(), build_module!(component::<position>(child), &child.plan, self)?);
            }
        }
        Ok(Parts { plan: plan.clone(), parameters, norms, positions })
    }

    pub(super) fn matrices(&self, plans: &[MatrixPlan]) -> Result<Vec<Matrix>> {
        let matrix = |plan: &MatrixPlan| -> Result<Matrix> {
            let bias = plan.bias.then(|| self.parameter(&format!("{}.bias", plan.name))).transpose()?;
            Ok(Matrix { weight: self.parameter(&format!("{}.weight", plan.name))?, bias })
        };
        plans.iter().map(matrix).collect()
    }
}

fn component<S: Slot>(child: &ChildPlan) -> Component<S> {
    Component::new(&child.kind, child.config.clone())
}

/// A matrix of a projection at work.
#[derive(Debug)]
pub(super) struct Matrix {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Matrix {
    /// `[..., columns]` to `[..., rows]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => Ok(x.f_linear(&self.weight, Some(bias))?),
            None => linear(x, &self.weight),
        }
    }
}
