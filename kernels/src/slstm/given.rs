//! The operands as the list of inputs of an autograd function.

use tch::Tensor;
use torch_bridge::{Error, Result};

use super::{Slstm, SlstmState};

/// Which of the optional operands are in the list.
#[derive(Clone, Copy)]
pub(super) struct Given {
    bias: bool,
    resets: bool,
    valid: bool,
}

/// The operands of a list.
pub(super) struct Listed<'a> {
    gates: &'a Tensor,
    bias: Option<&'a Tensor>,
    recurrent: &'a Tensor,
    initial_state: SlstmState,
    reset_state: Option<SlstmState>,
    resets: Option<&'a Tensor>,
    valid: Option<&'a Tensor>,
}

impl Given {
    pub(super) fn of(args: &Slstm<'_>) -> Self {
        Self { bias: args.bias.is_some(), resets: args.resets.is_some(), valid: args.valid.is_some() }
    }

    /// Gates, R, the state at the start, then what is given of bias, state of a document's start (if there are resets),
    /// resets, valid.
    pub(super) fn list<'a>(args: &Slstm<'a>) -> Vec<&'a Tensor> {
        let mut list = vec![args.gates, args.recurrent];
        list.extend(args.initial_state.parts());
        list.extend(args.bias);
        if args.resets.is_some() {
            list.extend(args.reset_state.into_iter().flat_map(SlstmState::parts));
        }
        list.extend(args.resets);
        list.extend(args.valid);
        list
    }

    pub(super) fn operands(self, inputs: &[Tensor]) -> Result<Listed<'_>> {
        let mut rest = inputs.iter();
        let mut next = || rest.next().ok_or_else(|| Error::other("slstm: operands are missing"));
        let (gates, recurrent) = (next()?, next()?);
        let mut state = || -> Result<SlstmState> {
            let [h, c, n, m] = [next()?, next()?, next()?, next()?].map(Tensor::shallow_clone);
            Ok(SlstmState { h, c, n, m })
        };
        let initial_state = state()?;
        let bias = if self.bias { Some(next()?) } else { None };
        let mut state = || -> Result<SlstmState> {
            let [h, c, n, m] = [next()?, next()?, next()?, next()?].map(Tensor::shallow_clone);
            Ok(SlstmState { h, c, n, m })
        };
        let reset_state = if self.resets { Some(state()?) } else { None };
        let resets = if self.resets { Some(next()?) } else { None };
        let valid = if self.valid { Some(next()?) } else { None };
        Ok(Listed { gates, bias, recurrent, initial_state, reset_state, resets, valid })
    }
}

impl Listed<'_> {
    pub(super) fn borrowed(&self) -> Slstm<'_> {
        Slstm {
            gates: self.gates,
            bias: self.bias,
            recurrent: self.recurrent,
            initial_state: &self.initial_state,
            reset_state: self.reset_state.as_ref(),
            resets: self.resets,
            valid: self.valid,
        }
    }
}
