//! Calls of the sLSTM for its tests, on any device.

use kernels::slstm::{Slstm, SlstmState, reference, slstm};
use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::{Noise, Outcome, outcome};

pub type Operation = fn(&Slstm<'_>) -> Result<(Tensor, SlstmState)>;

const NAMES: [&str; 11] =
    ["gates", "recurrent", "bias", "h", "c", "n", "m", "reset h", "reset c", "reset n", "reset m"];

/// Operands in f64, in the order of `NAMES`, and what is not differentiable.
pub struct Case {
    pub tensors: Vec<(&'static str, Tensor)>,
    pub resets: Option<Tensor>,
    pub valid: Option<Tensor>,
}

impl Case {
    /// `sizes` are batch, time, heads, head_dim; states are shared by the rows where `shared` says so.
    pub fn new(sizes: [i64; 4], shared: [bool; 2], resets: Option<Tensor>, valid: Option<Tensor>) -> Self {
        let [batch, time, heads, head_dim] = sizes;
        let mut noise = Noise(sizes.iter().fold(7, |seed, size| seed * 131 + *size as u64));
        let mut tensors = vec![
            noise.tensor(&[batch, time, 4, heads, head_dim]) * 1.5,
            noise.tensor(&[4, heads, head_dim, head_dim]) * (1.0 / (head_dim as f64).sqrt()),
            noise.tensor(&[4, heads, head_dim]),
        ];
        for shared in shared {
            let rows = if shared { 1 } else { batch };
            let mut part = || noise.tensor(&[rows, heads, head_dim]);
            // A normaliser is at least 1 once something was written.
            tensors.extend([part(), part(), part().abs() + 1.0, part()]);
        }
        if resets.is_none() {
            tensors.truncate(7);
        }
        let round = |x: &Tensor| x.to_kind(Kind::Float).to_kind(Kind::Double);
        let tensors = NAMES.into_iter().zip(tensors.iter().map(round)).collect();
        Self { tensors, resets, valid }
    }

    /// `h` and the state as one tensor.
    pub fn run(&self, tensors: &[Tensor], operation: Operation) -> Result<(Tensor, Tensor)> {
        let state = |first: usize| {
            let [h, c, n, m] = [0, 1, 2, 3].map(|i| tensors.get(first + i).map(Tensor::shallow_clone));
            h.zip(c).zip(n).zip(m).map(|(((h, c), n), m)| SlstmState { h, c, n, m })
        };
        let (h, state) = operation(&Slstm {
            gates: &tensors[0],
            bias: Some(&tensors[2]),
            recurrent: &tensors[1],
            initial_state: &state(3).unwrap(),
            reset_state: state(7).as_ref(),
            resets: self.resets.as_ref(),
            valid: self.valid.as_ref(),
        })?;
        Ok((h, Tensor::stack(&[state.h, state.c, state.n, state.m], 1)))
    }

    pub fn outcome(&self, kind: Kind, operation: Operation) -> Outcome {
        outcome(&self.tensors, kind, &|tensors| self.run(tensors, operation))
    }

    /// The fast path against the definition, in both precisions.
    pub fn compare(&self, what: &str) {
        let truth = self.outcome(Kind::Double, reference);
        self.outcome(Kind::Double, slstm).assert_near(&truth, 1e-11, &format!("f64, {what}"));
        let peer = self.outcome(Kind::Float, reference);
        self.outcome(Kind::Float, slstm).assert_as_near_as(&peer, &truth, &format!("f32, {what}"));
    }

    pub fn plain(&self) -> Vec<Tensor> {
        self.tensors.iter().map(|(_, x)| x.shallow_clone()).collect()
    }
}
