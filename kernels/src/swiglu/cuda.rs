//! The gate on CUDA devices.

use tch::{Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::{Error, Result};

use super::reference;
use crate::cuda::launch::{Shape, blocks};
use crate::cuda::{self, Define, Loaded, Unavailable, Value, program};
use crate::second;

program!(SWIGLU = "swiglu/swiglu.cu", variants: &[&variant("bf16", 1), &variant("bf16", 0), &variant("float", 1), &variant("float", 0)]);

const fn variant(element: &'static str, whole: i64) -> [Define; 2] {
    [("ELEMENT", Value::Text(element)), ("WHOLE", Value::Int(whole))]
}

const BLOCK: i64 = 256;
/// Elements of a thread.
const EIGHT: i64 = 8;

/// As [`swiglu`](super::swiglu), for CUDA tensors that are not empty; nothing where the definition is to run.
pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Option<Tensor>> {
    let element = if gate.kind() == Kind::BFloat16 { Kind::BFloat16 } else { Kind::Float };
    let given = (gate.f_to_kind(element)?.f_contiguous()?, up.f_to_kind(element)?.f_contiguous()?);
    let whole = aligned(&given.0) && aligned(&given.1);
    let find = || -> Result<&'static Loaded, Unavailable> {
        if gate.kind() == Kind::Double {
            return Err("swiglu has no CUDA kernel for float64".into());
        }
        SWIGLU.on(
            gate.device(),
            &variant(if element == Kind::BFloat16 { "bf16" } else { "float" }, whole.into()),
        )
    };
    let Some(loaded) = cuda::or_definition("swiglu", find())? else { return Ok(None) };
    let y = autograd::apply("swiglu", Gate { loaded, element }, &[&given.0, &given.1])?;
    let y = y.into_iter().next().ok_or_else(|| Error::other("swiglu: no output"))?;
    Ok(Some(y.f_to_kind(gate.kind())?))
}

fn aligned(x: &Tensor) -> bool {
    x.data_ptr().addr().is_multiple_of(16)
}

/// The node of the graph.
struct Gate {
    loaded: &'static Loaded,
    element: Kind,
}

fn shape(count: i64) -> Result<Shape> {
    Ok(Shape { grid: [blocks(count, BLOCK * EIGHT)?, 1, 1], block: [BLOCK as u32, 1, 1], shared: 0 })
}

fn operands(inputs: &[Tensor]) -> Result<(&Tensor, &Tensor)> {
    match inputs {
        [gate, up] => Ok((gate, up)),
        _ => Err(Error::other("swiglu: operands are missing")),
    }
}

impl Function for Gate {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (gate, up) = operands(inputs)?;
        let (y, count) = (gate.f_empty_like()?, gate.numel() as i64);
        let launch = self.loaded.kernel("swiglu_forward")?;
        let launch =
            launch.tensor(gate, self.element).tensor(up, self.element).tensor(&y, self.element).i64(count);
        // SAFETY: the kernel's parameters in its order, all contiguous of `count` elements.
        unsafe { launch.run(shape(count)?) }?;
        if saved.needs_any_grad() {
            saved.save(gate);
            saved.save(up);
        }
        Ok(vec![y])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let definition = || {
            let (gate, up) = operands(saved)?;
            let y = reference::swiglu(gate, up)?;
            Ok((y.shallow_clone(), y))
        };
        if let Some(gradients) = second::differentiable(saved, grads, definition) {
            return gradients;
        }
        let (gate, up) = operands(saved)?;
        let Some(dy) = grads.first().and_then(Option::as_ref) else { return Ok(vec![None, None]) };
        let dy = dy.f_contiguous()?;
        // Fresh memory begins where a vector may.
        let dy = if aligned(&dy) { dy } else { dy.f_detach_copy()? };
        let (dgate, dup, count) = (gate.f_empty_like()?, up.f_empty_like()?, gate.numel() as i64);
        let launch = self
            .loaded
            .kernel("swiglu_backward")?
            .tensor(gate, self.element)
            .tensor(up, self.element)
            .tensor(&dy, self.element)
            .tensor(&dgate, self.element)
            .tensor(&dup, self.element)
            .i64(count);
        // SAFETY: as in the forward; a gradient has the shape of the output.
        unsafe { launch.run(shape(count)?) }?;
        Ok(vec![Some(dgate), Some(dup)])
    }
}
