//! The mLSTM on CUDA devices: bf16 through its own kernels. Other dtypes are tensor operations in chunks, but for one token
//! without gradients.

mod backward;
mod forward;
mod kernels;
mod step;

use tch::{Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::guards::{Autocast, is_grad_enabled};
use torch_bridge::{Error, Result};

use self::kernels::{Kernels, aligned};
use self::step::Step;
use super::given::Given;
use super::{Mlstm, MlstmState, chunkwise};
use crate::{cuda, second};

/// As [`mlstm`](super::mlstm), for CUDA tensors that are not empty; nothing where tensor operations are to run.
pub(super) fn mlstm(args: &Mlstm<'_>) -> Result<Option<(Tensor, MlstmState)>> {
    // A reset state without resets is nobody's.
    let args = &Mlstm { reset_state: args.reset_state.filter(|_| args.resets.is_some()), ..*args };
    let graph = is_grad_enabled() && Given::list(args).iter().any(|x| x.requires_grad());
    if let Some(step) = Step::find(args, graph) {
        let step = cuda::or_definition("mlstm", step)?;
        return step.map(|step| step.run(args)).transpose();
    }
    // Under autocast products are of its type whatever they are given.
    let device = args.q.device();
    let lowered = Autocast::current(device) == Some(Kind::BFloat16);
    let bf16 = |x: &Tensor| x.kind() == Kind::BFloat16 || lowered && x.kind() != Kind::Double;
    if ![args.q, args.k, args.v].into_iter().all(bf16) {
        return Ok(None);
    }
    let Some(kernels) = cuda::or_definition("mlstm", Kernels::find(args, graph))? else { return Ok(None) };
    let operands = Operands::of(args)?;
    let inputs = operands.borrowed(args);
    let outputs =
        autograd::apply("mlstm", Chunks { given: Given::of(&inputs), kernels }, &Given::list(&inputs))?;
    let [h, c, n, m]: [Tensor; 4] =
        outputs.try_into().map_err(|_| Error::other("mlstm: not four outputs"))?;
    let like = args.initial_state;
    let state = MlstmState {
        c: c.f_to_kind(like.c.kind())?,
        n: n.f_to_kind(like.n.kind())?,
        m: m.f_to_kind(like.m.kind())?,
    };
    Ok(Some((h.f_to_kind(args.v.kind())?, state)))
}

/// The operands as the kernels take them: dtypes and strides made to fit, by differentiable operations that do nothing where
/// nothing is to be done.
struct Operands {
    tokens: [Tensor; 3],
    gates: [Tensor; 2],
    initial_state: MlstmState,
    reset_state: Option<MlstmState>,
    resets: Option<Tensor>,
    valid: Option<Tensor>,
}

impl Operands {
    fn of(args: &Mlstm<'_>) -> Result<Self> {
        let token = |x: &Tensor| aligned(&x.f_to_kind(Kind::BFloat16)?);
        let float = |x: &Tensor| -> Result<Tensor> { Ok(x.f_to_kind(Kind::Float)?.f_contiguous()?) };
        let state = |state: &MlstmState| -> Result<MlstmState> {
            Ok(MlstmState { c: float(&state.c)?, n: float(&state.n)?, m: float(&state.m)? })
        };
        Ok(Self {
            tokens: [token(args.q)?, token(args.k)?, token(args.v)?],
            gates: [args.input_gate.f_to_kind(Kind::Float)?, args.forget_gate.f_to_kind(Kind::Float)?],
            initial_state: state(args.initial_state)?,
            reset_state: args.reset_state.map(state).transpose()?,
            resets: args.resets.map(Tensor::f_contiguous).transpose()?,
            valid: args.valid.map(Tensor::f_contiguous).transpose()?,
        })
    }

    fn borrowed<'a>(&'a self, args: &Mlstm<'a>) -> Mlstm<'a> {
        let [q, k, v] = &self.tokens;
        let [input_gate, forget_gate] = &self.gates;
        Mlstm {
            q,
            k,
            v,
            input_gate,
            forget_gate,
            initial_state: &self.initial_state,
            reset_state: self.reset_state.as_ref(),
            resets: self.resets.as_ref(),
            valid: self.valid.as_ref(),
            ..*args
        }
    }
}

/// The node of the graph. It saves what the forward has found, its last state and then its inputs.
struct Chunks {
    given: Given,
    kernels: Kernels,
}

impl Function for Chunks {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let operands = self.given.operands(inputs)?;
        let (h, last, found) = forward::forward(&operands.args(), &self.kernels)?;
        if saved.needs_any_grad() {
            for x in found.list().into_iter().chain([&last.c, &last.n]).chain(inputs) {
                saved.save(x);
            }
        }
        Ok(vec![h, last.c, last.n, last.m])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let (found, rest) = forward::Found::of(saved, self.given.reset_state)?;
        let [c, n, inputs @ ..] = rest else { return Err(Error::other("mlstm: nothing was saved")) };
        let operands = self.given.operands(inputs)?;
        let args = operands.args();
        let definition = || {
            let (h, state) = chunkwise::mlstm(&args)?;
            Ok(vec![h, state.c, state.n, state.m])
        };
        if let Some(gradients) = second::differentiable_outputs(inputs, grads, definition) {
            return gradients;
        }
        let mut gradients = backward::backward(&args, &self.kernels, &found, [c, n], grads)?;
        gradients.resize_with(inputs.len(), || None);
        Ok(gradients)
    }
}
