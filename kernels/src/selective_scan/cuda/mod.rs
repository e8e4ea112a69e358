//! The selective scan on CUDA devices.

mod backward;
mod combine;
mod forward;
mod kernels;
mod step;

use tch::{Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::guards::is_grad_enabled;
use torch_bridge::{Error, Result};

use self::kernels::Kernels;
use self::step::Step;
use super::given::Given;
use super::{SelectiveScan, reference};
use crate::{cuda, second};

/// As [`selective_scan`](super::selective_scan), for CUDA tensors that are not empty; nothing where the definition is to
/// run.
pub(super) fn selective_scan(args: &SelectiveScan<'_>) -> Result<Option<(Tensor, Tensor)>> {
    let given = Given::of(args);
    let graph = is_grad_enabled() && Given::list(args).iter().any(|x| x.requires_grad());
    if let Some(step) = Step::find(args, graph) {
        let step = cuda::or_definition("selective_scan", step)?;
        return step.map(|step| step.run(args)).transpose();
    }
    let Some(kernels) = cuda::or_definition("selective_scan", Kernels::find(args, graph))? else {
        return Ok(None);
    };
    let n_states = args.a.size()[1];
    let operands = Operands::of(args, kernels.element, kernels.states);
    let inputs = operands.borrowed(args.delta_softplus);
    let outputs = autograd::apply("selective_scan", Scan { given, kernels }, &Given::list(&inputs))?;
    let [y, last]: [Tensor; 2] =
        outputs.try_into().map_err(|_| Error::other("selective_scan: not two outputs"))?;
    Ok(Some((y.to_kind(args.u.kind()), last.narrow(2, 0, n_states).to_kind(args.initial_state.kind()))))
}

/// The operands as the kernels take them.
struct Operands {
    u: Tensor,
    delta: Tensor,
    delta_bias: Option<Tensor>,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Option<Tensor>,
    z: Option<Tensor>,
    initial_state: Tensor,
    reset_state: Option<Tensor>,
    resets: Option<Tensor>,
    valid: Option<Tensor>,
}

impl Operands {
    /// Dtypes changed, states padded with zeros (which stay zero and write nothing) and strides made to fit, all by
    /// differentiable operations that do nothing where nothing is to be done.
    fn of(args: &SelectiveScan<'_>, element: Kind, states: i64) -> Self {
        let missing = states - args.a.size()[1];
        let wide = |x: Tensor| if missing > 0 { x.constant_pad_nd([0, missing]) } else { x };
        let float = |x: &Tensor| x.to_kind(Kind::Float).contiguous();
        let state = |x: &Tensor| wide(x.to_kind(Kind::Float)).contiguous();
        let padding = args.valid.map(|valid| valid.logical_not().unsqueeze(-1));
        let token = |x: &Tensor| {
            let x = x.to_kind(element);
            // What padding holds may be anything, also what no product with zero makes zero.
            padding.as_ref().map_or_else(|| x.shallow_clone(), |padding| x.masked_fill(padding, 0.0))
        };
        let dense = |x: Tensor| if x.stride()[2] == 1 || x.size()[2] == 1 { x } else { x.contiguous() };
        Self {
            u: dense(token(args.u)),
            delta: dense(token(args.delta)),
            delta_bias: args.delta_bias.map(float),
            a: state(args.a),
            b: dense(wide(token(args.b))),
            c: dense(wide(token(args.c))),
            d: args.d.map(float),
            z: args.z.map(|z| dense(token(z))),
            initial_state: state(args.initial_state),
            reset_state: args.reset_state.map(state),
            resets: args.resets.map(Tensor::contiguous),
            valid: args.valid.map(Tensor::contiguous),
        }
    }

    fn borrowed(&self, delta_softplus: bool) -> SelectiveScan<'_> {
        SelectiveScan {
            u: &self.u,
            delta: &self.delta,
            delta_bias: self.delta_bias.as_ref(),
            delta_softplus,
            a: &self.a,
            b: &self.b,
            c: &self.c,
            d: self.d.as_ref(),
            z: self.z.as_ref(),
            initial_state: &self.initial_state,
            reset_state: self.reset_state.as_ref(),
            resets: self.resets.as_ref(),
            valid: self.valid.as_ref(),
        }
    }
}

/// The node of the graph. It saves the kept states and then its inputs.
struct Scan {
    given: Given,
    kernels: Kernels,
}

impl Function for Scan {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let args = self.given.operands(inputs)?;
        let keep = saved.needs_any_grad();
        let (outputs, checkpoints) = forward::forward(&args, &self.kernels, keep)?;
        if let Some(checkpoints) = checkpoints {
            saved.save(&checkpoints);
            for input in inputs {
                saved.save(input);
            }
        }
        Ok(outputs)
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let [checkpoints, inputs @ ..] = saved else {
            return Err(Error::other("selective_scan: nothing was saved"));
        };
        let args = self.given.operands(inputs)?;
        if let Some(gradients) =
            second::differentiable(inputs, grads, || Ok(reference::selective_scan(&args)))
        {
            return gradients;
        }
        let [y, last] = [0, 1].map(|index| grads.get(index).and_then(Option::as_ref));
        backward::backward(&args, &self.kernels, checkpoints, y, last)
    }
}
