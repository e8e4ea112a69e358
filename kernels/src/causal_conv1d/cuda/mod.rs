//! The causal convolution on CUDA devices: what its kernels get, and in which order they run.

mod step;

use tch::{Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::guards::is_grad_enabled;
use torch_bridge::{Error, Result};

use self::step::Step;
use super::given::Given;
use super::{CausalConv1d, reference};
use crate::cuda::launch::{Launch, Shape, blocks};
use crate::cuda::sums::Sums;
use crate::cuda::{self, COMMON, Define, Header, Loaded, Unavailable, Value, program};
use crate::second;

static CONV: Header = Header { name: "conv.cuh", text: include_str!("../conv.cuh") };

program!(FORWARD = "causal_conv1d/forward.cu", headers: &[&COMMON, &CONV], variants: VARIANTS);
program!(BACKWARD = "causal_conv1d/backward.cu", headers: &[&COMMON, &CONV], variants: VARIANTS);

/// Each dtype, switch and kind of width at least once.
const VARIANTS: &[&[Define]] = &[
    &variant("bf16", 4, [1, 0, 1]),
    &variant("bf16", 4, [1, 1, 1]),
    &variant("bf16", 8, [0, 1, 0]),
    &variant("float", 4, [1, 1, 1]),
    &variant("float", 1, [0, 1, 0]),
    &variant("float", 2, [0, 0, 1]),
];

const fn variant(element: &'static str, width: i64, [silu, masks, whole]: [i64; 3]) -> [Define; 5] {
    [
        ("ELEMENT", Value::Text(element)),
        ("WIDTH", Value::Int(width)),
        ("SILU", Value::Int(silu)),
        ("MASKS", Value::Int(masks)),
        ("WHOLE", Value::Int(whole)),
    ]
}

/// Threads of a block, in every kernel.
const THREADS: i64 = 128;
/// Neighbouring channels of a thread, at least; threads for which no token is left do nothing.
const CHANNELS: i64 = 4;
/// Tokens of a thread.
const FORWARD_CHUNK: i64 = 48;
/// Of the backward, the taps that reach beyond the chunk among them.
const BACKWARD_REACH: i64 = 56;
/// Chunks of a block of the backward, one for each warp.
const WARPS: i64 = 4;
/// What a grid may have in y and z.
const ROWS: i64 = 65_535;

/// As [`causal_conv1d`](super::causal_conv1d), for CUDA tensors that are not empty; nothing where the definition is to
/// run.
pub(super) fn causal_conv1d(args: &CausalConv1d<'_>) -> Result<Option<(Tensor, Tensor)>> {
    if args.x.kind() == Kind::Double {
        let refused: Result<(), _> = Err("causal_conv1d has no CUDA kernel for float64".into());
        return cuda::or_definition("causal_conv1d", refused).map(|_| None);
    }
    let given = Given::of(args);
    let graph = is_grad_enabled() && Given::list(args).iter().any(|x| x.requires_grad());
    let element = if args.x.kind() == Kind::BFloat16 { Kind::BFloat16 } else { Kind::Float };
    let x = args.x.to_kind(element);
    let x = if x.stride()[2] == 1 { x } else { x.contiguous() };
    let float = |x: &Tensor| x.to_kind(Kind::Float).contiguous();
    let (weight, tail) = (float(args.weight), float(args.tail));
    let [bias, reset_tail] = [args.bias, args.reset_tail].map(|x| x.map(float));
    let [resets, lengths] = [args.resets, args.lengths].map(|x| x.map(Tensor::contiguous));
    let inputs = CausalConv1d {
        x: &x,
        weight: &weight,
        bias: bias.as_ref(),
        tail: &tail,
        reset_tail: reset_tail.as_ref(),
        resets: resets.as_ref(),
        lengths: lengths.as_ref(),
        silu: args.silu,
    };
    let of_kinds = |y: &Tensor, tail: &Tensor| (y.to_kind(args.x.kind()), tail.to_kind(args.tail.kind()));
    if let Some(step) = Step::find(&inputs, graph) {
        let Some(step) = cuda::or_definition("causal_conv1d", step)? else { return Ok(None) };
        let (y, tail) = step.run(&inputs)?;
        return Ok(Some(of_kinds(&y, &tail)));
    }
    let found = Kernels::find(&inputs, is_whole(&x), graph);
    let Some(kernels) = cuda::or_definition("causal_conv1d", found)? else { return Ok(None) };
    let outputs = autograd::apply("causal_conv1d", Convolution { given, kernels }, &Given::list(&inputs))?;
    let [y, tail]: [Tensor; 2] =
        outputs.try_into().map_err(|_| Error::other("causal_conv1d: not two outputs"))?;
    Ok(Some(of_kinds(&y, &tail)))
}

/// The kernels of one call, loaded.
#[derive(Clone, Copy)]
struct Kernels {
    element: Kind,
    /// Whether four channels are read at once.
    whole: bool,
    forward: &'static Loaded,
    /// Only where gradients may be asked for.
    backward: Option<(&'static Loaded, Sums)>,
}

impl Kernels {
    /// For operands in the kernels' kinds.
    fn find(args: &CausalConv1d<'_>, whole: bool, graph: bool) -> Result<Self, Unavailable> {
        if args.x.size()[0] > ROWS {
            return Err(format!("causal_conv1d has no CUDA kernel for more than {ROWS} rows").into());
        }
        let device = args.x.device();
        let masks = args.resets.is_some() || args.lengths.is_some();
        let element = args.x.kind();
        let defines =
            variant(name_of(element), args.weight.size()[1], [args.silu, masks, whole].map(i64::from));
        let backward = graph
            .then(|| Ok::<_, Unavailable>((BACKWARD.on(device, &defines)?, Sums::on(device)?)))
            .transpose()?;
        Ok(Self { element, whole, forward: FORWARD.on(device, &defines)?, backward })
    }
}

/// What the kernels call a kind.
fn name_of(element: Kind) -> &'static str {
    if element == Kind::BFloat16 { "bf16" } else { "float" }
}

/// The node of the graph. It saves its inputs.
struct Convolution {
    given: Given,
    kernels: Kernels,
}

impl Function for Convolution {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let args = self.given.operands(inputs)?;
        if saved.needs_any_grad() {
            for input in inputs {
                saved.save(input);
            }
        }
        forward(&args, &self.kernels)
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let args = self.given.operands(saved)?;
        if let Some(gradients) = second::differentiable(saved, grads, || Ok(reference::causal_conv1d(&args)))
        {
            return gradients;
        }
        let [y, tail] = [0, 1].map(|index| grads.get(index).and_then(Option::as_ref));
        backward(&args, &self.kernels, y, tail)
    }
}

/// Batch, time, channels and width.
fn sizes(args: &CausalConv1d<'_>) -> [i64; 4] {
    let x = args.x.size();
    [x[0], x[1], x[2], args.weight.size()[1]]
}

fn shape(grid: [i64; 3]) -> Result<Shape> {
    let [x, y, z] = grid.map(|count| blocks(count, 1));
    Ok(Shape { grid: [x?, y?, z?], block: [THREADS as u32, 1, 1], shared: 0 })
}

/// Whether four channels of a row can be read at once, everywhere.
fn is_whole(x: &Tensor) -> bool {
    let bytes = 4 * x.kind().elt_size_in_bytes();
    let strides = x.stride();
    let steps = [x.size()[2], strides[0], strides[1]];
    steps.iter().all(|step| step % 4 == 0) && x.data_ptr().addr().is_multiple_of(bytes)
}

fn ceil(count: i64, size: i64) -> i64 {
    (count + size - 1).div_euclid(size)
}

/// The arguments that every kernel begins with.
fn operands<'a>(launch: Launch<'a>, args: &CausalConv1d<'a>, element: Kind) -> Launch<'a> {
    launch
        .rows(args.x, element)
        .tensor(args.weight, Kind::Float)
        .optional(args.bias, Kind::Float)
        .state(Some(args.tail))
        .state(args.reset_tail)
        .optional(args.resets, Kind::Bool)
        .optional(args.lengths, Kind::Int64)
}

/// `y` and the new tail.
fn forward(args: &CausalConv1d<'_>, kernels: &Kernels) -> Result<Vec<Tensor>> {
    let ([batch, time, d, width], element) = (sizes(args), kernels.element);
    let y = Tensor::f_empty([batch, time, d], (element, args.x.device()))?;
    let new_tail = Tensor::f_empty([batch, width - 1, d], (Kind::Float, args.x.device()))?;
    let launch = operands(kernels.forward.kernel("causal_conv1d_forward")?, args, element)
        .tensor(&y, element)
        .tensor(&new_tail, Kind::Float)
        .i64(time)
        .i64(d)
        .i64(FORWARD_CHUNK);
    let groups = ceil(d, CHANNELS);
    let grid = shape([ceil(groups * ceil(time, FORWARD_CHUNK), THREADS), batch, 1])?;
    // SAFETY: the kernel's parameters in its order; `check` has seen to the operands' shapes, the outputs have the
    // documented ones.
    unsafe { launch.run(grid) }?;
    Ok(vec![y, new_tail])
}

/// One gradient per input, in order.
fn backward(
    args: &CausalConv1d<'_>,
    kernels: &Kernels,
    dy: Option<&Tensor>,
    dnew_tail: Option<&Tensor>,
) -> Result<Vec<Option<Tensor>>> {
    let ([batch, time, d, width], element) = (sizes(args), kernels.element);
    let (loaded, sums) =
        kernels.backward.ok_or_else(|| Error::other("causal_conv1d: no backward was loaded"))?;
    let float = (Kind::Float, args.x.device());
    let dy = match dy {
        Some(dy) if dy.stride()[2] == 1 && (!kernels.whole || is_whole(dy)) => dy.shallow_clone(),
        Some(dy) => {
            // Fresh memory begins where a vector may.
            let mut fresh = Tensor::f_empty([batch, time, d], (element, args.x.device()))?;
            fresh.copy_(dy);
            fresh
        }
        None => Tensor::f_zeros([batch, time, d], (element, args.x.device()))?,
    };
    let dnew_tail = dnew_tail.map(Tensor::contiguous);

    let chunk = BACKWARD_REACH - (width - 1);
    let grid = [ceil(d, THREADS), ceil(ceil(time, chunk), WARPS), batch];
    let dx = Tensor::f_empty([batch, time, d], (element, args.x.device()))?;
    let parameters = Tensor::f_empty([batch, grid[1], d * (width + 1)], float)?;
    let launch = operands(loaded.kernel("causal_conv1d_backward")?, args, element)
        .rows(&dy, element)
        .optional(dnew_tail.as_ref(), Kind::Float)
        .tensor(&dx, element)
        .tensor(&parameters, Kind::Float)
        .i64(time)
        .i64(d)
        .i64(chunk);
    // SAFETY: the kernel's parameters in its order; `check` has seen to the operands' shapes, the gradients have those
    // of the outputs, and the results the documented ones.
    unsafe { launch.run(shape(grid)?) }?;

    let dtail = Tensor::f_empty([batch, width - 1, d], float)?;
    let masks = args.resets.is_some() || args.lengths.is_some();
    let dreset = masks.then(|| Tensor::f_empty([batch, width - 1, d], float)).transpose()?;
    if width > 1 {
        let launch = operands(loaded.kernel("causal_conv1d_backward_tails")?, args, element)
            .rows(&dy, element)
            .optional(dnew_tail.as_ref(), Kind::Float)
            .tensor(&dtail, Kind::Float)
            .optional(dreset.as_ref(), Kind::Float)
            .i64(time)
            .i64(d);
        // SAFETY: as above.
        unsafe { launch.run(shape([ceil(d, THREADS), batch, 1])?) }?;
    }

    let shared = sums.of(&parameters, [1, batch * grid[1], d * (width + 1)])?.view([d * (width + 1)]);
    let dweight = shared.narrow(0, 0, d * width).view([d, width]);
    let mut grads = vec![Some(dx), Some(dweight), Some(sums.state(&dtail, [batch, 1], args.tail)?)];
    // What is optional has a place in the list only if it was given.
    grads.extend(args.bias.map(|_| Some(shared.narrow(0, d * width, d))));
    if let Some(reset_tail) = args.reset_tail {
        grads.push(dreset.map(|dreset| sums.state(&dreset, [batch, 1], reset_tail)).transpose()?);
    }
    grads.extend([args.resets, args.lengths].into_iter().flatten().map(|_| None));
    Ok(grads)
}
