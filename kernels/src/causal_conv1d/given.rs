//! The operands as the flat list of tensors that autograd takes.

use tch::Tensor;
use torch_bridge::{Error, Result};

use super::CausalConv1d;

/// Which of the optional operands follow the others in the list of inputs, in this order.
#[derive(Clone, Copy)]
#[allow(clippy::struct_excessive_bools)] // one per operand
pub(super) struct Given {
    pub(super) silu: bool,
    pub(super) bias: bool,
    pub(super) reset_tail: bool,
    pub(super) resets: bool,
    pub(super) lengths: bool,
}

impl Given {
    pub(super) fn of(args: &CausalConv1d<'_>) -> Self {
        Self {
            silu: args.silu,
            bias: args.bias.is_some(),
            reset_tail: args.reset_tail.is_some(),
            resets: args.resets.is_some(),
            lengths: args.lengths.is_some(),
        }
    }

    /// The operands in the order of the list: those that are always there, then those that are given.
    pub(super) fn list<'a>(args: &CausalConv1d<'a>) -> Vec<&'a Tensor> {
        let given = [args.bias, args.reset_tail, args.resets, args.lengths];
        [args.x, args.weight, args.tail].into_iter().chain(given.into_iter().flatten()).collect()
    }

    /// The operands again, from the list of inputs.
    pub(super) fn operands(self, inputs: &[Tensor]) -> Result<CausalConv1d<'_>> {
        let [x, weight, tail, rest @ ..] = inputs else {
            return Err(Error::other("causal_conv1d: operands are missing"));
        };
        let mut rest = rest.iter();
        let mut next = |given: bool| if given { rest.next() } else { None };
        Ok(CausalConv1d {
            x,
            weight,
            tail,
            silu: self.silu,
            bias: next(self.bias),
            reset_tail: next(self.reset_tail),
            resets: next(self.resets),
            lengths: next(self.lengths),
        })
    }
}
