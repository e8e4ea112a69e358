//! The operands as the flat list of tensors that autograd takes.

use tch::Tensor;
use torch_bridge::{Error, Result};

use super::SelectiveScan;

/// Which of the optional operands follow the others in the list of inputs, in this order.
#[derive(Clone, Copy)]
#[allow(clippy::struct_excessive_bools)] // one per operand
pub(super) struct Given {
    pub(super) delta_softplus: bool,
    pub(super) delta_bias: bool,
    pub(super) d: bool,
    pub(super) z: bool,
    pub(super) reset_state: bool,
    pub(super) resets: bool,
    pub(super) valid: bool,
}

impl Given {
    pub(super) fn of(args: &SelectiveScan<'_>) -> Self {
        Self {
            delta_softplus: args.delta_softplus,
            delta_bias: args.delta_bias.is_some(),
            d: args.d.is_some(),
            z: args.z.is_some(),
            reset_state: args.reset_state.is_some(),
            resets: args.resets.is_some(),
            valid: args.valid.is_some(),
        }
    }

    /// The operands in the order of the list: those that are always there, then those that are given.
    pub(super) fn list<'a>(args: &SelectiveScan<'a>) -> Vec<&'a Tensor> {
        let always = [args.u, args.delta, args.a, args.b, args.c, args.initial_state];
        let given = [args.delta_bias, args.d, args.z, args.reset_state, args.resets, args.valid];
        always.into_iter().chain(given.into_iter().flatten()).collect()
    }

    /// The operands again, from a list that starts with the inputs.
    pub(super) fn operands(self, inputs: &[Tensor]) -> Result<SelectiveScan<'_>> {
        let [u, delta, a, b, c, initial_state, rest @ ..] = inputs else {
            return Err(Error::other("selective_scan: operands are missing"));
        };
        let mut rest = rest.iter();
        let mut next = |given: bool| if given { rest.next() } else { None };
        Ok(SelectiveScan {
            u,
            delta,
            a,
            b,
            c,
            initial_state,
            delta_softplus: self.delta_softplus,
            delta_bias: next(self.delta_bias),
            d: next(self.d),
            z: next(self.z),
            reset_state: next(self.reset_state),
            resets: next(self.resets),
            valid: next(self.valid),
        })
    }
}
