//! A kernel's arguments, and giving it to libtorch's current stream.

use std::ffi::c_void;
use std::marker::PhantomData;

use tch::{Device, Kind, Tensor};
use torch_bridge::profiler::Span;
use torch_bridge::tensors::strided_ptr_checked;
use torch_bridge::{Error, Result, device};

use super::driver::Kernel;
pub(crate) use super::driver::Shape;
use super::loaded::Loaded;

/// A kernel and its arguments so far, in the order of its parameters.
///
/// The tensors are borrowed until the launch. After it they may be dropped: libtorch's allocator hands memory out again
/// to later work of the same stream only, and the launch is on that stream.
pub(crate) struct Launch<'a> {
    loaded: &'static Loaded,
    kernel: &'static Kernel,
    name: &'static str,
    arguments: Vec<Argument>,
    /// Of all tensors, for a profile.
    bytes: usize,
    /// What was wrong with an argument; said at the launch.
    refused: Option<Error>,
    _tensors: PhantomData<&'a Tensor>,
}

/// The bytes of one argument, at an address that suits any type.
enum Argument {
    Short([u64; 1], usize),
    Long(Vec<u64>, usize),
}

impl Argument {
    fn length(&self) -> usize {
        match self {
            Self::Short(_, length) | Self::Long(_, length) => *length,
        }
    }

    fn address(&mut self) -> *mut c_void {
        match self {
            Self::Short(words, _) => words.as_mut_ptr().cast(),
            Self::Long(words, _) => words.as_mut_ptr().cast(),
        }
    }
}

impl<'a> Launch<'a> {
    pub(super) fn new(loaded: &'static Loaded, name: &'static str, kernel: &'static Kernel) -> Self {
        Self { loaded, kernel, name, arguments: Vec::new(), bytes: 0, refused: None, _tensors: PhantomData }
    }

    /// The address of a dense tensor's first element; the kernel is told the strides by other arguments.
    pub(crate) fn tensor(mut self, tensor: &'a Tensor, kind: Kind) -> Self {
        match strided_ptr_checked(tensor, self.loaded.device(), kind) {
            Ok(address) => {
                self.bytes += tensor.numel() * kind.elt_size_in_bytes();
                self.value(&(address.addr() as u64).to_ne_bytes())
            }
            Err(error) => {
                self.refused.get_or_insert(error);
                self
            }
        }
    }

    /// As [`tensor`](Self::tensor); a null pointer when there is none.
    pub(crate) fn optional(self, tensor: Option<&'a Tensor>, kind: Kind) -> Self {
        match tensor {
            Some(tensor) => self.tensor(tensor, kind),
            None => self.value(&0u64.to_ne_bytes()),
        }
    }

    /// A struct of `N` addresses, null after those of `tensors`.
    pub(crate) fn tensors<const N: usize>(mut self, tensors: &'a [Tensor], kind: Kind) -> Self {
        let mut words = vec![0; N];
        for (word, tensor) in words.iter_mut().zip(tensors) {
            match strided_ptr_checked(tensor, self.loaded.device(), kind) {
                Ok(address) => *word = address.addr() as u64,
                Err(error) => _ = self.refused.get_or_insert(error),
            }
            self.bytes += tensor.numel() * kind.elt_size_in_bytes();
        }
        self.arguments.push(Argument::Long(words, N * size_of::<u64>()));
        self
    }

    /// An operand `[batch, time, ..]`: its address, then its strides over the batch and over time.
    pub(crate) fn rows(self, tensor: &'a Tensor, kind: Kind) -> Self {
        let strides = tensor.stride();
        self.tensor(tensor, kind).i64(strides[0]).i64(strides[1])
    }

    /// As [`rows`](Self::rows); null and zeros when there is none.
    pub(crate) fn optional_rows(self, tensor: Option<&'a Tensor>, kind: Kind) -> Self {
        match tensor {
            Some(tensor) => self.rows(tensor, kind),
            None => self.optional(None, kind).i64(0).i64(0),
        }
    }

    /// A state `[batch or 1, ..]`: its address, then its stride over the batch, 0 where all rows share it.
    pub(crate) fn state(self, tensor: Option<&'a Tensor>) -> Self {
        let stride = tensor.map_or(0, |tensor| if tensor.size()[0] == 1 { 0 } else { tensor.stride()[0] });
        self.optional(tensor, Kind::Float).i64(stride)
    }

    /// `long long`, as all sizes and strides are.
    pub(crate) fn i64(self, value: i64) -> Self {
        self.value(&value.to_ne_bytes())
    }

    /// `int`.
    pub(crate) fn i32(self, value: i32) -> Self {
        self.value(&value.to_ne_bytes())
    }

    /// `float`.
    pub(crate) fn f32(self, value: f32) -> Self {
        self.value(&value.to_ne_bytes())
    }

    /// A struct of so many `float`.
    pub(crate) fn f32s(mut self, values: &[f32]) -> Self {
        let word = |pair: &[f32]| {
            let mut bytes = [0; 8];
            for (to, value) in bytes.chunks_exact_mut(4).zip(pair) {
                to.copy_from_slice(&value.to_ne_bytes());
            }
            u64::from_ne_bytes(bytes)
        };
        let words = values.chunks(2).map(word).collect();
        self.arguments.push(Argument::Long(words, size_of_val(values)));
        self
    }

    fn value(mut self, value: &[u8]) -> Self {
        let mut bytes = [0; 8];
        bytes[..value.len()].copy_from_slice(value);
        self.arguments.push(Argument::Short([u64::from_ne_bytes(bytes)], value.len()));
        self
    }

    /// Gives the kernel to the current stream of its device and does not wait for it. A grid without blocks does
    /// nothing.
    ///
    /// # Safety
    /// The arguments must be the kernel's parameters, in order, and every tensor must have the elements that the kernel
    /// reads or writes under these arguments and this shape. (Number and sizes of the arguments are checked.)
    ///
    /// # Errors
    /// A tensor is of another kind or device, the arguments do not fit the kernel's parameters, or the driver refuses
    /// the shape. What goes wrong in the kernel itself is said by a later call, as with all work of a GPU.
    pub(crate) unsafe fn run(mut self, shape: Shape) -> Result<()> {
        if let Some(error) = self.refused.take() {
            return Err(self.failure(&error.to_string()));
        }
        let given: Vec<usize> = self.arguments.iter().map(Argument::length).collect();
        if self.kernel.parameters() != given {
            let wanted = self.kernel.parameters();
            let reason = format!("its parameters have {wanted:?} bytes, the arguments {given:?}");
            return Err(self.failure(&reason));
        }
        if shape.grid.contains(&0) {
            return Ok(());
        }
        let (stream, _) = device::current_stream(self.loaded.device())?;
        let mut addresses: Vec<*mut c_void> = self.arguments.iter_mut().map(Argument::address).collect();
        let (name, bytes) = (self.name, self.bytes);
        let _span = Span::enter(|| format!("hymba::kernel/{name}?bytes={bytes}"));
        // SAFETY: number and sizes were compared with the kernel's own; the rest the caller promises.
        let launched = unsafe { self.loaded.module().launch(self.kernel, shape, stream, &mut addresses) };
        launched.map_err(|reason| self.failure(&format!("{reason} ({shape:?})")))
    }

    fn failure(&self, reason: &str) -> Error {
        Error::other(format!("{} of kernels/src/{}: {reason}", self.name, self.loaded.program().path))
    }
}

/// `ceil(count / size)` blocks.
pub(crate) fn blocks(count: i64, size: i64) -> Result<u32> {
    u32::try_from(count.max(0).div_euclid(size) + i64::from(count.max(0).rem_euclid(size) != 0))
        .map_err(|_| Error::other(format!("{count} elements are too many for one launch")))
}

/// The index of a CUDA device.
pub(super) fn index(device: Device) -> Option<usize> {
    match device {
        Device::Cuda(index) => Some(index),
        _ => None,
    }
}
