//! Tensors from bytes and back.

use tch::{Device, Kind, Tensor};

use super::slices::data_ptr_checked;
use crate::error::{Error, Result};

/// A tensor on the CPU that holds a copy of `bytes`, read as elements of `kind` in the machine's byte order.
///
/// # Errors
/// A dimension is negative, or the number of bytes is not what `shape` and `kind` need.
pub fn from_bytes(bytes: &[u8], shape: &[i64], kind: Kind) -> Result<Tensor> {
    // tch copies as much as the shape asks for and does not look at the length.
    let elements =
        shape.iter().try_fold(1usize, |count, size| count.checked_mul(usize::try_from(*size).ok()?));
    let needed = elements.and_then(|elements| elements.checked_mul(kind.elt_size_in_bytes()));
    if needed != Some(bytes.len()) {
        let expected =
            needed.map_or_else(|| "a possible shape".to_owned(), |needed| format!("{needed} bytes"));
        return Err(Error::mismatch(
            format!("a {kind:?} tensor of shape {shape:?}"),
            expected,
            format!("{} bytes", bytes.len()),
        ));
    }
    Ok(Tensor::f_from_data_size(bytes, shape, kind)?)
}

/// The elements of a tensor in row-major order as bytes, whatever its device and strides.
///
/// # Errors
/// The tensor is undefined, sparse or quantised, or its device fails.
pub fn to_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let kind = tensor.f_kind()?;
    let length = tensor.numel() * kind.elt_size_in_bytes();
    let pointer = data_ptr_checked(&tensor, Device::Cpu, kind)?;
    if length == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the tensor is dense, contiguous and alive, and every element is initialised memory of this size.
    Ok(unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), length) }.to_vec())
}

/// A tensor on the CPU of any floating kind from `f32` values, rounded to nearest even.
///
/// Use it in place of `Tensor::from_slice` for bfloat16: tch takes `half::bf16` for half precision and keeps the bits.
///
/// # Errors
/// The number of values is not what `shape` needs.
pub fn from_f32_as(values: &[f32], shape: &[i64], kind: Kind) -> Result<Tensor> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    Ok(from_bytes(&bytes, shape, Kind::Float)?.f_to_kind(kind)?)
}
