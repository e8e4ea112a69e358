//! Logits on the host.

use tch::{Device, Kind, Tensor};
use torch_bridge::{
    Result,
    tensors::{Slice, slice},
};

/// Logits `[rows, vocab_size]` of one step, brought to the host once for all rows.
#[derive(Debug)]
pub(super) struct HostLogits {
    logits: Tensor,
    width: usize,
}

impl HostLogits {
    pub(super) fn new(logits: &Tensor) -> Result<Self> {
        let width = logits.size()[1] as usize;
        let logits = logits.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?.f_contiguous()?;
        Ok(Self { logits, width })
    }

    pub(super) fn read(&self) -> Result<Rows<'_>> {
        Ok(Rows { all: slice(&self.logits)?, width: self.width })
    }
}

/// The rows, as they lie.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    all: Slice<'a, f32>,
    width: usize,
}

impl Rows<'_> {
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.all[row * self.width..(row + 1) * self.width]
    }
}
