//! The rotary embedding on CUDA devices.

use tch::{Kind, Tensor};
use torch_bridge::autograd::{self, Function, Saved};
use torch_bridge::{Error, Result};

use super::{Rotary, reference};
use crate::cuda::launch::{Shape, blocks};
use crate::cuda::{self, Define, Loaded, Unavailable, Value, program};
use crate::second;

program!(ROTARY = "rotary/rotary.cu", variants: &[&[("ELEMENT", Value::Text("bf16"))], &[("ELEMENT", Value::Text("float"))]]);

/// Frequencies that fit into the kernel's arguments.
const MOST_PAIRS: usize = 128;
const BLOCK: u32 = 256;
/// The second dimension of a grid.
const MOST_ROWS: i64 = 65_535;

/// As [`rotary`](super::rotary), for CUDA tensors that are not empty; nothing where the definition is to run.
pub(super) fn rotary(args: &Rotary<'_>) -> Result<Option<Tensor>> {
    let element = if args.x.kind() == Kind::BFloat16 { Kind::BFloat16 } else { Kind::Float };
    let Some(loaded) = cuda::or_definition("rotary", find(args, element))? else { return Ok(None) };
    let mut frequencies = [0.0; MOST_PAIRS];
    for (to, from) in frequencies.iter_mut().zip(args.frequencies) {
        *to = *from as f32;
    }
    let turn = Turn {
        loaded,
        element,
        positions: args.positions.shallow_clone(),
        frequencies,
        given: args.frequencies.to_vec(),
        scale: args.scale,
    };
    let tokens_first = args.x.f_transpose(1, 2)?.f_to_kind(element)?;
    let y = autograd::apply("rotary", turn, &[&tokens_first])?;
    let y = y.into_iter().next().ok_or_else(|| Error::other("rotary: no output"))?;
    Ok(Some(y.f_transpose(1, 2)?.f_to_kind(args.x.kind())?))
}

fn find(args: &Rotary<'_>, element: Kind) -> Result<&'static Loaded, Unavailable> {
    if args.x.kind() == Kind::Double {
        return Err("rotary has no CUDA kernel for float64".into());
    }
    if args.frequencies.len() > MOST_PAIRS || args.x.size()[0] > MOST_ROWS {
        let reason = format!(
            "rotary has no CUDA kernel for more than {} channels a head or {MOST_ROWS} rows",
            2 * MOST_PAIRS
        );
        return Err(reason.into());
    }
    let defines: [Define; 1] =
        [("ELEMENT", Value::Text(if element == Kind::BFloat16 { "bf16" } else { "float" }))];
    ROTARY.on(args.x.device(), &defines)
}

/// The node of the graph, on `[batch, time, heads, d]`.
struct Turn {
    loaded: &'static Loaded,
    element: Kind,
    positions: Tensor,
    frequencies: [f32; MOST_PAIRS],
    given: Vec<f64>,
    scale: f64,
}

impl Turn {
    fn launch(&self, x: &Tensor, direction: f32) -> Result<Tensor> {
        let x = if x.stride().last() == Some(&1) { x.shallow_clone() } else { x.f_contiguous()? };
        let (batch, time, heads, d) = x.size4()?;
        let y = Tensor::f_empty([batch, time, heads, d], (self.element, x.device()))?;
        let (strides, places) = (x.stride(), self.positions.stride());
        let launch = self
            .loaded
            .kernel("rotary")?
            .tensor(&x, self.element)
            .i64(strides[0])
            .i64(strides[1])
            .i64(strides[2])
            .tensor(&self.positions, Kind::Int64)
            .i64(if self.positions.size()[0] == 1 { 0 } else { places[0] })
            .i64(places[1])
            .tensor(&y, self.element)
            .i64(time)
            .i64(heads)
            .i64(d / 2)
            .f32(self.scale as f32)
            .f32(direction)
            .f32s(&self.frequencies);
        let grid = [blocks(time * (d / 2), i64::from(BLOCK))?, blocks(batch, 1)?, 1];
        // SAFETY: the kernel's parameters in its order, with the strides of the tensors.
        unsafe { launch.run(Shape { grid, block: [BLOCK, 1, 1], shared: 0 }) }?;
        Ok(y)
    }
}

impl Function for Turn {
    fn forward(&mut self, saved: &mut Saved, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let x = inputs.first().ok_or_else(|| Error::other("rotary: no input"))?;
        if saved.needs_any_grad() {
            saved.save(x);
        }
        Ok(vec![self.launch(x, 1.0)?])
    }

    fn backward(&mut self, saved: &[Tensor], grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let definition = || {
            let x = saved.first().ok_or_else(|| Error::other("rotary: nothing was saved"))?;
            let x = x.f_transpose(1, 2)?;
            let args =
                Rotary { x: &x, positions: &self.positions, frequencies: &self.given, scale: self.scale };
            let y = reference::rotary(&args)?.f_transpose(1, 2)?;
            Ok((y.shallow_clone(), y))
        };
        if let Some(gradients) = second::differentiable(saved, grads, definition) {
            return gradients;
        }
        let dy = grads.first().and_then(Option::as_ref);
        Ok(vec![dy.map(|dy| self.launch(dy, -1.0)).transpose()?])
    }
}
