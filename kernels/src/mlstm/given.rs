//! The operands as the flat list of tensors that autograd takes.

use tch::Tensor;
use torch_bridge::{Error, Result};

use super::{Mlstm, MlstmState};

/// What is not a tensor, and which of the optional operands follow the others in the list of inputs, in this order.
#[derive(Clone, Copy)]
pub(super) struct Given {
    pub(super) eps: f64,
    pub(super) chunk_size: i64,
    pub(super) reset_state: bool,
    pub(super) resets: bool,
    pub(super) valid: bool,
}

/// The operands again, with the states that they borrow.
pub(super) struct Owned<'a> {
    inputs: &'a [Tensor],
    pub(super) initial_state: MlstmState,
    pub(super) reset_state: Option<MlstmState>,
    resets: Option<&'a Tensor>,
    valid: Option<&'a Tensor>,
    given: Given,
}

impl Given {
    pub(super) fn of(args: &Mlstm<'_>) -> Self {
        Self {
            eps: args.eps,
            chunk_size: args.chunk_size,
            reset_state: args.reset_state.is_some(),
            resets: args.resets.is_some(),
            valid: args.valid.is_some(),
        }
    }

    /// The operands in the order of the list: those that are always there, then those that are given.
    pub(super) fn list<'a>(args: &Mlstm<'a>) -> Vec<&'a Tensor> {
        let state = |state: &'a MlstmState| [&state.c, &state.n, &state.m];
        let mut list = vec![args.q, args.k, args.v, args.input_gate, args.forget_gate];
        list.extend(state(args.initial_state));
        list.extend(args.reset_state.into_iter().flat_map(state));
        list.extend(args.resets);
        list.extend(args.valid);
        list
    }

    /// The operands again, from a list that starts with the inputs.
    pub(super) fn operands(self, inputs: &[Tensor]) -> Result<Owned<'_>> {
        let needed =
            8 + 3 * usize::from(self.reset_state) + usize::from(self.resets) + usize::from(self.valid);
        if inputs.len() < needed {
            return Err(Error::other("mlstm: operands are missing"));
        }
        let state = |first: usize| {
            let [c, n, m] = [0, 1, 2].map(|i| inputs[first + i].shallow_clone());
            MlstmState { c, n, m }
        };
        let masks = 8 + 3 * usize::from(self.reset_state);
        Ok(Owned {
            inputs,
            initial_state: state(5),
            reset_state: self.reset_state.then(|| state(8)),
            resets: self.resets.then(|| &inputs[masks]),
            valid: self.valid.then(|| &inputs[masks + usize::from(self.resets)]),
            given: self,
        })
    }
}

impl Owned<'_> {
    pub(super) fn args(&self) -> Mlstm<'_> {
        Mlstm {
            q: &self.inputs[0],
            k: &self.inputs[1],
            v: &self.inputs[2],
            input_gate: &self.inputs[3],
            forget_gate: &self.inputs[4],
            eps: self.given.eps,
            initial_state: &self.initial_state,
            reset_state: self.reset_state.as_ref(),
            resets: self.resets,
            valid: self.valid,
            chunk_size: self.given.chunk_size,
        }
    }
}
