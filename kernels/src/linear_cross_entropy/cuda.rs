//! Rows of logits on CUDA devices: one kernel makes losses and gradients of them in place.

use tch::{Kind, Tensor};
use torch_bridge::Result;

use super::Settings;
use crate::cuda::launch::{Shape, blocks};
use crate::cuda::{self, Define, Value, program};

program!(ROWS = "linear_cross_entropy/rows.cu", variants: &[&variant("bf16"), &variant("float")]);

const fn variant(element: &'static str) -> [Define; 1] {
    [("ELEMENT", Value::Text(element))]
}

const THREADS: u32 = 512;

/// As [`losses`](super::rows::losses), in f32, or nothing where there is no kernel. The logits become gradients.
pub(super) fn losses(
    logits: &Tensor,
    targets: &Tensor,
    vocab: i64,
    settings: Settings,
    gradient: bool,
) -> Result<Option<Tensor>> {
    let element = logits.kind();
    let name = match element {
        Kind::BFloat16 => "bf16",
        Kind::Float => "float",
        _ => {
            let none = Err(format!("linear_cross_entropy has no CUDA kernel for {element:?}").into());
            return cuda::or_definition::<Tensor>("linear_cross_entropy", none);
        }
    };
    let found = ROWS.on(logits.device(), &variant(name));
    let Some(loaded) = cuda::or_definition("linear_cross_entropy", found)? else { return Ok(None) };
    let (rows, pitch) = (logits.size()[0], logits.size()[1]);
    let targets = targets.f_contiguous()?;
    let losses = Tensor::f_empty([rows, 2], (Kind::Float, logits.device()))?;
    let launch = loaded
        .kernel("linear_cross_entropy_rows")?
        .tensor(logits, element)
        .tensor(&targets, Kind::Int64)
        .tensor(&losses, Kind::Float)
        .i64(vocab)
        .i64(pitch)
        .f32(settings.label_smoothing as f32)
        .f32(settings.z_loss as f32)
        .f32(settings.soft_cap.unwrap_or(0.0) as f32)
        .i32(gradient.into());
    // SAFETY: the kernel's parameters in its order; logits are contiguous rows, as the products of matrices make them.
    unsafe { launch.run(Shape { grid: [blocks(rows, 1)?, 1, 1], block: [THREADS, 1, 1], shared: 0 }) }?;
    Ok(Some(losses))
}
