//! Bytes in and out of tensors, and their elements as slices.

mod borrows;
mod bytes;
mod slices;
mod transfer;

pub use bytes::{from_bytes, from_f32_as, to_bytes};
pub use slices::{
    Element, Slice, SliceMut, data_ptr_checked, slice, slice_mut, strided_ptr_checked, with_slice,
    with_slice_mut,
};
pub use transfer::to_device_without_waiting;
