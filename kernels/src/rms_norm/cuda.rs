//! The norm on CUDA devices: what its kernels get, and in which order they run.

use tch::{Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::guards::is_grad_enabled;
use torch_bridge::{Error, Result};

use super::rows::{self, ROWS, Rows, WIDEST};
use super::{RmsNorm, reference};
use crate::cuda::sums::Sums;
use crate::cuda::{self, COMMON, Define, Loaded, Unavailable, Value, program};
use crate::second;

program!(FORWARD = "rms_norm/forward.cu", headers: &[&COMMON, &ROWS], variants: VARIANTS);
program!(BACKWARD = "rms_norm/backward.cu", headers: &[&COMMON, &ROWS], variants: VARIANTS);

/// Each dtype and kind of row at least once.
const VARIANTS: &[&[Define]] = &[
    &variant(["bf16"; 3], [32, 1, 1]),
    &variant(["bf16"; 3], [32, 4, 0]),
    &variant(["bf16"; 3], [256, 1, 1]),
    &variant(["bf16", "float", "bf16"], [256, 1, 1]),
    &variant(["float", "float", "bf16"], [256, 1, 1]),
    &variant(["bf16"; 3], [256, 4, 1]),
    &variant(["float"; 3], [32, 2, 1]),
    &variant(["float"; 3], [256, 1, 0]),
    &variant(["float"; 3], [256, 4, 1]),
];

const fn variant([element, stream, output]: [&'static str; 3], rows: [i64; 3]) -> [Define; 6] {
    let [threads, vectors, whole] = rows::defines(rows);
    [
        ("ELEMENT", Value::Text(element)),
        ("STREAM", Value::Text(stream)),
        ("OUTPUT", Value::Text(output)),
        threads,
        vectors,
        whole,
    ]
}

/// As [`rms_norm`](super::rms_norm), for CUDA tensors that are not empty; nothing where the definition is to run.
pub(super) fn rms_norm(args: &RmsNorm<'_>) -> Result<Option<(Tensor, Tensor)>> {
    let given = [Some(args.x), Some(args.weight), args.residual];
    let graph = is_grad_enabled() && given.iter().flatten().any(|x| x.requires_grad());
    let stream = match args.residual {
        Some(residual) if residual.kind() != args.x.kind() => wider(args.x.kind(), residual.kind()),
        _ => args.x.kind(),
    };
    let output = args.output.unwrap_or(stream);
    let kinds = Kinds { element: held(args.x.kind()), stream: held(stream), output: held(output) };
    let d = args.weight.size()[0];
    let rows = |x: &Tensor, kind: Kind| x.to_kind(kind).contiguous().view([-1, d]);
    let x = rows(args.x, kinds.element);
    let residual = args.residual.map(|residual| rows(residual, kinds.stream));
    let weight = args.weight.f_to_kind(Kind::Float)?.f_contiguous()?;
    let shares = Rows::of(d, [Some(&x), residual.as_ref(), Some(&weight)].into_iter().flatten());
    let found = Kernels::find(args, kinds, shares, graph);
    let Some(kernels) = cuda::or_definition("rms_norm", found)? else { return Ok(None) };
    let mut inputs = vec![&x, &weight];
    inputs.extend(&residual);
    let outputs = autograd::apply("rms_norm", Norm { eps: args.eps, kernels }, &inputs)?;
    let shape = args.x.size();
    let back = |x: &Tensor, kind: Kind| x.view(shape.as_slice()).to_kind(kind);
    match outputs.as_slice() {
        [y, sum] => Ok(Some((back(y, output), back(sum, stream)))),
        [y] => Ok(Some((back(y, output), args.x.shallow_clone()))),
        _ => Err(Error::other("rms_norm: not one or two outputs")),
    }
}

/// The type that a kernel holds a tensor of that type in.
fn held(kind: Kind) -> Kind {
    if kind == Kind::BFloat16 { Kind::BFloat16 } else { Kind::Float }
}

/// The type of the sum of two that differ.
fn wider(a: Kind, b: Kind) -> Kind {
    if [a, b].contains(&Kind::Double) { Kind::Double } else { Kind::Float }
}

/// Types of `x`; of the residual stream; of `y`.
#[derive(Clone, Copy)]
struct Kinds {
    element: Kind,
    stream: Kind,
    output: Kind,
}

impl Kinds {
    fn names(self) -> [&'static str; 3] {
        [self.element, self.stream, self.output]
            .map(|kind| if kind == Kind::BFloat16 { "bf16" } else { "float" })
    }
}

/// The kernels of one call, loaded.
#[derive(Clone, Copy)]
struct Kernels {
    kinds: Kinds,
    rows: Rows,
    forward: &'static Loaded,
    /// Only where gradients may be asked for.
    backward: Option<(&'static Loaded, Sums)>,
}

impl Kernels {
    fn find(args: &RmsNorm<'_>, kinds: Kinds, rows: Rows, graph: bool) -> Result<Self, Unavailable> {
        let d = args.weight.size()[0];
        let wide = |x: &Tensor| x.kind() == Kind::Double;
        if wide(args.x) || args.residual.is_some_and(wide) || args.output == Some(Kind::Double) {
            return Err("rms_norm has no CUDA kernel for float64".into());
        }
        if d > WIDEST {
            return Err(format!("rms_norm has no CUDA kernel for more than {WIDEST} channels").into());
        }
        let device = args.x.device();
        let defines = variant(kinds.names(), rows.kind());
        let backward = graph
            .then(|| Ok::<_, Unavailable>((BACKWARD.on(device, &defines)?, Sums::on(device)?)))
            .transpose()?;
        Ok(Self { kinds, rows, forward: FORWARD.on(device, &defines)?, backward })
    }
}

/// The node of the graph. It saves what was normed, the weight and the rows' factors.
struct Norm {
    eps: f64,
    kernels: Kernels,
}

impl Function for Norm {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (x, weight, residual) = operands(inputs)?;
        let ([rows, d], kinds) = (sizes(x), self.kernels.kinds);
        let y = Tensor::f_empty([rows, d], (kinds.output, x.device()))?;
        let sum = residual.map(Tensor::f_empty_like).transpose()?;
        let inverse =
            saved.needs_any_grad().then(|| Tensor::f_empty([rows], (Kind::Float, x.device()))).transpose()?;
        let launch = self.kernels.forward.kernel("rms_norm_forward")?;
        let launch = launch
            .tensor(x, kinds.element)
            .optional(residual, kinds.stream)
            .tensor(weight, Kind::Float)
            .tensor(&y, kinds.output)
            .optional(sum.as_ref(), kinds.stream)
            .optional(inverse.as_ref(), Kind::Float)
            .i64(rows)
            .i64(d)
            .f32(self.eps as f32);
        // SAFETY: the kernel's parameters in its order; the operands are contiguous rows of `d` elements.
        unsafe { launch.run(self.kernels.rows.forward(rows)?) }?;
        if let Some(inverse) = &inverse {
            saved.save(sum.as_ref().unwrap_or(x));
            saved.save(inverse);
            for input in inputs {
                saved.save(input);
            }
        }
        Ok(std::iter::once(y).chain(sum).collect())
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let [h, inverse, inputs @ ..] = saved else {
            return Err(Error::other("rms_norm: nothing was saved"));
        };
        let definition = || {
            let (x, weight, residual) = operands(inputs)?;
            let output = Some(self.kernels.kinds.output);
            reference::rms_norm(&RmsNorm { x, residual, weight, eps: self.eps, output })
        };
        if let Some(gradients) = second::differentiable(inputs, grads, definition) {
            return gradients;
        }
        let (_, weight, residual) = operands(inputs)?;
        let ([rows, d], kinds) = (sizes(h), self.kernels.kinds);
        let (loaded, sums) =
            self.kernels.backward.ok_or_else(|| Error::other("rms_norm: no backward was loaded"))?;
        let dy = match grads.first().and_then(Option::as_ref) {
            Some(dy) => rows::dense(dy)?,
            None => h.f_zeros_like()?.f_to_kind(kinds.output)?,
        };
        let dsum = grads.get(1).and_then(Option::as_ref).map(rows::dense).transpose()?;
        let dh = h.f_empty_like()?;
        let dx = (kinds.element != kinds.stream)
            .then(|| Tensor::f_empty([rows, d], (kinds.element, h.device())))
            .transpose()?;
        let shape = self.kernels.rows.backward(rows)?;
        let parts = i64::from(shape.grid[0]);
        let partial = Tensor::f_empty([parts, d], (Kind::Float, h.device()))?;
        let launch = loaded
            .kernel("rms_norm_backward")?
            .tensor(h, kinds.stream)
            .tensor(weight, Kind::Float)
            .tensor(inverse, Kind::Float)
            .tensor(&dy, kinds.output)
            .optional(dsum.as_ref(), kinds.stream)
            .tensor(&dh, kinds.stream)
            .optional(dx.as_ref(), kinds.element)
            .tensor(&partial, Kind::Float)
            .i64(rows)
            .i64(d);
        // SAFETY: as in the forward; gradients have the shapes of the outputs.
        unsafe { launch.run(shape) }?;
        let dweight = rows::total(sums, &partial)?;
        let mut gradients = vec![Some(dx.unwrap_or_else(|| dh.shallow_clone())), Some(dweight.f_view([d])?)];
        gradients.extend(residual.map(|_| Some(dh)));
        Ok(gradients)
    }
}

/// `x`, `weight` and `residual`.
fn operands(inputs: &[Tensor]) -> Result<(&Tensor, &Tensor, Option<&Tensor>)> {
    match inputs {
        [x, weight] => Ok((x, weight, None)),
        [x, weight, residual] => Ok((x, weight, Some(residual))),
        _ => Err(Error::other("rms_norm: operands are missing")),
    }
}

fn sizes(x: &Tensor) -> [i64; 2] {
    let size = x.size();
    [size[0], size[1]]
}
