//! Parameters: an ordered list of named tensors, exactly those that the plan lists.

mod init;

use std::collections::BTreeMap;

use serde::Serialize;
use tch::{Device, Kind, Tensor};
use torch_bridge::Error;

pub use init::Init;

/// One parameter as the plan knows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ParameterPlan {
    /// Dotted name, the same in checkpoints and metrics: `layers.3.in_proj.weight`.
    pub name: String,
    /// Shape.
    pub shape: Vec<i64>,
    /// Starting values.
    pub init: Init,
    /// Whether weight decay applies to it. Biases, norms, `A_log`, `D` and the like are exempt.
    pub weight_decay: bool,
    /// Whether it stays in `Float` whatever the compute type (`A_log`, `D`, step-size biases).
    pub keep_float: bool,
    /// Whether gradients and optimizers change it. One that is not trained is a buffer: saved like the others, changed
    /// by its module alone.
    pub trained: bool,
}

impl ParameterPlan {
    /// Number of elements.
    pub fn count(&self) -> u64 {
        self.shape.iter().fold(1, |count: u64, &size| count.saturating_mul(size.unsigned_abs()))
    }
}

/// A parameter and its tensor, a leaf that requires a gradient unless the plan says that it is not trained.
#[derive(Debug)]
pub struct Parameter {
    /// What the plan says of it.
    pub plan: ParameterPlan,
    /// Its values.
    pub tensor: Tensor,
}

/// All parameters of a model in the plan's order.
#[derive(Debug)]
pub struct Parameters {
    list: Vec<Parameter>,
    by_name: BTreeMap<String, usize>,
}

impl Parameters {
    /// Allocates and initialises the parameters of a plan.
    ///
    /// # Errors
    /// When libtorch refuses (out of memory).
    pub fn allocate(
        plan: &[ParameterPlan],
        device: Device,
        kind: Kind,
        seed: u64,
    ) -> torch_bridge::Result<Self> {
        let mut list = Vec::with_capacity(plan.len());
        let mut by_name = BTreeMap::new();
        for parameter in plan {
            let kind = if parameter.keep_float && kind != Kind::Double { Kind::Float } else { kind };
            let values = parameter.init.draw(&parameter.shape, seed_of(seed, &parameter.name))?;
            let tensor =
                values.f_to_device(device)?.f_to_kind(kind)?.f_set_requires_grad(parameter.trained)?;
            by_name.insert(parameter.name.clone(), list.len());
            list.push(Parameter { plan: parameter.clone(), tensor });
        }
        Ok(Self { list, by_name })
    }

    /// Parameters that exist already.
    pub(crate) fn of(list: Vec<Parameter>) -> Self {
        let by_name = list.iter().enumerate().map(|(index, p)| (p.plan.name.clone(), index)).collect();
        Self { list, by_name }
    }

    /// Every parameter, in the plan's order.
    pub fn iter(&self) -> std::slice::Iter<'_, Parameter> {
        self.list.iter()
    }

    /// The parameters that gradients and optimizers change, in the plan's order.
    pub fn trained(&self) -> impl Iterator<Item = &Parameter> {
        self.list.iter().filter(|parameter| parameter.plan.trained)
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The parameter of that name.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.by_name.get(name).map(|&index| &self.list[index])
    }

    /// Copies values into a parameter, converting type and device.
    ///
    /// # Errors
    /// When there is no such parameter or the shapes differ.
    pub fn set(&self, name: &str, values: &Tensor) -> torch_bridge::Result<()> {
        let parameter =
            self.get(name).ok_or_else(|| Error::other(format!("there is no parameter `{name}`")))?;
        if values.size() != parameter.plan.shape {
            let (got, want) = (values.size(), &parameter.plan.shape);
            return Err(Error::other(format!("parameter `{name}` has shape {want:?}, got {got:?}")));
        }
        let _guard = torch_bridge::guards::NoGrad::new();
        parameter.tensor.shallow_clone().f_copy_(values)?;
        Ok(())
    }

    /// Handles on every tensor, in order; they share storage with the parameters.
    pub fn tensors(&self) -> Vec<Tensor> {
        self.list.iter().map(|parameter| parameter.tensor.shallow_clone()).collect()
    }
}

impl<'a> IntoIterator for &'a Parameters {
    type Item = &'a Parameter;
    type IntoIter = std::slice::Iter<'a, Parameter>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// A seed for one name: FNV-1a over the recipe's seed and the name, so that it depends on nothing else.
pub fn seed_of(seed: u64, name: &str) -> u64 {
    let prime = 0x0000_0100_0000_01b3_u64;
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(prime);
    let hash = seed.to_le_bytes().iter().chain(name.as_bytes()).fold(0xcbf2_9ce4_8422_2325_u64, step);
    // libtorch mixes seeds weakly for small values; a final avalanche keeps neighbours apart.
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}
