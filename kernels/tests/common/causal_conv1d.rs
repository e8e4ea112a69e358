//! Cases of the causal convolution.

use kernels::causal_conv1d::{CausalConv1d, causal_conv1d, reference};
use tch::{Device, Kind, Tensor};
use torch_bridge::Result;

use super::{Noise, Outcome, outcome, strided};

pub type Operation = fn(&CausalConv1d<'_>) -> Result<(Tensor, Tensor)>;

/// Operands in f64, in a fixed order, and what is not differentiable.
pub struct Case {
    pub tensors: Vec<(&'static str, Tensor)>,
    pub resets: Option<Tensor>,
    pub lengths: Option<Tensor>,
    pub silu: bool,
}

/// Which operands a case has.
#[derive(Clone, Copy, Debug)]
pub struct With {
    pub bias: bool,
    pub silu: bool,
    pub shared_tail: bool,
    pub shared_reset: bool,
    pub strided: bool,
}

/// Everything there is, states shared by the rows.
pub const ALL: With = With { bias: true, silu: true, shared_tail: true, shared_reset: true, strided: false };

impl Case {
    /// `sizes` are batch, time, channels and width.
    pub fn new(sizes: [i64; 4], with: With, resets: Option<Tensor>, lengths: Option<&[i64]>) -> Self {
        let [batch, time, d, width] = sizes;
        let mut noise = Noise(sizes.iter().fold(5, |seed, size| seed * 131 + *size as u64));
        let rows = |shared| if shared { 1 } else { batch };
        let mut tensors = vec![
            ("x", noise.tensor(&[batch, time, d])),
            ("weight", noise.tensor(&[d, width])),
            ("tail", noise.tensor(&[rows(with.shared_tail), width - 1, d])),
        ];
        if with.bias {
            tensors.push(("bias", noise.tensor(&[d])));
        }
        if resets.is_some() {
            tensors.push(("reset_tail", noise.tensor(&[rows(with.shared_reset), width - 1, d])));
        }
        if with.strided {
            for (_, x) in &mut tensors {
                *x = strided(x);
            }
        }
        Self { tensors, resets, lengths: lengths.map(Tensor::from_slice), silu: with.silu }
    }

    pub fn run(&self, tensors: &[Tensor], operation: Operation) -> Result<(Tensor, Tensor)> {
        let find =
            |name| self.tensors.iter().position(|(known, _)| *known == name).map(|index| &tensors[index]);
        let need = |name| find(name).unwrap();
        operation(&CausalConv1d {
            x: need("x"),
            weight: need("weight"),
            bias: find("bias"),
            tail: need("tail"),
            reset_tail: find("reset_tail"),
            resets: self.resets.as_ref(),
            lengths: self.lengths.as_ref(),
            silu: self.silu,
        })
    }

    pub fn plain(&self) -> Vec<Tensor> {
        self.tensors.iter().map(|(_, x)| x.shallow_clone()).collect()
    }

    pub fn outcome(&self, kind: Kind, operation: Operation) -> Outcome {
        outcome(&self.tensors, kind, &|tensors| self.run(tensors, operation))
    }

    /// The fast path against the definition, in both precisions.
    pub fn compare(&self, what: &str) {
        let truth = self.outcome(Kind::Double, reference);
        self.outcome(Kind::Double, causal_conv1d).assert_near(&truth, 1e-12, &format!("f64, {what}"));
        let peer = self.outcome(Kind::Float, reference);
        self.outcome(Kind::Float, causal_conv1d).assert_as_near_as(&peer, &truth, &format!("f32, {what}"));
    }

    /// The same case on a device, its tensors in the kinds that `kind` gives by name.
    pub fn to(&self, device: Device, kind: impl Fn(&str) -> Kind) -> Self {
        let moved = |x: &Option<Tensor>| x.as_ref().map(|x| x.to_device(device));
        let tensors = self.tensors.iter().map(|(name, x)| (*name, x.to_kind(kind(name)).to_device(device)));
        Self {
            tensors: tensors.collect(),
            resets: moved(&self.resets),
            lengths: moved(&self.lengths),
            silu: self.silu,
        }
    }
}
