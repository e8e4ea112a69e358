//! The normed sum on CUDA devices.

use tch::{Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::guards::is_grad_enabled;
use torch_bridge::{Error, Result};

use super::reference;
use crate::cuda::sums::Sums;
use crate::cuda::{self, COMMON, Define, Loaded, Unavailable, Value, program};
use crate::rms_norm::rows::{self, ROWS, Rows, WIDEST};
use crate::second;

program!(NORM_SUM = "rms_norm_sum/rms_norm_sum.cu", headers: &[&COMMON, &ROWS], variants: &[
    &variant("bf16", 2, [256, 1, 1]),
    &variant("bf16", 2, [256, 2, 1]),
    &variant("bf16", 3, [32, 4, 0]),
    &variant("float", 2, [32, 1, 1]),
    &variant("float", 4, [256, 4, 0]),
]);

const fn variant(element: &'static str, branches: i64, rows: [i64; 3]) -> [Define; 7] {
    let [threads, vectors, whole] = rows::defines(rows);
    [
        ("ELEMENT", Value::Text(element)),
        ("STREAM", Value::Text(element)),
        ("OUTPUT", Value::Text(element)),
        ("BRANCHES", Value::Int(branches)),
        threads,
        vectors,
        whole,
    ]
}

const MOST_BRANCHES: usize = 4;
/// As [`rms_norm_sum`](super::rms_norm_sum), for CUDA tensors that are not empty; nothing where the definition is to run.
pub(super) fn rms_norm_sum(branches: &[&Tensor], weights: &[&Tensor], eps: f64) -> Result<Option<Tensor>> {
    let Some(first) = branches.first() else { return Ok(None) };
    let graph = is_grad_enabled() && branches.iter().chain(weights).any(|x| x.requires_grad());
    let element = if first.kind() == Kind::BFloat16 { Kind::BFloat16 } else { Kind::Float };
    let shape = first.size();
    let d = shape.last().copied().unwrap_or(1);
    let mut inputs: Vec<Tensor> = Vec::with_capacity(2 * branches.len());
    for x in branches {
        inputs.push(x.f_to_kind(element)?.f_contiguous()?.f_view([-1, d])?);
    }
    for weight in weights {
        inputs.push(weight.f_to_kind(Kind::Float)?.f_contiguous()?);
    }
    let shares = Rows::of(d, inputs.iter());
    let find = || -> Result<Kernels, Unavailable> {
        if first.kind() == Kind::Double {
            return Err("rms_norm_sum has no CUDA kernel for float64".into());
        }
        if branches.len() > MOST_BRANCHES || d > WIDEST {
            let reason = format!(
                "rms_norm_sum has no CUDA kernel for more than {MOST_BRANCHES} branches or {WIDEST} channels"
            );
            return Err(reason.into());
        }
        let name = if element == Kind::BFloat16 { "bf16" } else { "float" };
        let defines = variant(name, branches.len() as i64, shares.kind());
        let loaded = NORM_SUM.on(first.device(), &defines)?;
        let sums = graph.then(|| Sums::on(first.device())).transpose()?;
        Ok(Kernels { element, rows: shares, loaded, sums })
    };
    let Some(kernels) = cuda::or_definition("rms_norm_sum", find())? else { return Ok(None) };
    let given: Vec<&Tensor> = inputs.iter().collect();
    let y = autograd::apply("rms_norm_sum", NormSum { eps, kernels }, &given)?;
    let y = y.into_iter().next().ok_or_else(|| Error::other("rms_norm_sum: no output"))?;
    Ok(Some(y.f_view(shape.as_slice())?.f_to_kind(first.kind())?))
}

/// The kernels of one call, loaded.
#[derive(Clone, Copy)]
struct Kernels {
    element: Kind,
    rows: Rows,
    loaded: &'static Loaded,
    /// Only where gradients may be asked for.
    sums: Option<Sums>,
}

/// The node of the graph. It saves its inputs and the rows' factors.
struct NormSum {
    eps: f64,
    kernels: Kernels,
}

impl Function for NormSum {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (branches, weights) = inputs.split_at(inputs.len() / 2);
        let first = branches.first().ok_or_else(|| Error::other("rms_norm_sum: no branch"))?;
        let ((rows, d), element) = (first.size2()?, self.kernels.element);
        let y = first.f_empty_like()?;
        let count = branches.len() as i64;
        let inverse = saved
            .needs_any_grad()
            .then(|| Tensor::f_empty([count, rows], (Kind::Float, first.device())))
            .transpose()?;
        let launch = self.kernels.loaded.kernel("rms_norm_sum_forward")?;
        let launch = launch
            .tensors::<MOST_BRANCHES>(branches, element)
            .tensors::<MOST_BRANCHES>(weights, Kind::Float)
            .tensor(&y, element)
            .optional(inverse.as_ref(), Kind::Float)
            .i64(rows)
            .i64(d)
            .f32(self.eps as f32);
        // SAFETY: the kernel's parameters in its order; the operands are contiguous rows of `d` elements.
        unsafe { launch.run(self.kernels.rows.forward(rows)?) }?;
        if let Some(inverse) = &inverse {
            saved.save(inverse);
            for input in inputs {
                saved.save(input);
            }
        }
        Ok(vec![y])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let [inverse, inputs @ ..] = saved else {
            return Err(Error::other("rms_norm_sum: nothing was saved"));
        };
        let (branches, weights) = inputs.split_at(inputs.len() / 2);
        let definition = || {
            let (branches, weights): (Vec<_>, Vec<_>) = (branches.iter().collect(), weights.iter().collect());
            let y = reference::rms_norm_sum(&branches, &weights, self.eps)?;
            Ok((y.shallow_clone(), y))
        };
        if let Some(gradients) = second::differentiable(inputs, grads, definition) {
            return gradients;
        }
        let Some(dy) = grads.first().and_then(Option::as_ref) else {
            return Ok(inputs.iter().map(|_| None).collect());
        };
        let dy = rows::dense(dy)?;
        let ((rows, d), element) = (dy.size2()?, self.kernels.element);
        let sums = self.kernels.sums.ok_or_else(|| Error::other("rms_norm_sum: no backward was loaded"))?;
        let dx = branches.iter().map(Tensor::f_empty_like).collect::<Result<Vec<_>, _>>()?;
        let shape = self.kernels.rows.backward(rows)?;
        let (parts, width) = (i64::from(shape.grid[0]), branches.len() as i64 * d);
        let partial = Tensor::f_empty([parts, width], (Kind::Float, dy.device()))?;
        let launch = self
            .kernels
            .loaded
            .kernel("rms_norm_sum_backward")?
            .tensors::<MOST_BRANCHES>(branches, element)
            .tensors::<MOST_BRANCHES>(weights, Kind::Float)
            .tensor(inverse, Kind::Float)
            .tensor(&dy, element)
            .tensors::<MOST_BRANCHES>(&dx, element)
            .tensor(&partial, Kind::Float)
            .i64(rows)
            .i64(d);
        // SAFETY: as in the forward; gradients have the shapes of what they are of.
        unsafe { launch.run(shape) }?;
        let dweight = rows::total(sums, &partial)?;
        let dweight = dweight.f_view([-1, d])?;
        let mut gradients: Vec<Option<Tensor>> = dx.into_iter().map(Some).collect();
        for i in 0..weights.len() as i64 {
            gradients.push(Some(dweight.f_select(0, i)?));
        }
        Ok(gradients)
    }
}
