//! The elements of a CPU tensor as a Rust slice, after every check that makes it one.

use std::ffi::c_void;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use tch::{Device, Kind, Tensor};

use super::borrows::Borrow;
use crate::codes;
use crate::error::{Error, Result};
use crate::ffi;

/// A Rust type that is bit for bit an element of a tensor.
pub trait Element: sealed::Sealed + Copy + Debug + 'static {
    /// The kind of the tensors that hold it.
    const KIND: Kind;
}

mod sealed {
    pub trait Sealed {
        /// Whether all elements in the slice are values of the type.
        fn valid(_bytes: &[u8]) -> bool {
            true
        }
    }
}

macro_rules! elements {
    ($($element:ty => $kind:ident),* $(,)?) => {
        $(
            impl sealed::Sealed for $element {}
            impl Element for $element {
                const KIND: Kind = Kind::$kind;
            }
        )*
    };
}

elements! {
    f32 => Float, f64 => Double, half::f16 => Half, half::bf16 => BFloat16,
    i64 => Int64, i32 => Int, i16 => Int16, i8 => Int8, u8 => Uint8,
}

impl sealed::Sealed for bool {
    // torch keeps 0 and 1, but a view of other bytes as bool can hold anything, which Rust may not see.
    fn valid(bytes: &[u8]) -> bool {
        bytes.iter().all(|byte| *byte <= 1)
    }
}

impl Element for bool {
    const KIND: Kind = Kind::Bool;
}

/// The elements of a tensor in row-major order, read-only.
#[derive(Debug)]
pub struct Slice<'a, T> {
    pointer: *const T,
    length: usize,
    _borrow: Borrow,
    _tensor: PhantomData<&'a Tensor>,
}

impl<T> Deref for Slice<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `slice` has checked device, kind, layout and values; the tensor is borrowed and so alive; the borrow
        // table keeps writers of this thread away.
        unsafe { std::slice::from_raw_parts(self.pointer, self.length) }
    }
}

/// The elements of a tensor in row-major order, to be written.
#[derive(Debug)]
pub struct SliceMut<'a, T> {
    pointer: *mut T,
    length: usize,
    _borrow: Borrow,
    _tensor: PhantomData<&'a mut Tensor>,
}

impl<T> Deref for SliceMut<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: as for `Slice`, checked by `slice_mut`; the borrow table keeps all others of this thread away.
        unsafe { std::slice::from_raw_parts(self.pointer, self.length) }
    }
}

impl<T> DerefMut for SliceMut<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.length) }
    }
}

/// The elements of a contiguous CPU tensor, `[numel]` in row-major order.
///
/// The elements can be handed to other threads while the slice is held here. Slices of this thread that overlap are
/// checked against each other; what cannot be checked is left to the caller, as torch leaves it for its own
/// operations: while a slice lives, no torch operation may write or resize the same memory through another handle,
/// and no other thread may hold a mutable slice of it.
///
/// # Errors
/// The tensor is undefined, not on the CPU, not of `T`'s kind or not contiguous, or its memory is lent out for writing
/// at this moment.
pub fn slice<T: Element>(tensor: &Tensor) -> Result<Slice<'_, T>> {
    let (pointer, length) = checked::<T>("slice", tensor, false)?;
    let borrow = lend("slice", pointer, length, false)?;
    Ok(Slice { pointer, length, _borrow: borrow, _tensor: PhantomData })
}

/// The elements of a contiguous CPU tensor, to be written.
///
/// Autograd is told that the tensor has changed. What [`slice()`] leaves to the caller is left here too, for reads as
/// well. The old elements can be read, so a fresh bool tensor must be made by `zeros`, not `empty`.
///
/// # Errors
/// As [`slice()`]; also if the memory is lent out at all, if the tensor requires a gradient while gradients are on, or if
/// it was made in inference mode and this is outside.
pub fn slice_mut<T: Element>(tensor: &mut Tensor) -> Result<SliceMut<'_, T>> {
    const OPERATION: &str = "slice_mut";
    if crate::guards::is_grad_enabled() && tensor.requires_grad() {
        return Err(Error::mismatch(
            OPERATION,
            "no gradients, or them switched off",
            "a tensor that requires one",
        ));
    }
    let (pointer, length) = checked::<T>(OPERATION, tensor, true)?;
    let borrow = lend(OPERATION, pointer, length, true)?;
    // SAFETY: the tensor is alive and defined.
    ffi::check(unsafe { ffi::hb_tensor_bump_version(ffi::raw(tensor)) }, || OPERATION)?;
    Ok(SliceMut { pointer, length, _borrow: borrow, _tensor: PhantomData })
}

/// Runs `body` on the elements; see [`slice()`].
///
/// # Errors
/// As [`slice()`].
pub fn with_slice<T: Element, R>(tensor: &Tensor, body: impl FnOnce(&[T]) -> R) -> Result<R> {
    Ok(body(&slice(tensor)?))
}

/// Runs `body` on the elements, which it may write; see [`slice_mut`].
///
/// # Errors
/// As [`slice_mut`].
pub fn with_slice_mut<T: Element, R>(tensor: &mut Tensor, body: impl FnOnce(&mut [T]) -> R) -> Result<R> {
    Ok(body(&mut slice_mut(tensor)?))
}

/// The address of the first element, for a kernel that takes raw pointers; null may come for a tensor without any.
///
/// Keep the tensor alive while the address is in use, and write through it only if nothing else reads.
///
/// # Errors
/// The tensor is undefined, on another device, of another kind or not contiguous.
pub fn data_ptr_checked(tensor: &Tensor, device: Device, kind: Kind) -> Result<*mut c_void> {
    const OPERATION: &str = "data_ptr";
    inspect(OPERATION, tensor, kind)?;
    on_device(OPERATION, tensor, device)?;
    data(OPERATION, tensor, true)
}

/// The address of the first element of a dense tensor of any strides, for a kernel that is told the strides too; null
/// may come for a tensor without any.
///
/// What [`data_ptr_checked`] asks of the caller holds here too.
///
/// # Errors
/// The tensor is undefined, sparse, on another device or of another kind.
pub fn strided_ptr_checked(tensor: &Tensor, device: Device, kind: Kind) -> Result<*mut c_void> {
    const OPERATION: &str = "strided_ptr";
    dense(OPERATION, tensor, kind)?;
    on_device(OPERATION, tensor, device)?;
    data(OPERATION, tensor, true)
}

fn on_device(operation: &str, tensor: &Tensor, device: Device) -> Result<()> {
    let found = tensor.device();
    if found == device {
        return Ok(());
    }
    Err(Error::mismatch(operation, format!("a tensor on {device:?}"), format!("one on {found:?}")))
}

/// All checks but the device's. Returns the number of elements.
fn inspect(operation: &str, tensor: &Tensor, kind: Kind) -> Result<(ffi::TensorFacts, usize)> {
    let facts = dense(operation, tensor, kind)?;
    if facts.contiguous == 0 {
        let (size, stride) = (tensor.size(), tensor.stride());
        let got = format!("shape {size:?} with strides {stride:?}");
        return Err(Error::mismatch(operation, "a contiguous tensor", got));
    }
    let elements = usize::try_from(facts.elements).unwrap_or(0);
    Ok((facts, elements))
}

/// Whether it is a tensor of this kind whose elements lie in memory.
fn dense(operation: &str, tensor: &Tensor, kind: Kind) -> Result<ffi::TensorFacts> {
    let refuse = |expected: String, got: String| Err(Error::mismatch(operation, expected, got));
    let mut facts = ffi::TensorFacts::default();
    // SAFETY: the tensor is alive and the out-pointer writable.
    ffi::check(unsafe { ffi::hb_tensor_inspect(ffi::raw(tensor), &raw mut facts) }, || operation)?;
    if facts.defined == 0 {
        return refuse("a tensor".to_owned(), "an undefined one".to_owned());
    }
    if facts.scalar_type != codes::of_kind(kind) {
        let got = codes::to_kind(facts.scalar_type)
            .map_or_else(|| format!("dtype {}", facts.scalar_type), |kind| format!("{kind:?}"));
        return refuse(format!("elements of kind {kind:?}"), got);
    }
    if facts.plain == 0 {
        return refuse("a dense tensor".to_owned(), "a sparse, conjugated or negated one".to_owned());
    }
    Ok(facts)
}

fn data(operation: &str, tensor: &Tensor, writable: bool) -> Result<*mut c_void> {
    let mut pointer = std::ptr::null_mut();
    // SAFETY: the tensor is alive and the out-pointer writable.
    let code = unsafe { ffi::hb_tensor_data(ffi::raw(tensor), writable.into(), &raw mut pointer) };
    ffi::check(code, || operation)?;
    Ok(pointer)
}

/// The address and number of a CPU tensor's elements, good for `from_raw_parts`.
fn checked<T: Element>(operation: &str, tensor: &Tensor, writable: bool) -> Result<(*mut T, usize)> {
    let (facts, length) = inspect(operation, tensor, T::KIND)?;
    if facts.on_cpu == 0 {
        return Err(Error::mismatch(
            operation,
            "a tensor on the CPU",
            format!("one on {:?}", tensor.device()),
        ));
    }
    let pointer = data(operation, tensor, writable)?.cast::<T>();
    if length == 0 {
        return Ok((std::ptr::NonNull::dangling().as_ptr(), 0));
    }
    // A tensor made of a foreign buffer may start anywhere.
    if pointer.is_null() || !pointer.is_aligned() {
        return Err(Error::mismatch(operation, "aligned memory", format!("the address {pointer:?}")));
    }
    // SAFETY: the memory of a dense contiguous tensor; bytes have no invalid values.
    let bytes = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), length * size_of::<T>()) };
    if !<T as sealed::Sealed>::valid(bytes) {
        return Err(Error::mismatch(operation, format!("values of {:?}", T::KIND), "other bytes"));
    }
    Ok((pointer, length))
}

fn lend<T>(operation: &str, pointer: *mut T, length: usize, writes: bool) -> Result<Borrow> {
    let start = pointer.addr();
    Borrow::new(start..start + length * size_of::<T>(), writes).ok_or_else(|| {
        let expected =
            if writes { "memory that is not lent out" } else { "memory that is not lent out for writing" };
        Error::mismatch(operation, expected, "a tensor that overlaps a living slice")
    })
}
