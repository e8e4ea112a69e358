//! Tensors from the host to a device.

use tch::{Device, Tensor};

use crate::error::Result;
use crate::ops;
use crate::values;

/// A copy of a host's tensor on a GPU, through pinned memory: the host goes on at once, and what it gives to the device's
/// current stream from then on sees the copy.
///
/// # Errors
/// The tensor is not on the CPU, or memory is short.
pub fn to_device_without_waiting(tensor: &Tensor, device: Device) -> Result<Tensor> {
    let pinned = ops::call_tensor("pin_memory", "", &values![tensor])?;
    Ok(pinned.f_internal_to_copy((tensor.kind(), device), true)?)
}
