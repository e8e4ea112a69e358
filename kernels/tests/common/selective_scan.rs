//! Cases of the selective scan.

use kernels::selective_scan::{SelectiveScan, reference, selective_scan};
use tch::{Device, Kind, Tensor};
use torch_bridge::Result;

use super::{Noise, Outcome, outcome, strided};

pub type Operation = fn(&SelectiveScan<'_>) -> Result<(Tensor, Tensor)>;

/// Operands in f64, in a fixed order, and what is not differentiable.
pub struct Case {
    pub tensors: Vec<(&'static str, Tensor)>,
    pub delta_softplus: bool,
    pub resets: Option<Tensor>,
    pub valid: Option<Tensor>,
}

/// Which operands a case has.
#[derive(Clone, Copy, Debug, Default)]
pub struct With {
    pub delta_bias: bool,
    pub delta_softplus: bool,
    pub d: bool,
    pub z: bool,
    pub shared_initial: bool,
    pub shared_reset: bool,
    pub strided: bool,
}

/// Everything there is, states shared by the rows.
pub const ALL: With = With {
    delta_bias: true,
    delta_softplus: true,
    d: true,
    z: true,
    shared_initial: true,
    shared_reset: true,
    strided: false,
};

impl Case {
    pub fn new(sizes: [i64; 4], with: With, resets: Option<Tensor>, valid: Option<Tensor>) -> Self {
        let [batch, time, d_inner, d_state] = sizes;
        let mut noise = Noise(sizes.iter().fold(7, |seed, size| seed * 131 + *size as u64));
        let rows = |shared| if shared { 1 } else { batch };
        let delta = noise.tensor(&[batch, time, d_inner]);
        // Without the softplus a step size must be positive by itself.
        let delta = if with.delta_softplus { delta - 1.0 } else { delta.abs() * 0.3 };
        let mut tensors = vec![
            ("u", noise.tensor(&[batch, time, d_inner])),
            ("delta", delta),
            ("a", -(noise.tensor(&[d_inner, d_state]).abs() + 0.1) * 2.0),
            ("b", noise.tensor(&[batch, time, d_state])),
            ("c", noise.tensor(&[batch, time, d_state])),
            ("initial_state", noise.tensor(&[rows(with.shared_initial), d_inner, d_state])),
        ];
        if with.delta_bias {
            tensors.push(("delta_bias", noise.tensor(&[d_inner]).abs() * 0.1));
        }
        if with.d {
            tensors.push(("d", noise.tensor(&[d_inner])));
        }
        if with.z {
            tensors.push(("z", noise.tensor(&[batch, time, d_inner]) * 2.0));
        }
        if resets.is_some() {
            tensors.push(("reset_state", noise.tensor(&[rows(with.shared_reset), d_inner, d_state])));
        }
        for (_, x) in &mut tensors {
            let rounded = x.to_kind(Kind::Float).to_kind(Kind::Double);
            *x = if with.strided { strided(&rounded) } else { rounded };
        }
        Self { tensors, delta_softplus: with.delta_softplus, resets, valid }
    }

    pub fn run(&self, tensors: &[Tensor], operation: Operation) -> Result<(Tensor, Tensor)> {
        let find =
            |name| self.tensors.iter().position(|(known, _)| *known == name).map(|index| &tensors[index]);
        let need = |name| find(name).unwrap();
        operation(&SelectiveScan {
            u: need("u"),
            delta: need("delta"),
            delta_bias: find("delta_bias"),
            delta_softplus: self.delta_softplus,
            a: need("a"),
            b: need("b"),
            c: need("c"),
            d: find("d"),
            z: find("z"),
            initial_state: need("initial_state"),
            reset_state: find("reset_state"),
            resets: self.resets.as_ref(),
            valid: self.valid.as_ref(),
        })
    }

    pub fn outcome(&self, kind: Kind, operation: Operation) -> Outcome {
        outcome(&self.tensors, kind, &|tensors| self.run(tensors, operation))
    }

    /// The fast path against the definition, in both precisions.
    pub fn compare(&self, what: &str) {
        let truth = self.outcome(Kind::Double, reference);
        self.outcome(Kind::Double, selective_scan).assert_near(&truth, 1e-12, &format!("f64, {what}"));
        let peer = self.outcome(Kind::Float, reference);
        self.outcome(Kind::Float, selective_scan).assert_as_near_as(&peer, &truth, &format!("f32, {what}"));
    }

    /// The same case on a device, its tensors in the kinds that `kind` gives by name.
    pub fn to(&self, device: Device, kind: impl Fn(&str) -> Kind) -> Self {
        let moved = |x: &Option<Tensor>| x.as_ref().map(|x| x.to_device(device));
        let tensors = self.tensors.iter().map(|(name, x)| (*name, x.to_kind(kind(name)).to_device(device)));
        Self {
            tensors: tensors.collect(),
            delta_softplus: self.delta_softplus,
            resets: moved(&self.resets),
            valid: moved(&self.valid),
        }
    }
}
