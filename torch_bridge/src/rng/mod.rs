//! Random numbers: the state of the default generators, and generators of one's own.
//!
//! Each device has a default generator that dropout, `rand` and the like draw from. A state is a byte tensor on the
//! CPU; it is for the same device type and libtorch version.

mod generator;

pub use generator::Generator;

use tch::{Device, Tensor};

use crate::codes;
use crate::error::Result;
use crate::ffi;

/// The state of a device's default generator, `uint8 [bytes]` on the CPU.
///
/// # Errors
/// There is no such device.
pub fn get_state(device: Device) -> Result<Tensor> {
    // SAFETY: the out-pointer is writable; on success it holds a new tensor.
    ffi::tensor_out("get_state", |out| unsafe { ffi::hb_rng_get_state(codes::of_device(device), out) })
}

/// Puts a device's default generator into a state that [`get_state`] gave.
///
/// # Errors
/// There is no such device, or the tensor is no state of its generator.
pub fn set_state(device: Device, state: &Tensor) -> Result<()> {
    // SAFETY: the tensor is alive and only read.
    let code = unsafe { ffi::hb_rng_set_state(codes::of_device(device), ffi::raw(state)) };
    ffi::check(code, || "set_state")
}

/// Seeds a device's default generator, and no other's.
///
/// # Errors
/// There is no such device.
pub fn manual_seed(device: Device, seed: u64) -> Result<()> {
    // SAFETY: plain numbers.
    ffi::check(unsafe { ffi::hb_rng_seed(codes::of_device(device), seed) }, || "manual_seed")
}

/// What is drawn while it lives is forgotten: it restores the generator's state when it drops.
#[derive(Debug)]
#[must_use = "the state is restored when the guard drops"]
pub struct Fork {
    device: Device,
    before: Tensor,
}

impl Fork {
    /// Remembers the state of the device's default generator.
    ///
    /// # Errors
    /// There is no such device.
    pub fn new(device: Device) -> Result<Self> {
        Ok(Self { device, before: get_state(device)? })
    }
}

impl Drop for Fork {
    fn drop(&mut self) {
        // The state came from this generator a moment ago; nothing can be wrong with it that a drop could mend.
        let _ = set_state(self.device, &self.before);
    }
}

/// While it lives, the generator draws again from `state`; then it goes on from where it was.
///
/// With it a recomputed forward sees the dropout masks of the first one.
#[derive(Debug)]
#[must_use = "the state is restored when the guard drops"]
pub struct Replay {
    _fork: Fork,
}

impl Replay {
    /// Puts the device's default generator into `state` and remembers where it was.
    ///
    /// # Errors
    /// There is no such device, or the tensor is no state of its generator.
    pub fn new(device: Device, state: &Tensor) -> Result<Self> {
        let fork = Fork::new(device)?;
        set_state(device, state)?;
        Ok(Self { _fork: fork })
    }
}
