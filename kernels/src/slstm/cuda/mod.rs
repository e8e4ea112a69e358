//! The sLSTM on CUDA devices: on the matrix unit in bf16 where the heads fit into a block's registers, else in f32.

mod fused;
mod plain;
mod step;

use tch::{Device, Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::guards::is_grad_enabled;
use torch_bridge::{Error, Result};

use self::fused::Fused;
use self::plain::Plain;
use self::step::Step;
use super::given::Given;
use super::{Slstm, SlstmState};
use crate::cuda::launch::Launch;
use crate::cuda::{self, Header, Unavailable};
use crate::second;

static CELL: Header = Header { name: "cell.cuh", text: include_str!("../cell.cuh") };

/// What a grid may have in y and z.
const ROWS: i64 = 65_535;

/// As [`slstm`](super::slstm), for CUDA tensors that are not empty; nothing where the definition is to run.
pub(super) fn slstm(args: &Slstm<'_>) -> Result<Option<(Tensor, SlstmState)>> {
    let graph = is_grad_enabled() && Given::list(args).iter().any(|x| x.requires_grad());
    if let Some(step) = Step::find(args, graph) {
        let step = cuda::or_definition("slstm", step)?;
        return step.map(|step| step.run(args)).transpose();
    }
    let Some(kernels) = cuda::or_definition("slstm", Kernels::find(args, graph))? else {
        return Ok(None);
    };
    let operands = Operands::of(args, &kernels);
    let inputs = operands.borrowed();
    let node = Node { given: Given::of(&inputs), kernels };
    let outputs = autograd::apply("slstm", node, &Given::list(&inputs))?;
    let [y, last]: [Tensor; 2] = outputs.try_into().map_err(|_| Error::other("slstm: not two outputs"))?;
    Ok(Some((y.to_kind(args.gates.kind()), unpacked(&last, args.initial_state))))
}

/// The parts of a state `[4, batch, heads, head_dim]`.
fn unpacked(packed: &Tensor, like: &SlstmState) -> SlstmState {
    let part = |index: i64, like: &Tensor| packed.select(0, index).to_kind(like.kind());
    SlstmState { h: part(0, &like.h), c: part(1, &like.c), n: part(2, &like.n), m: part(3, &like.m) }
}

/// The kernels of one call, loaded.
#[derive(Clone, Copy)]
enum Kernels {
    Fused(Fused),
    Plain(Plain),
}

impl Kernels {
    fn find(args: &Slstm<'_>, graph: bool) -> Result<Self, Unavailable> {
        let sizes = Sizes::of(args);
        if args.gates.kind() == Kind::Double {
            return Err("slstm has no CUDA kernel for float64".into());
        }
        if sizes.batch > 2 * ROWS || sizes.heads > ROWS {
            return Err(format!("slstm has no CUDA kernel for more than {ROWS} rows or heads").into());
        }
        if args.gates.kind() == Kind::BFloat16 && Fused::takes(sizes.head_dim) {
            return Fused::find(args, graph).map(Self::Fused);
        }
        Plain::find(args).map(Self::Plain)
    }

    /// The dtype of gates and outputs.
    fn element(&self) -> Kind {
        if matches!(self, Self::Fused(_)) { Kind::BFloat16 } else { Kind::Float }
    }
}

/// The shape of a call.
#[derive(Clone, Copy)]
struct Sizes {
    batch: i64,
    time: i64,
    heads: i64,
    head_dim: i64,
}

impl Sizes {
    fn of(args: &Slstm<'_>) -> Self {
        let [batch, time, heads, head_dim] = [0, 1, 3, 4].map(|dimension| args.gates.size()[dimension]);
        Self { batch, time, heads, head_dim }
    }

    fn outputs(&self) -> [i64; 4] {
        [self.batch, self.time, self.heads, self.head_dim]
    }

    fn gates(&self) -> [i64; 5] {
        [self.batch, self.time, 4, self.heads, self.head_dim]
    }

    /// The four parts of a state, one after another.
    fn state(&self) -> [i64; 4] {
        [4, self.batch, self.heads, self.head_dim]
    }
}

/// The operands as the kernels take them.
struct Operands {
    gates: Tensor,
    bias: Option<Tensor>,
    recurrent: Tensor,
    initial_state: SlstmState,
    reset_state: Option<SlstmState>,
    resets: Option<Tensor>,
    valid: Option<Tensor>,
}

impl Operands {
    /// Dtypes and strides made to fit, by differentiable operations that do nothing where nothing is to be done.
    fn of(args: &Slstm<'_>, kernels: &Kernels) -> Self {
        let float = |x: &Tensor| x.to_kind(Kind::Float).contiguous();
        let state =
            |x: &SlstmState| SlstmState { h: float(&x.h), c: float(&x.c), n: float(&x.n), m: float(&x.m) };
        let narrow = matches!(kernels, Kernels::Fused(_)) && args.recurrent.kind() == Kind::BFloat16;
        let resets = args.resets.map(Tensor::contiguous);
        Self {
            gates: whole(&args.gates.to_kind(kernels.element()), kernels.element()),
            bias: args.bias.map(float),
            recurrent: if narrow { args.recurrent.contiguous() } else { float(args.recurrent) },
            initial_state: state(args.initial_state),
            reset_state: args.reset_state.filter(|_| resets.is_some()).map(state),
            resets,
            valid: args.valid.map(Tensor::contiguous),
        }
    }

    fn borrowed(&self) -> Slstm<'_> {
        Slstm {
            gates: &self.gates,
            bias: self.bias.as_ref(),
            recurrent: &self.recurrent,
            initial_state: &self.initial_state,
            reset_state: self.reset_state.as_ref(),
            resets: self.resets.as_ref(),
            valid: self.valid.as_ref(),
        }
    }
}

/// The same numbers with units side by side and, in bf16, 16 bytes at a time.
fn whole(x: &Tensor, element: Kind) -> Tensor {
    let (strides, sizes) = (x.stride(), x.size());
    let (last, before) = (strides.len() - 1, &strides[..strides.len() - 1]);
    let dense = strides[last] == 1 || sizes[last] == 1;
    let aligned =
        x.data_ptr().addr().is_multiple_of(16) && before.iter().all(|stride| stride.rem_euclid(8) == 0);
    if dense && (aligned || element == Kind::Float) {
        return x.shallow_clone();
    }
    let x = x.contiguous();
    if element == Kind::Float || x.data_ptr().addr().is_multiple_of(16) { x } else { x.copy() }
}

/// The upstream gradient of the outputs, as the kernels take it.
fn upstream(dy: Option<&Tensor>, sizes: &Sizes, element: Kind, device: Device) -> Tensor {
    match dy {
        Some(dy) => whole(&dy.to_kind(element), element),
        None => Tensor::zeros(sizes.outputs(), (element, device)),
    }
}

/// The node of the graph. It saves the records, the outputs that the tokens read, the last state and then its inputs.
struct Node {
    given: Given,
    kernels: Kernels,
}

/// What a forward leaves for its backward.
struct Trace {
    /// What the tokens' cells were.
    records: Tensor,
    /// The outputs that each token read, `[batch, time, heads, head_dim]`.
    before: Tensor,
}

impl Function for Node {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let args = self.given.operands(inputs)?;
        let args = args.borrowed();
        let keep = saved.needs_any_grad();
        let (y, last, trace) = match &self.kernels {
            Kernels::Fused(kernels) => kernels.forward(&args, keep)?,
            Kernels::Plain(kernels) => kernels.forward(&args, keep)?,
        };
        if let Some(trace) = trace {
            saved.save(&trace.records);
            saved.save(&trace.before);
            saved.save(&last);
            for input in inputs {
                saved.save(input);
            }
        }
        Ok(vec![y, last])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let [records, before, last, inputs @ ..] = saved else {
            return Err(Error::other("slstm: nothing was saved"));
        };
        let args = self.given.operands(inputs)?;
        let args = args.borrowed();
        let definition = || {
            let (y, state) = super::reference::slstm(&args)?;
            Ok((y, Tensor::f_stack(&state.parts(), 0)?))
        };
        if let Some(gradients) = second::differentiable(inputs, grads, definition) {
            return gradients;
        }
        let trace = Trace { records: records.shallow_clone(), before: before.shallow_clone() };
        let sizes = Sizes::of(&args);
        let [dy, dlast] = [0, 1].map(|index| grads.get(index).and_then(Option::as_ref));
        let dy = upstream(dy, &sizes, self.kernels.element(), args.gates.device());
        let dlast = dlast.map(|x| x.to_kind(Kind::Float).contiguous());
        let found = match &self.kernels {
            Kernels::Fused(kernels) => kernels.backward(&args, &trace, last, &dy, dlast.as_ref())?,
            Kernels::Plain(kernels) => kernels.backward(&args, &trace, last, &dy, dlast.as_ref())?,
        };
        let part = |x: &Tensor, index: i64| Some(x.select(0, index));
        let mut all = vec![Some(found.gates), Some(found.recurrent.to_kind(args.recurrent.kind()))];
        // A state that rows share has the sum of its rows' gradients, which autograd makes.
        all.extend((0..4).map(|index| part(&found.start, index)));
        all.extend(args.bias.map(|_| Some(found.bias)));
        if args.reset_state.is_some() {
            all.extend((0..4).map(|index| found.reset.as_ref().and_then(|reset| part(reset, index))));
        }
        all.extend([args.resets, args.valid].into_iter().flatten().map(|_| None));
        Ok(all)
    }
}

/// What a backward finds.
struct Gradients {
    gates: Tensor,
    /// `[4, heads, head_dim, head_dim]`
    recurrent: Tensor,
    /// `[4, heads, head_dim]`
    bias: Tensor,
    /// `[4, batch, heads, head_dim]`
    start: Tensor,
    reset: Option<Tensor>,
}

/// The arguments of the states, null and zeros for one that is not there.
fn states<'a>(launch: Launch<'a>, state: Option<&'a SlstmState>) -> Launch<'a> {
    let parts = state.map(SlstmState::parts);
    (0..4).fold(launch, |launch, index| launch.state(parts.map(|parts| parts[index])))
}

/// The arguments of the cells and normalisers of a state.
fn cells<'a>(launch: Launch<'a>, state: Option<&'a SlstmState>) -> Launch<'a> {
    launch.state(state.map(|state| &state.c)).state(state.map(|state| &state.n))
}

/// An operand's address and its strides over all but its last dimension.
fn strided<'a>(launch: Launch<'a>, x: &'a Tensor, kind: Kind) -> Launch<'a> {
    let strides = x.stride();
    strides[..strides.len() - 1].iter().fold(launch.tensor(x, kind), |launch, stride| launch.i64(*stride))
}
